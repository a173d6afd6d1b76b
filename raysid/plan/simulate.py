"""Steps whose calls only last: what the controller would submit, which process would do it, when it would end.

`raysid.roles.step.take_step` itself is run, on roles that note every call instead of doing it. A process does its
calls in the order in which they were submitted, as a Ray actor does, and each begins when what it takes has arrived.
Processes that compute on the same device at the same time share it evenly.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raysid.config import Config
from raysid.roles.messages import Slice
from raysid.roles.protocols import Roles
from raysid.roles.step import STEPS_IN_FLIGHT, take_step

STEPS = 7  # simulated: the first of them fill the pipeline, the last one empties it
FEWER = 4  # where a step has so many microbatches that a part of it fills the pipeline
MANY = 32
NO_WORK = 1e-12


@dataclass(frozen=True)
class Pool:
    """What processes share: a device, or a machine's cores, of which a process uses one (or some) at a time.

    Attributes:
        capacity: how many processes can compute at full speed at the same time.
    """

    name: str
    capacity: float = 1.0


@dataclass(frozen=True)
class Process:
    """A role's process, one that holds all of them, the driver's, or Ray's own.

    Attributes:
        pool: where it computes.
        node: processes of different nodes reach each other over the network.
    """

    name: str
    number: int
    pool: Pool
    node: str = ""


@dataclass(frozen=True)
class Transport:
    """What a call between processes costs beside its work; all nothing where there is one process.

    Attributes:
        process: seconds in which the called process takes the call apart and puts the answer together.
        driver: seconds of the driver's process to submit it.
        others: seconds of Ray's own processes.
        latency: seconds from an answer to the call that it goes to, in which nobody computes.
        byte: seconds a byte between two processes of a node, on top.
        network_byte: seconds a byte between nodes, on top of that.
        on_pool: whether these seconds are taken from the pools (a CPU's), or pass beside them (a GPU's).
    """

    process: float = 0.0
    driver: float = 0.0
    others: float = 0.0
    latency: float = 0.0
    byte: float = 0.0
    network_byte: float = 0.0
    on_pool: bool = True


@dataclass(eq=False)
class Call:
    """One call: by whom, how long, and what must have arrived before it begins.

    Attributes:
        role: whose work it is; of the driver's and Ray's own, no role's.
        beside: seconds first, in which its process is taken and its pool is not.
        seconds: of its pool.
        inputs: calls whose results it takes, and the bytes of these.
        seen, arrives: how many of them are known to have ended, and when the last of these has arrived.
    """

    role: str
    process: Process
    beside: float
    seconds: float
    inputs: list[tuple[Call, float]]
    ended: float = math.inf
    seen: int = 0
    arrives: float = 0.0


@dataclass(frozen=True)
class Workers:
    """Where the processes of a placement live.

    Attributes:
        alone: whether the teacher's pool passes calls on at once (one scorer), or waits for each.
        driver, ray: None where there is one process.
    """

    generator: list[Process]
    teacher: list[Process]
    fake_score: list[Process]
    driver: Process | None = None
    ray: Process | None = None
    alone: bool = True

    @property
    def all(self) -> list[Process]:
        found = [*self.generator, *self.teacher, *self.fake_score]
        return list(dict.fromkeys(found + [one for one in (self.driver, self.ray) if one is not None]))


@dataclass(frozen=True)
class Simulated:
    """What steps came to.

    Attributes:
        step_seconds: how long one takes, others being under way beside it.
        busy: the share of the time in which the busiest process of each role works.
    """

    step_seconds: float
    busy: dict[str, float]


@dataclass
class _Notes:
    """Every call in the order submitted, and what submitting costs."""

    workers: Workers
    transport: Transport
    seconds: Mapping[tuple[str, str], float]
    image_bytes: float
    calls: list[Call] = field(default_factory=list)
    waits: list[Call] = field(default_factory=list)
    scored: int = 0

    def call(
        self,
        role: str,
        method: str,
        process: Process,
        *inputs: tuple[Call, float],
        driver_waits: bool = False,
    ) -> Call:
        """Note a call. `driver_waits`: it is not submitted before its inputs are there."""
        transport, taken = self.transport, list(inputs)
        driver = self.workers.driver
        if driver is not None:
            first = [(one, 0.0) for one in self.waits]
            if driver_waits:
                first += [(one, 0.0) for one, _ in inputs]
            taken.append((self._note("", driver, transport.driver, first), 0.0))
            self.waits = []
            if self.workers.ray is not None:
                self._note("", self.workers.ray, transport.others, [])
        return self._note(role, process, transport.process, taken, self.seconds[role, method])

    def _note(
        self,
        role: str,
        process: Process,
        overhead: float,
        inputs: list[tuple[Call, float]],
        seconds: float = 0.0,
    ) -> Call:
        on_pool = self.transport.on_pool
        beside, pooled = (0.0, overhead) if on_pool else (overhead, 0.0)
        call = Call(role, process, beside, seconds + pooled, inputs)
        self.calls.append(call)
        return call

    def images(self, count: int) -> float:
        return count * self.image_bytes


class _Generator:
    def __init__(self, notes: _Notes) -> None:
        self.notes = notes

    def _call(self, method: str, at: Slice, *inputs: tuple[Call, float], waits: bool = False) -> Call:
        ranks = self.notes.workers.generator
        return self.notes.call("generator", method, ranks[at.index % len(ranks)], *inputs, driver_waits=waits)

    def images(self, at: Slice) -> Call:
        return self._call("images", at)

    def generate(self, at: Slice) -> tuple[Call, Call]:
        call = self._call("generate", at)
        return call, call

    def seeds(self, at: Slice, teacher: Call, fake: Call) -> tuple[Call, Call]:
        size = self.notes.images(at.count)
        waits = not self.notes.workers.alone
        call = self._call("seeds", at, (teacher, size), (fake, size), waits=waits)
        return call, call

    def accumulate(self, at: Slice, teacher: Call, fake: Call) -> Call:
        size = self.notes.images(at.count)
        return self._call("accumulate", at, (teacher, size), (fake, size), waits=not self.notes.workers.alone)

    def discard(self, at: Slice) -> None:
        pass

    def step(self, step: int, *tokens: Call) -> list[Call]:
        return _step(self.notes, "generator", self.notes.workers.generator, tokens)


class _FakeScore:
    def __init__(self, notes: _Notes) -> None:
        self.notes = notes

    def _call(self, method: str, at: Slice, *inputs: Call) -> Call:
        ranks, size = self.notes.workers.fake_score, self.notes.images(at.count)
        process = ranks[at.index % len(ranks)]
        return self.notes.call("fake_score", method, process, *((one, size) for one in inputs))

    def score(self, at: Slice, noised: Call) -> Call:
        return self._call("score", at, noised)

    def pullback(self, at: Slice, noised: Call, seed: Call) -> Call:
        return self._call("pullback", at, noised, seed)

    def accumulate(self, at: Slice, images: Call) -> Call:
        return self._call("accumulate", at, images)

    def step(self, step: int, *tokens: Call) -> list[Call]:
        return _step(self.notes, "fake_score", self.notes.workers.fake_score, tokens)


class _Teacher:
    def __init__(self, notes: _Notes, size: float) -> None:
        self.notes = notes
        self.size = size  # bytes of a microbatch's images
        self.keepers: dict[Call, Process] = {}

    def score(self, noised: Call, scale: float) -> Call:
        scorers = self.notes.workers.teacher
        scorer = scorers[self.notes.scored % len(scorers)]
        self.notes.scored += 1
        self.keepers[noised] = scorer
        return self.notes.call("teacher", "score", scorer, (noised, self.size))

    def pullback(self, noised: Call, seed: Call, scale: float) -> Call:
        keeper = self.keepers.pop(noised)
        return self.notes.call("teacher", "pullback", keeper, (noised, self.size), (seed, self.size))


def _step(notes: _Notes, role: str, ranks: list[Process], tokens: tuple[Call, ...]) -> list[Call]:
    if len(ranks) == 1:  # which makes its update in the call of the last microbatch
        tokens[-1].seconds += notes.seconds[role, "step"]
        return [tokens[-1]]
    return [notes.call(role, "step", rank, *((token, 0.0) for token in tokens)) for rank in ranks]


def simulate(
    config: Config,
    workers: Workers,
    seconds: Mapping[tuple[str, str], float],
    transport: Transport,
    image_bytes: float,
) -> Simulated:
    """How long a step takes in the midst of a run.

    Args:
        config: what `take_step` takes; its microbatches are those that `seconds` is for.
        seconds: of a call, by role and method.
        image_bytes: of one image, as it travels.
    """
    notes = _Notes(workers, transport, seconds, image_bytes)
    roles: Any = Roles(
        _Teacher(notes, notes.images(config.microbatch)),  # type: ignore[arg-type]
        _FakeScore(notes),
        _Generator(notes),  # type: ignore[arg-type]
    )
    ends: list[list[Call]] = []
    steps = STEPS if config.batch_size <= MANY * config.microbatch else FEWER
    for step in range(1, steps + 1):  # theta takes no part in step 0
        if len(ends) > STEPS_IN_FLIGHT:
            notes.waits = ends[-STEPS_IN_FLIGHT - 1]  # the driver collects it before it goes on
        result = take_step(roles, config, step)
        ends.append([*result.fake_score, *(result.generator or ())])
    _run(notes)
    end = [max(call.ended for call in of_step) for of_step in ends]
    first, last = (steps - 1) // 3, steps - 2
    length = (end[last] - end[first]) / (last - first)
    return Simulated(length, _busy(notes, steps * length))


def _busy(notes: _Notes, seconds: float) -> dict[str, float]:
    """The share of so many seconds in which the busiest process of each role has work of its own."""
    works: dict[tuple[str, Process], float] = {}
    for call in notes.calls:
        key = call.role, call.process
        works[key] = works.get(key, 0.0) + call.seconds + call.beside
    shares: dict[str, float] = {}
    for (role, _), work in works.items():
        if role:
            shares[role] = max(shares.get(role, 0.0), work / seconds)
    return shares


def _run(notes: _Notes) -> None:
    """Let the calls happen: sets when each ended."""
    queues: dict[Process, deque[Call]] = {process: deque() for process in notes.workers.all}
    for call in notes.calls:
        queues[call.process].append(call)
    # [call, seconds left beside the pool, seconds left of it]
    running: dict[Process, list[Any]] = {}
    now = 0.0
    while True:
        comes = math.inf
        for process, queue in queues.items():
            if process in running or not queue:
                continue
            arrives = _arrival(queue[0], notes.transport)
            if arrives <= now:
                call = queue.popleft()
                running[process] = [call, call.beside, call.seconds]
            else:
                comes = min(comes, arrives)
        if not running:
            if comes == math.inf:
                return
            now = comes
            continue
        computing: dict[Pool, int] = {}
        for process, (_, beside, _) in running.items():
            if beside <= NO_WORK:
                computing[process.pool] = computing.get(process.pool, 0) + 1
        rates = {pool: min(1.0, pool.capacity / count) for pool, count in computing.items()}
        passes = comes - now
        for process, (_, beside, left) in running.items():
            passes = min(passes, beside if beside > NO_WORK else left / rates[process.pool])
        now += passes
        for process, entry in list(running.items()):
            if entry[1] > NO_WORK:
                entry[1] -= passes
            else:
                entry[2] -= passes * rates[process.pool]
            if entry[1] <= NO_WORK and entry[2] <= NO_WORK:
                entry[0].ended = now
                del running[process]


def _arrival(call: Call, transport: Transport) -> float:
    """When everything that a call takes has arrived; never, while something is not even computed."""
    # What has ended is looked at once: a step takes a token of every microbatch.
    while call.seen < len(call.inputs):
        other, size = call.inputs[call.seen]
        if other.ended == math.inf:
            return math.inf
        travel = 0.0
        if other.process is not call.process:
            travel = transport.latency + size * transport.byte
            if other.process.node != call.process.node:
                travel += size * transport.network_byte
        call.arrives = max(call.arrives, other.ended + travel)
        call.seen += 1
    return call.arrives
