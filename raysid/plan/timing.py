"""A measuring process: the roles' calls and the summing of gradients, repeated and timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch

from raysid.actors.placement import LocalPlacement
from raysid.bench.compare import NO_RATE, role_inputs
from raysid.config import Config
from raysid.errors import UserError
from raysid.plan.parts import all_reduce_bytes
from raysid.roles.messages import Slice
from raysid.roles.ranks import Ranks

REPEATS = 3  # of a role's calls, at least
SUMS = 5  # of the gradients
FAILED_SECONDS = 600.0  # for another process to start, or to finish a role


@dataclass(frozen=True)
class Task:
    """A measurement by some processes at the same time.

    Attributes:
        teacher: folder of a teacher with the recipe's network.
        sizes: sizes of microbatches.
        threads: torch's threads in each process.
        seconds: approximate length of the measurement.
    """

    config: Config
    teacher: str
    parameters: int
    sizes: list[int]
    processes: int
    threads: int
    seconds: float


def run_task(task: Task, rank: int, barrier: Any, addresses: Any, answers: Any) -> None:
    """Measure in this process.

    Args:
        rank: number of this process.
        barrier: a barrier of all processes, with a timeout.
        addresses: a queue with the address of rank 0.
        answers: a queue for ("found", (seconds by size and call, seconds per byte of summing)), or for ("user" or
            "failed", message).
    """
    try:
        torch.set_num_threads(task.threads)
        found = {size: _measure_calls(task, size, barrier.wait) for size in task.sizes}
        sums = _measure_sums(task, rank, addresses, barrier.wait) if task.processes > 1 else 0.0
        answers.put(("found", (found, sums)))
    except UserError as error:
        answers.put(("user", str(error)))
    except Exception as error:
        answers.put(("failed", " ".join(f"{type(error).__name__}: {error}".split())))


def _measure_calls(task: Task, size: int, together: Callable[[], object]) -> dict[tuple[str, str], float]:
    """Return the seconds of every call on a microbatch of a size."""
    learners = {
        name: getattr(task.config, name).model_copy(update={"num_workers": 1, "lr": NO_RATE})
        for name in ("generator", "fake_score")
    }
    config = task.config.model_copy(
        update={"batch_size": size, "microbatch_size": None, "placement": "local"} | learners
    )
    with closing(LocalPlacement(*role_inputs(config, task.teacher), task.threads)) as placement:
        return _by_role(placement, config, size, task.seconds / len(task.sizes), together)


def _by_role(
    placement: LocalPlacement, config: Config, size: int, seconds: float, together: Callable[[], object]
) -> dict[tuple[str, str], float]:
    generator, scorer, fake = placement.generator, placement.teacher, placement.fake_score
    scale, at = config.method.guidance.eval_teacher, Slice(1, 0, size)
    cond = placement.roles.conditions.of(at, "generator")
    # One pass makes the messages that all later calls get.
    noised, images = generator.generate(at, cond)
    predicted = scorer.score(noised, cond, scale), fake.score(at, noised, cond)
    cotangents = generator.cotangents(at, *predicted)
    pulls = scorer.pullback(noised, cond, cotangents[0], scale), fake.pullback(at, noised, cotangents[1])

    def generator_calls() -> None:
        generator.images(at, cond)
        generator.generate(at, cond)
        generator.cotangents(at, *predicted)
        generator.step(1, generator.accumulate(at, *pulls))

    def teacher_calls() -> None:
        scorer.score(noised, cond, scale)
        scorer.pullback(noised, cond, cotangents[0], scale)

    def fake_score_calls() -> None:
        fake.score(at, noised, cond)
        fake.pullback(at, noised, cotangents[1])
        fake.step(1, fake.accumulate(at, images, cond))

    generator.step(1, generator.accumulate(at, *pulls))
    found: dict[tuple[str, str], float] = {}
    for role, calls in (
        ("generator", generator_calls),
        ("teacher", teacher_calls),
        ("fake_score", fake_score_calls),
    ):
        calls()  # allocates memory
        began = time.perf_counter()
        calls()
        placement.report()  # waits for a GPU to finish
        repeats = max(REPEATS, round(seconds / 3 / (time.perf_counter() - began)))
        together()
        before = placement.profile()[role][0].parts
        for _ in range(repeats):
            calls()
        after = placement.profile()[role][0].parts
        together()
        found |= {(role, name): (after[name] - before[name]) / repeats for name in after}
    return found


def _measure_sums(task: Task, rank: int, addresses: Any, together: Callable[[], object]) -> float:
    """Return the seconds of summing a network's gradients, per byte that a process sends."""
    ranks, host = Ranks(rank, task.processes), "127.0.0.1"
    if rank == 0:
        address = ranks.open(host)
        for _ in range(task.processes - 1):
            addresses.put(address)
    else:
        address = addresses.get()
    ranks.join(address, host)
    gradients = [torch.zeros(task.parameters)]
    ranks.all_reduce(gradients)
    together()
    began = time.perf_counter()
    for _ in range(SUMS):
        ranks.all_reduce(gradients)
    seconds = (time.perf_counter() - began) / SUMS
    together()  # rank 0 stays until all are done
    return seconds / all_reduce_bytes(task.parameters, task.processes)
