"""Owning a folder: a lock on a file system; in a bucket, which has none, a lease with a heartbeat."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from typing import Any, Self

import filelock
from upath import UPath

from raysid.errors import RunFailed
from raysid.storage import is_local, read_whole, write_whole

BEAT_SECONDS = 15.0
STALE_SECONDS = 60.0
SETTLE_SECONDS = 1.0  # in which somebody who took the lease at the same moment has written it, too


class Lease:
    """A lock as an object in a bucket, kept alive by a heartbeat; the interface is filelock's.

    It is there for the taking when its owner has not renewed it for a minute (clocks of machines that share a
    bucket must agree within seconds), or at once when its owner was a process of this machine that has ended.

    Args:
        path: the object.
    """

    def __init__(self, path: UPath) -> None:
        self.path = path
        self.id = uuid.uuid4().hex
        self.lost = threading.Event()
        self._released = threading.Event()
        self._beat: threading.Thread | None = None

    def acquire(self, timeout: float = -1) -> Self:
        """Take the lease, waiting for so many seconds for its owner; -1 waits for ever.

        Raises:
            filelock.Timeout: its owner is alive.
        """
        end = time.monotonic() + timeout
        while not self._take():
            if timeout >= 0 and time.monotonic() >= end:
                raise filelock.Timeout(str(self.path))
            time.sleep(SETTLE_SECONDS)
        self._released.clear()
        self._beat = threading.Thread(target=self._keep_alive, name="lease", daemon=True)
        self._beat.start()
        return self

    def release(self) -> None:
        """Give the lease back, where it is still ours."""
        self._released.set()
        if self._beat is None:
            return
        self._beat.join()
        self._beat = None
        with contextlib.suppress(Exception):  # it goes stale by itself
            if (self._read() or {}).get("id") == self.id:
                self.path.unlink()

    def check(self) -> None:
        """Raise RunFailed where another process has taken the lease."""
        if self.lost.is_set():
            raise RunFailed(
                f"another process has taken {self.path}: this one had not renewed it for a minute"
            )

    def __enter__(self) -> Self:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()

    def _take(self) -> bool:
        """Write the lease where nobody has it, and see whether it stays ours."""
        held = self._read()
        if held is not None and not _abandoned(held):
            return False
        self._write(first=held is None)
        time.sleep(SETTLE_SECONDS)
        return (self._read() or {}).get("id") == self.id

    def _keep_alive(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            # A bucket that does not answer is tried again; what is lost meanwhile shows at the next beat.
            with contextlib.suppress(Exception):
                if (held := self._read()) is not None and held.get("id") != self.id:
                    self.lost.set()
                    return
                self._write()

    def _read(self) -> dict[str, Any] | None:
        try:
            held = json.loads(read_whole(self.path))
        except (FileNotFoundError, ValueError):
            return None
        return held if isinstance(held, dict) else None

    def _write(self, first: bool = False) -> None:
        content = json.dumps(
            {"id": self.id, "pid": os.getpid(), "host": platform.node(), "renewed": time.time()}
        ).encode()
        if not first:
            write_whole(self.path, content)
            return
        # Of several who find nothing there the bucket lets one write.
        with contextlib.suppress(FileExistsError):
            self.path.fs.pipe_file(self.path.path, content, mode="create")


def lock(path: UPath) -> filelock.BaseFileLock | Lease:
    """A lock at a path, not yet taken."""
    return filelock.FileLock(path.path) if is_local(path) else Lease(path)


def _abandoned(held: dict[str, Any]) -> bool:
    """Whether a lease's owner is no more, as far as can be told from here."""
    try:
        if time.time() - float(held["renewed"]) > STALE_SECONDS:
            return True
        if held["host"] != platform.node():
            return False
        os.kill(int(held["pid"]), 0)
    except (KeyError, TypeError, ValueError, ProcessLookupError):
        return True
    except PermissionError:
        return False
    return False
