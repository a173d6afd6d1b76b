"""Files of a storage, read and written whole, and its folders."""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
import uuid
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Self

from upath import UPath

from raysid.errors import StorageError, UserError
from raysid.storage import s3
from raysid.storage.buckets import is_local, listed_path
from raysid.storage.failures import storage_errors
from raysid.storage.plain_json import parse_json

PARTIAL = ".partial"  # the ending of a file that is being written


def write_whole(path: UPath, content: bytes) -> None:
    """Write a file so that it is either there and whole, or as it was before, and nothing else is left."""
    if is_local(path):
        with writing_whole(path) as file:
            file.write(content)
    else:
        with storage_errors(path, "written"):
            path.fs.pipe_file(path.path, content)


@contextmanager
def writing_whole(path: UPath) -> Iterator[IO[bytes]]:
    """Write a file in parts. It has its name once the block has ended without an error, as with `write_whole`.

    A bucket gets the file in one piece at the end, from memory.
    """
    if not is_local(path):
        buffer = io.BytesIO()
        yield buffer
        write_whole(path, buffer.getvalue())
        return
    with storage_errors(path, "written"):
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
        try:
            with open(partial.path, "wb") as file:
                yield file
                file.flush()
                # The caller removes older files next, and some disks report only at a sync that they are full.
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def append_whole(path: Path, content: bytes) -> None:
    """Append to a file of this machine, or leave it as it was: a full disk takes a part of a write."""
    with storage_errors(path, "written"), open(path, "ab", buffering=0) as file:
        end, rest = os.fstat(file.fileno()).st_size, memoryview(content)
        try:
            while rest:  # a write that a full disk cuts short raises nothing; the next one does
                rest = rest[file.write(rest) :]
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise


def write_new(path: UPath, content: bytes) -> None:
    """Create an object in a bucket; of several writers at the same time one succeeds.

    Raises:
        FileExistsError: the object exists already.
    """
    with storage_errors(path, "written"):
        try:
            path.fs.pipe_file(path.path, content, mode="create")
            return
        except OSError as error:
            if not isinstance(error, FileExistsError) and not s3.already_exists(error):
                raise
    raise FileExistsError(f"there is a file {path}")


def upload(source: str, target: UPath) -> None:
    """Move a local file into a storage; within the local file system the move is a rename."""
    with storage_errors(target, "written"):
        os.replace(source, target.path) if is_local(target) else target.fs.put_file(source, target.path)


def read_whole(path: UPath) -> bytes:
    """Read a file, from a bucket in one request.

    Raises:
        FileNotFoundError: there is no such file.
    """
    with storage_errors(path, "read"):
        if is_local(path):
            check_regular(path)
            try:
                return path.read_bytes()
            except NotADirectoryError:
                raise FileNotFoundError(f"there is no file {path}") from None
        content: bytes = path.fs.cat_file(path.path, **s3.in_one_request(path.protocol))
        return content


def check_regular(path: UPath | Path) -> None:
    """Raise StorageError if a local path is a pipe, a device or a socket: reading it may never end."""
    if is_local(path):
        with suppress(OSError):  # opening it raises a better one
            kind = os.stat(str(getattr(path, "path", path))).st_mode
            if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
                raise StorageError(str(path), "read", "it is a pipe, a device or a socket, not a file")


def open_file(path: str | UPath) -> OpenFile:
    """Open a file for reading in parts. Raises FileNotFoundError where there is none."""
    with storage_errors(path, "read"):
        found = listed_path(path) if isinstance(path, str) else path
        check_regular(found)
        return OpenFile(found.open("rb"), str(path))


