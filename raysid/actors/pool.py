"""The teacher service as one run sees it: calls on any scorer, repeated on another one when a scorer is lost."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError

from raysid.actors.assignment import Line, Speeds, assign
from raysid.actors.attendance import Attendance
from raysid.actors.fleet import Members, Scorer
from raysid.actors.results import HangLimit, is_ready
from raysid.actors.teacher_actor import Answered

RETRY_SECONDS = 0.1  # between looks at the scorers while calls wait

Submit = Callable[[Any, bool], tuple[Any, Any]]
"""Submits a call to an actor; the flag is True if the call moves from another scorer. Returns references of the call's
result and of its end."""

Deliver = Callable[[Any, Answered], Any]
"""Takes a call's result and its end. Returns a reference that is ready once the process that needs the result has it;
None if both are on one node."""


class PoolCall:
    """A call on the pool, from the moment it is made until its result is where it is needed.

    Args:
        kind: the scorer's method.
        last_input: reference of the input that is there last.
        submit: submits it.

    Attributes:
        scorer: the scorer that has it; None while it waits for one.
        result: reference of its result, once it is submitted.
        end: reference that is ready at its end, then at the end of the result's delivery.
        delivering: True while the result is on its way to the process that needs it.
        began: time from which its scorer can have worked on it, as far as has been seen.
        moved: True if another scorer had it before.
        done: True once the result can be passed on.
    """

    def __init__(self, pool: TeacherPool, kind: str, last_input: Any, submit: Submit) -> None:
        self.pool, self.kind, self.last_input, self.submit = pool, kind, last_input, submit
        self.scorer: Scorer | None = None
        self.result: Any = None
        self.end: Any = None
        self.delivering = self.moved = self.done = False
        self.began: float | None = None

    def start(self, scorer: Scorer) -> None:
        """Submit the call to a scorer."""
        self.scorer, self.began, self.delivering = scorer, None, False
        self.result, self.end = self.submit(scorer.actor, self.moved)

    def wait(self, fake: Any) -> Any:
        """Wait until a scorer and the fake score have answered; return the reference of the scorer's answer.

        Raises:
            RunFailed: there was no scorer for `failure.placement_timeout_s`.
            NoAnswer: a learner did not answer in time.
        """
        self.pool.next_answered({0: (self, fake)})
        return self.result


class TeacherPool:
    """The scorers as a run's controller sees them: they may die, come back, join and leave.

    Implements `raysid.roles.protocols.TeacherService`. Calls wait here until a scorer has room for them
    (`raysid.actors.assignment`); a pullback goes to the scorer that holds the graph. A result is passed on once it is
    on the node of the process that needs it, so that another scorer can repeat the call of one that is lost, alone or
    with its node. With one scorer at a time calls are passed on at once, and Ray repeats them after a restart.

    Args:
        attendance: the scorers that are present for the run.
        single: True if there is one scorer at a time; another one takes its place only if its node leaves.
        limit: the time after which a scorer that does not answer counts as lost.
        deliver: has a result fetched by the process that needs it.
    """

    def __init__(
        self,
        attendance: Attendance,
        single: bool = False,
        limit: HangLimit | None = None,
        deliver: Deliver = lambda result, end: None,
    ) -> None:
        self.attendance, self.single = attendance, single
        self.limit = limit or HangLimit(None)
        self._deliver = deliver
        self._speeds = Speeds()
        self._turn = 0
        self._scored: dict[Any, PoolCall] = {}  # whose scorer may hold the graph, by noised images
        self._queue: deque[PoolCall] = deque()  # calls that any scorer may take
        # Submitted calls; those of one scorer in the order in which it has them.
        self._under_way: list[PoolCall] = []
        # A single scorer's calls that had not ended: the scorer, and the reference of the end.
        self._passed_on: list[tuple[Scorer, Any]] = []

    @property
    def members(self) -> Members:
        """The fleet's members, present or away."""
        return self.attendance.members

    def score(self, noised: Any, cond: Any, guidance_scale: float) -> Any:
        def submit(actor: Any, moved: bool) -> tuple[Any, Any]:
            return self._options(actor.score).remote(noised, cond, guidance_scale, self.attendance.run, moved)

        if self.single:
            return self._submit_to_single(submit)
        call = self._scored[noised] = PoolCall(self, "score", noised, submit)
        self._queue.append(call)
        self._advance()
        self._turn += 1
        return call

    def pullback(self, noised: Any, cond: Any, cotangent: Any, guidance_scale: float) -> Any:
        def submit(actor: Any, moved: bool) -> tuple[Any, Any]:
            return self._options(actor.pullback).remote(
                noised, cond, cotangent, guidance_scale, self.attendance.run, moved
            )

        if self.single:
            return self._submit_to_single(submit)
        call = PoolCall(self, "pullback", cotangent, submit)
        scored = self._scored.pop(noised, None)
        holder = scored.scorer if scored else None
        if holder is not None and holder in self.present():
            self._start(call, holder)
        else:
            self._queue.appendleft(call)
        self._advance()
        return call

    def arrivals(self, predictions: Sequence[tuple[Any, Any]]) -> Iterator[int]:
        """Yield the index of each pair of a scorer's and the fake score's answers as soon as both are there.

        Raises:
            RunFailed, NoAnswer: as `PoolCall.wait`.
        """
        if self.single:
            yield from range(len(predictions))
            return
        waiting = dict(enumerate(predictions))
        while waiting:
            for index in self.next_answered(waiting):
                del waiting[index]
                yield index

    def next_answered(self, waiting: dict[int, tuple[PoolCall, Any]]) -> list[int]:
        """Wait until a scorer and the fake score have both answered; the calls of lost scorers move.

        Args:
            waiting: pairs of a call and the reference of the fake score's answer.

        Returns:
            The keys of the pairs that are answered.

        Raises:
            RunFailed, NoAnswer: as `PoolCall.wait`.
        """
        began = changed = time.monotonic()
        fakes = [*dict.fromkeys(fake for _, fake in waiting.values())]
        while True:
            missing = {*ray.wait(fakes, num_returns=len(fakes), timeout=0, fetch_local=False)[1]}
            answered = [key for key, (call, fake) in waiting.items() if call.done and fake not in missing]
            now = time.monotonic()
            if answered:
                self.limit.note(now - began)
                return answered
            if self._advance(RETRY_SECONDS, [*missing]):
                changed = time.monotonic()
            elif now - changed > self.limit.seconds:
                self._end_hung("the fake-score learner" if missing else "the generator learner")
            if len(missing) < len(fakes):  # it waits for a scorer and for nothing else
                self.attendance.waited_seconds += time.monotonic() - now

    def next_scorer(self) -> Scorer:
        """Return the scorer that takes the next call, if none waits already; waits while there is no scorer."""
        while not (present := self.present()):
            time.sleep(RETRY_SECONDS)
            self._look_for_scorers()
        chosen = assign(1, self._lines(present), self._turn)
        return present[chosen[0][1] if chosen else 0]

    def present(self) -> list[Scorer]:
        """Return the scorers that take calls now."""
        return self.attendance.present()

    def report(self) -> dict[str, float]:
        """Return figures for this run: mean busy seconds of the scorers, their number, seconds waited for them."""
        return self.begin_report()()

    def begin_report(self) -> Callable[[], dict[str, float]]:
        """Ask the scorers for the figures of `report`; the function that is returned waits for them."""
        waited = {} if self.single else {"waited_seconds": self.attendance.waited_seconds}
        reported = self.attendance.begin_report()
        return lambda: reported() | waited

    def check_single(self) -> None:
        """Check on a single scorer while a result is slow: it may lack the resources to start again.

        Raises:
            RunFailed: as `PoolCall.wait`.
        """
        if self.single:
            self.attendance.check_single()

    def _submit_to_single(self, submit: Submit) -> Any:
        self._synchronize()
        scorer = self.next_scorer()
        result, end = submit(scorer.actor, False)
        self._passed_on.append((scorer, end))
        return result

    def _options(self, method: Any) -> Any:
        # Without Ray's retry a lost scorer's call fails at once, and can move to another.
        retries = {} if self.single else {"max_task_retries": 0}
        return method.options(num_returns=2, **retries)

    def _start(self, call: PoolCall, scorer: Scorer) -> None:
        call.start(scorer)
        self._under_way.append(call)

    def _advance(self, seconds: float = 0.0, others: Sequence[Any] = ()) -> bool:
        """Take the calls that have ended, and give waiting ones to scorers that have room.

        Args:
            seconds: time to wait until something has ended.
            others: references that end the wait, too.

        Returns:
            True if a call has begun or ended, or another reference is ready.
        """
        self._synchronize()
        self._note_beginnings()
        inputs = [call.last_input for call in self._firsts() if call.began is None]
        awaited = [*dict.fromkeys([*(call.end for call in self._under_way), *inputs, *others])]
        ready: set[Any] = set()
        if awaited:
            if seconds:
                ray.wait(awaited, timeout=seconds, fetch_local=False)
            ready = {*ray.wait(awaited, num_returns=len(awaited), timeout=0, fetch_local=False)[0]}
        elif seconds:
            time.sleep(seconds)
        for call in [call for call in self._under_way if call.end in ready]:
            self._under_way.remove(call)
            self._end(call)
        self._note_beginnings()
        if self._queue:
            self._submit_waiting()
        return bool(ready)

    def _submit_waiting(self) -> None:
        present = self.present()
        if not present:
            self._look_for_scorers()
            return
        waiting = [*self._queue]
        for number, index in assign(len(waiting), self._lines(present), self._turn):
            self._queue.remove(waiting[number])
            self._start(waiting[number], present[index])

    def _end(self, call: PoolCall) -> None:
        """Take the end of a call, or of its result's delivery; a call that is lost waits for another scorer."""
        assert call.scorer is not None
        try:
            answered = ray.get(call.end)
        except RayError as error:
            # A call that failed by itself, or whose inputs are lost, would fail on any scorer: its result carries
            # the error to the driver. So does one whose receiver is lost.
            if call.delivering:
                lost = isinstance(error, ObjectLostError)  # with the scorer's node
            else:
                lost = isinstance(error, RayActorError) and not isinstance(error, RayTaskError)
            if not lost:
                call.done = True
                return
            scorer, call.scorer, call.moved = call.scorer, None, True
            self._queue.appendleft(call)
            if isinstance(error, RayActorError):
                self.attendance.lose(scorer, error)
                self._refresh()
            return
        if not call.delivering:
            now = time.monotonic()
            if call.began is not None:
                self._speeds.note(call.scorer, call.kind, now - call.began, now)
            delivery = self._deliver(call.result, answered)
            if delivery is not None:
                call.end, call.delivering = delivery, True
                self._under_way.append(call)
                return
        call.done = True

    def _end_hung(self, learner: str) -> None:
        """Kill the scorers that work on a call for too long. Raises NoAnswer if none works: a learner hangs."""
        now = time.monotonic()
        working = [call for call in self._under_way if call.began is not None and not call.delivering]
        if not working:
            raise self.limit.exceeded(learner)
        for call in working:
            assert call.began is not None and call.scorer is not None
            if now - call.began > self.limit.seconds:
                call.began = now
                exceeded = self.limit.exceeded(f"teacher scorer {call.scorer.number}")
                self.attendance.notify(f"{exceeded}; replacing it")
                ray.kill(call.scorer.actor, no_restart=False)

    def _lines(self, present: Sequence[Scorer]) -> list[Line]:
        """Return the calls of each scorer, and the time that it is expected to need for them and their pullbacks."""
        now = time.monotonic()
        lines = []
        for scorer in present:
            score = self._speeds.seconds(scorer, "score", now)
            pull = self._speeds.seconds(scorer, "pullback", now) or score or 0.0
            line = Line(0, 0.0, None if score is None else score + pull)
            for call in self._under_way:
                if call.scorer != scorer or call.delivering:
                    continue
                length = pull if call.kind == "pullback" else score or 0.0
                # One that takes longer than usual is expected to take as long again as it is late.
                line.left += length if call.began is None else abs(length - (now - call.began))
                line.calls += 1
            line.left += pull * sum(call.scorer == scorer for call in self._scored.values())
            lines.append(line)
        return lines

    def _firsts(self) -> list[PoolCall]:
        """Return the first of each scorer's calls, which it works on once its inputs are there."""
        firsts: dict[Scorer | None, PoolCall] = {}
        for call in self._under_way:
            if not call.delivering:
                firsts.setdefault(call.scorer, call)
        return [*firsts.values()]

    def _note_beginnings(self) -> None:
        """Note the time for each call whose scorer can work on it by now."""
        now = time.monotonic()
        for call in self._firsts():
            if call.began is None and is_ready(call.last_input):
                call.began = now

    def _refresh(self) -> None:
        calls = [*self._under_way, *self._scored.values()]
        self._passed_on = [(scorer, end) for scorer, end in self._passed_on if not is_ready(end)]
        used = {call.scorer for call in calls if call.scorer is not None}
        self.attendance.refresh(used | {scorer for scorer, _ in self._passed_on})

    def _synchronize(self) -> None:
        if self.attendance.is_due():
            self._refresh()

    def _look_for_scorers(self) -> None:
        """Look whether a scorer is back or a new one has joined. Raises RunFailed after a while."""
        self._refresh()
        self.attendance.check_missing()
