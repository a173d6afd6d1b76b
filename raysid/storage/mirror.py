"""Carrying what grows from a folder of this machine to a bucket, beside the work that writes it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from upath import UPath

from raysid.errors import RunFailed, StorageError
from raysid.storage.failures import storage_errors
from raysid.storage.files import PARTIAL, read_whole, remove_file, write_whole
from raysid.storage.folders import children

SECONDS = 15.0


class Mirror:
    """Keeps a folder in a bucket as a local one is, from a thread of its own.

    What fails is tried again at the next turn, and said once. What was not carried over is lost when this process is
    killed.

    Args:
        local: the folder that is written to.
        remote: its image. Files that the local one does not know are left alone.
        last: the file that names the others: in the image it never names one that is not there.
        guard: called before anything is carried over; what it raises keeps it from being.
        say: takes what there is to tell.
    """

    def __init__(
        self,
        local: Path,
        remote: UPath,
        last: str = "",
        guard: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.local, self.remote, self.last = local, remote, last
        self._guard, self._say = guard, say
        self._carried: dict[str, tuple[int, int]] = {}
        self._turn = threading.Lock()
        self._ended = threading.Event()
        self._failing = False
        self._thread: threading.Thread | None = None

    def fetch(self, *names: str) -> None:
        """Bring files, and all files of folders, from the bucket, so that they can be gone on with.

        Args:
            names: of files, which have a dot, and of folders, which have none.
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
                self._carried[name] = _signature(here)

    def start(self) -> None:
        """Begin to carry over what changes."""
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._thread.start()

    def sync(self) -> None:
        """Carry over all that has changed since the last time; what the bucket raises comes out."""
        with self._turn:
            self._guard()
            # The list that names the others goes last, as it was before they were looked for.
            last = self._changed(self.last)
            for path in sorted(self.local.rglob("*")):
                name = str(path.relative_to(self.local))
                if path.is_file() and name != self.last and not name.endswith(PARTIAL):
                    self._carry(name, self._changed(name))
            self._carry(self.last, last)
            for name in [name for name in self._carried if not (self.local / name).exists()]:
                remove_file(self.remote / name)
                del self._carried[name]

    def _changed(self, name: str) -> tuple[tuple[int, int], bytes] | None:
        """A file's content with its signature, where it is not the one that was carried over."""
        with storage_errors(self.local / name, "read"), suppress(FileNotFoundError, IsADirectoryError):
            # Its size first: what is appended meanwhile goes along the next time.
            signature = _signature(self.local / name)
            if self._carried.get(name) != signature:
                return signature, (self.local / name).read_bytes()
        return None

    def _carry(self, name: str, changed: tuple[tuple[int, int], bytes] | None) -> None:
        if changed is not None:
            signature, content = changed
            write_whole(self.remote / name, content)
            self._carried[name] = signature

    def close(self) -> None:
        """Carry over what is left, and end."""
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
                    self._say(f"{error}; trying again")
                self._failing = True


def _signature(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size
