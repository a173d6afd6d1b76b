"""Callbacks of a search: progress messages, and ending trials that have diverged."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import Callback
from ray.tune.experiment import Trial

from raysid.actors.capacity import NOTICE_SECONDS, report_shortage
from raysid.config import RoleResources


class Diverged(tune.Stopper):
    """Ends a trial that has diverged; the search continues."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return bool(result.get("diverged"))

    def stop_all(self) -> bool:
        return False


class Reporter(Callback):
    """Prints a line for each event of a trial, and frees what the teacher service keeps of trials that have ended.

    Args:
        metric: the figure that the search compares.
        service: name of the teacher service's actor.
        learners: the resources of a trial's bundles.
        timeout: seconds to wait for them.
    """

    def __init__(self, metric: str, service: str, learners: list[RoleResources], timeout: float) -> None:
        self.metric, self.service = metric, service
        self.learners, self.timeout = learners, timeout
        self.idle_since: float | None = None
        self.printed = 0.0

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Report missing resources if trials are pending and none runs: Ray Tune itself would wait forever.

        Raises:
            RunFailed: they were missing for `timeout` seconds.
        """
        statuses = {trial.status for trial in trials}
        if Trial.PENDING not in statuses or Trial.RUNNING in statuses:
            self.idle_since = None
            return
        now = time.monotonic()
        if self.idle_since is None:
            self.idle_since = self.printed = now
        waited = now - self.idle_since
        if waited >= self.timeout or now - self.printed >= NOTICE_SECONDS:
            self.printed = now
            report_shortage("a trial's learners", self.learners, waited, self.timeout, log)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._log(trials, trial, "starts")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        diverged = ", diverged" if result.get("diverged") else ""
        value = f"{self.metric.replace('_', ' ')} {result[self.metric]:.4g}"
        self._log(trials, trial, f"{result['images']:,} images, {value}{diverged}")

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._log(trials, trial, "ends")
        self._forget(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._log(trials, trial, f"fails; the search continues. {_reason(trial)}")
        self._forget(trial)

    def _forget(self, trial: Trial) -> None:
        with suppress(ValueError):  # the service has ended
            ray.get_actor(self.service).forget.remote(trial.trial_id)

    def _log(self, trials: list[Trial], trial: Trial, event: str) -> None:
        ended = sum(other.is_finished() for other in trials)
        values = " ".join(f"{name.rpartition('.')[2]}={value:.4g}" for name, value in trial.config.items())
        log(f"{ended} trials ended | {trial.trial_id} {values} | {event}")


def _reason(trial: Trial) -> str:
    """Return the last line of a failed trial's error."""
    file = trial.error_file
    return Path(file).read_text().strip().splitlines()[-1] if file and Path(file).exists() else ""


def log(message: str) -> None:
    """Print a line of the search's progress."""
    print(f"tune  {message}", flush=True)
