"""How long a role computes: the busy share that TensorBoard shows for it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])


def busy(method: Method) -> Method:
    """Add the CPU seconds of each call to `self.busy_seconds`.

    CPU time of the calling thread, not wall time: on a machine with fewer cores than processes a call that
    was merely waiting for a core is not busy. Torch's other threads spin with the calling one.
    """

    @functools.wraps(method)
    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        started = time.thread_time()
        try:
            return method(self, *args, **kwargs)
        finally:
            self.busy_seconds += time.thread_time() - started

    return timed  # type: ignore[return-value]
