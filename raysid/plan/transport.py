"""What a call through Ray costs beside its work, measured between two actors that only pass on what they get."""

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
from raysid.plan.processes import Transport
from raysid.roles.messages import Images, Slice

CALLS = 200
WARM_CALLS = 40
SCRATCH = 2**23  # float32 numbers, 32 MB: what an actor goes over between calls, as work fills the caches
AHEAD = 16  # calls of two steps


def measure_transport(config: Config, image_bytes: int, on_pool: bool) -> Transport:
    """What a call between processes costs beside its work: a microbatch that two actors pass to and fro.

    Between calls each goes over memory: a call that finds the caches full of a network's work takes nearly twice what
    it takes where nothing else is done.

    Args:
        on_pool: as `Transport` has it.

    Raises:
        RunFailed: the cluster has no room for them.
    """
    connect()
    import ray

    message = Images(torch.zeros(config.microbatch, max(1, image_bytes // 4)), None)
    actors: list[Any] = [
        ray.remote(Echo).options(num_cpus=config.resources.generator.num_cpus).remote() for _ in "ab"
    ]
    try:
        _pass_on(actors, message, WARM_CALLS)
        before = _used(actors)
        began = time.perf_counter()
        _pass_on(actors, message, CALLS)
        seconds = (time.perf_counter() - began) / CALLS
        driver, of_actors, others, worked = (
            (b - a) / CALLS for a, b in zip(before, _used(actors), strict=True)
        )
    finally:
        for actor in actors:
            ray.kill(actor)
    return Transport(
        process=of_actors - worked,
        driver=driver,
        others=others,
        latency=max(0.0, seconds - of_actors),
        on_pool=on_pool,
    )


class Echo:
    """An actor that passes on what it gets."""

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
    """A chain of calls, each of which takes the other actor's answer; submitted some ahead, as a driver does."""
    import ray

    answer: Any = message
    under_way: deque[Any] = deque()
    for number in range(count):
        answer = actors[number % 2].echo.remote(Slice(number, 0, len(message.x_g)), answer)
        under_way.append(answer)
        if len(under_way) > AHEAD:
            ray.wait([under_way.popleft()], fetch_local=False)
    ray.get(answer)


def _used(actors: list[Any]) -> tuple[float, float, float, float]:
    """CPU seconds so far: of this process, of the actors, of Ray's own processes as far as they were started here.

    The fourth is what the actors have worked of theirs.
    """
    import ray

    said = ray.get([actor.used.remote() for actor in actors])
    of_actors = {pid for pid, _, _ in said}
    others = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.pid not in of_actors:
                times = process.cpu_times()
                others += times.user + times.system
    return time.process_time(), sum(used for _, used, _ in said), others, sum(worked for *_, worked in said)
