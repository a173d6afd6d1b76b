"""The fleet of teacher scorers: starts them, adds more while steps wait for scoring, removes idle ones."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from raysid.actors.capacity import Notify, wait_for_capacity
from raysid.actors.notices import LeavingNodes
from raysid.actors.results import describe_failed_start, is_ready
from raysid.config import RoleResources, TeacherAutoscaling
from raysid.errors import RunFailed
from raysid.ray_internals import actor_node, actor_ready

GROW_ABOVE = 0.15  # share of the time in which a step waits for nothing but a scorer
IDLE_BELOW = 0.6  # utilisation of the remaining scorers up to which one is removed
ABSENT_SECONDS = 120.0  # a run that has not reported for so long has ended
ENDING_SECONDS = 5.0  # between a scorer's last call and its end, to fetch its last results


@dataclass(frozen=True)
class Scorer:
    """One scorer of the service: its number, in order of starting, and its actor."""

    number: int
    actor: Any = field(compare=False)  # handles of one actor are not equal in different messages


@dataclass(frozen=True)
class RunStatus:
    """A run's report to the fleet.

    Attributes:
        run: name of the run.
        version: the newest version of the fleet whose former members have no call of the run outstanding.
        waited: seconds since the run's start in which a step waited for a scorer and for nothing else.
        dead: numbers of the scorers that Ray does not restart, as far as the run has noticed.
    """

    run: str
    version: int
    waited: float
    dead: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Members:
    """The scorers that take calls now; the version grows with each change."""

    version: int
    scorers: tuple[Scorer, ...]


class Total:
    """A total that grows, and its recent rate of growth.

    Args:
        seconds: the longest window of a rate.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._points: deque[tuple[float, float]] = deque()

    def add(self, now: float, value: float) -> None:
        """Note the total at a time. A total that fell (its scorer has restarted) starts over."""
        if self._points and value < self._points[-1][1]:
            self._points.clear()
        self._points.append((now, value))
        while len(self._points) > 1 and self._points[1][0] <= now - self._seconds:
            self._points.popleft()

    def rate(self, now: float, seconds: float) -> float | None:
        """Return the mean rate over the last `seconds`; None if the total has been watched for less."""
        earlier = [point for point in self._points if point[0] <= now - seconds]
        if not earlier:
            return None
        (began, before), (ended, after) = earlier[-1], self._points[-1]
        return (after - before) / (ended - began) if ended > began else None


