"""Averages between two lines of metrics: the learners' figures, the speed, each role's busy share."""

from __future__ import annotations

import time
from collections.abc import Mapping

from raysid.roles.generator_learner import RECOMPUTED
from raysid.roles.messages import StepReport

Report = Mapping[str, Mapping[str, float]]
"""Each role's present figures, by role and name."""


class Meter:
    """Averages the figures of the steps between two lines of metrics.

    Args:
        recomputes: scorings and pullbacks computed again earlier in the run, because a scorer was lost.
    """

    def __init__(self, recomputes: float = 0) -> None:
        self.recomputes = recomputes
        self.losses: dict[str, float] = {}
        self._images, self._time = 0, time.perf_counter()
        self._report: Report = {}
        self._sums: dict[str, tuple[float, int]] = {}

    def begin(self, images: int, report: Report) -> None:
        """Measure speed and busy shares from now, after `images` images."""
        self._images, self._time, self._report = images, time.perf_counter(), report

    def add(self, report: StepReport) -> None:
        """Add the report of a step."""
        self.recomputes += report.recomputes
        for name, value in report.figures.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value, count + 1)
            if name.startswith("loss/"):
                self.losses[name] = value

    def means(self) -> dict[str, float]:
        """Return the mean of each figure since the last call."""
        means = {name: total / count for name, (total, count) in self._sums.items()}
        self._sums = {}
        return means

    def performance(self, images: int, report: Report) -> dict[str, float]:
        """Return images per second and each role's shares of the time since the last call, and recomputes so far.

        Args:
            report: each role's present figures. Those in `_seconds` become shares; the others are returned as they are.
        """
        seconds = time.perf_counter() - self._time
        figures = {RECOMPUTED: self.recomputes, "images_per_second": (images - self._images) / seconds}
        for role, own in report.items():
            for name, value in own.items():
                if name.endswith("_seconds"):
                    share = (value - self._report[role][name]) / seconds
                    figures[f"{name.removesuffix('_seconds')}/{role}"] = share
                else:
                    figures[f"{name}/{role}"] = value
        self.begin(images, report)
        return figures
