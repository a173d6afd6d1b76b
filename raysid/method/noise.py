"""Noise processes: how an image, or another sample, is noised, x_t = a_t x + s_t eps.

A process gives a_t and s_t for a batch of noise levels `t`, and the distributions from which the two learners draw
theirs. It maps uniform or normal numbers, one per sample, to levels; so draws are addressed (`raysid.method.draws`) and
nothing here consumes randomness.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor

from raysid.config.networks import DDPM_TMAX, EDM_TMAX

KARRAS_RHO = 7.0
SIGMA_MIN, SIGMA_MAX = 0.138, 12.97  # of steps 20 and 979 of Stable Diffusion, between which SiD-LSG draws


def per_sample(value: Tensor, images: Tensor) -> Tensor:
    """Shape a (B,) tensor so that it broadcasts over `images` of shape (B, ...)."""
    return value.reshape(-1, *[1] * (images.ndim - 1)).to(images.dtype)


class NoiseProcess(Protocol):
    """A noise process. `t` is a noise level (B,) in the process's own measure.

    A level is a real number (float32) or the index of a step (int64), of the type that `start_level` returns.
    All results are finite for uniform numbers in [0, 1).

    Attributes:
        fake_score_draw: the distribution of the random numbers that `fake_score_level` takes.
        default_tmax: the `tmax` of `generator_level` where a run sets none; 1 to 1000.
    """

    fake_score_draw: ClassVar[Literal["normal", "uniform"]]

    @property
    def default_tmax(self) -> int: ...

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return a_t and s_t, each (B,)."""

    def add_noise(self, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return x_t = a_t x + s_t eps, for images (B, ...), eps like x."""

    def start_level(self, sigma_init: float) -> float:
        """Return the generator's noise level: `sigma_init` where levels are sigmas; an int is the index of a step."""

    def generator_level(self, uniform: Tensor, tmax: int) -> Tensor:
        """Map uniform numbers (B,) to noise levels for the generator's loss; `tmax`: the largest time, of 1000."""

    def fake_score_level(self, draw: Tensor, /) -> Tensor:
        """Map one `fake_score_draw` per sample, (B,), to noise levels for the fake score's training, (B,)."""

    def loss_weight(self, t: Tensor) -> Tensor:
        """Return the weight (B,) of the squared error in the clean image, in the fake score's loss."""


@dataclass(frozen=True)
class EDMNoise:
    """Variance-exploding noise of EDM (arXiv 2206.00364, table 1): a_t = 1, s_t = t = sigma.

    The generator's noise level follows the Karras map of a uniform number, truncated at `tmax` (SiD, arXiv
    2404.04057); the fake score's follows EDM's log-normal training distribution.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    log_sigma_mean: float = -1.2
    log_sigma_std: float = 1.2
    fake_score_draw: ClassVar[Literal["normal", "uniform"]] = "normal"
    default_tmax: ClassVar[int] = EDM_TMAX

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return a_t and s_t, each (B,), for sigma `t` of shape (B,)."""
        return torch.ones_like(t), t

    def add_noise(self, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return x_t = x + sigma eps, for images (B, C, H, W), sigma (B,), eps like x."""
        return x + per_sample(t, x) * eps

    def start_level(self, sigma_init: float) -> float:
        """Return `sigma_init` itself: levels are sigmas."""
        return sigma_init

    def generator_level(self, uniform: Tensor, tmax: int) -> Tensor:
        """Map `uniform` numbers (B,) in [0, 1) to sigma (B,) for the generator's loss.

        u = uniform * tmax / 1000, then the Karras map from sigma_min (u = 0) to sigma_max (u = 1).
        """
        low, high = self.sigma_min ** (1 / KARRAS_RHO), self.sigma_max ** (1 / KARRAS_RHO)
        u = uniform * (tmax / 1000)
        return (high + (1 - u) * (low - high)) ** KARRAS_RHO

    def fake_score_level(self, normal: Tensor) -> Tensor:
        """Map standard normal numbers (B,) to sigma (B,) for the fake score's training."""
        return torch.exp(self.log_sigma_std * normal + self.log_sigma_mean)

    def loss_weight(self, t: Tensor) -> Tensor:
        """Return EDM's lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, shape (B,)."""
        return (t**2 + self.sigma_data**2) / (t * self.sigma_data) ** 2


@dataclass(frozen=True, eq=False)
class DDPMNoise:
    """Discrete variance-preserving noise (DDPM, arXiv 2006.11239): a_t = sqrt(abar_t), s_t = sqrt(1 - abar_t).

    Noise levels are step indices, int64. Both learners draw theirs uniformly from [tmin, tmax), which leaves out the
    ends of the schedule (SiD-LSG, arXiv 2406.01561).

    The defaults of the steps are SiD-LSG's, for Stable Diffusion's betas; `nearest` finds those of any schedule.

    Attributes:
        alphas_cumprod: abar_t of every step, float32 (steps,), decreasing, in [0, 1).
        tmin: the first step that may be drawn.
        tmax: one more than the last step that may be drawn.
        tau: the step at which the generator runs: x_g = D(s_tau z, tau, c).

    Raises:
        ValueError: `alphas_cumprod` is not such a schedule, or has too few steps.
    """

    alphas_cumprod: Tensor
    tmin: int = 20
    tmax: int = DDPM_TMAX
    tau: int = 625
    fake_score_draw: ClassVar[Literal["normal", "uniform"]] = "uniform"

    def __post_init__(self) -> None:
        abar = self.alphas_cumprod
        if abar.ndim != 1 or not ((abar >= 0) & (abar < 1)).all() or not (abar.diff() < 0).all():
            raise ValueError("alphas_cumprod must be one-dimensional, decreasing and in [0, 1)")
        if not 0 <= self.tmin < self.tmax <= len(abar) or not 0 <= self.tau < len(abar):
            raise ValueError(
                f"a schedule of {len(abar)} steps has no steps {self.tmin} to {self.tmax - 1} and {self.tau}"
            )

    @classmethod
    def nearest(cls, alphas_cumprod: Tensor, sigma_init: float = 2.5) -> Self:
        """Return the process of a schedule, with the steps whose sigmas are nearest those of SiD-LSG.

        tau is nearest `sigma_init`, the first and the last step that may be drawn are nearest `SIGMA_MIN` and
        `SIGMA_MAX`. For Stable Diffusion's betas they are 625, 20 and 979.

        Raises:
            ValueError: `alphas_cumprod` is not a schedule.
        """
        sigmas = sigmas_of(alphas_cumprod)
        tau, first, last = (
            int((sigmas - sigma).abs().argmin()) for sigma in (sigma_init, SIGMA_MIN, SIGMA_MAX)
        )
        return cls(alphas_cumprod, tmin=first, tmax=last + 1, tau=tau)

    @property
    def default_tmax(self) -> int:
        """`tmax`, the end of the range of steps."""
        return self.tmax

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return a_t and s_t, each float32 (B,), for steps `t`, int64 (B,)."""
        abar = self.alphas_cumprod.to(t.device)[t]
        return abar.sqrt(), (1 - abar).sqrt()

    def add_noise(self, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return x_t = a_t x + s_t eps, for images (B, C, H, W), steps (B,), eps like x."""
        a_t, s_t = self.scales(t)
        return per_sample(a_t, x) * x + per_sample(s_t, x) * eps

    def start_level(self, sigma_init: float) -> int:
        """Return step `tau`; `sigma_init` has no effect."""
        return self.tau

    def generator_level(self, uniform: Tensor, tmax: int) -> Tensor:
        """Map `uniform` numbers (B,) in [0, 1) to steps for the generator's loss: uniform in [tmin, tmax)."""
        # No float32 number below 1 times the width rounds up to the width itself.
        return self.tmin + (uniform * (tmax - self.tmin)).long()

    def fake_score_level(self, uniform: Tensor) -> Tensor:
        """Map `uniform` numbers (B,) in [0, 1) to steps for the fake score's training: uniform in [tmin, tmax)."""
        return self.generator_level(uniform, self.tmax)

    def loss_weight(self, t: Tensor) -> Tensor:
        """Return the signal-to-noise ratio a_t^2 / s_t^2, shape (B,), for epsilon and for v networks.

        In the clean image both losses are the same number: eps_hat - eps = -(a/s) (x_hat - x), with weight 1,
        and v_hat - v = -(1/s) (x_hat - x), with weight snr / (snr + 1) = a^2.
        """
        a_t, s_t = self.scales(t)
        return (a_t / s_t) ** 2


def sigmas_of(alphas_cumprod: Tensor) -> Tensor:
    """Return sigma = s_t / a_t of every step, float64 (steps,), as images of unit scale see the noise."""
    abar = alphas_cumprod.double()
    return ((1 - abar) / abar).sqrt()
