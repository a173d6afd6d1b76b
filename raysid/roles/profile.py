"""The use of a role's process: busy seconds by method, for TensorBoard and benchmarks; memory; bytes of messages."""

from __future__ import annotations

import functools
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from raysid.roles.messages import Message

T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Any])

SPANS_KEPT = 2_000  # calls whose begin and end are kept, for a trace


@dataclass(frozen=True)
class Span:
    """One call of a role: method, begin and end in seconds since the epoch."""

    name: str
    began: float
    ended: float


class Stopwatch:
    """Busy seconds of a role by method.

    On a CPU this is the CPU time of the calling thread, not wall time: with fewer cores than processes a call that
    waits for a core is not busy, and torch's other threads spin along with the calling one. On a GPU it is the time
    between two events in the stream, because the call itself returns before the work is done.
    """

    def __init__(self) -> None:
        self.spans: deque[Span] = deque(maxlen=SPANS_KEPT)
        self._parts: dict[str, float] = {}
        self._pending: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @property
    def parts(self) -> dict[str, float]:
        """Busy seconds since the start, by method; waits until a GPU has finished its queue."""
        for name, began, ended in self._pending:
            ended.synchronize()
            self._add(name, began.elapsed_time(ended) / 1000)
        self._pending.clear()
        return dict(self._parts)

    @property
    def seconds(self) -> float:
        """Busy seconds since the start."""
        return sum(self.parts.values())

    def time(self, name: str, device: torch.device, call: Callable[[], Any]) -> Any:
        """Return the result of `call`, counting its time under `name`."""
        began, cpu = time.time(), time.thread_time()
        events = None
        if device.type == "cuda":
            events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            events[0].record(torch.cuda.current_stream(device))
        try:
            return call()
        finally:
            if events is None:
                self._add(name, time.thread_time() - cpu)
            else:
                events[1].record(torch.cuda.current_stream(device))
                self._pending.append((name, events[0], events[1]))
            self.spans.append(Span(name, began, time.time()))

    def _add(self, name: str, seconds: float) -> None:
        self._parts[name] = self._parts.get(name, 0.0) + seconds


def busy(method: Method) -> Method:
    """Decorate a method to count its time. Its role has a `stopwatch` and a `device`."""
    name = method.__name__

    @functools.wraps(method)
    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.stopwatch.time(name, self.device, lambda: method(self, *args, **kwargs))

    return timed  # type: ignore[return-value]


@dataclass(frozen=True)
class Profile:
    """The resources of one process since its start.

    Attributes:
        parts: busy seconds by method.
        process_seconds: CPU seconds of the whole process, which are the parts' and transport's; on a GPU the parts'.
        received_bytes, sent_bytes: size of the tensors in messages.
        peak_bytes: peak memory: of the GPU if the role computes there, otherwise resident.
        spans: the last calls.
    """

    parts: dict[str, float]
    process_seconds: float
    received_bytes: int
    sent_bytes: int
    peak_bytes: int
    spans: tuple[Span, ...]


class Traffic:
    """Counts the bytes of tensors that an actor receives and sends."""

    def __init__(self) -> None:
        self.received_bytes = 0
        self.sent_bytes = 0

    def call(self, method: Callable[..., T], *arguments: Any) -> T:
        """Call a role's method, counting its arguments and its result."""
        self.received_bytes += sum(map(_size, arguments))
        result = method(*arguments)
        self.sent_bytes += sum(map(_size, result if isinstance(result, tuple) else (result,)))
        return result


def profile_of(role: Any, traffic: Traffic | None = None) -> Profile:
    """Return the profile of a role's process. Without `traffic` the role shares its process, and no message travels."""
    parts = role.stopwatch.parts
    return Profile(
        parts=parts,
        # On a GPU the process's CPU time is no measure of its work.
        process_seconds=time.process_time() if traffic and role.device.type == "cpu" else sum(parts.values()),
        received_bytes=traffic.received_bytes if traffic else 0,
        sent_bytes=traffic.sent_bytes if traffic else 0,
        peak_bytes=_peak_bytes(role.device),
        spans=tuple(role.stopwatch.spans),
    )


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _size(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    parts = vars(value) if isinstance(value, Message) else value
    return sum(map(_size, parts.values())) if isinstance(parts, Mapping) else 0
