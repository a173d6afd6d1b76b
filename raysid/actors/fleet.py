"""The scorers that there are: started, joined when ready, added while steps wait for them, ended when idle."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from raysid.actors.placing import Say, wait_for_room
from raysid.actors.results import is_ready, why_not_started
from raysid.config import RoleResources, TeacherAutoscaling
from raysid.errors import RunFailed

GROW_ABOVE = 0.15  # share of the time in which a step had nothing to do but wait for a scorer
IDLE_BELOW = 0.6  # how busy the remaining scorers may be when one is taken away
ABSENT_SECONDS = 120.0  # a run that has not asked for so long is not waited for
ENDING_SECONDS = 5.0  # between a scorer's last call and its end: its last results are fetched by then


@dataclass(frozen=True)
class Scorer:
    """One scorer of the service: its number in the order of starting, and its actor."""

    number: int
    actor: Any = field(compare=False)  # handles of one actor are not equal in different messages


@dataclass(frozen=True)
class Asked:
    """What a run says when it asks which scorers there are.

    Attributes:
        run: whose it is.
        version: the newest list of scorers that it has nothing outstanding outside of.
        waited: seconds since its start in which its step waited for a scorer and for nothing else.
        dead: numbers of the scorers that it knows will not come back.
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
    """A total that grows, and how fast it grew lately: so many seconds a second.

    Args:
        seconds: the longest time that a rate is asked for.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._points: deque[tuple[float, float]] = deque()

    def add(self, now: float, value: float) -> None:
        """Note the total at a time; one that fell (a scorer started again) begins anew."""
        if self._points and value < self._points[-1][1]:
            self._points.clear()
        self._points.append((now, value))
        while len(self._points) > 1 and self._points[1][0] <= now - self._seconds:
            self._points.popleft()

    def rate(self, now: float, seconds: float) -> float | None:
        """The mean rate over the last so many seconds; None where it was not watched for so long."""
        earlier = [point for point in self._points if point[0] <= now - seconds]
        if not earlier:
            return None
        (began, before), (ended, after) = earlier[-1], self._points[-1]
        return (after - before) / (ended - began) if ended > began else None


class ScorerFleet:
    """Keeps as many scorers as the runs that use them need, between a minimum and a maximum.

    A scorer joins once it has started. One is added when over `upscale_delay_s` some run's steps waited for
    scoring alone during more than 15% of the time; one is taken away when over `downscale_delay_s` no
    run's did, and the others could do its work in 60% of their time.
    A new one's demand for resources is what makes a cluster's autoscaler add a node; its end frees the node.

    Args:
        start: starts a scorer's actor.
        resources: what each asks for, to say what is missing.
        scaling: minimum, maximum and delays; a fixed fleet has minimum = maximum.
        timeout: seconds to wait for the minimum's places.
    """

    def __init__(
        self,
        start: Callable[[], Any],
        resources: RoleResources,
        scaling: TeacherAutoscaling,
        timeout: float,
        say: Say = print,
    ) -> None:
        self._start_actor = start
        self.resources = resources
        self.scaling = scaling
        self._say = say
        self._most = scaling.max_replicas
        self.members: list[Scorer] = []
        self.version = 0
        self._started = 0
        self._starting: dict[Any, Scorer] = {}
        self._retired: list[tuple[float, int, Scorer]] = []
        self._asked: dict[str, tuple[float, Asked]] = {}
        self._waited: dict[str, Total] = {}
        self._busy: dict[Scorer, Total] = {}
        self._reports: dict[Scorer, Any] = {}
        for _ in range(scaling.min_replicas):
            self._start()
        try:
            wait_for_room(
                self._minimum_within,
                f"{scaling.min_replicas} teacher scorer{'s' * (scaling.min_replicas > 1)}",
                [resources] * scaling.min_replicas,
                timeout,
                say,
            )
        except BaseException:
            self.close()
            raise

    def sync(self, asked: Asked) -> Members:
        """Take in how a run fared, change the fleet where that asks for it, and say who takes calls now."""
        now = time.monotonic()
        self._asked[asked.run] = (now, asked)
        for run in [run for run, (at, _) in self._asked.items() if now - at > ABSENT_SECONDS]:
            self._leave(run)
        self._bury(asked.dead)
        self._admit()
        self._end_retired(now)
        if self.scaling.max_replicas > self.scaling.min_replicas:
            self._waited.setdefault(asked.run, self._total()).add(now, asked.waited)
            self._measure(now)
            self._scale(now)
        return Members(self.version, tuple(self.members))

    def forget(self, run: str) -> None:
        """A run has ended: what is kept for it goes."""
        self._leave(run)
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
        self._starting[scorer.actor.__ray_ready__.remote()] = scorer

    def _minimum_within(self, seconds: float) -> bool:
        ray.wait(list(self._starting), num_returns=len(self._starting), timeout=seconds)
        self._admit()
        return len(self.members) >= self.scaling.min_replicas

    def _leave(self, run: str) -> None:
        self._asked.pop(run, None)
        self._waited.pop(run, None)

    def _bury(self, dead: frozenset[int]) -> None:
        """Scorers that Ray does not restart are replaced."""
        for scorer in [scorer for scorer in self.members if scorer.number in dead]:
            self.members.remove(scorer)
            self._changed()
        while len(self.members) + len(self._starting) < self.scaling.min_replicas:
            self._start()

    def _admit(self) -> None:
        """Scorers that have started take calls from now on."""
        for ready in [reference for reference in self._starting if is_ready(reference)]:
            scorer = self._starting.pop(ready)
            try:
                ray.get(ready)
            except RayActorError as error:
                if error.actor_init_failed:
                    self._refuse(why_not_started(error))
                continue  # lost for good before it had served
            self.members.append(scorer)
            self._changed()

    def _refuse(self, why: str) -> None:
        """A scorer cannot start: the run cannot do without the minimum, but it can without more."""
        if len(self.members) < self.scaling.min_replicas:
            raise RunFailed(why)
        self._say(f"the teacher service grows no further: {why}")
        self._most = len(self.members)

    def _end_retired(self, now: float) -> None:
        """End the scorers that no run has anything outstanding with."""
        acknowledged = min((asked.version for _, asked in self._asked.values()), default=self.version)
        ending = [one for at, v, one in self._retired if v <= acknowledged and now - at > ENDING_SECONDS]
        for scorer in ending:
            ray.kill(scorer.actor)
        self._retired = [entry for entry in self._retired if entry[2] not in ending]

    def _measure(self, now: float) -> None:
        """Take in the scorers' own reports of how busy they were, as they come; one that is away sends none."""
        for scorer in self.members:
            report = self._reports.pop(scorer, None)
            if report is not None and not is_ready(report):
                self._reports[scorer] = report
                continue
            self._reports[scorer] = scorer.actor.report.remote()
            if report is not None:
                with suppress(RayError):
                    self._busy.setdefault(scorer, self._total()).add(now, ray.get(report)["busy_seconds"])

    def _scale(self, now: float) -> None:
        """Start one more, or take one away, where the last seconds ask for it."""
        up, down = self.scaling.upscale_delay_s, self.scaling.downscale_delay_s
        waits = [total.rate(now, up) for total in self._waited.values()]
        if any(wait is not None and wait > GROW_ABOVE for wait in waits):
            if not self._starting and len(self.members) < self._most:
                self._start()
            return
        waits = [total.rate(now, down) for total in self._waited.values()]
        if not all(wait is not None and wait <= GROW_ABOVE for wait in waits):
            return
        if self._starting and len(self.members) >= self.scaling.min_replicas:
            # What it was wanted for is over before it has found a place.
            _, scorer = self._starting.popitem()
            ray.kill(scorer.actor)
        elif len(self.members) > self.scaling.min_replicas:
            busy = [self._busy[s].rate(now, down) if s in self._busy else None for s in self.members]
            shares = [share for share in busy if share is not None]
            if len(shares) == len(busy) and sum(shares) / (len(busy) - 1) < IDLE_BELOW:
                self._retired.append((now, self.version + 1, self.members.pop()))
                self._changed()

    def _total(self) -> Total:
        return Total(max(self.scaling.upscale_delay_s, self.scaling.downscale_delay_s))

    def _changed(self) -> None:
        """The fleet is another one: what was measured before says nothing of it."""
        self.version += 1
        self._waited, self._busy = {}, {}
