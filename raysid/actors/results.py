"""Waiting for what actors return, and what their failures mean to a run."""

from __future__ import annotations

import re
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError, WorkerCrashedError

from raysid.errors import LearnerLost, RunFailed


def get(references: Any) -> Any:
    """Wait for values from the roles.

    Raises:
        LearnerLost: a process that a value depended on died.
        RunFailed: a role's own code failed, or it could not start; one line says which and where.
    """
    try:
        return ray.get(references)
    except (RayActorError, ObjectLostError, WorkerCrashedError) as error:
        if isinstance(error, RayActorError) and error.actor_init_failed:
            raise RunFailed(why_not_started(error)) from error
        raise LearnerLost(_what_died(error)) from error
    except RayTaskError as error:
        if isinstance(error.cause, RunFailed):
            raise RunFailed(str(error.cause)) from error
        raise RunFailed(f"a role failed: {_first_line(error.cause)}") from error


def is_ready(reference: Any) -> bool:
    """Whether a value is there, or its failure."""
    return bool(ray.wait([reference], timeout=0, fetch_local=False)[0])


def why_not_started(error: RayActorError) -> str:
    """Which role could not start, and the last line of its trace, which is the reason."""
    role = re.search(r"ray::(\w+)\.__init__", str(error))
    return f"{role[1] if role else 'a role'} could not start: {str(error).strip().splitlines()[-1].strip()}"


def _what_died(error: RayError) -> str:
    """Which role's process died and where: taken from what Ray says of it, which may be deep in a trace."""
    said = dict(re.findall(r"^\s*(class_name|pid|ip): (\S+)$", str(error), re.MULTILINE))
    if "class_name" not in said:
        return _first_line(error)
    where = f"process {said['pid']} on {said['ip']}" if {"pid", "ip"} <= said.keys() else "its process"
    return f"{said['class_name']}: {where} died"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
