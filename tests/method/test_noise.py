"""The noise processes: x_t, the two distributions of noise levels, the loss weight."""

from __future__ import annotations

import math

import pytest
import torch

from raysid.method.noise import DDPMNoise, EDMNoise, NoiseProcess, per_sample

NOISE = EDMNoise()
ABAR = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
DDPM = DDPMNoise(ABAR.float())


def karras(u: float) -> float:
    """The sigma of docs/method.md for u in [0, 1], written out."""
    return (80 ** (1 / 7) + (1 - u) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7


def test_noise_is_added_to_each_image_at_its_own_level() -> None:
    x, eps = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    x_t = NOISE.add_noise(x, torch.tensor([0.0, 0.5, 80.0]), eps)
    assert torch.equal(x_t[0], x[0])
    torch.testing.assert_close(x_t[1], x[1] + 0.5 * eps[1])
    torch.testing.assert_close(x_t[2], x[2] + 80 * eps[2])


def test_x_t_has_the_scales_that_the_process_names() -> None:
    sigma = torch.tensor([0.3, 7.0])
    a_t, s_t = NOISE.scales(sigma)
    x, eps = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    expected = per_sample(a_t, x) * x + per_sample(s_t, x) * eps
    torch.testing.assert_close(NOISE.add_noise(x, sigma, eps), expected)
    assert a_t.tolist() == [1, 1] and torch.equal(s_t, sigma)


def test_the_generators_levels_run_from_the_smallest_to_the_one_at_tmax() -> None:
    uniform = torch.tensor([0.0, 0.25, 0.5, 1.0])
    levels = NOISE.generator_level(uniform, tmax=800)
    expected = [karras(0.8 * u) for u in uniform.tolist()]
    assert levels.tolist() == pytest.approx(expected, rel=1e-4)
    assert levels[0].item() == pytest.approx(0.002, rel=1e-4)
    assert NOISE.generator_level(torch.ones(1), tmax=1000).item() == pytest.approx(80, rel=1e-5)


def test_the_generators_level_grows_with_its_uniform_number() -> None:
    levels = NOISE.generator_level(torch.linspace(0, 1, 101), tmax=800)
    assert (levels.diff() > 0).all()


def test_the_fake_scores_levels_are_log_normal_around_minus_one_point_two() -> None:
    levels = NOISE.fake_score_level(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    assert levels.log().tolist() == pytest.approx([-2.4, -1.2, 0.0, 1.2], abs=1e-6)


def test_the_loss_weight_is_edms_lambda() -> None:
    weights = NOISE.loss_weight(torch.tensor([0.5, 2.0]))
    assert weights.tolist() == pytest.approx([(0.25 + 0.25) / 0.0625, (4 + 0.25) / 1.0])
    other = EDMNoise(sigma_data=1.0).loss_weight(torch.tensor([0.5]))
    assert other.item() == pytest.approx((0.25 + 1) / 0.25)


def test_a_weighted_perfect_guess_of_nothing_costs_one_at_every_level() -> None:
    """lambda is 1 / c_out^2: an untrained network, F = 0, has loss 1 a pixel on data of sigma_data."""
    sigma = torch.tensor([0.01, 0.5, 20.0]).repeat_interleave(20_000).double()
    source = torch.Generator().manual_seed(0)
    x = 0.5 * torch.randn(60_000, generator=source, dtype=torch.float64)
    x_t = x + sigma * torch.randn(60_000, generator=source, dtype=torch.float64)
    x_hat = 0.25 / (sigma**2 + 0.25) * x_t
    losses = (NOISE.loss_weight(sigma) * (x_hat - x) ** 2).reshape(3, -1).mean(1)
    assert losses.tolist() == pytest.approx([1, 1, 1], abs=6 * math.sqrt(2 / 20_000))


def test_per_sample_shapes_a_batch_of_numbers_like_images() -> None:
    shaped = per_sample(torch.tensor([1.0, 2.0], dtype=torch.float64), torch.zeros(2, 3, 4, 4))
    assert shaped.shape == (2, 1, 1, 1) and shaped.dtype == torch.float32


def test_ddpm_adds_noise_at_each_images_own_step() -> None:
    x, eps, t = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([0, 625, 999])
    x_t = DDPM.add_noise(x, t, eps)
    for i, step in enumerate(t.tolist()):
        abar = ABAR[step].item()
        expected = math.sqrt(abar) * x[i] + math.sqrt(1 - abar) * eps[i]
        torch.testing.assert_close(x_t[i], expected, rtol=1e-4, atol=1e-4)


def test_ddpm_keeps_the_variance() -> None:
    a_t, s_t = DDPM.scales(torch.arange(1000))
    torch.testing.assert_close(a_t**2 + s_t**2, torch.ones(1000))
    assert (a_t.diff() < 0).all() and (s_t.diff() > 0).all()


def test_ddpm_draws_every_step_from_20_to_979_equally_often() -> None:
    uniform = torch.arange(9600) / 9600 + 1e-5
    for levels in (DDPM.generator_level(uniform, tmax=980), DDPM.fake_score_level(uniform)):
        assert levels.dtype == torch.int64
        steps, counts = levels.unique(return_counts=True)
        assert steps.tolist() == list(range(20, 980)) and set(counts.tolist()) == {10}
    assert DDPM.generator_level(uniform, tmax=500).max() == 499


@pytest.mark.parametrize("tmax", [21, 500, 513, 980, 1000])
def test_the_largest_number_under_one_draws_the_last_step(tmax: int) -> None:
    largest = torch.nextafter(torch.ones(1), torch.zeros(1))
    assert DDPM.generator_level(torch.tensor([0.0]), tmax).item() == 20
    assert DDPM.generator_level(largest, tmax).item() == tmax - 1


def test_ddpms_loss_weight_is_the_signal_to_noise_ratio() -> None:
    t = torch.tensor([20, 500, 979])
    expected = (ABAR / (1 - ABAR))[t]
    torch.testing.assert_close(DDPM.loss_weight(t).double(), expected, rtol=1e-4, atol=0)


def test_an_invalid_schedule_is_refused() -> None:
    abar = ABAR.float()
    for wrong in (abar.flip(0), abar[None], abar + 0.5, abar - 0.5, abar.where(abar > 0.5, torch.nan)):
        with pytest.raises(ValueError, match="decreasing and in"):
            DDPMNoise(wrong)
    for settings in ({"tmin": 980}, {"tmax": 1001}, {"tau": 1000}, {"tmin": -1}):
        with pytest.raises(ValueError, match="of 1000 steps has no steps"):
            DDPMNoise(abar, **settings)


def abar_of(steps: int, schedule: str = "linear") -> torch.Tensor:
    """The published schedules: DDPM's betas, Stable Diffusion's, and the cosine of improved DDPM."""
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    cosine = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = {
        "linear": torch.linspace(1e-4, 0.02, steps, dtype=torch.float64),
        "stable-diffusion": torch.linspace(0.00085**0.5, 0.012**0.5, steps, dtype=torch.float64) ** 2,
        "cosine": (1 - cosine[1:] / cosine[:-1]).clamp(max=0.999),
    }[schedule]
    return (1 - betas).cumprod(0).float()


@pytest.mark.parametrize(
    ("schedule", "steps", "found"),
    [
        ("stable-diffusion", 1000, (625, 20, 980)),
        ("linear", 1000, (440, 38, 712)),
        ("linear", 500, (312, 28, 500)),
        ("linear", 4000, (871, 69, 1415)),
        ("cosine", 1000, (755, 79, 951)),
        ("cosine", 4000, (3022, 320, 3802)),
    ],
)
def test_the_steps_of_a_schedule_are_found_by_their_sigmas(
    schedule: str, steps: int, found: tuple[int, int, int]
) -> None:
    abar = abar_of(steps, schedule)
    noise = DDPMNoise.nearest(abar)
    assert (noise.tau, noise.tmin, noise.tmax) == found
    a_t, s_t = noise.scales(torch.tensor([noise.tau]))
    assert (s_t / a_t).item() == pytest.approx(2.5, rel=0.01)
    lower = DDPMNoise.nearest(abar, sigma_init=1.0)
    assert lower.tau < noise.tau and (lower.tmin, lower.tmax) == found[1:]


def test_a_schedule_that_ends_in_pure_noise_has_steps() -> None:
    abar = abar_of(1000)
    abar[-1] = 0
    assert DDPMNoise.nearest(abar).tau == 440


@pytest.mark.parametrize("noise", [NOISE, DDPM], ids=["EDM", "DDPM"])
def test_every_process_is_used_in_one_way(noise: NoiseProcess) -> None:
    """A uniform draw gives a level, a level gives scales and a weight, scales give x_t."""
    uniform = torch.tensor([0.1, 0.5, 0.9])
    draw = {"uniform": uniform, "normal": torch.tensor([-1.0, 0.0, 1.0])}[noise.fake_score_draw]
    x, eps = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    for t in (noise.generator_level(uniform, 800), noise.fake_score_level(draw)):
        a_t, s_t = noise.scales(t)
        expected = per_sample(a_t, x) * x + per_sample(s_t, x) * eps
        torch.testing.assert_close(noise.add_noise(x, t, eps), expected)
        assert noise.loss_weight(t).shape == s_t.shape == (3,)
        assert (s_t.diff() > 0).all() and (noise.loss_weight(t) > 0).all()
