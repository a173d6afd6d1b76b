"""The teacher service as one run sees it: calls on any scorer, repeated on another one when a scorer dies."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError, RayError, RayTaskError

from raysid.actors.capacity import NOTICE_SECONDS, Notify, describe_shortage
from raysid.actors.fleet import Members, RunStatus, Scorer
from raysid.actors.results import HangLimit, describe_failed_start, is_ready
from raysid.config import Config, RoleResources
from raysid.errors import RunFailed
from raysid.ray_internals import actor_ready, actor_state, task_attempt
from raysid.roles.build import build_teacher
from raysid.roles.faults import describe_fault, is_device_fault
from raysid.roles.messages import Cotangent, Noised, Prediction, Pull
from raysid.roles.profile import Profile, Traffic, profile_of

SYNC_SECONDS = 1.0
RETRY_SECONDS = 0.1
REPORT_SECONDS = 5.0

Submit = Callable[[Any, bool], tuple[Any, Any]]
"""Submits a call to an actor; the flag is True if the call moves from another scorer. Returns references of the call's
result and of its end."""


class TeacherActor:
    """One scorer of the teacher service.

    `score` and `pullback` return a second, empty value: its reference shows that the first one is there, without
    fetching it.

    Args:
        teacher: folder of the teacher.
        config: the run's settings, or those that all runs to be served have in common.
        runs_kept: number of runs that graphs are kept for.
        threads: torch's threads.
    """

    def __init__(self, teacher: str, config: Config, runs_kept: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self.role = build_teacher(teacher, config, runs_kept)
        self.traffic = Traffic()

    def score(self, noised: Noised, scale: float, run: str, moved: bool) -> tuple[Prediction, None]:
        with _exit_on_device_fault():
            prediction = self.traffic.call(self.role.score, noised, scale, run)
        again = moved or task_attempt() > 0
        return dataclasses.replace(prediction, recomputed=int(again)), None

    def pullback(
        self, noised: Noised, cotangent: Cotangent, scale: float, run: str, moved: bool
    ) -> tuple[Pull, None]:
        with _exit_on_device_fault():
            return self.traffic.call(self.role.pullback, noised, cotangent, scale, run), None

    def forget(self, run: str) -> None:
        self.role.forget(run)

    def report(self) -> dict[str, float]:
        return self.role.report()

    def profile(self) -> Profile:
        return profile_of(self.role, self.traffic)


@contextmanager
def _exit_on_device_fault() -> Iterator[None]:
    """End this process if its accelerator fails: Ray starts another one, and its work moves."""
    try:
        yield
    except Exception as error:  # only to look for the fault
        if not is_device_fault(error):
            raise
        print(f"TeacherActor: {describe_fault(error)}", file=sys.stderr, flush=True)
        os._exit(1)


class PoolCall:
    """A call on the pool, with `wait` for its answer."""

    def __init__(self, pool: TeacherPool, scorer: Scorer, submit: Submit) -> None:
        self.pool, self.scorer, self.submit = pool, scorer, submit
        self.result, self.answered = pool.submit(scorer, submit, moved=False)

    def wait(self, fake: Any) -> Any:
        """Wait for an answer, moving the call to another scorer whenever one is lost; return its reference.

        Args:
            fake: the fake score's answer, which the next call needs, too; only the time after it counts as waiting.

        Raises:
            RunFailed: there was no scorer for `failure.placement_timeout_s`.
            NoAnswer: the fake score did not answer in time.
        """
        limit = self.pool.limit
        if not ray.wait([fake], timeout=limit.seconds, fetch_local=False)[0]:
            raise limit.exceeded("the fake-score learner")
        began = time.perf_counter()
        while (error := self._lost()) is not None:
            self.scorer = self.pool.replace(self.scorer, error)
            self.result, self.answered = self.pool.submit(self.scorer, self.submit, moved=True)
        waited = time.perf_counter() - began
        self.pool.waited_seconds += waited
        limit.note(waited)
        return self.result

    def _lost(self) -> RayActorError | None:
        """Wait for the scorer's answer; return the error if the scorer was lost. One that hangs is killed."""
        try:
            if not ray.wait([self.answered], timeout=self.pool.limit.seconds, fetch_local=False)[0]:
                self.pool.notify(
                    f"{self.pool.limit.exceeded(f'teacher scorer {self.scorer.number}')}; replacing it"
                )
                ray.kill(self.scorer.actor, no_restart=False)
            ray.get(self.answered)
        except RayError as error:
            # A call that failed by itself, or whose inputs are lost, would fail on any scorer: its result carries
            # the error to the driver.
            if isinstance(error, RayActorError) and not isinstance(error, RayTaskError):
                return error
        finally:
            self.pool.outstanding[self.scorer] -= 1
        return None


