"""Diffusers' U-Nets under SiD-LSG, against the authors' numbers: one step, guidance, both losses, the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from raysid.method.guidance import guided, guided_prediction
from raysid.method.losses import denoising_loss, sid_loss
from raysid.method.noise import DDPMNoise, per_sample
from raysid.method.predictions import to_prediction
from raysid.method.sampling import one_step_from
from raysid.networks.diffusers import DiffusersDenoiser, read_scheduler
from tests.support.reference_folder import reference_cases, reference_folder

CASES = reference_cases("lsg_", "lsg_cases.json")
ALPHA_KEY = "sid_loss_sum_alpha"


@dataclass(frozen=True)
class Case:
    """One case: its networks as denoisers, its settings, its numbers by name."""

    teacher: DiffusersDenoiser
    fake_score: DiffusersDenoiser
    noise: DDPMNoise
    settings: dict[str, Any]
    numbers: dict[str, np.ndarray]

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.numbers[name])

    @property
    def alphas(self) -> list[str]:
        """Every alpha for which the file has the generator's loss, as the file writes it."""
        return [name.removeprefix(ALPHA_KEY) for name in self.numbers if name.startswith(ALPHA_KEY)]

    @property
    def x_t(self) -> Tensor:
        return self.noise.add_noise(self["x_g"], self["timesteps"], self["noise"])


@pytest.fixture(scope="module", params=CASES, ids=[name for name, _ in CASES])
def case(request: pytest.FixtureRequest) -> Case:
    name, settings = request.param
    numbers = dict(np.load(reference_folder() / f"{name}.npz"))
    noise, prediction_type = read_scheduler(settings["scheduler"])
    assert prediction_type == settings["scheduler"]["prediction_type"]

    def network(prefix: str) -> DiffusersDenoiser:
        unet = UNet2DConditionModel(**settings["unet"])
        weights = {
            key.removeprefix(prefix): torch.from_numpy(value)
            for key, value in numbers.items()
            if key.startswith(prefix)
        }
        unet.load_state_dict(weights)
        null_text = torch.from_numpy(numbers["uncond"])
        denoiser = DiffusersDenoiser(unet, noise, prediction_type, null_text=null_text)
        return denoiser.eval().requires_grad_(False)

    return Case(network("unet/"), network("fake/"), noise, settings, numbers)


def assert_agrees(value: Tensor, expected: np.ndarray) -> None:
    """Within 1e-3 of the largest expected number."""
    np.testing.assert_allclose(value.numpy(), expected, rtol=0, atol=1e-3 * np.abs(expected).max())


def test_the_generators_one_step(case: Case) -> None:
    level = int(case.numbers["t_init"])
    assert level == case.noise.tau
    assert_agrees(
        one_step_from(case.teacher, case.noise, level, case["z"], case["cond"]), case.numbers["x_g"]
    )


def test_guided_predictions(case: Case) -> None:
    at = (case.x_t, case["timesteps"], case["cond"])
    k1, k23, k4 = (case.settings[name] for name in ("kappa1", "kappa2_3", "kappa4"))
    assert_agrees(guided_prediction(case.fake_score, *at, k1)[0], case.numbers["fake_prediction_k1"])
    assert_agrees(guided(case.fake_score, *at, k23)[0], case.numbers["x_fake_k23"])
    assert_agrees(guided(case.teacher, *at, k4)[0], case.numbers["x_teacher_k4"])


def test_the_fake_scores_loss(case: Case) -> None:
    t, x_g = case["timesteps"], case["x_g"]
    x_hat, _ = guided(case.fake_score, case.x_t, t, case["cond"], case.settings["kappa1"])
    loss = denoising_loss(x_hat, x_g, case.noise.loss_weight(t)).sum()
    assert loss.item() == pytest.approx(float(case.numbers["fake_loss_sum"]), rel=1e-3)


def test_the_fake_scores_loss_as_the_error_of_the_networks_prediction(case: Case) -> None:
    """The paper's form: epsilon with weight 1, v with weight snr / (snr + 1)."""
    t, x_g = case["timesteps"], case["x_g"]
    a_t, s_t = case.noise.scales(t)
    kind = case.fake_score.prediction_type
    prediction, _ = guided_prediction(case.fake_score, case.x_t, t, case["cond"], case.settings["kappa1"])
    target = to_prediction(kind, x_g, case.x_t, a_t, s_t)
    snr = (a_t / s_t) ** 2
    weight = torch.ones_like(snr) if kind == "epsilon" else snr / (snr + 1)
    loss = denoising_loss(prediction, target, weight)
    assert loss.sum().item() == pytest.approx(float(case.numbers["fake_loss_sum"]), rel=1e-3)
    x_hat = case.fake_score.clean(prediction, case.x_t, t)
    torch.testing.assert_close(
        denoising_loss(x_hat, x_g, case.noise.loss_weight(t)), loss, rtol=1e-4, atol=0.0
    )


def test_the_generators_loss_and_its_gradient_through_both_networks(case: Case) -> None:
    t, cond = case["timesteps"], case["cond"]
    assert case.alphas
    for alpha in case.alphas:
        x_g = case["x_g"].requires_grad_()
        x_t = case.noise.add_noise(x_g, t, case["noise"])
        x_teacher, _ = guided(case.teacher, x_t, t, cond, case.settings["kappa4"])
        x_fake, _ = guided(case.fake_score, x_t, t, cond, case.settings["kappa2_3"])
        loss = sid_loss(x_g, x_teacher, x_fake, float(alpha)).sum()
        assert loss.item() == pytest.approx(float(case.numbers[ALPHA_KEY + alpha]), rel=1e-3)
        (gradient,) = torch.autograd.grad(loss, x_g)
        assert_agrees(gradient, case.numbers[f"grad_x_g_alpha{alpha}"])


def test_the_gradient_from_the_two_networks_pulls(case: Case) -> None:
    """As the three roles compute it: the direct part plus a_t times the sum of the pulls."""
    t, cond = case["timesteps"], case["cond"]
    for alpha in case.alphas:
        x_t = case.x_t
        inputs = [x_t.clone().requires_grad_(), x_t.clone().requires_grad_()]
        scales = (case.settings["kappa4"], case.settings["kappa2_3"])
        x_hats = [
            guided(network, own, t, cond, scale)[0]
            for network, own, scale in zip((case.teacher, case.fake_score), inputs, scales, strict=True)
        ]
        leaves = [case["x_g"].requires_grad_(), *(x_hat.detach().requires_grad_() for x_hat in x_hats)]
        loss = sid_loss(leaves[0], leaves[1], leaves[2], float(alpha)).sum()
        direct, *cotangents = torch.autograd.grad(loss, leaves)
        pulls = torch.autograd.grad(x_hats, inputs, cotangents)
        gradient = direct + per_sample(case.noise.scales(t)[0], direct) * (pulls[0] + pulls[1])
        assert_agrees(gradient, case.numbers[f"grad_x_g_alpha{alpha}"])
