"""The scorers of the fleet as one run sees them: which ones take calls, and the wait while none does."""

from __future__ import annotations

import time
from collections.abc import Callable, Set
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from raysid.actors.capacity import NOTICE_SECONDS, Notify, describe_shortage
from raysid.actors.fleet import Members, RunStatus, Scorer
from raysid.actors.results import describe_failed_start, is_ready
from raysid.config import RoleResources
from raysid.errors import RunFailed
from raysid.ray_internals import actor_ready, actor_state

SYNC_SECONDS = 1.0
REPORT_SECONDS = 5.0


class Attendance:
    """Which scorers are present for a run.

    Args:
        run: name of the run.
        sync: reports the run's status to the fleet and returns the fleet's members.
        resources: a scorer's resources, to report which one is missing.
        timeout: seconds without any scorer after which the run fails.
        notify: prints a line while scorers are waited for.
        stopping: True once the run has been asked to stop; it waits for no scorer then.

    Attributes:
        members: the fleet's members, present or away.
        waited_seconds: seconds so far in which a step waited for a scorer and for nothing else.
    """

    def __init__(
        self,
        run: str,
        sync: Callable[[RunStatus], Members],
        resources: RoleResources,
        timeout: float,
        notify: Notify = print,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.run, self.resources, self.timeout = run, resources, timeout
        self.notify, self.stopping = notify, stopping
        self.waited_seconds = 0.0
        self._sync = sync
        # Lost scorers, each with the reference that is ready once it is back.
        self._away: dict[Scorer, Any] = {}
        self._busy_seconds = 0.0
        self._busy: dict[Scorer, float] = {}
        self._acknowledged = -1  # newest version of the fleet whose former members have no call outstanding
        self._synced = 0.0
        self._missing_since: float | None = None
        self._notified = 0.0
        self.members = Members(-1, ())
        self.refresh(frozenset())

    def present(self) -> list[Scorer]:
        """Return the scorers that take calls now."""
        return [scorer for scorer in self.members.scorers if scorer not in self._away]

    def is_due(self) -> bool:
        """Return True if the last refresh is some time ago."""
        return time.monotonic() - self._synced > SYNC_SECONDS

    def refresh(self, used: Set[Scorer]) -> None:
        """Readmit scorers that are back, report this run's status to the fleet, and take its members.

        Args:
            used: the scorers that have calls of the run or hold graphs for it.
        """
        self._synced = time.monotonic()
        if used <= {*self.members.scorers}:
            self._acknowledged = self.members.version
        dead = self._readmit()
        self.members = self._sync(RunStatus(self.run, self._acknowledged, self.waited_seconds, dead))

    def lose(self, scorer: Scorer, error: RayActorError) -> None:
        """Take a scorer for lost until Ray has restarted it. Raises RunFailed if it cannot start."""
        if error.actor_init_failed:
            raise RunFailed(describe_failed_start(error)) from error
        if scorer not in self._away:
            self._away[scorer] = actor_ready(scorer.actor)

    def begin_report(self) -> Callable[[], dict[str, float]]:
        """Ask the scorers for their figures.

        Returns:
            A function that waits for them, and returns those of this run: mean busy seconds of the scorers that answer,
            number of scorers.
        """
        return partial(self._reported, {scorer: scorer.actor.report.remote() for scorer in self.present()})

    def _reported(self, asked: dict[Scorer, Any]) -> dict[str, float]:
        if asked:
            ray.wait([*asked.values()], num_returns=len(asked), timeout=REPORT_SECONDS)
        for scorer, answer in asked.items():
            try:
                busy = ray.get(answer, timeout=0)["busy_seconds"]
            except RayError:
                continue
            before = self._busy.get(scorer, busy)
            self._busy[scorer] = busy
            self._busy_seconds += max(0.0, busy - before) / len(asked)
        return {"busy_seconds": self._busy_seconds, "replicas": float(len(self.members.scorers))}

    def check_single(self) -> None:
        """Check on a single scorer while a result is slow. Raises RunFailed as `check_missing`."""
        (scorer,) = self.members.scorers
        if actor_state(scorer.actor) == "ALIVE":
            self._missing_since = None
        else:
            self._report_missing()

    def check_missing(self) -> None:
        """Report now and then which resource a scorer lacks, if none is present.

        Raises:
            RunFailed: it has lacked it for too long, or the run is asked to stop.
        """
        if self.present():
            self._missing_since = None
        else:
            self._report_missing()

    def _readmit(self) -> frozenset[int]:
        """Readmit the lost scorers that are back; return the numbers of those that Ray does not restart."""
        dead = set()
        for scorer in [scorer for scorer, back in self._away.items() if is_ready(back)]:
            try:
                ray.get(self._away[scorer])
            except RayActorError as error:
                if error.actor_init_failed:
                    raise RunFailed(describe_failed_start(error)) from error
                dead.add(scorer.number)
            else:
                del self._away[scorer]
        return frozenset(dead)

    def _report_missing(self) -> None:
        now = time.monotonic()
        if self._missing_since is None:
            self._missing_since = self._notified = now
        stopping, too_long = self.stopping(), now - self._missing_since > self.timeout
        if not (stopping or too_long or now - self._notified > NOTICE_SECONDS):
            return  # this is called many times a second, and describing the shortage asks the whole cluster
        missing = f"no teacher scorer is available: {describe_shortage([self.resources])}"
        if stopping:
            raise RunFailed(f"asked to stop while {missing}")
        if too_long:
            raise RunFailed(
                f"{missing}; waited failure.placement_timeout_s = {self.timeout:g} s; run the same "
                "command to resume from the newest checkpoint"
            )
        self._notified = now
        self.notify(f"waiting, {missing}")
