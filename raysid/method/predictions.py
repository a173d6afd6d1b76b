"""Predictions of epsilon and of v; conversion to and from the clean image.

EDM's networks predict the clean image, others the noise epsilon or the velocity v = a_t eps - s_t x (Salimans and Ho,
arXiv 2202.00512). With x_t = a_t x + s_t eps and a_t^2 + s_t^2 = 1, each is an affine map of the clean image at a given
x_t, and the two functions here are exact inverses.

Images and predictions are (B, ...); scales are (B,), as a noise process returns them.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from raysid.method.noise import per_sample

PredictionType = Literal["epsilon", "v_prediction"]  # diffusers' own names


def clean_image(kind: PredictionType, prediction: Tensor, x_t: Tensor, a_t: Tensor, s_t: Tensor) -> Tensor:
    """Return the clean image x_hat of a network's prediction: (x_t - s eps_hat) / a, or a x_t - s v_hat."""
    a, s = per_sample(a_t, x_t), per_sample(s_t, x_t)
    return (x_t - s * prediction) / a if kind == "epsilon" else a * x_t - s * prediction


def to_prediction(kind: PredictionType, x: Tensor, x_t: Tensor, a_t: Tensor, s_t: Tensor) -> Tensor:
    """Return the prediction of a network whose clean image is `x`: (x_t - a x) / s, or (a x_t - x) / s.

    For the image from which x_t was made, this is the training target: epsilon or v.
    """
    a, s = per_sample(a_t, x_t), per_sample(s_t, x_t)
    return (x_t - a * x) / s if kind == "epsilon" else (a * x_t - x) / s
