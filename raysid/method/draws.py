"""Addressed randomness: every draw is a pure function of (run seed, step, purpose, sample).

The results of a run must depend neither on how its batch is divided into microbatches and ranks nor on which process
draws first. So no generator is shared: a counter-based one (Philox, Salmon et al. 2011) is keyed by (seed, step,
purpose), and its counter is set to the sample's position in the whole batch. Drawing a slice of a batch costs the
slice, not the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

WORDS_PER_BLOCK = 4  # Philox4x64 makes four 64-bit words per counter value


def derived_seed(*address: int | str) -> int:
    """Return a 128-bit number that depends only on the address, the same on every machine and Python version."""
    text = "/".join(str(part) for part in address)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed the generators that torch's own layers use, such as dropout.

    `torch.manual_seed` takes a stack trace for every unused kind of device, which costs 1 ms and more.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


@dataclass(frozen=True)
class Draws:
    """The random numbers of one step, for samples `start` to `start + count` of its whole batch.

    Attributes:
        seed: the run's seed.
        step: the step that draws them.
        start: position of the first sample in the whole batch.
        count: number of samples.
    """

    seed: int
    step: int
    start: int
    count: int

    def uniform(self, purpose: str, shape: Sequence[int] = ()) -> Tensor:
        """Return uniform float32 numbers in [0, 1), shape (count, *shape)."""
        return torch.from_numpy(self._uniform64(purpose, shape).astype(np.float32).clip(max=_BELOW_ONE))

    def normal(self, purpose: str, shape: Sequence[int] = ()) -> Tensor:
        """Return standard normal float32 numbers, shape (count, *shape), by the Box-Muller transform."""
        pairs = self._uniform64(purpose, (2, *shape))
        radius = np.sqrt(-2.0 * np.log1p(-pairs[:, 0]))
        return torch.from_numpy((radius * np.cos(2.0 * np.pi * pairs[:, 1])).astype(np.float32))

    def labels(self, purpose: str, frequencies: Sequence[float]) -> Tensor:
        """Draw class indices with probability proportional to `frequencies`: int64 (count,)."""
        edges = np.cumsum(np.asarray(frequencies, dtype=np.float64))
        drawn = np.searchsorted(edges / edges[-1], self._uniform64(purpose, ()), side="right")
        return torch.from_numpy(drawn.clip(max=len(edges) - 1))

    def dropout_seed(self, purpose: str) -> int:
        """Return a seed for the dropout masks of one call on this slice."""
        return derived_seed(self.seed, self.step, purpose, self.start) % 2**63

    def _uniform64(self, purpose: str, shape: Sequence[int]) -> np.ndarray:
        words = int(np.prod(shape, dtype=np.int64))
        blocks = -(-words // WORDS_PER_BLOCK)
        stream = np.random.Philox(key=derived_seed(self.seed, self.step, purpose))
        stream.advance(self.start * blocks)
        raw = stream.random_raw(self.count * blocks * WORDS_PER_BLOCK)
        numbers = (raw >> np.uint64(11)) * 2.0**-53
        return numbers.reshape(self.count, -1)[:, :words].reshape(self.count, *shape)


DrawsAt = Callable[[int, int, int], Draws]
"""Makes the `Draws` of (step, start, count): `functools.partial(Draws, seed)` in every run."""

_BELOW_ONE = np.nextafter(np.float32(1.0), np.float32(0.0))
