"""What the calls of each role take on this machine, measured part by part.

Nothing here runs a step: each role's calls are repeated alone, by the roles' own stopwatches, with messages that
were made once. For processes which share the cores, as many as there are cores measure at the same time, so that
each has the caches and the memory's speed that it would have beside others.
"""

from __future__ import annotations

import queue
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import torch
import torch.multiprocessing

from raysid.actors.local import LocalPlacement
from raysid.actors.placement import all_cores
from raysid.bench.compare import NO_RATE, role_inputs, stand_in_teacher, steady
from raysid.config import Config, ResourceSettings, RoleResources
from raysid.errors import RunFailed, UserError
from raysid.plan.costs import NetworkCosts
from raysid.plan.devices import Device, Devices
from raysid.plan.parts import Seconds, all_reduce_bytes
from raysid.roles.messages import Slice
from raysid.roles.ranks import Ranks

REPEATS = 3  # of a role's calls, at least
SUMS = 5  # of the gradients
FAILED_SECONDS = 600.0  # for another process to begin, or to be done with a role

Line = tuple[float, float]
"""Seconds whatever the images, and seconds an image."""
Lines = dict[tuple[str, str], Line]
"""Of every call, by role and method."""


@dataclass(frozen=True)
class MeasuredParts:
    """Parts as they were measured, at one size of a microbatch or two; between them, a straight line.

    Attributes:
        whole: with all of the machine to one process.
        beside: with as many processes at work as there are cores.
        sum_seconds: of adding up both processes' gradients, a byte that each sends.
    """

    costs: NetworkCosts
    whole: Lines
    beside: Lines
    sum_seconds: float

    def seconds(self, config: Config, workers: int) -> Seconds:
        lines = self.whole if workers == 1 else self.beside
        return {part: fixed + config.microbatch * each for part, (fixed, each) in lines.items()}

    def all_reduce(self, ranks: int, one_node: bool) -> float:
        return all_reduce_bytes(self.costs.parameters, ranks) * self.sum_seconds


def this_machine(kind: str, count: int) -> Devices:
    """So many cores or GPUs like those here.

    Raises:
        UserError: there is no GPU here.
    """
    if kind == "gpu":
        if not torch.cuda.is_available():
            raise UserError("no GPU here to measure: give --devices a name, as in 8xH100-80GB, or 2xcpu")
        memory = float(torch.cuda.get_device_properties(0).total_memory)
    else:
        memory = float(psutil.virtual_memory().total)
    return Devices(count, Device(kind, {}, memory, 0.0))


