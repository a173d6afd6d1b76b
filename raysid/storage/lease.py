"""Ownership of a folder: a lock on a file system, a lease with a heartbeat in a bucket."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Self

import filelock
from upath import UPath

from raysid.errors import RunFailed, StorageError
from raysid.storage.buckets import is_local
from raysid.storage.files import read_whole, remove_file, write_new, write_whole
from raysid.storage.plain_json import parse_json

BEAT_SECONDS = 15.0
STALE_SECONDS = 60.0
SETTLE_SECONDS = 1.0  # after which a process that took the lease at the same moment has written it, too


class Lease:
    """A lock in a bucket, kept alive by a heartbeat, with filelock's interface.

    A lease is free when its owner has not renewed it for a minute, or at once when its owner was a process of this
    machine that has ended. If the owner's clock is ahead, so that the lease seems new, a process that waits for it
    sees that it does not change. If two processes take a free lease within the same second, the one that loses it
    notices at its next heartbeat.

    Args:
        path: the object that is the lease.
    """

    def __init__(self, path: UPath) -> None:
        self.path = path
        self.id = uuid.uuid4().hex
        self._taken = threading.Event()
        self._released = threading.Event()
        self._renewed = 0.0
        self._beat: threading.Thread | None = None
        # The last content that was read, and since when it has been the same.
        self._seen: tuple[dict[str, Any] | None, float] = (None, 0.0)

    def acquire(self, timeout: float = -1) -> Self:
        """Take the lease; wait up to `timeout` seconds for its owner, or for ever if -1.

        Raises:
            filelock.Timeout: its owner still seems to be alive.
        """
        end = time.monotonic() + timeout
        while not self._take():
            if timeout >= 0 and time.monotonic() >= end:
                raise filelock.Timeout(str(self.path))
            time.sleep(SETTLE_SECONDS)
        self._taken.clear()
        self._released.clear()
        self._beat = threading.Thread(target=self._keep_alive, name="lease", daemon=True)
        self._beat.start()
        return self

    def acquire_if_abandoned(self) -> Self:
        """Take the lease if its owner does not renew it; watch an owner on another machine for a minute.

        Raises:
            filelock.Timeout: the owner renews it.
        """
        held = self._read()
        if held is None or _abandoned(held) or _on_this_machine(held):
            return self.acquire(timeout=0)
        while (now := self._watch()) == held and not _abandoned(held) and not self._is_still():
            time.sleep(SETTLE_SECONDS)
        return self.acquire(timeout=0 if now is not None and now != held else SETTLE_SECONDS)

    def release(self) -> None:
        """Remove the lease if this process still owns it."""
        self._released.set()
        if self._beat is None:
            return
        self._beat.join()
        self._beat = None
        with contextlib.suppress(StorageError):  # it goes stale by itself
            if (self._read() or {}).get("id") == self.id:
                remove_file(self.path)

    def check(self) -> None:
        """Raise RunFailed if another process has taken the lease or may have."""
        silent = time.time() - self._renewed
        if self._taken.is_set() or silent > STALE_SECONDS:
            raise RunFailed(
                f"{self.path} could not be renewed for {silent:.0f} s, and another process may have taken it: this "
                "one writes no more; run the same command to resume"
            )

    def __enter__(self) -> Self:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()

    def _take(self) -> bool:
        """Write the lease if it is free; return True if this process owns it a moment later."""
        held = self._watch()
        if held is not None and not _abandoned(held) and not self._is_still():
            return False
        self._write(first=held is None)
        time.sleep(SETTLE_SECONDS)
        return (self._read() or {}).get("id") == self.id

    def _watch(self) -> dict[str, Any] | None:
        """Read the lease, and note since when it has had this content."""
        held = self._read()
        if held != self._seen[0] or held is None:
            self._seen = held, time.monotonic()
        return held

    def _is_still(self) -> bool:
        """True if the lease has not changed for as long as a live owner may take, whatever the owner's clock shows."""
        return time.monotonic() - self._seen[1] > STALE_SECONDS + BEAT_SECONDS

    def _keep_alive(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            # A bucket that does not answer is asked again at the next heartbeat.
            with contextlib.suppress(StorageError):
                if (held := self._read()) is not None and held.get("id") != self.id:
                    self._taken.set()
                    return
                self._write()

    def _read(self) -> dict[str, Any] | None:
        try:
            held = parse_json(read_whole(self.path))
        except (FileNotFoundError, ValueError):
            return None
        return held if isinstance(held, dict) else None

    def _write(self, first: bool = False) -> None:
        now = time.time()
        content = json.dumps({"id": self.id, "renewed": now, **this_process()}).encode()
        if first:
            # Of several processes that find no lease, one can write it.
            with contextlib.suppress(FileExistsError):
                write_new(self.path, content)
        else:
            write_whole(self.path, content)
        self._renewed = now  # measured before the write, which may have taken long


def lock(path: UPath) -> filelock.BaseFileLock | Lease:
    """A lock for a path, not taken yet."""
    return filelock.FileLock(path.path) if is_local(path) else Lease(path)


def still_owned(held: filelock.BaseFileLock | Lease) -> None:
    """Raise RunFailed if another process may own the lock by now. A file system's lock cannot be lost."""
    if isinstance(held, Lease):
        held.check()


def this_process() -> dict[str, Any]:
    """A description of this process by which `is_running` finds it."""
    return {
        "pid": os.getpid(),
        "host": platform.node(),
        "machine": _machine(),
        "started": _start_time(os.getpid()),
    }


def _machine() -> str | None:
    """An identifier of this boot of this machine and of the container, within which process ids are unique.

    None where there is no /proc. (Containers of different machines may share a host name.)
    """
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _start_time(pid: int) -> str | None:
    """Start time of a process in ticks since the machine's boot; None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _on_this_machine(held: dict[str, Any]) -> bool:
    return held.get("machine") is not None and held["machine"] == _machine()


def is_running(owner: dict[str, Any]) -> bool | None:
    """True if an owner's process runs, False if it has ended, None if this machine cannot know.

    Args:
        owner: a lease's content, or what `this_process` returned there.
    """
    if "renewed" in owner:
        return not _abandoned(owner)
    if not _on_this_machine(owner):
        return None
    return _start_time(int(owner["pid"])) == owner["started"]


def _abandoned(held: dict[str, Any]) -> bool:
    """True if a lease's owner has ended or has not renewed it in time."""
    try:
        if time.time() - float(held["renewed"]) > STALE_SECONDS:
            return True
        return _on_this_machine(held) and _start_time(int(held["pid"])) != held["started"]
    except (KeyError, TypeError, ValueError):
        return True
