"""A small in-memory file system for tests of a full disk."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

KB = 1 << 10


class Disk:
    """A small tmpfs, mounted at `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resize(self, size: int) -> None:
        """Set its capacity in bytes."""
        self._mount("-o", f"remount,size={size}")

    def fill(self, but: int = 0) -> None:
        """Fill it, or what is free by now, except for `but` bytes, until `free`."""
        with open(self.folder / "filling", "ab", buffering=0) as file, pytest.raises(OSError):
            while True:
                file.write(bytes(4 * KB))
        os.truncate(self.folder / "filling", (self.folder / "filling").stat().st_size - but)

    def free(self) -> None:
        """Free the space that `fill` took."""
        (self.folder / "filling").unlink()

    def begin(self) -> None:
        """Mount it. Raises CalledProcessError if this user or container may not mount."""
        self.folder.mkdir()
        self._mount("-t", "tmpfs", "-o", "size=1m", "tmpfs")

    def end(self) -> None:
        """Unmount it."""
        subprocess.run(["umount", "--lazy", self.folder], check=True)

    def _mount(self, *arguments: str) -> None:
        subprocess.run(["mount", *arguments, self.folder], check=True, capture_output=True)
