"""A file system of memory that a test fills up."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

KB = 1 << 10


class Disk:
    """A small file system of memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resize(self, size: int) -> None:
        """Give it so many bytes."""
        self._mount("-o", f"remount,size={size}")

    def fill(self, but: int = 0) -> None:
        """Take all its room, but for so many bytes, until `free`."""
        with open(self.folder / "filling", "wb", buffering=0) as file, pytest.raises(OSError):
            while True:
                file.write(bytes(4 * KB))
        os.truncate(self.folder / "filling", (self.folder / "filling").stat().st_size - but)

    def free(self) -> None:
        """Give the room back."""
        (self.folder / "filling").unlink()

    def begin(self) -> None:
        """Mount it. Raises CalledProcessError where this user, or this container, may not."""
        self.folder.mkdir()
        self._mount("-t", "tmpfs", "-o", "size=1m", "tmpfs")

    def end(self) -> None:
        """Take it away."""
        subprocess.run(["umount", "--lazy", self.folder], check=True)

    def _mount(self, *arguments: str) -> None:
        subprocess.run(["mount", *arguments, self.folder], check=True, capture_output=True)
