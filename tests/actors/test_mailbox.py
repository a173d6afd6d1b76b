"""The mailbox between a driver and Ray Train's workers, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from raysid.actors.mailbox import Call, Group, Mailbox
from raysid.errors import DeviceFailed, LearnerLost, PeerLost, RunFailed, WorkersChanged

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
        with pytest.raises(LearnerLost, match="worker 0 died"):  # Ray Train replaces a worker that fails
            await mailbox.ended("first")
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


def test_a_resize_waits_until_the_driver_has_saved() -> None:
    """The driver's calls are answered meanwhile; then the group ends, and the resize goes on."""

    async def run() -> None:
        mailbox = Mailbox()
        await mailbox.join(GROUP, 0)
        wanted = await started(mailbox, mailbox.wanted("first"))
        resize = await started(mailbox, mailbox.resize(2, seconds=60.0))
        assert await wanted == "Ray Train changes its workers: 1 -> 2"
        save = await started(mailbox, mailbox.ask("first", 0, 0, work(0)))
        await mailbox.answer("first", 0, 0, "saved", None)
        assert await save == "saved" and not resize.done()
        await mailbox.replace("first", "Ray Train changes its workers: 1 -> 2")
        await resize
        with pytest.raises(WorkersChanged, match="1 -> 2"):
            await mailbox.ask("first", 0, 1, work(1))

    asyncio.run(run())


def test_a_resize_does_not_wait_for_ever_nor_for_a_group_that_is_gone() -> None:
    async def run() -> None:
        mailbox = Mailbox()
        await mailbox.resize(1, seconds=60.0)  # the first group is about to start
        await mailbox.join(GROUP, 0)
        wanted = await started(mailbox, mailbox.wanted("first"))
        await mailbox.resize(2, seconds=0.01)  # a driver that hangs
        with pytest.raises(WorkersChanged, match="1 -> 2"):
            await mailbox.ask("first", 0, 0, work(0))
        assert await wanted in (None, "Ray Train changes its workers: 1 -> 2")
        await mailbox.resize(3, seconds=60.0)
        await mailbox.close()
        assert await mailbox.ended("first") is None

    asyncio.run(run())


@pytest.mark.parametrize("error", [PeerLost("worker 1 is lost"), DeviceFailed("worker 0: ECC error")])
def test_a_resize_does_not_wait_for_a_group_that_lost_a_worker(error: Exception) -> None:
    """Ray Train, which waits in the resize, reports no loss; the worker that noticed it answers the driver."""

    async def run() -> None:
        mailbox = Mailbox(max_failed_starts=0)
        for rank in range(2):
            await mailbox.join(Group("first", 2), rank)
        resize = await started(mailbox, mailbox.resize(3, seconds=60.0))
        step = await started(mailbox, mailbox.ask("first", 0, 0, work(0)))
        save = await started(mailbox, mailbox.ask("first", 0, 1, work(1)))
        await mailbox.answer("first", 0, 0, None, error)
        for call in (step, save):
            with pytest.raises(type(error)):
                await call
        await asyncio.wait_for(resize, 5.0)
        await mailbox.lost("worker 1 died")  # Ray Train may report it afterwards
        await mailbox.join(Group("second", 3), 0)
        assert await mailbox.group("first", 0.01) is None  # two workers are missing, and no start has failed

    asyncio.run(run())


def test_groups_that_fail_to_start_are_counted() -> None:
    """A group that has started is none of them, whatever ends it later."""

    async def run() -> None:
        mailbox = Mailbox(max_failed_starts=1)
        for name in ("first", "second", "third"):
            await mailbox.join(Group(name, 1), 0)
            await mailbox.lost("a worker died")
        for end in (mailbox.abandon, mailbox.replace):  # by the driver; Ray Train reports it afterwards
            await mailbox.join(Group(end.__name__, 1), 0)
            await end(end.__name__, "a reason")
            await mailbox.lost("worker 0: a reason")
        for _ in range(2):
            assert await mailbox.group("replace", 0.01) is None
            await mailbox.lost("no module named x")
        with pytest.raises(RunFailed, match="failed to start 2 times: no module named x"):
            await mailbox.group("replace", 0.01)

    asyncio.run(run())