class OpenFile:
    """A file open for reading. Its methods raise StorageError, whichever library calls them.

    A library that reads through it may raise its own OSError for damaged content.
    """

    def __init__(self, file: Any, path: str) -> None:
        self._file, self._path = file, path

    def read(self, size: int = -1) -> bytes:
        with storage_errors(self._path, "read"):
            content: bytes = self._file.read(size)
            return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Like a file's. Raises OSError for a place before the file, which some libraries rely on."""
        try:
            position: int = self._file.seek(offset, whence)  # without a request
        except ValueError as error:  # of fsspec
            raise OSError(errno.EINVAL, str(error)) from None
        return position

    def __getattr__(self, name: str) -> Any:  # tell, close, closed, seekable and so on
        return getattr(self._file, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def exists(path: UPath) -> bool:
    """True if there is a file or a folder at `path`."""
    with storage_errors(path, "read"):
        return bool(path.exists())


def file_size(path: UPath) -> int:
    """Size of a file in bytes. Raises FileNotFoundError where there is none."""
    with storage_errors(path, "read"):
        try:
            return int(path.stat().st_size)
        except NotADirectoryError:
            raise FileNotFoundError(f"there is no file {path}") from None


def holds(path: UPath, content: str) -> bool:
    """True if this process finds a file at `path` with this content."""
    try:
        return read_whole(path) == content.encode()
    except FileNotFoundError:
        return False


def read_json(path: UPath) -> Any:
    """Read a JSON file; None where there is none. Raises UserError where it is damaged."""
    try:
        return parse_json(read_whole(path))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def copy_file(source: UPath, target: UPath) -> None:
    """Copy a file within a storage, replacing `target` at once. A bucket copies it without a download."""
    if is_local(source):
        content = read_whole(source)
        make_folder(target.parent)
        write_whole(target, content)
    else:
        with storage_errors(target, "written"):
            source.fs.cp_file(source.path, target.path)


def remove_file(path: UPath) -> None:
    """Remove a file if it is there. (A removal that is repeated after a lost answer finds nothing.)"""
    with storage_errors(path, "written"), suppress(FileNotFoundError):
        path.unlink() if is_local(path) else path.fs.rm_file(path.path)


def children(folder: UPath) -> list[UPath]:
    """List a folder, in a bucket by one request; an empty list where there is no such folder."""
    try:
        with storage_errors(folder, "read"):
            if is_local(folder):
                return list(folder.iterdir())
            # A folder made in a bucket's console is an object of its own name in it.
            itself = folder.path.rstrip("/")
            entries = (entry.rstrip("/") for entry in folder.fs.ls(folder.path, detail=False))
            return [folder / entry.rpartition("/")[2] for entry in entries if entry != itself]
    except FileNotFoundError:
        return []


def make_folder(folder: UPath) -> None:
    """Make a folder and its parents if they are not there. A bucket has no folders to make."""
    if is_local(folder):
        with storage_errors(folder, "written"):
            folder.mkdir(parents=True, exist_ok=True)


def remove_folder(folder: UPath) -> None:
    """Remove a folder and all in it, if it is there."""
    with storage_errors(folder, "written"):
        if is_local(folder):
            with suppress(FileNotFoundError):
                shutil.rmtree(folder.path)
            return
        # One by one: `rm` would take brackets in a name for a pattern.
        for name in folder.fs.find(folder.path):
            with suppress(FileNotFoundError):
                folder.fs.rm_file(name)


def remove_partial(*folders: UPath) -> None:
    """Remove the files that a kill left half written in folders. A bucket never has such files."""
    for folder in folders:
        if is_local(folder):
            with storage_errors(folder, "written"):
                for path in Path(folder.path).glob(f"*{PARTIAL}"):
                    path.unlink(missing_ok=True)


def empty_folder(folder: UPath, keep: Set[str]) -> None:
    """Remove everything in a folder except the names in `keep`."""
    for path in children(folder):
        if path.name in keep:
            continue
        with storage_errors(path, "written"):
            is_folder = path.is_dir() and not (is_local(path) and Path(path.path).is_symlink())
        remove_folder(path) if is_folder else remove_file(path)