class ScorerFleet:
    """Keeps as many scorers as its runs need, between a minimum and a maximum.

    A scorer joins once it has started. One is added when the steps of some run have waited only for scoring during
    more than 15% of the last `upscale_delay_s`. One is removed when no run has over `downscale_delay_s`, and the
    others could take its load at under 60% utilisation. A new scorer's demand makes a cluster's autoscaler add a
    node; its end frees the node.

    A scorer whose node is about to leave works until another one has started in its place, on another node.

    Args:
        start: starts a scorer's actor.
        resources: a scorer's resources, to report which one is missing.
        scaling: minimum, maximum and delays; a fixed fleet has minimum = maximum.
        timeout: seconds to wait until the minimum has started.
        notify: prints a line while the minimum is waited for, and when the fleet cannot grow.

    Raises:
        RunFailed: the minimum could not be started in time, or at all.
    """

    def __init__(
        self,
        start: Callable[[], Any],
        resources: RoleResources,
        scaling: TeacherAutoscaling,
        timeout: float,
        notify: Notify = print,
    ) -> None:
        self._start_actor = start
        self.resources = resources
        self.scaling = scaling
        self._notify = notify
        self._most = scaling.max_replicas
        self.members: list[Scorer] = []
        self.version = 0
        self._started = 0
        self._starting: dict[Any, Scorer] = {}
        self._nodes = LeavingNodes()
        self._leaving: list[Scorer] = []  # members to be replaced
        self._retired: list[tuple[float, int, Scorer]] = []
        self._runs: dict[str, tuple[float, RunStatus]] = {}
        self._waited: dict[str, Total] = {}
        self._busy: dict[Scorer, Total] = {}
        self._reports: dict[Scorer, Any] = {}
        for _ in range(scaling.min_replicas):
            self._start()
        try:
            wait_for_capacity(
                self._wait_for_minimum,
                f"{scaling.min_replicas} teacher scorer{'s' * (scaling.min_replicas > 1)}",
                [resources] * scaling.min_replicas,
                timeout,
                notify,
            )
        except BaseException:  # an interrupt, too, ends the scorers
            self.close()
            raise

    def sync(self, status: RunStatus) -> Members:
        """Take a run's status, scale the fleet, and return the scorers that take calls now.

        Raises:
            RunFailed: scorers cannot start, and there are fewer than the minimum.
        """
        now = time.monotonic()
        self._runs[status.run] = (now, status)
        for run in [run for run, (at, _) in self._runs.items() if now - at > ABSENT_SECONDS]:
            self._remove_run(run)
        self._replace_dead(status.dead)
        self._replace_leaving()
        self._admit()
        self._end_retired(now)
        if self.scaling.max_replicas > self.scaling.min_replicas:
            self._waited.setdefault(status.run, self._total()).add(now, status.waited)
            self._measure(now)
            self._scale(now)
        return Members(self.version, tuple(self.members))

    def forget(self, run: str) -> None:
        """Drop all that is kept for a run that has ended."""
        self._remove_run(run)
        for scorer in self.members:
            scorer.actor.forget.remote(run)

    def close(self) -> None:
        """End all scorers."""
        for scorer in [*self.members, *self._starting.values(), *(one for _, _, one in self._retired)]:
            ray.kill(scorer.actor)
        self.members, self._starting, self._retired = [], {}, []

    def _start(self) -> None:
        scorer = Scorer(self._started, self._start_actor())
        self._started += 1
        self._starting[actor_ready(scorer.actor)] = scorer

    def _wait_for_minimum(self, seconds: float) -> bool:
        """Wait up to `seconds`; True once the minimum has joined."""
        ray.wait(list(self._starting), num_returns=len(self._starting), timeout=seconds)
        self._admit()
        return len(self.members) >= self.scaling.min_replicas

    def _remove_run(self, run: str) -> None:
        self._runs.pop(run, None)
        self._waited.pop(run, None)

    def _replace_dead(self, dead: frozenset[int]) -> None:
        """Remove the scorers that Ray does not restart, and start others up to the minimum."""
        for scorer in [scorer for scorer in self.members if scorer.number in dead]:
            self.members.remove(scorer)
            self._changed()
        while len(self.members) + len(self._starting) < self.scaling.min_replicas:
            self._start()

    def _replace_leaving(self) -> None:
        """Start a scorer for each member on a node that is about to leave."""
        nodes = self._nodes.now()
        self._leaving = [scorer for scorer in self._leaving if scorer in self.members]
        if not nodes and not self._leaving:
            return
        for scorer in self.members:
            node = actor_node(scorer.actor)
            if node in nodes and scorer not in self._leaving:
                self._leaving.append(scorer)
                self._start()
            elif node is not None and node not in nodes and scorer in self._leaving:
                # It died, and Ray has restarted it elsewhere; or the node stays.
                self._leaving.remove(scorer)
                self._give_up_newest()

    def _give_up_newest(self) -> None:
        """End the scorer that was last to be started, if it has not joined yet."""
        if self._starting:
            _, scorer = self._starting.popitem()
            ray.kill(scorer.actor)

    def _admit(self) -> None:
        """Admit the scorers that have started."""
        for ready in [reference for reference in self._starting if is_ready(reference)]:
            scorer = self._starting.pop(ready)
            try:
                ray.get(ready)
            except RayActorError as error:
                if error.actor_init_failed:
                    self._stop_growing(describe_failed_start(error))
                continue  # lost for good before it had joined
            self.members.append(scorer)
            self._changed()
            if self._leaving:
                self._retire(self._leaving.pop(0))

    def _retire(self, scorer: Scorer) -> None:
        """Give a scorer no more calls; it ends once it has no call outstanding."""
        self._retired.append((time.monotonic(), self.version + 1, scorer))
        self.members.remove(scorer)
        self._changed()

    def _stop_growing(self, why: str) -> None:
        """Stop at the present size after a scorer could not start; RunFailed below the minimum."""
        if len(self.members) < self.scaling.min_replicas:
            raise RunFailed(why)
        self._notify(f"the teacher service grows no further: {why}")
        self._most = len(self.members)

    def _end_retired(self, now: float) -> None:
        """End the retired scorers with which no run has a call outstanding."""
        acknowledged = min((status.version for _, status in self._runs.values()), default=self.version)
        ending = [one for at, v, one in self._retired if v <= acknowledged and now - at > ENDING_SECONDS]
        for scorer in ending:
            ray.kill(scorer.actor)
        self._retired = [entry for entry in self._retired if entry[2] not in ending]

    def _measure(self, now: float) -> None:
        """Take the scorers' reports of their busy seconds as they arrive; a scorer that is away sends none."""
        for scorer in self.members:
            report = self._reports.get(scorer)
            if report is not None and not is_ready(report):
                continue
            self._reports[scorer] = scorer.actor.report.remote()
            if report is not None:
                with suppress(RayError):
                    self._busy.setdefault(scorer, self._total()).add(now, ray.get(report)["busy_seconds"])

    def _scale(self, now: float) -> None:
        """Start or remove one scorer, if the rates of the last seconds call for it."""
        up, down = self.scaling.upscale_delay_s, self.scaling.downscale_delay_s
        growing = len(self._starting) > len(self._leaving)
        waits = [total.rate(now, up) for total in self._waited.values()]
        if any(wait is not None and wait > GROW_ABOVE for wait in waits):
            if not growing and len(self.members) < self._most:
                self._start()
            return
        waits = [total.rate(now, down) for total in self._waited.values()]
        if not all(wait is not None and wait <= GROW_ABOVE for wait in waits):
            return
        if growing and len(self.members) >= self.scaling.min_replicas:
            self._give_up_newest()  # the demand is over before it has started
        elif len(self.members) > self.scaling.min_replicas:
            busy = [self._busy[s].rate(now, down) if s in self._busy else None for s in self.members]
            shares = [share for share in busy if share is not None]
            if len(shares) == len(busy) and sum(shares) / (len(busy) - 1) < IDLE_BELOW:
                self._retire(self.members[-1])

    def _total(self) -> Total:
        return Total(max(self.scaling.upscale_delay_s, self.scaling.downscale_delay_s))

    def _changed(self) -> None:
        """Begin a new version of the fleet, for which nothing has been measured yet."""
        self.version += 1
        self._waited, self._busy = {}, {}
