"""Reading pictures that are files of their own, on this machine or in a bucket."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from raysid.data.listing import REQUESTS
from raysid.data.pictures import MAX_PICTURE, TOO_LARGE, BadPicture
from raysid.errors import printable
from raysid.storage import is_local, listed_path, storage_errors
from raysid.storage.failures import storage_error
from raysid.storage.s3 import in_one_request


def read_beside(path: str, name: str) -> bytes | BadPicture:
    """Read a picture that a file names by its path, which may be absolute on this machine.

    Args:
        path: the file; a relative path begins at its folder.

    Raises:
        StorageError: the disk or the bucket fails.
    """
    folder = listed_path(path.rpartition("/")[0])
    if "://" in name:
        return BadPicture(f"is named by an address, not by a path: {printable(name)}")
    if is_local(folder):
        (data,) = read_files([os.path.join(folder.path, name)])
    elif name.startswith("/") or ".." in name.split("/"):
        return BadPicture(f"is not below the folder of the file that names it: {printable(name)}")
    else:
        picture = f"{folder}/{name}"
        try:
            with storage_errors(picture, "read"):
                size = int(folder.fs.info(f"{folder.path}/{name}")["size"])
        except FileNotFoundError:
            return BadPicture(f"cannot be read: there is no file {printable(picture)}")
        (data,) = read_objects([picture], np.array([size]))
    return data


def read_files(paths: Sequence[str]) -> Iterator[bytes | BadPicture]:
    """Read local files; yield the content of each, or why it alone cannot be read (missing, too large, forbidden)."""
    for path in paths:
        try:
            yield _read(path)
        except (FileNotFoundError, PermissionError, IsADirectoryError, ValueError) as error:
            yield _unreadable(error)
        except OSError as error:
            raise storage_error(error, path, "read") from error


def read_objects(paths: Sequence[str], sizes: NDArray[np.int64]) -> Iterator[bytes | BadPicture]:
    """Read objects of a bucket, several at a time; yield the content of each, or why it alone cannot be read."""
    fs = listed_path(paths[0]).fs
    for start in range(0, len(paths), REQUESTS):
        some = [listed_path(path).path for path in paths[start : start + REQUESTS]]
        their_sizes = sizes[start : start + REQUESTS].tolist()
        wanted = [path for path, size in zip(some, their_sizes, strict=True) if 0 < size <= MAX_PICTURE]
        with storage_errors(paths[0], "read"):
            # Not `cat`, which treats brackets in a name as a pattern.
            answers = fs.cat_ranges(wanted, None, None, on_error="return", **in_one_request(fs.protocol))
            for answer in answers:
                if isinstance(answer, Exception) and not isinstance(
                    answer, FileNotFoundError | PermissionError
                ):
                    raise answer
        found = dict(zip(wanted, answers, strict=True))
        for path, size in zip(some, their_sizes, strict=True):
            data = found.get(path, ValueError(TOO_LARGE) if size else b"")
            yield _unreadable(data) if isinstance(data, Exception) else data


def _unreadable(error: Exception) -> BadPicture:
    return BadPicture(f"cannot be read: {error}")


def _read(path: str) -> bytes:
    """Read a local file. Raises ValueError if it is too large or not a regular file: a pipe may never end."""
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):
        raise ValueError("is not a file")
    if info.st_size > MAX_PICTURE:
        raise ValueError(TOO_LARGE)
    with open(path, "rb") as file:
        return file.read()