class TeacherPool:
    """The scorers as a run's controller sees them: they may die, come back, join and leave.

    Implements `raysid.roles.protocols.TeacherService`. The pool waits for a call's end (not for its data) before its
    result is passed on, so that another scorer can take over from one that died. With one scorer that is never
    joined by another, calls are passed on at once, and Ray repeats them after a restart.

    Args:
        run: name of the run that calls.
        sync: reports the run's status to the fleet and returns the fleet's members.
        resources: a scorer's resources, to report which one is missing.
        timeout: seconds without any scorer after which the run fails.
        single: True if there is one scorer and there will never be another.
        notify: prints a line while scorers are waited for.
        limit: the time after which a scorer that does not answer counts as lost.
        stopping: True once the run has been asked to stop; it waits for no scorer then.
    """

    def __init__(
        self,
        run: str,
        sync: Callable[[RunStatus], Members],
        resources: RoleResources,
        timeout: float,
        single: bool = False,
        notify: Notify = print,
        stopping: Callable[[], bool] = lambda: False,
        limit: HangLimit | None = None,
    ) -> None:
        self.run = run
        self.limit = limit or HangLimit(None)
        self.stopping = stopping
        self.resources = resources
        self.timeout = timeout
        self.single = single
        self.notify = notify
        self.waited_seconds = 0.0
        self._sync = sync
        # Lost scorers, each with the reference that is ready once it is back.
        self._away: dict[Scorer, Any] = {}
        self._graph_holders: dict[Any, Scorer] = {}  # the scorer that holds the graph, by noised images
        self.outstanding: Counter[Scorer] = Counter()  # calls that have not ended
        self._turn = -1
        self._busy_seconds = 0.0
        self._busy: dict[Scorer, float] = {}
        self._acknowledged = -1  # newest version of the fleet whose former members have no call outstanding
        self._synced = 0.0
        self._missing_since: float | None = None
        self._notified = 0.0
        self.members = Members(-1, ())
        self.refresh()

    def score(self, noised: Any, guidance_scale: float) -> Any:
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.refresh()
        scorer = self.next_scorer()
        self._turn += 1
        if not self.single:
            self._graph_holders[noised] = scorer
        return self._call(
            scorer,
            lambda actor, moved: self._options(actor.score).remote(noised, guidance_scale, self.run, moved),
        )

    def pullback(self, noised: Any, cotangent: Any, guidance_scale: float) -> Any:
        holder = self._graph_holders.pop(noised, None)
        if holder is None or holder not in self.present():
            holder = self.next_scorer()
        return self._call(
            holder,
            lambda actor, moved: self._options(actor.pullback).remote(
                noised, cotangent, guidance_scale, self.run, moved
            ),
        )

    def next_scorer(self) -> Scorer:
        """Choose the scorer of the next call: in turn among those with the fewest calls outstanding."""
        present = self.present() or [self._wait_for_scorer()]
        fewest = min(self.outstanding[scorer] for scorer in present)
        count = len(present)
        turns = (present[(self._turn + 1 + k) % count] for k in range(count))
        return next(scorer for scorer in turns if self.outstanding[scorer] == fewest)

    def replace(self, lost: Scorer, error: RayActorError) -> Scorer:
        """Choose the scorer that takes over a call of a lost one; waits while there is none."""
        if error.actor_init_failed:
            raise RunFailed(describe_failed_start(error)) from error
        if lost not in self._away:
            self._away[lost] = actor_ready(lost.actor)
        self.refresh()
        return self.next_scorer()

    def submit(self, scorer: Scorer, submit: Submit, moved: bool) -> tuple[Any, Any]:
        """Submit a call to a scorer; return the references of its result and of its end."""
        self.outstanding[scorer] += 1
        return submit(scorer.actor, moved)

    def refresh(self) -> None:
        """Readmit scorers that are back, report this run's status to the fleet, and take its members."""
        self._synced = time.monotonic()
        used = {scorer for scorer, count in self.outstanding.items() if count}
        used |= {*self._graph_holders.values()}
        if used <= {*self.members.scorers}:
            self._acknowledged = self.members.version
        dead = self._readmit()
        self.members = self._sync(RunStatus(self.run, self._acknowledged, self.waited_seconds, dead))

    def report(self) -> dict[str, float]:
        """Return figures for this run: mean busy seconds of the scorers that answer, number of scorers."""
        return self.begin_report()()

    def begin_report(self) -> Callable[[], dict[str, float]]:
        """Ask the scorers for the figures of `report`; the function that is returned waits for them."""
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
        figures = {"busy_seconds": self._busy_seconds, "replicas": float(len(self.members.scorers))}
        return figures if self.single else figures | {"waited_seconds": self.waited_seconds}

    def present(self) -> list[Scorer]:
        """Return the scorers that take calls now."""
        return [scorer for scorer in self.members.scorers if scorer not in self._away]

    def check_single(self) -> None:
        """Check on a single scorer while a result is slow: it may lack the resources to start again.

        Raises:
            RunFailed: as `PoolCall.wait`.
        """
        if not self.single:
            return
        (scorer,) = self.members.scorers
        if actor_state(scorer.actor) == "ALIVE":
            self._missing_since = None
        else:
            self._report_missing()

    def _call(self, scorer: Scorer, submit: Submit) -> Any:
        return submit(scorer.actor, False)[0] if self.single else PoolCall(self, scorer, submit)

    def _options(self, method: Any) -> Any:
        # Without Ray's retry a lost scorer's call fails at once, and can move to another.
        retries = {} if self.single else {"max_task_retries": 0}
        return method.options(num_returns=2, **retries)

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

    def _wait_for_scorer(self) -> Scorer:
        """Wait until a scorer is back or a new one has joined."""
        while True:
            time.sleep(RETRY_SECONDS)
            self.refresh()
            if present := self.present():
                self._missing_since = None
                return present[0]
            self._report_missing()

    def _report_missing(self) -> None:
        """Report now and then which resource a scorer lacks; fail when it has lacked it for too long."""
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
