"""Copy a local folder that grows to a bucket, in a separate thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from upath import UPath

from raysid.errors import RunFailed, StorageError
from raysid.storage.failures import storage_errors
from raysid.storage.files import PARTIAL, children, read_whole, remove_file, write_whole

SECONDS = 15.0


class Mirror:
    """Keeps a copy of a local folder in a bucket, in a separate thread.

    A failed copy is reported once and repeated every 15 seconds. A kill loses what was not copied yet.

    Args:
        local: the folder that is written to.
        remote: its copy. Files in it that were never in `local` stay as they are.
        last: a file that names the others. It is copied last, so that the copy never names a missing file.
        guard: called before every copy; an exception prevents the copy.
        report: called with messages for the user.
    """

    def __init__(
        self,
        local: Path,
        remote: UPath,
        last: str = "",
        guard: Callable[[], None] = lambda: None,
        report: Callable[[str], None] = print,
    ) -> None:
        self.local, self.remote, self.last = local, remote, last
        self._guard, self._report = guard, report
        self._copied: dict[str, tuple[int, int]] = {}
        self._turn = threading.Lock()
        self._ended = threading.Event()
        self._failing = False
        self._thread: threading.Thread | None = None

    def fetch(self, *names: str) -> None:
        """Download files, and all files of folders, to continue them.

        Args:
            names: names of files, which have a dot, and of folders, which have none.
        """
        files = {name: self.remote / name for name in names if "." in name}
        for folder in (name for name in names if name not in files):
            files |= {f"{folder}/{path.name}": path for path in children(self.remote / folder)}
        for name, path in files.items():
            with suppress(FileNotFoundError):
                content = read_whole(path)
                here = self.local / name
                with storage_errors(here, "written"):
                    here.parent.mkdir(parents=True, exist_ok=True)
                    here.write_bytes(content)
                self._copied[name] = _signature(here)

    def start(self) -> None:
        """Start to copy changes."""
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._thread.start()

    def sync(self) -> None:
        """Copy all changes since the last time.

        Raises:
            StorageError: the bucket cannot be written.
        """
        with self._turn:
            self._guard()
            # Read before the others are listed: it names no file that is missing from that list.
            last = self._changed(self.last)
            for path in sorted(self.local.rglob("*")):
                name = str(path.relative_to(self.local))
                if path.is_file() and name != self.last and not name.endswith(PARTIAL):
                    self._copy(name, self._changed(name))
            self._copy(self.last, last)
            for name in [name for name in self._copied if not (self.local / name).exists()]:
                remove_file(self.remote / name)
                del self._copied[name]

    def _changed(self, name: str) -> tuple[tuple[int, int], bytes] | None:
        """A file's signature and content, if it has changed since it was copied."""
        with storage_errors(self.local / name, "read"), suppress(FileNotFoundError, IsADirectoryError):
            # The size first: bytes appended in between are copied the next time.
            signature = _signature(self.local / name)
            if self._copied.get(name) != signature:
                return signature, (self.local / name).read_bytes()
        return None

    def _copy(self, name: str, changed: tuple[tuple[int, int], bytes] | None) -> None:
        if changed is not None:
            signature, content = changed
            write_whole(self.remote / name, content)
            self._copied[name] = signature

    def close(self) -> None:
        """Copy the last changes, and end the thread."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.sync()

    def _run(self) -> None:
        while not self._ended.wait(SECONDS):
            try:
                self.sync()
                self._failing = False
            except (StorageError, RunFailed) as error:
                if not self._failing:
                    self._report(f"{error}; trying again")
                self._failing = True


def _signature(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size
