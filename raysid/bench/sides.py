"""One side of a bench: the roles of a config, and rounds of steps with them."""

from __future__ import annotations

import time
import uuid
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from upath import UPath

from raysid.actors.placement import Placement, must_prepare, start_placement, workers_for
from raysid.config import Config
from raysid.data import ImageSource
from raysid.roles.build import RunInputs
from raysid.roles.compute import set_tf32
from raysid.roles.profile import Profile, Span
from raysid.roles.step import STEPS_IN_FLIGHT

WARM_STEPS = 3  # the first updates only psi, and allocates memory
TIMED_STEPS = 3  # which determine the number of steps of a round


@dataclass(frozen=True)
class RoleUse:
    """The use of a role's busiest process, per step of a round.

    Attributes:
        parts: busy seconds by method.
        transport: other CPU seconds of the process, which packs and unpacks messages.
        wait: the rest of the wall time, in seconds.
        received_bytes, sent_bytes: bytes of tensors.
        peak_bytes: peak memory so far.
    """

    parts: dict[str, float]
    transport: float
    wait: float
    received_bytes: float
    sent_bytes: float
    peak_bytes: int

    @property
    def busy(self) -> float:
        """Busy seconds per step."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Round:
    """The result of one round of a side.

    Attributes:
        steps: number of steps.
        images: images of all steps.
        seconds: wall time of all steps.
        driver_seconds: CPU time of the driver's process, without that of roles in it.
        roles: use of each role, by role.
    """

    steps: int
    images: int
    seconds: float
    driver_seconds: float
    roles: dict[str, RoleUse]

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds


class Side:
    """The roles of a config, alive until `close`, so that two sides can take turns.

    Args:
        inputs: inputs of the roles; their config determines the placement.
        source: real images; None for a method that uses none.
    """

    def __init__(self, inputs: RunInputs, source: ImageSource | None) -> None:
        self.config: Config = inputs.config
        folder = f"{UPath(inputs.teacher).parent}/.bench-{uuid.uuid4().hex[:8]}"
        with ExitStack() as stack:
            workers = stack.enter_context(workers_for(self.config, folder))
            self.placement: Placement = start_placement(inputs, source, workers=workers)
            self._stack = stack.pop_all()
        self.next_step = 0
        self.spans: dict[str, list[tuple[Span, ...]]] = {}

    def warm_up(self, seconds: float) -> int:
        """Take steps until everything is loaded and allocated; return the number of steps of a round."""
        self._advance(WARM_STEPS)
        return max(TIMED_STEPS, round(seconds * TIMED_STEPS / self._advance(TIMED_STEPS)))

    def round(self, steps: int) -> Round:
        """Take steps, and return their use of time and memory."""
        before, driver = self.placement.profile(), time.process_time()
        seconds = self._advance(steps)
        driver = time.process_time() - driver
        after = self.placement.profile()
        self.spans = {
            role: [process.spans for process in processes.values()] for role, processes in after.items()
        }
        if self.config.placement == "local":
            # The roles' threads are the driver's process: its CPU time cannot be separated.
            driver = 0.0
        roles = {role: _use(before[role], after[role], steps, seconds) for role in after}
        return Round(steps, steps * self.config.batch_size, seconds, driver, roles)

    def close(self) -> None:
        """End the roles."""
        self.placement.close()
        self._stack.close()

    def _advance(self, steps: int) -> float:
        """Take steps as a run does and wait for them; return wall seconds."""
        if self.config.placement == "local" and self.config.torch_threads:
            # Both are settings of the whole process, in which the sides may differ.
            torch.set_num_threads(self.config.torch_threads)
            set_tf32(self.config.compute.tf32)
        began = time.perf_counter()
        under_way: deque[list[Any]] = deque()
        for step in range(self.next_step, self.next_step + steps):
            if must_prepare(self.placement, self.config, step, lambda: self._collect_all(under_way)):
                self.placement.prepare(step)
            under_way.append(self.placement.step(step))
            while len(under_way) > STEPS_IN_FLIGHT:
                self.placement.collect(under_way.popleft())
        self._collect_all(under_way)
        self.next_step += steps
        return time.perf_counter() - began

    def _collect_all(self, under_way: deque[list[Any]]) -> None:
        while under_way:
            self.placement.collect(under_way.popleft())


def _use(before: dict[int, Profile], after: dict[int, Profile], steps: int, seconds: float) -> RoleUse:
    # A scorer that joined or left during the round is not counted.
    stayed = before.keys() & after.keys()
    uses = [_process_use(before[number], after[number], steps, seconds) for number in stayed]
    return max(uses, key=lambda use: use.busy, default=RoleUse({}, 0.0, seconds / steps, 0.0, 0.0, 0))


def _process_use(before: Profile, after: Profile, steps: int, seconds: float) -> RoleUse:
    parts = {name: (total - before.parts.get(name, 0.0)) / steps for name, total in after.parts.items()}
    busy = sum(parts.values())
    transport = max(0.0, (after.process_seconds - before.process_seconds) / steps - busy)
    return RoleUse(
        parts=parts,
        transport=transport,
        wait=max(0.0, seconds / steps - busy - transport),
        received_bytes=(after.received_bytes - before.received_bytes) / steps,
        sent_bytes=(after.sent_bytes - before.sent_bytes) / steps,
        peak_bytes=after.peak_bytes,
    )
