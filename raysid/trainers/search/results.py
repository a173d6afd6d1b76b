"""The results of a search's trials, read from the metrics of their runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ray.tune.experiment import Trial
from upath import UPath

from raysid.config import TuneConfig
from raysid.run.metrics import read_metrics

TRIALS = "trials"  # within the search's folder; holds a run's folder for each
FINISHED, ENDED_EARLY, DIVERGED, FAILED = "finished", "ended early", "diverged", "failed"


@dataclass(frozen=True)
class TrialResult:
    """The result of a trial.

    Attributes:
        values: the values tried, by the first setting of each dimension.
        status: `finished`, `ended early` (by the scheduler), `diverged` or `failed`.
        metric: its best evaluated figure; None if it was not evaluated.
        images: images generated in its training.
        run: its run's folder.
        diverged_at: the step at which it had diverged, if that is known.
    """

    values: dict[str, float]
    status: str
    metric: float | None
    images: int
    run: str
    diverged_at: int | None = None

    @property
    def outcome(self) -> str:
        """The status, and the step at which the trial had diverged."""
        return self.status if self.diverged_at is None else f"{self.status} at step {self.diverged_at:,}"

    @property
    def usable(self) -> bool:
        """True if its values may be the best: it was evaluated, and neither failed nor diverged."""
        return self.metric is not None and self.status in (FINISHED, ENDED_EARLY)


def collect_trials(config: TuneConfig, folder: UPath, ended: list[Trial]) -> list[TrialResult]:
    """Return the results of the trials, the best first. Trials of earlier sessions of the search count too."""
    trials = []
    for trial in ended:
        run = folder / TRIALS / trial.trial_id
        entries = read_metrics(run)
        figures = [e[config.metric] for e in entries if e["kind"] == "evaluation" and e["step"] > 0]
        usable = [value for value in figures if value is not None and math.isfinite(value)]
        choose = min if config.mode == "min" else max
        last, diverged_at = trial.last_result or {}, None
        if last.get("diverged"):
            status, diverged_at = DIVERGED, last.get("step")
        elif trial.status == Trial.ERROR:
            status = FAILED
        elif any(entry["kind"] == "table" for entry in entries):
            status = FINISHED
        else:
            status = ENDED_EARLY
        trials.append(
            TrialResult(
                values={d.fields[0]: float(trial.config[d.fields[0]]) for d in config.space},
                status=status,
                metric=choose(usable) if usable else None,
                images=max((entry["images"] for entry in entries), default=0),
                run=str(run),
                diverged_at=diverged_at,
            )
        )
    sign = 1 if config.mode == "min" else -1
    return sorted(trials, key=lambda t: (not t.usable, sign * (math.inf if t.metric is None else t.metric)))
