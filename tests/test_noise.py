"""EDM's noise process: x_t, the two distributions of noise levels, the loss weight."""

from __future__ import annotations

import math

import pytest
import torch

from raysid.noise import EDMNoise, per_sample

NOISE = EDMNoise()


def karras(u: float) -> float:
    """method.md's sigma for u in [0, 1], by hand."""
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
