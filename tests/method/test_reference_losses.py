"""The generator's losses and their gradients, against the authors' numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from raysid.method.losses import adversarial_loss, generator_loss, sid_loss
from tests.support.reference_folder import reference_folder

CASES = sorted(reference_folder().glob("generator_loss_*.npz"))


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_reference_losses_and_gradients(file: Path) -> None:
    case = np.load(file)
    x_g, x_teacher, x_fake, logits = (
        torch.from_numpy(case[name]).requires_grad_()
        for name in ("x_g", "x_teacher", "x_fake", "encoder_logits")
    )
    alpha = float(case["alpha"])
    sid = sid_loss(x_g, x_teacher, x_fake, alpha).sum()
    adversarial = adversarial_loss(logits, x_g, x_teacher, group_size=len(x_g)).sum()
    assert sid.item() == pytest.approx(float(case["sid_loss_sum"]), rel=1e-4)
    assert adversarial.item() == pytest.approx(float(case["adv_loss_sum"]), rel=1e-4)

    gradients = torch.autograd.grad(sid, (x_g, x_teacher, x_fake), retain_graph=True)
    (logit_gradient,) = torch.autograd.grad(adversarial, logits)
    names = ("grad_x_g", "grad_x_teacher", "grad_x_fake", "grad_logits")
    for name, gradient in zip(names, (*gradients, logit_gradient), strict=True):
        expected = case[name]
        np.testing.assert_allclose(gradient.numpy(), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_whole_loss_is_half_of_each_term_when_the_adversary_acts() -> None:
    case = np.load(CASES[0])
    x_g, x_teacher, x_fake, logits = (
        torch.from_numpy(case[name]) for name in ("x_g", "x_teacher", "x_fake", "encoder_logits")
    )
    alone, sid, _ = generator_loss(x_g, x_teacher, x_fake, 1.0, sid_scale=100.0)
    assert float(alone) == float(sid)
    both, sid, adversarial = generator_loss(
        x_g, x_teacher, x_fake, 1.0, 100.0, logits=logits, adversarial_scale=0.01, group_size=len(x_g)
    )
    assert float(both) == pytest.approx((float(alone) + float(adversarial)) / 2)
    assert float(sid) == float(alone)
