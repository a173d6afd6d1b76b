"""The mailbox between a driver and Ray Train's workers, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from raysid.actors.mailbox import Call, Group, Mailbox
from raysid.errors import LearnerLost, WorkersChanged

GROUP = Group("first", 1)


def work(number: int) -> Call:
    """A call that is recognized by its number."""
    return Call(print, (number,))


async def started(mailbox: Mailbox, call: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Start a call and let it reach the mailbox."""
    task = asyncio.create_task(call)
    await asyncio.sleep(0)
    return task


def test_a_worker_takes_calls_in_order_although_they_arrive_out_of_order() -> None:
    async def run() -> None:
        mailbox = Mailbox()
        await mailbox.join(GROUP, 0)
        asked = {n: await started(mailbox, mailbox.ask("first", 0, n, work(n))) for n in (1, 0)}
        for number in (0, 1):
            assert await mailbox.take("first", 0, number) == work(number)
            await mailbox.answer("first", 0, number, 10 * number, None)
        assert [await asked[number] for number in (0, 1)] == [0, 10]

    asyncio.run(run())


def test_calls_of_a_lost_group_fail_and_its_workers_end() -> None:
    async def run() -> None:
        mailbox = Mailbox()
        await mailbox.join(GROUP, 0)
        asked = await started(mailbox, mailbox.ask("first", 0, 0, work(0)))
        await mailbox.lost("worker 0 died")
        with pytest.raises(LearnerLost, match="worker 0 died"):
            await asked
        with pytest.raises(LearnerLost, match="worker 0 died"):
            await mailbox.ask("first", 0, 1, work(1))
        assert await mailbox.take("first", 0, 1) is None
        assert await mailbox.group("first", 0.01) is None
        await mailbox.join(Group("second", 1), 0)
        assert await mailbox.group("first", 1.0) == Group("second", 1)

    asyncio.run(run())


def test_a_resize_fails_calls_without_a_failure_of_a_worker() -> None:
    async def run() -> None:
        mailbox = Mailbox()
        await mailbox.join(GROUP, 0)
        asked = await started(mailbox, mailbox.ask("first", 0, 0, work(0)))
        await mailbox.resize(3)
        with pytest.raises(WorkersChanged, match="1 -> 3"):
            await asked

    asyncio.run(run())
