"""The teacher service as one run sees it: calls that reach some scorer, whoever of them dies meanwhile."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError, RayError, RayTaskError

from raysid.actors.fleet import Asked, Members, Scorer
from raysid.actors.placing import NOTICE_SECONDS, Say, what_is_missing
from raysid.actors.results import is_ready, why_not_started
from raysid.config import Config, RoleResources
from raysid.errors import RunFailed
from raysid.roles.build import build_teacher
from raysid.roles.messages import Cotangent, Noised, Prediction, Pull
from raysid.roles.profile import Profile, Traffic, profile_of

SYNC_SECONDS = 1.0
RETRY_SECONDS = 0.1
REPORT_SECONDS = 5.0


class TeacherActor:
    """One scorer of the teacher service.

    Both calls return a second, empty value: whoever waits for it knows that the first is there, without
    fetching it.

    Args:
        teacher: folder of the teacher.
        config: the run's settings, or what those of all runs to be served have in common.
        runs_kept: runs that graphs are kept for.
        threads: torch's threads.
    """

    def __init__(self, teacher: str, config: Config, runs_kept: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self.role = build_teacher(teacher, config, runs_kept)
        self.traffic = Traffic()

    def score(self, noised: Noised, scale: float, run: str, moved: bool) -> tuple[Prediction, None]:
        prediction = self.traffic.call(self.role.score, (noised, scale, run))
        again = moved or _attempts_before() > 0
        return dataclasses.replace(prediction, recomputed=int(again)), None

    def pullback(
        self, noised: Noised, cotangent: Cotangent, scale: float, run: str, moved: bool
    ) -> tuple[Pull, None]:
        return self.traffic.call(self.role.pullback, (noised, cotangent, scale, run)), None

    def forget(self, run: str) -> None:
        self.role.forget(run)

    def report(self) -> dict[str, float]:
        return self.role.report()

    def profile(self) -> Profile:
        return profile_of(self.role, self.traffic)


class PoolCall:
    """A call on the pool: settled once some scorer has answered it."""

    def __init__(self, pool: TeacherPool, method: str, scorer: Scorer, arguments: tuple[Any, ...]) -> None:
        self.pool, self.method, self.arguments, self.scorer = pool, method, arguments, scorer
        self.result, self.answered = pool.submit(scorer, method, arguments, moved=False)

    def settle(self, beside: Any) -> Any:
        """Wait for an answer, moving the call to another scorer whenever one is lost; return its reference.

        Args:
            beside: what the step waits for anyway; time after that is there counts as waited for a scorer.

        Raises:
            RunFailed: no scorer has been there for as long as a run may wait for its places.
        """
        ray.wait([beside], fetch_local=False)
        began = time.perf_counter()
        while not self._answered_by_someone():
            self.result, self.answered = self.pool.submit(
                self.scorer, self.method, self.arguments, moved=True
            )
        self.pool.waited_seconds += time.perf_counter() - began
        return self.result

    def _answered_by_someone(self) -> bool:
        """Wait for the scorer in charge; where it is lost, put another in charge."""
        try:
            ray.get(self.answered)
        except RayError as error:
            # A call that failed itself, or whose inputs are lost, no other scorer could do: the error goes
            # where the result goes, and comes out when the driver asks for it.
            if isinstance(error, RayActorError) and not isinstance(error, RayTaskError):
                self.pool.done(self.scorer)
                self.scorer = self.pool.instead_of(self.scorer, error)
                return False
        self.pool.done(self.scorer)
        return True


class TeacherPool:
    """The scorers, as a run's controller sees them: they may die, come back, join and leave.

    A call's completion (not its data) is waited for before its result is passed on, so that another scorer
    can take over from one that died. Where there is one scorer and there will never be another, calls are
    passed on at once, and Ray repeats them after a restart.

    Args:
        run: whose calls these are.
        sync: asks the fleet which scorers there are.
        resources: what a scorer asks for, to say what is missing.
        timeout: seconds to go without any scorer before the run gives up.
        alone: whether there is one scorer and there will never be another.
        stopping: whether the run has been asked to stop: it waits for no scorer any longer.
    """

    def __init__(
        self,
        run: str,
        sync: Callable[[Asked], Members],
        resources: RoleResources,
        timeout: float,
        alone: bool = False,
        say: Say = print,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.run = run
        self.stopping = stopping
        self.resources = resources
        self.timeout = timeout
        self.alone = alone
        self.say = say
        self.waited_seconds = 0.0
        self._sync = sync
        self._away: dict[Scorer, Any] = {}  # lost ones, each with the reference that is ready when it is back
        self._keepers: dict[Any, Scorer] = {}  # by noised images, who keeps their graph
        self._outstanding: Counter[Scorer] = Counter()
        self._turn = -1
        self._busy_seconds = 0.0
        self._busy: dict[Scorer, float] = {}
        self._acknowledged = -1  # the newest list of scorers outside of which nothing is outstanding
        self._asked = 0.0
        self._missing_since: float | None = None
        self._said = 0.0
        self.members = Members(-1, ())
        self.tend()

    def score(self, noised: Any, guidance_scale: float) -> Any:
        if time.monotonic() - self._asked > SYNC_SECONDS:
            self.tend()
        scorer = self.next_scorer()
        self._turn += 1
        if not self.alone:
            self._keepers[noised] = scorer
        return self._call("score", scorer, noised, guidance_scale, self.run)

    def pullback(self, noised: Any, cotangent: Any, guidance_scale: float) -> Any:
        keeper = self._keepers.pop(noised, None)  # it keeps the graph
        if keeper is None or keeper not in self.present():
            keeper = self.next_scorer()
        return self._call("pullback", keeper, noised, cotangent, guidance_scale, self.run)

    def next_scorer(self) -> Scorer:
        """Who the next call goes to: of those with the fewest calls outstanding, the next in turn."""
        present = self.present() or [self._wait_for_one()]
        fewest = min(self._outstanding[scorer] for scorer in present)
        count = len(present)
        turns = (present[(self._turn + 1 + k) % count] for k in range(count))
        return next(scorer for scorer in turns if self._outstanding[scorer] == fewest)

    def instead_of(self, lost: Scorer, error: RayActorError) -> Scorer:
        """Who takes over a call from a scorer that was lost; waits for one where there is none."""
        if error.actor_init_failed:
            raise RunFailed(why_not_started(error)) from error
        if lost not in self._away:
            self._away[lost] = lost.actor.__ray_ready__.remote()
        self.tend()
        return self.next_scorer()

    def submit(self, scorer: Scorer, method: str, arguments: tuple[Any, ...], moved: bool) -> Any:
        """Pass a call to a scorer; the references of its result and of its completion."""
        self._outstanding[scorer] += 1
        call = getattr(scorer.actor, method)
        # Without a retry of Ray's own a lost scorer's call fails at once, and can go to another.
        return call.options(num_returns=2, max_task_retries=0).remote(*arguments, moved)

    def done(self, scorer: Scorer) -> None:
        """A call on a scorer has ended, well or not."""
        self._outstanding[scorer] -= 1

    def tend(self) -> None:
        """Ask which scorers there are now, saying how long this run has waited for them."""
        self._asked = time.monotonic()
        used = {scorer for scorer, count in self._outstanding.items() if count} | {*self._keepers.values()}
        if used <= {*self.members.scorers}:
            self._acknowledged = self.members.version
        dead = self._welcome_back()
        self.members = self._sync(Asked(self.run, self._acknowledged, self.waited_seconds, dead))

    def report(self) -> dict[str, float]:
        """Figures of the service as this run sees it; a scorer that is away does not answer, and is left out."""
        asked = {scorer: scorer.actor.report.remote() for scorer in self.present()}
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
        figures = {"busy_seconds": self._busy_seconds, "replicas": float(len(self.members.scorers))}
        return figures if self.alone else figures | {"waited_seconds": self.waited_seconds}

    def _call(self, method: str, scorer: Scorer, *arguments: Any) -> Any:
        if self.alone:
            return getattr(scorer.actor, method).options(num_returns=2).remote(*arguments, False)[0]
        return PoolCall(self, method, scorer, arguments)

    def present(self) -> list[Scorer]:
        """The scorers that take calls now."""
        return [scorer for scorer in self.members.scorers if scorer not in self._away]

    def _welcome_back(self) -> frozenset[int]:
        """Take those that are back from among the lost; the numbers of those that Ray does not restart."""
        dead = set()
        for scorer in [scorer for scorer, back in self._away.items() if is_ready(back)]:
            try:
                ray.get(self._away[scorer])
            except RayActorError as error:
                if error.actor_init_failed:
                    raise RunFailed(why_not_started(error)) from error
                dead.add(scorer.number)
            else:
                del self._away[scorer]
        return frozenset(dead)

    def _wait_for_one(self) -> Scorer:
        """A scorer that is back or new, where all were away."""
        while True:
            time.sleep(RETRY_SECONDS)
            self.tend()
            if present := self.present():
                self._missing_since = None
                return present[0]
            self._complain()

    def check_alone(self) -> None:
        """Called while a result is long in coming: a single scorer may have no place to start again.

        Raises:
            RunFailed: as `PoolCall.settle`.
        """
        if not self.alone:
            return
        (scorer,) = self.members.scorers
        state = ray._private.state.actors(scorer.actor._actor_id.hex()).get("State")  # type: ignore[attr-defined]
        if state == "ALIVE":
            self._missing_since = None
        else:
            self._complain()

    def _complain(self) -> None:
        """Say now and then which resource a scorer lacks; give up when it has lacked it for too long."""
        now = time.monotonic()
        if self._missing_since is None:
            self._missing_since = self._said = now
        stopping, too_long = self.stopping(), now - self._missing_since > self.timeout
        if not (stopping or too_long or now - self._said > NOTICE_SECONDS):
            return  # this is asked many times a second, and what is missing is asked of the whole cluster
        missing = f"no teacher scorer is there: {what_is_missing([self.resources])}"
        if stopping:
            raise RunFailed(f"asked to stop while {missing}")
        if too_long:
            raise RunFailed(
                f"{missing}; waited failure.placement_timeout_s = {self.timeout:g} s; run the same "
                "command to resume from the newest checkpoint"
            )
        self._said = now
        self.say(f"waiting, {missing}")


def _attempts_before() -> int:
    """How often Ray has run this very call before, its process having died. Only Ray's own code is told."""
    return ray._private.worker.global_worker.core_worker.get_current_task_attempt_number()  # type: ignore[attr-defined]
