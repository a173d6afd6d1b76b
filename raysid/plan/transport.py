"""The cost of a call through Ray beside its work, measured between two actors that return their input."""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import suppress
from typing import Any

import psutil
import torch

from raysid.cluster.connect import connect
from raysid.config import Config
from raysid.plan.calls import Transport
from raysid.roles.messages import Images, Slice

CALLS = 200
WARM_CALLS = 40
SCRATCH = 2**23  # float32 numbers, 32 MB, that an actor updates between calls to replace the caches' content
AHEAD = 16  # calls in flight, as of two steps


def measure_transport(config: Config, image_bytes: int, on_pool: bool) -> Transport:
    """Measure the cost of a call: two actors pass a microbatch to each other.

    Each updates memory between calls: a call after a network's work, which fills the caches, takes nearly twice as
    long as one after nothing.

    Args:
        on_pool: as for `Transport`.

    Raises:
        RunFailed: the cluster lacks resources for them.
    """
    connect()
    import ray

    message = Images(torch.zeros(config.microbatch, max(1, image_bytes // 4)))
    actors: list[Any] = [
        ray.remote(Echo).options(num_cpus=config.resources.generator.num_cpus).remote() for _ in "ab"
    ]
    try:
        _pass_on(actors, message, WARM_CALLS)
        before = _used(actors)
        began = time.perf_counter()
        _pass_on(actors, message, CALLS)
        seconds = (time.perf_counter() - began) / CALLS
        driver, in_actors, others, worked = (
            (b - a) / CALLS for a, b in zip(before, _used(actors), strict=True)
        )
    finally:
        for actor in actors:
            ray.kill(actor)
    return Transport(
        process=in_actors - worked,
        driver=driver,
        others=others,
        latency=max(0.0, seconds - in_actors),
        on_pool=on_pool,
    )


class Echo:
    """An actor that returns its input."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.scratch = torch.zeros(SCRATCH)
        self.worked = 0.0

    def echo(self, at: Slice, images: Images) -> Images:
        began = time.thread_time()
        self.scratch += 1
        self.worked += time.thread_time() - began
        return images

    def used(self) -> tuple[int, float, float]:
        return os.getpid(), time.process_time(), self.worked


def _pass_on(actors: list[Any], message: Images, count: int) -> None:
    """Make a chain of calls, each with the other actor's answer; submitted ahead, as a driver does."""
    import ray

    answer: Any = message
    in_flight: deque[Any] = deque()
    for number in range(count):
        answer = actors[number % 2].echo.remote(Slice(number, 0, len(message.x_g)), answer)
        in_flight.append(answer)
        if len(in_flight) > AHEAD:
            ray.wait([in_flight.popleft()], fetch_local=False)
    ray.get(answer)


def _used(actors: list[Any]) -> tuple[float, float, float, float]:
    """Return CPU seconds so far: of this process, the actors, and Ray's processes that were started here.

    The fourth value is the part of the actors' seconds that is their work.
    """
    import ray

    uses = ray.get([actor.used.remote() for actor in actors])
    actor_pids = {pid for pid, _, _ in uses}
    others = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.pid not in actor_pids:
                times = process.cpu_times()
                others += times.user + times.system
    return time.process_time(), sum(used for _, used, _ in uses), others, sum(worked for *_, worked in uses)
