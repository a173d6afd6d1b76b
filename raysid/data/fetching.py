"""Reading of a source's files, from a disk or from a bucket."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from raysid.storage import is_local, storage_errors
from raysid.storage.failures import storage_error
from raysid.storage.s3 import in_one_request

LISTERS = 16  # folders that are listed, and files whose headers are read, at a time
TOGETHER_BYTES = 1 << 26  # of a bucket at a time

Value = TypeVar("Value")


def in_threads(work: Callable[..., Value], *items: Iterable[Any]) -> Iterator[Value]:
    """`map`, several at a time, for work that waits for disks or networks."""
    with ThreadPoolExecutor(LISTERS) as pool:
        yield from pool.map(work, *items)


def contents_of(
    paths: Sequence[str], sizes: NDArray[np.int64] | None, most: int
) -> Iterator[bytes | Exception]:
    """The content of files, of which none is larger than `most` bytes, in order; what was raised where one has none.

    Raises:
        StorageError: the disk or the bucket fails.
    """
    if sizes is None:
        for path in paths:
            try:
                yield _read(path, most)
            except (FileNotFoundError, PermissionError, IsADirectoryError, ValueError) as error:
                yield error
            except OSError as error:
                raise storage_error(error, path, "read") from error
        return
    place = UPath(paths[0])
    for start in range(0, len(paths), LISTERS):
        some = [
            (UPath(path).path, size)
            for path, size in zip(paths[start : start + LISTERS], sizes[start : start + LISTERS], strict=True)
        ]
        wanted = [path for path, size in some if 0 < size <= most]
        with storage_errors(place, "read"):
            found = _fetched(place.fs, wanted)
        for path, size in some:
            if path in found:
                yield found[path]
            else:
                yield bytes(0) if size == 0 else ValueError(f"has more than {most:,} bytes")


def ranges_of(path: str, starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> Iterator[bytes]:
    """Parts of a file, in order, from a bucket several at a time. What reaches beyond its end is shorter.

    Raises:
        StorageError: the disk or the bucket fails.
    """
    place = UPath(path)
    if is_local(place):
        with storage_errors(place, "read"), open(place.path, "rb", buffering=0) as file:
            for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
                yield os.pread(file.fileno(), size, start)
        return
    ends = starts + sizes
    options = in_one_request(place.fs.protocol)
    first = 0
    while first < len(starts):
        together = int(
            np.searchsorted(np.cumsum(sizes[first : first + LISTERS]), TOGETHER_BYTES, side="right")
        )
        last = first + max(1, together)
        wanted = [starts[first:last].tolist(), ends[first:last].tolist()]
        with storage_errors(place, "read"):
            parts = place.fs.cat_ranges([place.path] * (last - first), *wanted, on_error="raise", **options)
        yield from parts
        first = last


def _read(path: str, most: int) -> bytes:
    """A file of this machine. Raises ValueError where it is too large, or no file: a pipe may never say anything."""
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):
        raise ValueError("is not a file")
    if info.st_size > most:
        raise ValueError(f"has more than {most:,} bytes")
    with open(path, "rb") as file:
        return file.read()


def _fetched(fs: Any, paths: list[str]) -> dict[str, Any]:
    """Files of a bucket, fetched side by side. Raises what keeps the bucket away; returns what is one file's own."""
    # Not `cat`, which takes brackets in a name for a pattern.
    found = fs.cat_ranges(paths, None, None, on_error="return", **in_one_request(fs.protocol))
    for answer in found:
        if isinstance(answer, Exception) and not isinstance(answer, FileNotFoundError | PermissionError):
            raise answer
    return dict(zip(paths, found, strict=True))
