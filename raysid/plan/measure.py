"""The seconds of the roles' calls, measured on this machine.

No step runs: the calls of one role at a time are repeated (`timing.py`). For processes that share the cores, as many as
there are cores measure at the same time, so that each has the caches and the memory bandwidth of a run.
"""

from __future__ import annotations

import queue
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import torch
import torch.multiprocessing

from raysid.actors.placement import all_cores
from raysid.bench.compare import stand_in_teacher, steady
from raysid.config import Config, ResourceSettings, RoleResources
from raysid.errors import RunFailed, UserError
from raysid.plan.costs import NetworkCosts
from raysid.plan.devices import Device, Devices
from raysid.plan.parts import Seconds, all_reduce_bytes
from raysid.plan.timing import FAILED_SECONDS, Task, run_task

Line = tuple[float, float]
"""Seconds for any number of images, and seconds per image."""
Lines = dict[tuple[str, str], Line]
"""The line of every call, by role and method."""


@dataclass(frozen=True)
class MeasuredParts:
    """Seconds measured at one or two sizes of a microbatch, and interpolated linearly.

    Attributes:
        whole: calls of one process with all of the machine.
        beside: calls while as many processes work as there are cores.
        sum_seconds: seconds of summing both processes' gradients, for each byte that one sends.
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
    """Return a number of cores or GPUs like those of this machine.

    Raises:
        UserError: this machine has no GPU.
    """
    gpu = kind == "gpu"
    if gpu and not torch.cuda.is_available():
        raise UserError("no GPU here to measure: give --devices a name, as in 8xH100-80GB, or 2xcpu")
    memory = torch.cuda.get_device_properties(0).total_memory if gpu else psutil.virtual_memory().total
    return Devices(count, Device(kind, {}, float(memory), 0.0))


def measure_parts(
    config: Config, costs: NetworkCosts, kind: str, seconds: float, report: Callable[[str], None]
) -> MeasuredParts:
    """Measure the roles' calls on this machine.

    Args:
        config: the run's; its microbatch is the larger one of the measured sizes.
        kind: `cpu` or `gpu`.
        seconds: approximate length of each measurement.
        report: called with a line before each measurement.

    Raises:
        UserError: an argument cannot be used.
        RunFailed: a measuring process failed.
    """
    config = _on_this_machine(config, kind)
    cores = all_cores()
    with stand_in_teacher(config) as teacher:

        def lines(processes: int, threads: int) -> tuple[Lines, float]:
            several = f"{processes} process{'es' * (processes > 1)} of {threads} thread{'s' * (threads > 1)}"
            report(f"measuring the roles' calls: {several}")
            sizes = _sizes(config)
            return _measure(Task(config, teacher, costs.parameters, sizes, processes, threads, seconds))

        whole, _ = lines(1, config.torch_threads or cores)
        if kind == "gpu":
            return MeasuredParts(costs, whole, whole, 0.0)
        threads = config.torch_threads or 1
        beside, sums = lines(max(1, cores // threads), threads)
    return MeasuredParts(costs, whole, beside, sums)


def _on_this_machine(config: Config, kind: str) -> Config:
    """Return the config of the middle of a run, with every role on a device of this kind."""
    roles = RoleResources(num_gpus=1.0 if kind == "gpu" else 0.0)
    return config.model_copy(
        update={
            "resources": ResourceSettings(teacher=roles, fake_score=roles, generator=roles),
            "method": steady(config).method,
        }
    )


def _measure(task: Task) -> tuple[Lines, float]:
    """Return the line of every call, and the seconds per byte of summing gradients (0 with one process)."""
    context = torch.multiprocessing.get_context("spawn")
    barrier = context.Barrier(task.processes, timeout=FAILED_SECONDS)
    addresses: Any = context.Queue()
    answers: Any = context.Queue()
    started = [
        context.Process(target=run_task, args=(task, rank, barrier, addresses, answers), daemon=True)
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
    """Return the next result of a measuring process."""
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
    """Return the straight line through one or two sizes, with slope and intercept of at least 0."""
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
    """Return the microbatches to measure: the config's own, and half of it if that is allowed."""
    size, adversarial = config.microbatch, config.method.adversarial
    half = size // 2
    whole = half and size % 2 == 0 and (adversarial is None or half % adversarial.group_size == 0)
    return [half, size] if whole else [size]
