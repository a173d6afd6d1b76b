"""Conversion of a network's prediction to the clean image."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from raysid.method.predictions import PredictionType, clean_image, to_prediction

KINDS = get_args(PredictionType)


@pytest.fixture
def noised() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, eps, x_t, a_t, s_t of four images, in float64, from nearly clean to nearly noise."""
    source = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 4, 3, 5, 5, generator=source, dtype=torch.float64)
    a_t = torch.tensor([0.99, 0.8, 0.3, 0.07], dtype=torch.float64)
    s_t = (1 - a_t**2).sqrt()
    return x, eps, a_t[:, None, None, None] * x + s_t[:, None, None, None] * eps, a_t, s_t


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_prediction_holds_the_clean_image(kind: PredictionType, noised) -> None:
    x, eps, x_t, a_t, s_t = noised
    a, s = a_t[:, None, None, None], s_t[:, None, None, None]
    perfect = {"epsilon": eps, "v_prediction": a * eps - s * x}[kind]
    torch.testing.assert_close(clean_image(kind, perfect, x_t, a_t, s_t), x)
    torch.testing.assert_close(to_prediction(kind, x, x_t, a_t, s_t), perfect)


@pytest.mark.parametrize("kind", KINDS)
def test_the_two_conversions_invert_each_other(kind: PredictionType, noised) -> None:
    x, _, x_t, a_t, s_t = noised
    anything = x.flip(0)
    torch.testing.assert_close(
        clean_image(kind, to_prediction(kind, anything, x_t, a_t, s_t), x_t, a_t, s_t), anything
    )
    torch.testing.assert_close(
        to_prediction(kind, clean_image(kind, anything, x_t, a_t, s_t), x_t, a_t, s_t), anything
    )
