"""Carrying what grows from a folder of this machine to a bucket, beside the work that writes it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from upath import UPath

from raysid.storage import children, explain, read_whole, write_whole

SECONDS = 15.0


class Mirror:
    """Keeps a folder in a bucket as a local one is, from a thread of its own.

    What fails is tried again at the next turn, and said once; nothing is lost meanwhile but with this machine.

    Args:
        local: the folder that is written to.
        remote: its image. Files that the local one does not know are left alone.
        say: takes what there is to tell.
    """

    def __init__(self, local: Path, remote: UPath, say: Callable[[str], None] = print) -> None:
        self.local, self.remote, self._say = local, remote, say
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
            present = {str(path.relative_to(self.local)) for path in self.local.rglob("*") if path.is_file()}
            for name in sorted(present):
                signature = _signature(self.local / name)
                if self._carried.get(name) != signature:
                    # Its size was taken first: what is appended meanwhile goes along the next time.
                    write_whole(self.remote / name, (self.local / name).read_bytes())
                    self._carried[name] = signature
            for name in [name for name in self._carried if name not in present]:
                (self.remote / name).unlink(missing_ok=True)
                del self._carried[name]

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
            except Exception as error:
                if not self._failing:
                    self._say(
                        f"{self.remote} does not take what is recorded ({explain(error)}); trying again"
                    )
                self._failing = True


def _signature(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size
