"""The time that steps of a `split` placement take, simulated.

A process executes its calls in the order in which they were submitted, as a Ray actor does, and each begins when its
inputs have arrived. Processes that compute on one device at the same time share it evenly.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from typing import Any

from raysid.config import Config
from raysid.plan.calls import Call, Process, Recorder, Transport, Workers
from raysid.plan.parts import Seconds
from raysid.roles.step import STEPS_IN_FLIGHT, take_step

STEPS = 7  # simulated: the first of them fill the pipeline, the last one empties it
FEWER = 4  # where a step has so many microbatches that a part of it fills the pipeline
MANY = 32
NO_WORK = 1e-12


def simulate(
    config: Config, workers: Workers, seconds: Seconds, transport: Transport, image_bytes: float
) -> tuple[float, dict[str, float]]:
    """Simulate steps of a `split` placement.

    Args:
        config: the run's; `seconds` is for its microbatches.
        seconds: length of a call, by role and method.
        image_bytes: bytes of one image between processes.

    Returns:
        Seconds of a step in the middle of a run, and the share of the time in which the busiest process of each
        role works, by role.
    """
    recorder = Recorder(workers, transport, seconds, image_bytes)
    roles = recorder.roles(config)
    updates: list[tuple[Call, ...]] = []
    steps = STEPS if config.batch_size <= MANY * config.microbatch else FEWER
    for step in range(1, steps + 1):  # theta takes no part in step 0
        if len(updates) > STEPS_IN_FLIGHT:
            recorder.waits = updates[-STEPS_IN_FLIGHT - 1]  # the driver collects it before it continues
        reports: list[Any] = take_step(roles, config, step).reports
        updates.append(tuple(reports))
    sharing = Counter(process.pool for process in workers.all)
    if all(count <= pool.capacity for pool, count in sharing.items()):
        _execute_unshared(recorder)
    else:
        _execute_shared(recorder)
    ends = [max(call.ended for call in calls) for calls in updates]
    first, last = (steps - 1) // 3, steps - 2
    length = (ends[last] - ends[first]) / (last - first)
    return length, _busy(recorder, steps * length)


def _busy(recorder: Recorder, seconds: float) -> dict[str, float]:
    """Return the share of so many seconds in which the busiest process of each role works, by role."""
    works: defaultdict[str, defaultdict[Process, float]] = defaultdict(lambda: defaultdict(float))
    for call in recorder.calls:
        works[call.role][call.process] += call.seconds
        works[call.role][call.process] += call.beside
    return {role: max(own.values()) / seconds for role, own in works.items() if role}


def _execute_unshared(recorder: Recorder) -> None:
    """Set when each call ended, where no process ever waits for its device.

    A call's inputs, and the calls before it in its process, were all submitted before it: one pass is exact.
    """
    free = dict.fromkeys(recorder.workers.all, 0.0)
    for call in recorder.calls:
        begins = max(free[call.process], call.arrival(recorder.transport))
        call.ended = free[call.process] = begins + call.beside + call.seconds


def _execute_shared(recorder: Recorder) -> None:
    """Set when each call ended, where processes share a device: from one event to the next."""
    queues: dict[Process, deque[Call]] = {process: deque() for process in recorder.workers.all}
    for call in recorder.calls:
        queues[call.process].append(call)
    # [call, seconds left beside the pool, seconds left of it]
    running: dict[Process, list[Any]] = {}
    now = 0.0
    while True:
        comes = math.inf
        for process, queue in queues.items():
            if process in running or not queue:
                continue
            arrives = queue[0].arrival(recorder.transport)
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
        computing = Counter(process.pool for process, (_, beside, _) in running.items() if beside <= NO_WORK)
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
