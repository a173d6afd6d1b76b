"""The processes of a placement, and roles that record their calls of a step instead of computing it.

`raysid.roles.step.take_step` itself runs on them, so that a simulated step makes exactly the calls of a real one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raysid.config import Config
from raysid.roles.messages import Slice
from raysid.roles.protocols import Roles

# Compared by identity: they are the keys of the simulation's inner loop.


@dataclass(frozen=True, eq=False)
class Pool:
    """A device, or the cores of a machine, that processes share.

    Attributes:
        capacity: number of processes that can compute at full speed at the same time.
    """

    capacity: float = 1.0


@dataclass(frozen=True, eq=False)
class Process:
    """A process of a role, the driver, or Ray's own processes as one.

    Attributes:
        pool: the device or the cores it computes on.
        node: processes of different nodes reach each other over the network.
    """

    pool: Pool
    node: str


@dataclass(frozen=True)
class Transport:
    """The cost of a call between processes, beside its work.

    Attributes:
        process: seconds of the called process, to unpack the call and pack the answer.
        driver: seconds of the driver's process, to submit the call.
        others: seconds of Ray's own processes.
        latency: seconds from an answer to the call that takes it, in which no process computes.
        byte: further seconds for each byte between two processes of a node.
        network_byte: further seconds for each byte between two nodes.
        on_pool: whether the processes' seconds occupy their pools (on a CPU) or pass beside them (on a GPU).
    """

    process: float = 0.0
    driver: float = 0.0
    others: float = 0.0
    latency: float = 0.0
    byte: float = 0.0
    network_byte: float = 0.0
    on_pool: bool = True


@dataclass(frozen=True)
class Workers:
    """The processes of a `split` placement.

    Attributes:
        ray: Ray's own processes; None where their cores are not those that the roles compute on.
        one_scorer: True if there is one scorer, to which calls are submitted at once; with several the driver waits
            for a call's inputs before it submits the call.
    """

    generator: list[Process]
    teacher: list[Process]
    fake_score: list[Process]
    driver: Process
    ray: Process | None = None
    one_scorer: bool = True

    @property
    def all(self) -> list[Process]:
        """Every process, once."""
        roles = [*self.generator, *self.teacher, *self.fake_score, self.driver]
        return roles if self.ray is None else [*roles, self.ray]


@dataclass(eq=False, slots=True)
class Call:
    """One call: its process, its length, and the calls whose results it takes.

    Attributes:
        role: the role that computes; empty for the driver and Ray's own processes.
        process: the process that executes it.
        beside: seconds that occupy only the process, before those of its pool.
        seconds: seconds that occupy its pool too.
        inputs: calls that it waits for.
        size: bytes of the result of each input that is a role's.
        ended: time at which it ended; infinite until then.
    """

    role: str
    process: Process
    beside: float
    seconds: float
    inputs: tuple[Call, ...]
    size: float
    ended: float = math.inf
    _arrives: float = 0.0
    _seen: int = 0

    def arrival(self, transport: Transport) -> float:
        """Return the time at which all inputs have arrived; infinite while one of them has not ended."""
        # An input that has ended is examined once: a step takes a token of every microbatch.
        while self._seen < len(self.inputs):
            other = self.inputs[self._seen]
            if other.ended == math.inf:
                return math.inf
            travel = 0.0
            if other.process is not self.process:
                size = self.size if other.role else 0.0
                travel = transport.latency + size * transport.byte
                if other.process.node != self.process.node:
                    travel += size * transport.network_byte
            self._arrives = max(self._arrives, other.ended + travel)
            self._seen += 1
        return self._arrives


@dataclass
class Recorder:
    """The calls of some steps, in the order in which the driver submits them.

    Attributes:
        seconds: length of a call, by role and method.
        image_bytes: bytes of one image between processes.
        calls: every call so far, the driver's own work included.
        waits: calls that the driver waits for before it submits the next one.
    """

    workers: Workers
    transport: Transport
    seconds: Mapping[tuple[str, str], float]
    image_bytes: float
    calls: list[Call] = field(default_factory=list)
    waits: tuple[Call, ...] = ()

    def roles(self, config: Config) -> Roles:
        """Return the three roles of a config, which record their calls here."""
        size = config.microbatch * self.image_bytes
        roles: Any = _Teacher(self, size), _FakeScore(self, size), _Generator(self, size), _Conditions()
        return Roles(*roles)

    def call(
        self,
        role: str,
        method: str,
        process: Process,
        inputs: tuple[Call, ...] = (),
        size: float = 0.0,
        driver_waits: bool = False,
    ) -> Call:
        """Record a call and its submission; `driver_waits`: it is submitted once its inputs are there."""
        workers, transport = self.workers, self.transport
        first = self.waits + inputs if driver_waits else self.waits
        submitted = self._record("", workers.driver, transport.driver, first)
        self.waits = ()
        if workers.ray is not None:
            self._record("", workers.ray, transport.others)
        seconds = self.seconds[role, method]
        return self._record(role, process, transport.process, (*inputs, submitted), seconds, size)

    def _record(
        self,
        role: str,
        process: Process,
        overhead: float,
        inputs: tuple[Call, ...] = (),
        seconds: float = 0.0,
        size: float = 0.0,
    ) -> Call:
        beside, pooled = (0.0, overhead) if self.transport.on_pool else (overhead, 0.0)
        call = Call(role, process, beside, seconds + pooled, inputs, size)
        self.calls.append(call)
        return call


class _Conditions:
    """The source of conditions: the driver draws labels itself, which takes no time to speak of."""

    def of(self, at: Slice, purpose: str) -> None:
        pass


class _Learner:
    """A learner, whose ranks take the microbatches in turn."""

    role: str

    def __init__(self, recorder: Recorder, size: float) -> None:
        self.recorder = recorder
        self.size = size  # bytes of a microbatch's images
        self.ranks: list[Process] = getattr(recorder.workers, self.role)

    def step(self, step: int, *tokens: Call) -> list[Call]:
        if len(self.ranks) == 1:  # which makes it in the call of the last microbatch
            tokens[-1].seconds += self.recorder.seconds[self.role, "step"]
            return [tokens[-1]]
        return [self.recorder.call(self.role, "step", rank, tokens) for rank in self.ranks]

    def _call(self, method: str, at: Slice, *inputs: Call) -> Call:
        process = self.ranks[at.index % len(self.ranks)]
        waits = self.role == "generator" and not self.recorder.workers.one_scorer
        return self.recorder.call(self.role, method, process, inputs, self.size, waits)


class _Generator(_Learner):
    role = "generator"

    def images(self, at: Slice, cond: None) -> Call:
        return self._call("images", at)

    def generate(self, at: Slice, cond: None) -> tuple[Call, Call]:
        return (self._call("generate", at),) * 2

    def cotangents(self, at: Slice, teacher: Call, fake: Call) -> tuple[Call, Call]:
        return (self._call("cotangents", at, teacher, fake),) * 2

    def accumulate(self, at: Slice, teacher: Call, fake: Call) -> Call:
        return self._call("accumulate", at, teacher, fake)

    def discard(self, at: Slice) -> None:
        pass


class _FakeScore(_Learner):
    role = "fake_score"

    def score(self, at: Slice, noised: Call, cond: None) -> Call:
        return self._call("score", at, noised)

    def pullback(self, at: Slice, noised: Call, cotangent: Call) -> Call:
        return self._call("pullback", at, noised, cotangent)

    def accumulate(self, at: Slice, images: Call, cond: None) -> Call:
        return self._call("accumulate", at, images)


class _Teacher:
    """The pool of scorers, which take turns; the one that scored a microbatch pulls it back."""

    def __init__(self, recorder: Recorder, size: float) -> None:
        self.recorder, self.size = recorder, size
        self.turns = itertools.cycle(recorder.workers.teacher)
        self.scorers: dict[Call, Process] = {}

    def score(self, noised: Call, cond: None, scale: float) -> Call:
        self.scorers[noised] = scorer = next(self.turns)
        return self.recorder.call("teacher", "score", scorer, (noised,), self.size)

    def pullback(self, noised: Call, cond: None, cotangent: Call, scale: float) -> Call:
        scorer = self.scorers.pop(noised)
        return self.recorder.call("teacher", "pullback", scorer, (noised, cotangent), self.size)
