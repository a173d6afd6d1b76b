"""Reading the files of a source, from a disk or from a bucket."""

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

LISTERS = 16  # requests at a time, for listings, headers and contents
TOGETHER_BYTES = 1 << 26  # read from a bucket at a time

Value = TypeVar("Value")


def in_threads(work: Callable[..., Value], *items: Iterable[Any]) -> Iterator[Value]:
    """Like `map`, with several calls at a time, for work that waits for disks or networks."""
    with ThreadPoolExecutor(LISTERS) as pool:
        yield from pool.map(work, *items)


def contents_of(
    paths: Sequence[str], sizes: NDArray[np.int64] | None, most: int
) -> Iterator[bytes | Exception]:
    """Read files in order; yield the content of each, or the error that is its own (missing, too large, no permission).

    Args:
        sizes: of the files, in bytes; None if unknown.
        most: the largest size that is read, in bytes.

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
    fs = UPath(paths[0]).fs
    for start in range(0, len(paths), LISTERS):
        some = [
            (UPath(path).path, size)
            for path, size in zip(paths[start : start + LISTERS], sizes[start : start + LISTERS], strict=True)
        ]
        wanted = [path for path, size in some if 0 < size <= most]
        with storage_errors(paths[0], "read"):
            # Not `cat`, which treats brackets in a name as a pattern.
            answers = fs.cat_ranges(wanted, None, None, on_error="return", **in_one_request(fs.protocol))
            for answer in answers:
                if isinstance(answer, Exception) and not isinstance(
                    answer, FileNotFoundError | PermissionError
                ):
                    raise answer
        found = dict(zip(wanted, answers, strict=True))
        for path, size in some:
            if path in found:
                yield found[path]
            else:
                yield bytes(0) if size == 0 else ValueError(f"has more than {most:,} bytes")


def ranges_of(path: str, starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> Iterator[bytes]:
    """Read parts of a file, in order, from a bucket several at a time. A part beyond the end of the file is shorter.

    Raises:
        StorageError: the disk or the bucket fails.
    """
    remote = UPath(path)
    if is_local(remote):
        with storage_errors(path, "read"), open(remote.path, "rb", buffering=0) as file:
            for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
                yield os.pread(file.fileno(), size, start)
        return
    ends = starts + sizes
    options = in_one_request(remote.fs.protocol)
    first = 0
    while first < len(starts):
        together = int(
            np.searchsorted(np.cumsum(sizes[first : first + LISTERS]), TOGETHER_BYTES, side="right")
        )
        last = first + max(1, together)
        wanted = [starts[first:last].tolist(), ends[first:last].tolist()]
        with storage_errors(path, "read"):
            parts = remote.fs.cat_ranges([remote.path] * (last - first), *wanted, on_error="raise", **options)
        yield from parts
        first = last


def _read(path: str, most: int) -> bytes:
    """Read a local file. Raises ValueError if it is too large or not a regular file: a pipe may never end."""
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):
        raise ValueError("is not a file")
    if info.st_size > most:
        raise ValueError(f"has more than {most:,} bytes")
    with open(path, "rb") as file:
        return file.read()
