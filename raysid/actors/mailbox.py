"""Calls from a driver to workers of Ray Train, whose actors only Ray Train itself may call."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from raysid.errors import LearnerLost, WorkersChanged


@dataclass(frozen=True)
class Group:
    """Workers that Ray Train has started together.

    Attributes:
        name: no other group has it.
        size: how many they are.
    """

    name: str
    size: int


@dataclass(frozen=True)
class Call:
    """A worker's method, and its arguments."""

    method: str
    arguments: tuple[Any, ...] = ()


class Mailbox:
    """An asynchronous actor between a driver and the workers of a group, the newest one alone.

    The driver asks, with calls numbered for each rank, since an asynchronous actor's calls may overtake each
    other; a worker takes them in order and answers each. When the group is lost, whatever was asked of it fails.
    """

    def __init__(self) -> None:
        self._group: Group | None = None
        self._joined: set[int] = set()
        self._calls: dict[tuple[int, int], Call] = {}
        self._answers: dict[tuple[int, int], asyncio.Future[Any]] = {}
        self._ends: dict[str, LearnerLost] = {}  # by group that is gone: why
        self._closed = False
        self._controller: Any = None
        self._news = asyncio.Condition()

    # -- for the driver --------------------------------------------------------------------------------------

    async def group(self, after: str | None, seconds: float) -> Group | None:
        """The newest group, once all of its workers are there; None if there is none but `after` in time."""

        def complete() -> bool:
            group = self._group
            return group is not None and group.name != after and len(self._joined) == group.size

        async with self._news:
            try:
                await asyncio.wait_for(self._news.wait_for(complete), seconds)
            except TimeoutError:
                return None
            return self._group

    async def ask(self, group: str, rank: int, number: int, call: Call) -> Any:
        """What a worker answers to the call of this number.

        Raises:
            LearnerLost: the group is gone.
            Exception: what the worker's method raised.
        """
        if group in self._ends:
            raise self._ends[group]
        answer = self._answers[rank, number] = asyncio.get_running_loop().create_future()
        async with self._news:
            self._calls[rank, number] = call
            self._news.notify_all()
        return await answer

    async def close(self) -> Any:
        """Send the workers home; Ray Train's controller, as far as it has begun."""
        async with self._news:
            self._closed = True
            self._news.notify_all()
        return self._controller

    # -- for the workers and Ray Train -----------------------------------------------------------------------

    async def join(self, group: Group, rank: int) -> None:
        """A worker is there; the first of a new group ends the one before."""
        async with self._news:
            if self._group != group:
                self._change(group.size)
                self._group, self._joined, self._calls = group, set(), {}
            self._joined.add(rank)
            self._news.notify_all()

    async def take(self, group: str, rank: int, number: int) -> Call | None:
        """The call of this number, once there is one; None: go home."""
        async with self._news:
            await self._news.wait_for(lambda: self._over(group) or (rank, number) in self._calls)
            return None if self._over(group) else self._calls.pop((rank, number))

    async def answer(self, group: str, rank: int, number: int, value: Any, error: Exception | None) -> None:
        """What came of a call."""
        if group in self._ends:
            return
        waiting = self._answers.pop((rank, number), None)
        if waiting is not None and not waiting.done():
            waiting.set_result(value) if error is None else waiting.set_exception(error)

    async def begun(self, controller: Any) -> None:
        """Ray Train's controller is there."""
        self._controller = controller

    async def lost(self, why: str) -> None:
        """Workers have died; Ray Train will start new ones."""
        async with self._news:
            self._end(LearnerLost(why))
            self._news.notify_all()

    async def changes(self, size: int) -> None:
        """Ray Train is about to end the workers and to start so many."""
        async with self._news:
            self._change(size)
            self._news.notify_all()

    async def over(self, group: str) -> None:
        """Returns when the workers of a group are to go home."""
        async with self._news:
            await self._news.wait_for(lambda: self._over(group))

    def _over(self, group: str) -> bool:
        return self._closed or group in self._ends

    def _change(self, size: int) -> None:
        if self._group is not None:
            self._end(WorkersChanged(f"Ray Train changes its workers: {self._group.size} -> {size}"))

    def _end(self, why: LearnerLost) -> None:
        """The newest group is no more: whoever waits for it is told."""
        if self._group is None or self._group.name in self._ends:
            return
        self._ends[self._group.name] = why
        for waiting in self._answers.values():
            if not waiting.done():
                waiting.set_exception(why)
        self._answers.clear()
