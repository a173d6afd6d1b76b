"""Speeds of two sides that were measured in rounds, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Protocol


class Timed(Protocol):
    """A round of one side."""

    @property
    def images_per_second(self) -> float: ...


class InRounds:
    """A side's rounds, and how fast they were."""

    rounds: Sequence[Timed]

    @property
    def speeds(self) -> list[float]:
        """Images a second, by round."""
        return [one.images_per_second for one in self.rounds]

    @property
    def images_per_second(self) -> float:
        """The median over rounds."""
        return statistics.median(self.speeds)


def ratio(this: InRounds, against: InRounds | None) -> dict[str, float]:
    """How many times faster this side was, and least and most by round; empty where it was measured alone."""
    if against is None:
        return {}
    by_round = [a / b for a, b in zip(this.speeds, against.speeds, strict=True)]
    return {
        "ratio": this.images_per_second / against.images_per_second,
        "ratio_low": min(by_round),
        "ratio_high": max(by_round),
    }


def in_words(found: dict[str, float]) -> str:
    """What `ratio` found, as a line."""
    return f"ratio {found['ratio']:.3f} ({found['ratio_low']:.3f} to {found['ratio_high']:.3f})"
