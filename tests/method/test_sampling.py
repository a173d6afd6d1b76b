"""The samplers: Heun against the exact solution for Gaussian data, and the generator's one step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from raysid.method.noise import DDPMNoise, EDMNoise
from raysid.method.sampling import ddim, heun, one_step_from

SIGMA_DATA = 0.5
SIGMA_MAX = 80.0


class GaussianDenoiser:
    """The exact denoiser of normal data with standard deviation 0.5; it records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, Tensor, Tensor | None]] = []

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        assert x_t.dtype == t.dtype == torch.float32 and t.shape == x_t.shape[:1]
        self.calls.append((t[0].item(), x_t, cond))
        sigma = t.reshape(-1, 1, 1, 1)
        return x_t * SIGMA_DATA**2 / (SIGMA_DATA**2 + sigma**2)


def exact(z: Tensor, sigma: float) -> Tensor:
    """x(sigma) on the probability-flow path that starts at x(80) = 80 z: dx/dsigma = (x - D(x)) / sigma."""
    return SIGMA_MAX * z * ((SIGMA_DATA**2 + sigma**2) / (SIGMA_DATA**2 + SIGMA_MAX**2)) ** 0.5


def sampled(steps: int, z: Tensor, cond: Any = None) -> tuple[Tensor, GaussianDenoiser]:
    network = GaussianDenoiser()
    return heun(network, z, cond, steps), network  # type: ignore[arg-type]


@pytest.fixture
def z() -> Tensor:
    return torch.randn(1000, 1, 2, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("steps", [2, 18])
def test_heun_evaluates_the_network_twice_a_step_less_one(steps: int, z: Tensor) -> None:
    assert len(sampled(steps, z)[1].calls) == 2 * steps - 1


def test_heun_ends_at_the_datas_distribution(z: Tensor) -> None:
    images, _ = sampled(18, z)
    assert images.dtype == torch.float32 and images.shape == z.shape
    assert images.std().item() == pytest.approx(SIGMA_DATA, rel=0.08)
    torch.testing.assert_close(images, exact(z, 0), rtol=0.06, atol=0)


def test_heun_follows_the_exact_path_between(z: Tensor) -> None:
    _, network = sampled(64, z)
    sigmas = {round(sigma, 9): x for sigma, x, _ in network.calls}  # the last visit of each level
    assert len(sigmas) == 64
    for sigma, x in sigmas.items():
        torch.testing.assert_close(x, exact(z, sigma), rtol=5e-3, atol=0)


def test_heuns_error_falls_with_the_square_of_the_steps(z: Tensor) -> None:
    errors = [(sampled(steps, z)[0] / exact(z, 0) - 1).abs().mean().item() for steps in (18, 36, 72)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.25)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.25)


def test_heuns_noise_levels_are_karras_from_80_to_0_002(z: Tensor) -> None:
    visited = [sigma for sigma, _, _ in sampled(18, z)[1].calls]
    levels = [
        (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18) for _ in (0, 1)
    ]
    assert visited == pytest.approx(levels[:1] + levels[2:], rel=1e-5)


def test_heun_hands_the_conditions_to_every_evaluation_and_keeps_no_graph(z: Tensor) -> None:
    cond = torch.zeros(len(z), 3)
    images, network = sampled(3, z.requires_grad_(), cond)
    assert all(given is cond for _, _, given in network.calls)
    assert not images.requires_grad


def test_one_step_is_one_evaluation_at_the_generators_noise_level(z: Tensor) -> None:
    network, cond = GaussianDenoiser(), torch.zeros(len(z), 3)
    images = one_step_from(network, EDMNoise(), 2.5, z, cond)  # type: ignore[arg-type]
    ((sigma, x_t, given),) = network.calls
    assert sigma == 2.5 and given is cond
    assert torch.equal(x_t, 2.5 * z)
    torch.testing.assert_close(images, 2.5 * z * 0.25 / (0.25 + 6.25))


def test_one_step_of_any_process_starts_from_noise_of_its_level(z: Tensor) -> None:
    noise = DDPMNoise((1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0))
    calls: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def network(x_t: Tensor, t: Tensor, cond: Tensor | None = None, /) -> Tensor:
        calls.append((x_t, t, cond))
        return x_t / 2

    cond = torch.zeros(1000, 5, 6)
    x_g = one_step_from(network, noise, noise.tau, z, cond)
    ((x_t, t, given),) = calls
    assert t.dtype == torch.int64 and t.unique().tolist() == [625] and given is cond
    torch.testing.assert_close(x_t, (1 - noise.alphas_cumprod[625]).sqrt() * z)
    assert torch.equal(x_g, x_t / 2)


def test_ddims_error_falls_with_the_steps(z: Tensor) -> None:
    """From noise to data of standard deviation 0.5: one evaluation per step, ending at 0."""
    noise = DDPMNoise((1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0))
    cond = torch.zeros(1000, 5)
    visited: list[int] = []

    def network(x_t: Tensor, t: Tensor, given: Tensor | None = None, /) -> Tensor:
        visited.append(int(t[0]))
        assert given is cond and t.dtype == torch.int64
        a, s = (scale[:, None, None, None] for scale in noise.scales(t))
        return x_t * a * 0.25 / (a**2 * 0.25 + s**2)

    errors = [(ddim(network, noise, z, cond, n) / (z / 2) - 1).abs().mean().item() for n in (25, 50, 100)]
    assert errors[-1] < 0.03
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.2) == errors[1] / errors[2]
    assert len(visited) == 175 and visited[:25] == sorted(set(visited[:25]), reverse=True)
    assert (visited[0], visited[24]) == (999, 0)
