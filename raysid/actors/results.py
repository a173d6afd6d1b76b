"""Waiting for what actors return, and what their failures mean to a run."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError, WorkerCrashedError

from raysid.errors import LearnerLost, PeerLost, RunFailed, StorageError

T = TypeVar("T")

LOOK_SECONDS = 2.0
NAMING_SECONDS = 5.0


@dataclass(frozen=True)
class RemoteWrite(Generic[T]):
    """A `raysid.roles.writing.Write` by actors.

    Args:
        references: what is ready once all is written.
        result: waits for the result.
    """

    references: list[Any]
    result: Callable[[], T]

    def done(self) -> bool:
        return all(map(is_ready, self.references))


def get(references: Any) -> Any:
    """Wait for values from the roles.

    Raises:
        LearnerLost: a process that a value depended on died, or a rank has lost another.
        RunFailed: a role's own code failed, or it could not start; one line says which and where.
        StorageError: a role could not read or write its files.
    """
    try:
        return ray.get(references)
    except (RayActorError, ObjectLostError, WorkerCrashedError) as error:
        if isinstance(error, RayActorError) and error.actor_init_failed:
            raise RunFailed(why_not_started(error)) from error
        raise LearnerLost(what_died(error)) from error
    except RayTaskError as error:
        if isinstance(error.cause, StorageError):
            raise error.cause from error
        if isinstance(error.cause, RunFailed | LearnerLost):
            raise type(error.cause)(str(error.cause)) from error
        raise RunFailed(f"a role failed: {_first_line(error.cause)}") from error


def get_ranks(references: list[Any], meanwhile: Callable[[], None]) -> list[Any]:
    """Wait for a value from every rank of a learner.

    A failure is raised as soon as it is there: the other ranks may be waiting for the one that failed.

    Args:
        meanwhile: called now and then while nothing comes.

    Raises:
        LearnerLost, RunFailed: as `get`. Of a process that died the line says which, where Ray knows it within
            seconds of another rank having lost it.
    """
    pending = list(references)
    while pending:
        done, pending = ray.wait(pending, timeout=LOOK_SECONDS, fetch_local=False)
        if not done:
            meanwhile()
        try:
            get(done)
        except PeerLost:
            _raise_who_died(pending)
            raise
    return get(references)


def _raise_who_died(references: list[Any]) -> None:
    """Raise LearnerLost with the process that died, if it owed one of these values."""
    if not references:
        return
    ray.wait(references, num_returns=len(references), timeout=NAMING_SECONDS, fetch_local=False)
    for reference in filter(is_ready, references):
        with suppress(PeerLost):
            get(reference)


def is_ready(reference: Any) -> bool:
    """Whether a value is there, or its failure."""
    return bool(ray.wait([reference], timeout=0, fetch_local=False)[0])


def why_not_started(error: RayActorError) -> str:
    """Which role could not start, and the last line of its trace, which is the reason."""
    role = re.search(r"ray::(\w+)\.__init__", str(error))
    return f"{role[1] if role else 'a role'} could not start: {str(error).strip().splitlines()[-1].strip()}"


def what_died(error: BaseException) -> str:
    """Which role's process died and where: taken from what Ray says of it, which may be deep in a trace."""
    said = dict(re.findall(r"^\s*(class_name|pid|ip): (\S+)$", str(error), re.MULTILINE))
    if "class_name" not in said:
        return _first_line(error)
    where = f"process {said['pid']} on {said['ip']}" if {"pid", "ip"} <= said.keys() else "its process"
    return f"{said['class_name']}: {where} died"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
