"""Noise processes: how an image becomes a noised image, x_t = a_t x + s_t eps.

A process supplies a_t and s_t for a batch of noise levels `t`, and the distributions from which the two
learners draw theirs. Draws come in as uniform or normal numbers of one per sample, so that they can be
addressed (see `raysid.draws`); nothing here consumes randomness.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

KARRAS_RHO = 7.0


def per_sample(value: Tensor, images: Tensor) -> Tensor:
    """Shape a (B,) tensor so that it broadcasts over `images` of shape (B, ...)."""
    return value.reshape(-1, *[1] * (images.ndim - 1)).to(images.dtype)


@dataclass(frozen=True)
class EDMNoise:
    """Variance-exploding noise of EDM (arXiv 2206.00364, table 1): a_t = 1, s_t = t = sigma.

    The generator's noise level follows the Karras map of a uniform number cut at `tmax` (SiD, arXiv
    2404.04057); the fake score's is EDM's log-normal training distribution.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    log_sigma_mean: float = -1.2
    log_sigma_std: float = 1.2

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """a_t and s_t, each (B,), for sigma `t` of shape (B,)."""
        return torch.ones_like(t), t

    def add_noise(self, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = x + sigma eps, for images (B, C, H, W), sigma (B,), eps like x."""
        return x + per_sample(t, x) * eps

    def generator_level(self, uniform: Tensor, tmax: int) -> Tensor:
        """Sigma (B,) for the generator's loss from `uniform` numbers (B,) in [0, 1).

        u = uniform * tmax / 1000, then the Karras map from sigma_min (u = 0) to sigma_max (u = 1).
        """
        low, high = self.sigma_min ** (1 / KARRAS_RHO), self.sigma_max ** (1 / KARRAS_RHO)
        u = uniform * (tmax / 1000)
        return (high + (1 - u) * (low - high)) ** KARRAS_RHO

    def fake_score_level(self, normal: Tensor) -> Tensor:
        """Sigma (B,) for the fake score's training from standard normal numbers (B,)."""
        return torch.exp(self.log_sigma_std * normal + self.log_sigma_mean)

    def loss_weight(self, t: Tensor) -> Tensor:
        """EDM's lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, shape (B,)."""
        return (t**2 + self.sigma_data**2) / (t * self.sigma_data) ** 2
