"""Busy seconds of a role by method, for TensorBoard's busy shares and for benchmarks."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

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
