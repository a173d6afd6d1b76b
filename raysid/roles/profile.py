"""What a role's process has used: for a bench, which takes differences of it."""

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
    """Of one process, since it started.

    Attributes:
        parts: busy seconds by method.
        process_seconds: CPU seconds of the whole process, beyond the parts transport; the parts' own on a GPU.
        received_bytes, sent_bytes: of tensors in messages.
        peak_bytes: the most memory it has had: the GPU's where it computes there, resident otherwise.
        spans: its last calls.
    """

    parts: dict[str, float]
    process_seconds: float
    received_bytes: int
    sent_bytes: int
    peak_bytes: int
    spans: tuple[Span, ...]


class Traffic:
    """Counts the tensors that pass through an actor."""

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
    """A role's profile in its own process; without `traffic` it has no process for itself, and nothing travels."""
    parts = role.stopwatch.parts
    return Profile(
        parts=parts,
        # Beside a GPU's time its process's says nothing.
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
