"""A user's own module of teachers: denoisers of points in the plane, and the factories that make them.

The points lie around four modes, two per class. Weights are loaded from the file that POINTS_WEIGHTS names. They
are random if it is unset, as in worker processes that the test's cluster started earlier.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

import raysid

CLASSES = 2  # on the right, on the left
MODES = torch.tensor([[1.5, 1.5], [1.5, -1.5], [-1.5, 1.5], [-1.5, -1.5]])
SPREAD = 0.2  # standard deviation around a mode
SIGMA_DATA = 1.5
EDM = raysid.EDMNoise(sigma_data=SIGMA_DATA, log_sigma_mean=-0.5)
DDPM = raysid.DDPMNoise((1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0).float())


class Flow:
    """A user's own noise process: the linear path of flow matching, a_t = 1 - t, s_t = t, t in (0, 1)."""

    fake_score_draw = "uniform"
    default_tmax = 980

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t

    def add_noise(self, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        t = t.reshape(-1, *[1] * (x.ndim - 1))
        return (1 - t) * x + t * eps

    def start_level(self, sigma_init: float) -> float:
        return sigma_init / (1 + sigma_init)

    def generator_level(self, uniform: Tensor, tmax: int) -> Tensor:
        return 0.02 + (tmax / 1000 - 0.02) * uniform

    def fake_score_level(self, uniform: Tensor) -> Tensor:
        return 0.02 + 0.96 * uniform

    def loss_weight(self, t: Tensor) -> Tensor:
        return 1 / t**2  # weight of a squared error of the velocity


FLOW = Flow()


class Points(nn.Module):
    """EDM's preconditioning around an MLP. Other noise processes are rescaled to EDM's: the input is x_t / a_t.

    Args:
        label_dim: 2, or 0 for a module without classes.
    """

    def __init__(self, noise: raysid.NoiseProcess, label_dim: int = 0, width: int = 64) -> None:
        super().__init__()
        self.sample_shape = (2,)
        self.label_dim = label_dim
        self.noise = noise
        self.layers = nn.Sequential(
            nn.Linear(3 + label_dim, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 2),
        )

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        a_t, s_t = self.noise.scales(t)
        x, sigma = x_t / a_t[:, None], (s_t / a_t)[:, None]
        scale = (sigma**2 + SIGMA_DATA**2).sqrt()
        given = [x / scale, sigma.log() / 4] + ([] if cond is None else [cond])
        output = self.layers(torch.cat(given, 1))
        return (SIGMA_DATA / scale) ** 2 * x + sigma * SIGMA_DATA / scale * output


def draw(count: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points (count, 2) and their classes (count,)."""
    mode = torch.randint(len(MODES), (count,), generator=source)
    return MODES[mode] + SPREAD * torch.randn(count, 2, generator=source), mode // 2


def train(model: Points, steps: int = 1000, batch: int = 512, seed: int = 0) -> Points:
    """Train a denoiser with EDM's loss on the clean sample, at the noise levels that psi will see."""
    source = torch.Generator().manual_seed(seed)
    noise = model.noise
    adam = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        x, label = draw(batch, source)
        normal = noise.fake_score_draw == "normal"
        chance = torch.randn(batch, generator=source) if normal else torch.rand(batch, generator=source)
        t = noise.fake_score_level(chance)
        x_t = noise.add_noise(x, t, torch.randn(batch, 2, generator=source))
        cond = nn.functional.one_hot(label, model.label_dim).float() if model.label_dim else None
        error = ((model(x_t, t, cond) - x) ** 2).sum(1)
        (noise.loss_weight(t) * error).mean().backward()
        adam.step()
        adam.zero_grad()
        schedule.step()
    return model


def near(points: Tensor) -> tuple[float, Tensor]:
    """The share of points within three standard deviations of a mode, and each mode's share of those (4,)."""
    distance, mode = torch.cdist(points, MODES).min(1)
    close = distance < 3 * SPREAD
    return close.float().mean().item(), mode[close].bincount(minlength=len(MODES)) / close.sum()


def _loaded(model: Points) -> Points:
    file = os.environ.get("POINTS_WEIGHTS")
    if file is not None:
        model.load_state_dict(torch.load(file, weights_only=True))
    return model


def make() -> tuple[nn.Module, raysid.NoiseProcess]:
    return _loaded(Points(EDM)), EDM


def make_conditional() -> tuple[nn.Module, raysid.NoiseProcess]:
    return _loaded(Points(EDM, label_dim=CLASSES)), EDM


class Digits(nn.Module):
    """A linear denoiser of the digits: no good one, but of images, which `raysid sample` can draw."""

    def __init__(self) -> None:
        super().__init__()
        self.img_channels, self.img_resolution, self.label_dim = 1, 8, 10
        self.layer = nn.Linear(64 + 10, 64)
        self.register_buffer("bias", torch.tensor(1.0))

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        assert cond is not None
        shrunk = x_t.flatten(1) / (self.bias + t[:, None])
        return self.layer(torch.cat([shrunk, cond], 1)).view_as(x_t)


def make_digits() -> tuple[nn.Module, raysid.NoiseProcess]:
    torch.manual_seed(5)
    return Digits(), raysid.EDMNoise()


def make_digits_flow() -> tuple[nn.Module, raysid.NoiseProcess]:
    return Digits(), FLOW


def make_flow() -> tuple[nn.Module, raysid.NoiseProcess]:
    return _loaded(Points(FLOW)), FLOW


def make_discrete() -> tuple[nn.Module, raysid.NoiseProcess]:
    return _loaded(Points(DDPM)), DDPM
