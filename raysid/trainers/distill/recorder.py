"""The record of a distillation: lines of metrics, the progress line, pictures, the list of bad images."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from raysid.config import Config
from raysid.data import ImageSource
from raysid.data.source import check_faults
from raysid.metrics.figures import in_a_line
from raysid.roles.fake_score import BAD_IMAGES
from raysid.roles.generator_learner import RECOMPUTED
from raysid.roles.messages import StepReport
from raysid.roles.protocols import Report
from raysid.run.metrics import METRICS, read_metrics
from raysid.run.progress import ProgressLine
from raysid.run.tracking import Tracker
from raysid.trainers.distill.health import Health
from raysid.trainers.grids import Grids


class Recorder:
    """Records what happens from one checkpoint on, until the run ends or goes back to a checkpoint.

    Args:
        tracker: writes metrics.jsonl, TensorBoard's events and sample grids.
        progress: the line on the terminal.
        source: the real images, if the config names any.
    """

    def __init__(
        self, config: Config, tracker: Tracker, progress: ProgressLine, source: ImageSource | None
    ) -> None:
        self.config = config
        self.tracker = tracker
        self.progress = progress
        self.source = source
        # Scorings and pullbacks computed again for lost scorers.
        entries = read_metrics(tracker.folder)
        recorded = [e[RECOMPUTED] for e in entries if e["kind"] == "perf"]
        self.recomputes: float = recorded[-1] if recorded else 0
        self.health = Health(config, entries, self.warning)
        self.losses: dict[str, float] = {}
        self._sums: dict[str, tuple[float, int]] = {}  # sum and number of each figure since the last line
        self._images_then, self._then = 0, time.perf_counter()
        self._report_then: Report = {}
        self.note = ""  # the last evaluation, in a few words
        self.bad_count = 0  # bad images, as last reported; an image that several ranks found counts for each

    def begin(self, step: int, report: Report) -> None:
        """Measure speed and busy shares from here; `report` has the roles' present figures."""
        self._images_then, self._then, self._report_then = self._images(step), time.perf_counter(), report

    def add(self, step: int, report: StepReport) -> None:
        """Add the learners' report of a step that is complete, and show its losses.

        Args:
            step: steps taken, that one included.

        Raises:
            Diverged: as `Health.step`.
        """
        self.recomputes += report.recomputes
        for name, value in report.figures.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value, count + 1)
            if name.startswith("loss/"):
                self.losses[name] = value
        self.progress.update(self._images(step), self.losses, self.note)
        self.health.step(step, report)

    def warning(self, step: int, text: str) -> None:
        """Record a warning, and print it."""
        self.tracker.warning(step, self._images(step), text)
        self.progress.message(f"warning: {text}")

    def log(self, step: int, report: Report) -> None:
        """Write a line of metrics: the means since the last one, speed, each role's busy share."""
        images = self._images(step)
        means = {name: total / count for name, (total, count) in self._sums.items()}
        self._sums = {}
        self.tracker.train(step, images, means)
        self.health.line(step, means)
        performance = self._performance(images, report)
        self.begin(step, report)
        self.tracker.perf(step, images, performance)

    def found_bad_images(self, report: Report) -> bool:
        """Return True if the roles report more bad images than at the last call."""
        before, self.bad_count = self.bad_count, int(report["fake_score"].get(BAD_IMAGES, 0))
        return self.bad_count > before

    def bad_images(self, step: int, faults: Mapping[int, str]) -> None:
        """Record the names and faults of the real images skipped so far; one that is recorded is not repeated.

        Args:
            faults: by the image's position in the source's list.
        """
        if faults:
            self.tracker.bad_images(step, self._images(step), [faults[at] for at in sorted(faults)])

    def warn_of_bad_images(self, faults: dict[int, str]) -> None:
        """Print how many real images were skipped so far.

        Raises:
            RunFailed: all ranks' bad images together exceed `data.max_bad_fraction`.
        """
        assert self.source is not None
        count = len(faults)
        self.progress.message(
            f"{count:,} real image{'s' * (count > 1)} skipped so far ({next(iter(faults.values()))}); {METRICS} names "
            "all"
        )
        check_faults(faults, self.config.data.max_bad_fraction, self.source.num_images)

    def grids(self, step: int, grids: Grids) -> None:
        """Write the picture of generated images beside real ones."""
        self.tracker.sample_grid(
            step, self._images(step), grids.generated, grids.real, grids.columns, grids.prompts
        )

    def evaluation(self, step: int, figures: dict[str, Any]) -> None:
        """Record an evaluation's figures, and note them on the progress line."""
        self.tracker.evaluation(step, self._images(step), figures)
        self.health.evaluation(step, figures)
        self.note = f"last evaluation: {in_a_line(figures)}"

    def _performance(self, images: int, report: Report) -> dict[str, float]:
        """Return images per second and each role's shares of the time since the last line, and recomputes so far."""
        seconds = time.perf_counter() - self._then
        figures = {
            RECOMPUTED: self.recomputes,
            "images_per_second": (images - self._images_then) / seconds,
        }
        for role, own in report.items():
            for name, value in own.items():
                if name.endswith("_seconds"):
                    share = (value - self._report_then[role][name]) / seconds
                    figures[f"{name.removesuffix('_seconds')}/{role}"] = share
                else:
                    figures[f"{name}/{role}"] = value
        return figures

    def _images(self, step: int) -> int:
        return step * self.config.batch_size