def measure_parts(
    config: Config, costs: NetworkCosts, kind: str, seconds: float, say: Callable[[str], None]
) -> MeasuredParts:
    """Measure the roles' calls on this machine.

    Args:
        config: of the run; its microbatch is the larger one of the sizes measured.
        kind: `cpu` or `gpu`.
        seconds: about how long each of the measurements takes.
        say: takes a line before each.

    Raises:
        UserError: something given cannot be used.
        RunFailed: a measuring process failed.
    """
    config = _all_here(config, kind)
    cores = all_cores()
    with stand_in_teacher(config) as teacher:

        def lines(processes: int, threads: int) -> tuple[Lines, float]:
            say(
                f"measuring the roles' calls: {_count(processes, 'process', 'es')} of {_count(threads, 'thread')}"
            )
            sizes = _sizes(config)
            return _measure(_Task(config, teacher, costs.parameters, sizes, processes, threads, seconds))

        whole, _ = lines(1, config.torch_threads or cores)
        if kind == "gpu":
            return MeasuredParts(costs, whole, whole, 0.0)
        threads = config.torch_threads or 1
        beside, sums = lines(max(1, cores // threads), threads)
    return MeasuredParts(costs, whole, beside, sums)


def _all_here(config: Config, kind: str) -> Config:
    """The config with every role on this machine's device of a kind, in the midst of a run, as one process."""
    roles = RoleResources(num_gpus=1.0 if kind == "gpu" else 0.0)
    return config.model_copy(
        update={
            "resources": ResourceSettings(teacher=roles, fake_score=roles, generator=roles),
            "method": steady(config).method,
        }
    )


def _count(number: int, what: str, plural: str = "s") -> str:
    return f"{number} {what}{plural if number > 1 else ''}"


@dataclass(frozen=True)
class _Task:
    """What each of some processes is to measure.

    Attributes:
        teacher: folder of a teacher as large as the recipe's.
        sizes: of microbatches.
        threads: torch's in each process.
        seconds: about how long all of it may take.
    """

    config: Config
    teacher: str
    parameters: int
    sizes: list[int]
    processes: int
    threads: int
    seconds: float


def _measure(task: _Task) -> tuple[Lines, float]:
    """Every call's line, and the seconds a byte of adding up gradients where there are several processes."""
    context = torch.multiprocessing.get_context("spawn")
    barrier = context.Barrier(task.processes)
    places: Any = context.Queue()
    answers: Any = context.Queue()
    started = [
        context.Process(target=_measuring, args=(task, rank, barrier, places, answers), daemon=True)
        for rank in range(task.processes)
    ]
    for process in started:
        process.start()
    try:
        found = [_answer(answers, started) for _ in started]
    finally:
        for process in started:
            process.join(5.0)
            if process.is_alive():
                process.terminate()
    parts = [one for one, _ in found]
    mean = [
        {part: statistics.mean(one[size][part] for one in parts) for part in parts[0][size]}
        for size in task.sizes
    ]
    return _lines(task.sizes, mean), max(sums for _, sums in found)


def _answer(answers: Any, started: list[Any]) -> Any:
    """What one of the processes found."""
    while True:
        try:
            kind, answer = answers.get(timeout=1.0)
        except queue.Empty:
            if any(process.exitcode for process in started):
                raise RunFailed("a measuring process ended; is there memory for it?") from None
            continue
        if kind == "user":
            raise UserError(answer)
        if kind == "failed":
            raise RunFailed(f"measuring failed: {answer}")
        return answer


def _lines(sizes: list[int], found: list[dict[tuple[str, str], float]]) -> Lines:
    """The straight line through one size or two; it does not fall, and begins at nothing or above."""
    if len(sizes) == 1:
        return {
            part: (seconds, 0.0) if part[1] == "step" else (0.0, seconds / sizes[0])
            for part, seconds in found[0].items()
        }
    (small, large), (few, many) = sizes, found
    lines = {}
    for part in few:
        each = max(0.0, (many[part] - few[part]) / (large - small))
        each = min(each, many[part] / large)
        lines[part] = (many[part] - each * large, each)
    return lines


def _sizes(config: Config) -> list[int]:
    """The microbatches to measure: the config's own, and half of it where that can be."""
    size, adversarial = config.microbatch, config.method.adversarial
    half = size // 2
    whole = half and size % 2 == 0 and (adversarial is None or half % adversarial.group_size == 0)
    return [half, size] if whole else [size]


def _measuring(task: _Task, rank: int, barrier: Any, places: Any, answers: Any) -> None:
    """A measuring process: puts its calls' seconds by size, and those of adding up, into `answers`."""

    def together() -> None:
        barrier.wait(FAILED_SECONDS)

    try:
        torch.set_num_threads(task.threads)
        found = {size: _measure_calls(task, size, together) for size in task.sizes}
        sums = _measure_sums(task, rank, places, together) if task.processes > 1 else 0.0
        answers.put(("found", (found, sums)))
    except UserError as error:
        answers.put(("user", str(error)))
    except Exception as error:
        answers.put(("failed", " ".join(f"{type(error).__name__}: {error}".split())))


def _measure_calls(task: _Task, size: int, together: Callable[[], object]) -> dict[tuple[str, str], float]:
    """Seconds of every call on a microbatch of a size, role by role."""
    learners = {
        name: getattr(task.config, name).model_copy(update={"num_workers": 1, "lr": NO_RATE})
        for name in ("generator", "fake_score")
    }
    config = task.config.model_copy(
        update={"batch_size": size, "microbatch_size": None, "placement": "local"} | learners
    )
    placement = LocalPlacement(*role_inputs(config, task.teacher), task.threads)
    try:
        return _by_role(placement, config, size, task.seconds / len(task.sizes), together)
    finally:
        placement.close()


def _by_role(
    placement: LocalPlacement, config: Config, size: int, seconds: float, together: Callable[[], object]
) -> dict[tuple[str, str], float]:
    generator, scorer, fake = placement.generator, placement.teacher, placement.fake_score
    scale, at = config.method.guidance.eval_teacher, Slice(1, 0, size)
    # One pass makes the messages that all later calls get.
    noised, images = generator.generate(at)
    predicted = scorer.score(noised, scale), fake.score(at, noised)
    cotangents = generator.cotangents(at, *predicted)
    pulls = scorer.pullback(noised, cotangents[0], scale), fake.pullback(at, noised, cotangents[1])

    def make() -> None:
        generator.images(at)
        generator.generate(at)
        generator.cotangents(at, *predicted)
        generator.step(1, generator.accumulate(at, *pulls))

    def judge() -> None:
        scorer.score(noised, scale)
        scorer.pullback(noised, cotangents[0], scale)

    def follow() -> None:
        fake.score(at, noised)
        fake.pullback(at, noised, cotangents[1])
        fake.step(1, fake.accumulate(at, images))

    generator.step(1, generator.accumulate(at, *pulls))
    found: dict[tuple[str, str], float] = {}
    for role, calls in (("generator", make), ("teacher", judge), ("fake_score", follow)):
        calls()  # what is allocated once
        began = time.perf_counter()
        calls()
        placement.report()  # once a GPU has done what it was given
        repeats = max(REPEATS, round(seconds / 3 / (time.perf_counter() - began)))
        together()
        before = placement.profile()[role][0].parts
        for _ in range(repeats):
            calls()
        after = placement.profile()[role][0].parts
        together()
        found |= {(role, name): (after[name] - before[name]) / repeats for name in after}
    return found


def _measure_sums(task: _Task, rank: int, places: Any, together: Callable[[], object]) -> float:
    """Seconds a byte that each process sends, of adding up the gradients of a network."""
    ranks, host = Ranks(rank, task.processes), "127.0.0.1"
    if rank == 0:
        place = ranks.open(host)
        for _ in range(task.processes - 1):
            places.put(place)
    else:
        place = places.get()
    ranks.join(place, host)
    gradients = [torch.zeros(task.parameters)]
    ranks.all_reduce(gradients)
    together()
    began = time.perf_counter()
    for _ in range(SUMS):
        ranks.all_reduce(gradients)
    seconds = (time.perf_counter() - began) / SUMS
    together()  # the meeting place is open until all are done
    return seconds / all_reduce_bytes(task.parameters, task.processes)
