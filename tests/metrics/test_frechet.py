"""The Fréchet distance agrees with closed forms; its statistics do not depend on batching."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg  # type: ignore[import-untyped]

from raysid.metrics.frechet import FeatureAccumulator, FeatureStatistics, frechet_distance, halves_distance


def gaussian(count: int = 500, dimensions: int = 6, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dimensions)) @ rng.normal(size=(dimensions, dimensions))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return frechet_distance(FeatureStatistics.from_features(a), FeatureStatistics.from_features(b))


def test_a_set_is_at_zero_from_itself() -> None:
    x = gaussian()
    assert 0 <= distance(x, x) < 1e-9
    assert 0 <= distance(x, x[::-1]) < 1e-9


def test_a_shift_costs_its_squared_length() -> None:
    x, shift = gaussian(), np.arange(6.0)
    assert distance(x, x + shift) == pytest.approx(shift @ shift, rel=1e-9)


def test_scaling_costs_the_bures_distance() -> None:
    x = gaussian()
    x = x - x.mean(0)
    trace = np.trace(np.cov(x, rowvar=False))
    assert distance(x, 3 * x) == pytest.approx((3 - 1) ** 2 * trace, rel=1e-9)


def test_general_covariances_agree_with_the_formula_by_scipys_matrix_root() -> None:
    x, y = gaussian(seed=1), gaussian(seed=2)
    sx, sy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    shift = x.mean(0) - y.mean(0)
    expected = shift @ shift + np.trace(sx + sy - 2 * linalg.sqrtm(sx @ sy).real)
    assert distance(x, y) == pytest.approx(expected, rel=1e-8)
    assert distance(x, y) == pytest.approx(distance(y, x), rel=1e-12)


def test_fewer_samples_than_dimensions_and_constant_dimensions_give_a_finite_distance() -> None:
    x, y = gaussian(4, 20, seed=1), gaussian(5, 20, seed=2)
    x[:, 3] = y[:, 3] = 0
    assert np.isfinite(distance(x, y))
    assert distance(x, x) < 1e-9


def test_batches_of_any_size_give_the_statistics_of_the_whole() -> None:
    x = gaussian(1000) + 1e4  # far from zero: plain sums of squares would lose digits
    whole = FeatureStatistics.from_features(x)
    batched = FeatureStatistics.from_batches(np.split(x, [1, 1, 300, 999]))
    assert batched.count == whole.count == 1000
    np.testing.assert_allclose(batched.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(batched.covariance, np.cov(x, rowvar=False), rtol=1e-9)
    assert frechet_distance(whole, batched) < 1e-6


def test_tensors_of_any_precision_and_arrays_are_taken_alike() -> None:
    x = torch.from_numpy(gaussian()).bfloat16().requires_grad_()
    from_tensor = FeatureStatistics.from_features(x)
    assert from_tensor.covariance.dtype == np.float64
    assert frechet_distance(from_tensor, FeatureStatistics.from_features(x.detach().double().numpy())) < 1e-9


def test_statistics_do_not_change_when_more_is_added_later() -> None:
    accumulator = FeatureAccumulator()
    accumulator.add(gaussian(10))
    before = accumulator.statistics()
    mean = before.mean.copy()
    accumulator.add(gaussian(10) + 5)
    np.testing.assert_array_equal(before.mean, mean)


def test_halves_are_reproducible_and_closer_when_there_are_more_samples() -> None:
    x = gaussian(4000)
    assert halves_distance(x, seed=3) == halves_distance(x, seed=3)
    assert halves_distance(x, seed=3) != halves_distance(x, seed=4)
    assert halves_distance(x[:100], seed=3) > halves_distance(x, seed=3) > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FeatureStatistics.from_features(np.zeros((1, 3))), "at least 2 samples, got 1"),
        (lambda: FeatureStatistics.from_batches([]), "at least 2 samples, got 0"),
        (lambda: FeatureStatistics.from_features(np.array([[0], [np.nan], [1]])), "1 of 3 .* not finite"),
        (lambda: FeatureStatistics.from_features(np.zeros(5)), r"got shape \(5,\)"),
        (
            lambda: FeatureStatistics.from_batches([np.zeros((2, 3)), np.zeros((2, 4))]),
            "4 dim.* had 3",
        ),
        (lambda: distance(gaussian(9, 3), gaussian(9, 4)), "different dimensions: 3 and 4"),
        (lambda: halves_distance(np.zeros((3, 2)), seed=0), "at least 4 samples, got 3"),
    ],
)
def test_unusable_features_give_one_clear_line(call, message) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
