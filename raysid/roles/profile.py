"""Resources that a role's process has used, for benchmarks, which take differences."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from raysid.roles.messages import Message
from raysid.roles.stopwatch import Span

T = TypeVar("T")


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
    """The profile of a role's process. Without `traffic` the role shares its process, and no message travels."""
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
    if not isinstance(value, Message):
        return 0
    return sum(part.nbytes for part in vars(value).values() if isinstance(part, Tensor))
