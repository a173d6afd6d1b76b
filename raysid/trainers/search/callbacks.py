"""What happens in a search beside its trials: what it says, which of them it ends."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import Callback
from ray.tune.experiment import Trial

from raysid.actors.placing import NOTICE_SECONDS, report_missing
from raysid.config import RoleResources


class Diverged(tune.Stopper):
    """Ends trials that have diverged; the search goes on."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return bool(result.get("diverged"))

    def stop_all(self) -> bool:
        return False


class Reporter(Callback):
    """A line for each thing that happens to a trial, and the service's memory of trials that have ended.

    Args:
        learners: what a trial needs, to say what is missing where none can go on.
        timeout: seconds to wait for a trial's places.
    """

    def __init__(self, metric: str, service: str, learners: list[RoleResources], timeout: float) -> None:
        self.metric, self.service = metric, service
        self.learners, self.timeout = learners, timeout
        self.idle_since: float | None = None
        self.said = 0.0

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Say what is missing where trials are left and none runs; Ray Tune alone would wait for ever."""
        statuses = {trial.status for trial in trials}
        if Trial.PENDING not in statuses or Trial.RUNNING in statuses:
            self.idle_since = None
            return
        now = time.monotonic()
        if self.idle_since is None:
            self.idle_since = self.said = now
        waited = now - self.idle_since
        if waited >= self.timeout or now - self.said >= NOTICE_SECONDS:
            self.said = now
            report_missing("a trial's learners", self.learners, waited, self.timeout, say)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._say(trials, trial, "starts")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        diverged = ", diverged" if result.get("diverged") else ""
        value = f"{self.metric.replace('_', ' ')} {result[self.metric]:.4g}"
        self._say(trials, trial, f"{result['images']:,} images, {value}{diverged}")

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._say(trials, trial, "ends")
        self._forget(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._say(trials, trial, f"fails; the search goes on. {_why(trial)}")
        self._forget(trial)

    def _forget(self, trial: Trial) -> None:
        with suppress(ValueError):  # the service has ended
            ray.get_actor(self.service).forget.remote(trial.trial_id)

    def _say(self, trials: list[Trial], trial: Trial, what: str) -> None:
        ended = sum(other.is_finished() for other in trials)
        say(f"{ended} trials ended | {trial.trial_id} {_words(trial.config)} | {what}")


def _why(trial: Trial) -> str:
    """The last line of what a trial failed of."""
    file = trial.error_file
    return Path(file).read_text().strip().splitlines()[-1] if file and Path(file).exists() else ""


def _words(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name.rpartition('.')[2]}={value:.4g}" for name, value in values.items())


def say(message: str) -> None:
    print(f"tune  {message}", flush=True)
