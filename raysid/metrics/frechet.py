"""Fréchet distance between two sets of features, each summarised by its mean and covariance."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Features = Tensor | NDArray[np.floating]


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean (D,) and unbiased covariance (D, D), float64, of `count` feature vectors."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    count: int

    @classmethod
    def from_features(cls, features: Features) -> FeatureStatistics:
        """Return the statistics of a set (N, D), N at least 2.

        Raises:
            ValueError: not two-dimensional, fewer than 2 samples, or a value that is not finite.
        """
        return cls.from_batches([features])

    @classmethod
    def from_batches(cls, batches: Iterable[Features]) -> FeatureStatistics:
        """Return the statistics of the union of batches (n, D), read one at a time; errors as in `from_features`."""
        accumulator = FeatureAccumulator()
        for batch in batches:
            accumulator.add(batch)
        return accumulator.statistics()


class FeatureAccumulator:
    """Accumulates `FeatureStatistics` batch by batch, as one mean and one scatter matrix.

    Batches are merged with the pairwise update of Chan, Golub and LeVeque (1983), which sums squares around the
    mean instead of zero, so features far from zero lose no digits.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: NDArray[np.float64] = np.zeros(0)
        self._scatter: NDArray[np.float64] = np.zeros((0, 0))

    def add(self, features: Features) -> None:
        """Add a batch (n, D); an empty one changes nothing.

        Raises:
            ValueError: not two-dimensional, another D than before, or a value that is not finite.
        """
        batch = _as_matrix(features)
        n = len(batch)
        if n == 0:
            return
        if self.count and batch.shape[1] != len(self._mean):
            got, expected = batch.shape[1], len(self._mean)
            raise ValueError(f"features have {got} dimensions, earlier batches had {expected}")
        mean = batch.mean(0)
        centred = batch - mean
        scatter = centred.T @ centred
        if self.count == 0:
            self.count, self._mean, self._scatter = n, mean, scatter
            return
        total = self.count + n
        delta = mean - self._mean
        self._scatter = self._scatter + scatter + np.outer(delta, delta) * (self.count * n / total)
        self._mean = self._mean + delta * (n / total)
        self.count = total

    def statistics(self) -> FeatureStatistics:
        """Return the statistics of all batches so far.

        Raises:
            ValueError: fewer than 2 samples were added.
        """
        if self.count < 2:
            raise ValueError(f"feature statistics need at least 2 samples, got {self.count}")
        return FeatureStatistics(self._mean.copy(), self._scatter / (self.count - 1), self.count)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Return the squared Fréchet distance between two Gaussians with the given statistics; at least 0, symmetric.

        d^2 = |mu_a - mu_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2))

    This is the FID of Heusel et al. 2017 (arXiv 1706.08500, equation 6), after Dowson and Landau 1982, on features of
    the caller's choice. Estimated from samples it is biased upwards, more so for fewer samples: two halves of one set
    have a distance above 0. Compare figures at equal sample counts, beside `halves_distance`.

    Raises:
        ValueError: the two have different dimensions.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"the statistics have different dimensions: {len(a.mean)} and {len(b.mean)}")
    shift = a.mean - b.mean
    # Tr (S_a S_b)^(1/2) is the sum of the singular values (the nuclear norm) of S_a^(1/2) S_b^(1/2). In this form
    # nothing rounds to a negative under a root, and rank-deficient covariances (units that never fire, few samples)
    # need no special case.
    cross = np.linalg.norm(_square_root(a.covariance) @ _square_root(b.covariance), ord="nuc")
    distance = shift @ shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross
    return max(float(distance), 0.0)


def halves_distance(features: Features, seed: int) -> float:
    """Return the Fréchet distance between two random halves of a set (N, D), N at least 4: its noise floor.

    Each half has N // 2 samples. The same seed gives the same halves.

    Raises:
        ValueError: as `FeatureStatistics.from_features`, or fewer than 4 samples.
    """
    matrix = _as_matrix(features)
    if len(matrix) < 4:
        raise ValueError(f"two halves need at least 4 samples, got {len(matrix)}")
    order = np.random.default_rng(seed).permutation(len(matrix))
    half = len(matrix) // 2
    first, second = matrix[order[:half]], matrix[order[half : 2 * half]]
    return frechet_distance(FeatureStatistics.from_features(first), FeatureStatistics.from_features(second))


def _square_root(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the root of a positive semi-definite matrix; eigenvalues that rounding made negative count as 0."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def _as_matrix(features: Features) -> NDArray[np.float64]:
    array = features.detach().cpu().double().numpy() if isinstance(features, torch.Tensor) else features
    matrix = np.asarray(array, dtype=np.float64)
    if matrix.ndim != 2:
        raise ValueError(f"features must be (samples, dimensions), got shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        bad = int((~np.isfinite(matrix).all(1)).sum())
        raise ValueError(f"{bad} of {len(matrix)} feature vectors hold values that are not finite")
    return matrix
