"""Writing what a learner leaves, beside its work: a bucket takes seconds for what memory gives in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from raysid.networks.files import write_network
from raysid.run.checkpoint import StateFile, state_bytes, write_state


class Saver:
    """Writes files in the order in which they are given, from a thread of its own."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saving")
        self._under_way: dict[tuple[str, str], Future[Any]] = {}

    def state(self, folder: str, name: str, state: dict[str, Any]) -> None:
        """Begin to write a learner's state, as it is now, to a checkpoint's folder."""
        content = state_bytes(state)
        self._begin(folder, name, lambda: write_state(folder, name, content))

    def product(self, folder: str, name: str, files: dict[str, bytes]) -> None:
        """Begin to write a network's files."""
        self._begin(folder, name, lambda: write_network(folder, files))

    def saved(self, folder: str, name: str, wait: bool) -> StateFile | bool | None:
        """What was begun, once it is written: a state's file, or True for a network; None while it is not.

        Raises:
            StorageError: it could not be written.
        """
        future = self._under_way[folder, name]
        if not (wait or future.done()):
            return None
        del self._under_way[folder, name]
        written = future.result()
        return written if isinstance(written, StateFile) else True

    def close(self) -> None:
        """Finish what was begun."""
        self._thread.shutdown()

    def _begin(self, folder: str, name: str, write: Callable[[], Any]) -> None:
        self._under_way[folder, name] = self._thread.submit(write)
