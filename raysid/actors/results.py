"""Waiting for the results of actors, and conversion of their failures."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError, WorkerCrashedError

from raysid.errors import LearnerLost, NoAnswer, PeerLost, RunFailed, StorageError

T = TypeVar("T")

POLL_SECONDS = 2.0
NAMING_SECONDS = 5.0
HANG_SECONDS, HANG_FACTOR = 1800.0, 50.0


@dataclass(frozen=True)
class RemoteWrite(Generic[T]):
    """A `raysid.roles.state_files.Write` by actors.

    Args:
        references: ready once all is written.
        result: waits for the result and returns it.
    """

    references: list[Any]
    result: Callable[[], T]

    def done(self) -> bool:
        return all(map(is_ready, self.references))


class HangLimit:
    """The time after which a process that does not answer counts as lost.

    Args:
        seconds: `failure.hang_timeout_s`; None takes half an hour, or 50 times the longest wait so far.
    """

    def __init__(self, seconds: float | None) -> None:
        self._fixed = seconds
        self._longest = 0.0

    @property
    def seconds(self) -> float:
        return self._fixed or max(HANG_SECONDS, HANG_FACTOR * self._longest)

    def note(self, waited: float) -> None:
        """Note the seconds after which an answer arrived."""
        self._longest = max(self._longest, waited)

    def exceeded(self, who: str) -> NoAnswer:
        """Return the error for a process that has not answered in time."""
        return NoAnswer(f"no answer from {who} for {self.seconds:,.0f} s (failure.hang_timeout_s)")


def get(references: Any) -> Any:
    """Wait for values from the roles.

    Raises:
        LearnerLost: a process that a value depended on died, or a rank has lost another.
        RunFailed: a role failed or could not start; one line names it.
        StorageError: a role could not read or write its files.
    """
    try:
        return ray.get(references)
    except (RayActorError, ObjectLostError, WorkerCrashedError) as error:
        if isinstance(error, RayActorError) and error.actor_init_failed:
            raise RunFailed(describe_failed_start(error)) from error
        raise LearnerLost(describe_death(error)) from error
    except RayTaskError as error:
        if isinstance(error.cause, StorageError):
            raise error.cause from error
        if isinstance(error.cause, RunFailed | LearnerLost):
            raise type(error.cause)(str(error.cause)) from error
        raise RunFailed(f"a role failed: {_first_line(error.cause)}") from error


def get_ranks(references: list[Any], while_waiting: Callable[[], None], limit: HangLimit) -> list[Any]:
    """Wait for a value from every rank.

    Raises a failure as soon as it arrives: the other ranks may be waiting for the one that failed.

    Args:
        while_waiting: called every few seconds while nothing arrives.
        limit: the time after which a missing answer counts as a lost process.

    Raises:
        LearnerLost, RunFailed: as `get`. The line names the process that died, if Ray reports both deaths
            within 5 s.
    """
    pending, began = list(references), time.monotonic()
    while pending:
        seconds = min(POLL_SECONDS, limit.seconds)
        done, pending = ray.wait(pending, timeout=seconds, fetch_local=False)
        if not done:
            while_waiting()
            if time.monotonic() - began > limit.seconds:
                raise limit.exceeded(f"{len(pending)} of {len(references)} calls")
        try:
            get(done)
        except PeerLost:
            _raise_for_dead_process(pending)
            raise
    limit.note(time.monotonic() - began)
    return get(references)


def _raise_for_dead_process(references: list[Any]) -> None:
    """Raise LearnerLost naming the process that died, if one of these values was its own."""
    if not references:
        return
    ray.wait(references, num_returns=len(references), timeout=NAMING_SECONDS, fetch_local=False)
    for reference in filter(is_ready, references):
        with suppress(PeerLost):
            get(reference)


def is_ready(reference: Any) -> bool:
    """True once a value, or its failure, has arrived."""
    return bool(ray.wait([reference], timeout=0, fetch_local=False)[0])


def describe_failed_start(error: RayActorError) -> str:
    """Name the role that could not start, with the last line of its trace, which is the reason."""
    role = re.search(r"ray::(\w+)\.__init__", str(error))
    return f"{role[1] if role else 'a role'} could not start: {str(error).strip().splitlines()[-1].strip()}"


def describe_death(error: BaseException) -> str:
    """Name the role's process that died and its node, from Ray's error, which may lie deep in a trace."""
    fields = dict(re.findall(r"^\s*(class_name|pid|ip): (\S+)$", str(error), re.MULTILINE))
    if "class_name" not in fields:
        return _first_line(error)
    where = f"process {fields['pid']} on {fields['ip']}" if {"pid", "ip"} <= fields.keys() else "its process"
    return f"{fields['class_name']}: {where} died"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
