"""A session of a run: the command, the software and the machine that continued it, and how it ended."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from raysid.errors import RaysidError, RunStopped

_TIME = "%Y-%m-%dT%H:%M:%S%z"


def new_session() -> dict[str, Any]:
    """The record of a session that starts now: versions, commit, command, machine."""
    packages = ("raysid", "torch", "ray", "numpy")
    return {
        "started": time.strftime(_TIME),
        "command": sys.argv,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "commit": _commit(),
        "machine": {"host": platform.node(), "system": platform.platform(), "cpus": os.cpu_count()},
    }


def session_end(error: BaseException | None, step: int | None) -> dict[str, Any]:
    """The record of a session's end.

    Args:
        error: the exception that ends the session, if any.
        step: step of the newest checkpoint; after a stop by a signal, where the training stopped.
    """
    at = "before its first checkpoint" if step is None else f"at step {step:,}"
    match error:
        case None:
            reason = "finished"
        case RunStopped():
            reason = f"stopped by {signal.Signals(error.signal).name} {at}"
        case RaysidError():
            reason = f"failed: {error}"
        case KeyboardInterrupt():
            reason = "interrupted"
        case _:
            reason = f"failed: {type(error).__name__}: {error}"
    return {"time": time.strftime(_TIME), "reason": " ".join(reason.split()), "checkpoint": step}


def _commit() -> str | None:
    """The commit of the checkout that raysid runs from, if it runs from one."""
    try:
        found = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True
        )
    except OSError:
        return None
    return found.stdout.strip() or None
