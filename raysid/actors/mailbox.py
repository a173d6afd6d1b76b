"""Calls from a driver to Ray Train's workers, whose actors only Ray Train itself may call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from raysid.errors import DeviceFailed, LearnerLost, PeerLost, RunFailed, WorkersChanged


@dataclass(frozen=True)
class Group:
    """Workers that Ray Train has started together.

    Attributes:
        name: unique among all groups.
        size: number of workers.
    """

    name: str
    size: int


@dataclass(frozen=True)
class WorkerProcess:
    """A worker's process: the ID of its node, and its pid there."""

    node: str
    pid: int


@dataclass(frozen=True)
class Call:
    """A call of a worker: an unbound method of `Worker` or of `LocalPlacement`, and its arguments."""

    method: Callable[..., Any]
    arguments: tuple[Any, ...]


class Mailbox:
    """An asynchronous actor between a driver and the newest group of workers.

    The driver numbers its calls for each rank, since calls of an asynchronous actor may overtake each other. A worker
    takes them in order and answers each. When the group is lost, all its unanswered calls fail.
    """

    def __init__(self, max_failed_starts: int = 3) -> None:
        self._max_failed_starts, self._failed_starts, self._failure = max_failed_starts, 0, ""
        self._group: Group | None = None
        self._joined: dict[int, WorkerProcess | None] = {}  # by rank
        self._failing = False  # the workers of a group that the driver has ended
        self._wanted = ""  # the change of the group that Ray Train waits to make
        self._calls: dict[tuple[int, int], Call] = {}
        self._answers: dict[tuple[int, int], asyncio.Future[Any]] = {}
        self._ends: dict[str, LearnerLost] = {}  # the reason, by name of a group that has ended
        self._closed = False
        self._controller: Any = None
        self._changed = asyncio.Condition()

    # -- for the driver --------------------------------------------------------------------------------------

    async def group(self, after: str | None, seconds: float) -> Group | None:
        """Wait for a group other than `after` whose workers have all joined; None if there is none in time.

        Raises:
            RunFailed: workers failed before all had joined, more than `max_failed_starts` times in a row.
        """
        if self._failed_starts > self._max_failed_starts:
            raise RunFailed(f"the workers failed to start {self._failed_starts} times: {self._failure}")

        def complete() -> bool:
            group = self._group
            return group is not None and group.name != after and len(self._joined) == group.size

        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(complete), seconds)
            except TimeoutError:
                return None
            return self._group

    async def ask(self, group: str, rank: int, number: int, call: Call) -> Any:
        """Pass a call to a worker and return its answer.

        Raises:
            LearnerLost: the group has ended.
            RunFailed, PeerLost: as `Worker.answer`.
        """
        if group in self._ends:
            raise self._ends[group]
        answer = self._answers[rank, number] = asyncio.get_running_loop().create_future()
        async with self._changed:
            self._calls[rank, number] = call
            self._changed.notify_all()
        return await answer

    async def processes(self) -> list[WorkerProcess]:
        """Return the processes of the newest group's workers."""
        return [process for process in self._joined.values() if process is not None]

    async def wanted(self, group: str) -> str | None:
        """Wait until Ray Train is about to change the group; return the change in words, None if the group ends."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._over(group) or self._wanted)
            return None if self._over(group) else self._wanted

    async def replace(self, group: str, why: str) -> None:
        """End the group, whose state is saved: Ray Train starts a new one."""
        async with self._changed:
            self._end_by_driver(group, WorkersChanged(why))
            self._changed.notify_all()

    async def abandon(self, group: str, why: str) -> None:
        """End the group because a worker does not answer."""
        async with self._changed:
            self._end_by_driver(group, LearnerLost(why))
            self._changed.notify_all()

    async def close(self) -> Any:
        """End the workers; return Ray Train's controller, if it has started."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()
        return self._controller

    # -- for the workers and Ray Train -----------------------------------------------------------------------

    async def join(self, group: Group, rank: int, process: WorkerProcess | None = None) -> None:
        """Add a worker to its group; the first worker of a new group ends the previous one."""
        async with self._changed:
            if self._group != group:
                self._resize(group.size)
                self._group, self._joined, self._calls = group, {}, {}
                self._failing = False
            self._joined[rank] = process
            if len(self._joined) == group.size:
                self._failed_starts = 0
            self._changed.notify_all()

    async def take(self, group: str, rank: int, number: int) -> Call | None:
        """Wait for the worker's call of this number; None means that the worker must end, as `ended` says."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._over(group) or (rank, number) in self._calls)
            return None if self._over(group) else self._calls.pop((rank, number))

    async def ended(self, group: str) -> None:
        """Return if the run is over.

        Raises:
            LearnerLost: only the group has ended; Ray Train starts a new one once a worker has failed.
        """
        if not self._closed:
            raise self._ends[group]

    async def answer(self, group: str, rank: int, number: int, value: Any, error: Exception | None) -> None:
        """Answer a call with its result or its error."""
        if group in self._ends:
            return
        waiting = self._answers.pop((rank, number), None)
        if waiting is not None and not waiting.done():
            waiting.set_result(value) if error is None else waiting.set_exception(error)
        if self._wanted and isinstance(error, PeerLost | DeviceFailed):
            # Nothing can be saved any more, and Ray Train, which waits for that, would not report the loss.
            async with self._changed:
                self._end_by_driver(group, error)
                self._changed.notify_all()

    async def started(self, controller: Any) -> None:
        """Note Ray Train's controller, which has started."""
        self._controller = controller

    async def lost(self, why: str) -> None:
        """End the group because workers have failed; Ray Train will start a new one."""
        async with self._changed:
            if not self._failing and not self._is_running():
                self._failed_starts, self._failure = self._failed_starts + 1, why
            self._failing = False
            self._end(LearnerLost(why))
            self._changed.notify_all()

    async def resize(self, size: int, seconds: float = 0.0) -> None:
        """End the group because Ray Train is about to replace it by one of `size` workers.

        Args:
            seconds: time for the driver to save the group's state first.
        """
        async with self._changed:
            group = self._group
            if group is not None and self._is_running():
                self._wanted = self._resizing(size)
                self._changed.notify_all()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait_for(lambda: self._over(group.name)), seconds)
                self._wanted = ""
            self._resize(size)
            self._changed.notify_all()

    async def over(self, group: str) -> None:
        """Return when the workers of a group must end."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._over(group))

    def _is_running(self) -> bool:
        group = self._group
        return group is not None and not self._over(group.name) and len(self._joined) == group.size

    def _end_by_driver(self, group: str, why: LearnerLost) -> None:
        if self._group is not None and self._group.name == group:
            self._failing = True  # Ray Train will report it
            self._end(why)

    def _over(self, group: str) -> bool:
        return self._closed or group in self._ends

    def _resize(self, size: int) -> None:
        self._end(WorkersChanged(self._resizing(size)))

    def _resizing(self, size: int) -> str:
        return f"Ray Train changes its workers: {self._group.size if self._group else 0} -> {size}"

    def _end(self, why: LearnerLost) -> None:
        """End the newest group: its unanswered calls fail."""
        if self._group is None or self._group.name in self._ends:
            return
        self._ends[self._group.name] = why
        for waiting in self._answers.values():
            if not waiting.done():
                waiting.set_exception(why)
        self._answers.clear()
