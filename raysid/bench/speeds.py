"""The speeds of two sides measured in rounds, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Protocol


class Timed(Protocol):
    """A round of one side."""

    @property
    def images_per_second(self) -> float: ...


class InRounds:
    """The rounds of a side, and their speeds."""

    rounds: Sequence[Timed]

    @property
    def speeds(self) -> list[float]:
        """Images a second of each round."""
        return [one.images_per_second for one in self.rounds]

    @property
    def images_per_second(self) -> float:
        """The median speed."""
        return statistics.median(self.speeds)


def ratio(this: InRounds, against: InRounds | None) -> dict[str, float]:
    """Return the ratio of two speeds, its least and its largest value by round; empty without another side."""
    if against is None:
        return {}
    by_round = [a / b for a, b in zip(this.speeds, against.speeds, strict=True)]
    return {
        "ratio": this.images_per_second / against.images_per_second,
        "ratio_low": min(by_round),
        "ratio_high": max(by_round),
    }


def format_ratio(found: dict[str, float]) -> str:
    """Return the result of `ratio` as a line."""
    return f"ratio {found['ratio']:.3f} ({found['ratio_low']:.3f} to {found['ratio_high']:.3f})"
