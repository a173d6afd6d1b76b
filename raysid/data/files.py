"""Finding the files of a source of real images: a path, a glob or a list, on this machine or in a bucket."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from upath import UPath

from raysid.data.pictures import SUFFIXES, printable
from raysid.errors import NotHere, StorageError, UserError
from raysid.storage import BUCKETS, is_local, location, storage_errors
from raysid.storage.failures import storage_error

KINDS = {".zip": "zip", ".parquet": "parquet", ".tar": "webdataset"} | dict.fromkeys(SUFFIXES, "folder")
KIND_NAMES = {"zip": "a .zip", "parquet": ".parquet files", "webdataset": ".tar files", "folder": "pictures"}
REQUESTS = 16  # at a time, for listings, headers and contents

Value = TypeVar("Value")


@dataclass(frozen=True)
class File:
    """A file of a source.

    Attributes:
        path: absolute, or with the protocol; `UPath` opens it.
        parts: its path below the folder that the source names.
        size: in bytes; -1 if unknown.
    """

    path: str
    parts: tuple[str, ...]
    size: int = -1


@dataclass(frozen=True)
class Found:
    """The files of a source, sorted by path, and their kind."""

    name: str
    kind: str
    files: list[File]


def in_threads(work: Callable[..., Value], *items: Iterable[Any]) -> Iterator[Value]:
    """Like `map`, with several calls at a time, for work that waits for disks or networks."""
    with ThreadPoolExecutor(REQUESTS) as pool:
        yield from pool.map(work, *items)


def find_files(source: str | Sequence[str], kind: str | None = None) -> Found:
    """Find the files that `source` names.

    Args:
        kind: the kind of the files, if it cannot be inferred from their names; other files are left out.

    Raises:
        NotHere: there are no such files.
        UserError: they cannot be read, are of no known kind, or of several kinds.
    """
    given = [source] if isinstance(source, str) else list(source)
    name = printable(", ".join(given))
    if not given:
        raise UserError("data.source is an empty list: give files, or null for none")
    files: dict[str, File] = {}
    with reading_source(name):
        for path in given:
            root = absolute_path(path)
            with storage_errors(root, "read"):
                for file in _below(path, root):
                    files[file.path] = file
    if len({"://" in path for path in files}) > 1:
        raise UserError(
            f"data.source {name} is partly on this machine and partly in a bucket: give one of them"
        )
    by_kind: dict[str, list[File]] = {}
    for _, file in sorted(files.items()):
        if (found := KINDS.get(PurePosixPath(file.parts[-1]).suffix.lower())) is not None:
            by_kind.setdefault(found, []).append(file)
    if kind is None and len(by_kind) > 1:
        held = " and ".join(KIND_NAMES[found] for found in by_kind)
        raise UserError(f"data.source {name} holds {held}: give data.format")
    kind = kind or next(iter(by_kind), None)
    if kind is None:
        raise UserError(
            f"data.source {name} holds no images: pictures ({', '.join(SUFFIXES)}), .parquet, .tar or a .zip are needed"
        )
    if not by_kind.get(kind):
        raise UserError(
            f"data.source {name} holds no {KIND_NAMES[kind].removeprefix('a ')}, which data.format {kind} needs"
        )
    if kind != "folder":  # pictures are checked when they are read
        for file in by_kind[kind]:
            _check_regular(file)
    return Found(name, kind, by_kind[kind])


def _check_regular(file: File) -> None:
    """Check that a file is regular: opening a pipe waits for a writer."""
    path = UPath(file.path)
    with suppress(OSError):  # opening it raises a better message
        if is_local(path) and not stat.S_ISREG(os.stat(path.path).st_mode):
            raise UserError(
                f"data.source: {printable(file.path)} is not a file, but a pipe, a device or a folder"
            )


@contextmanager
def reading_source(name: str) -> Iterator[None]:
    """Turn a storage error of reading the source `name` into a UserError that names the setting."""
    try:
        yield
    except FileNotFoundError:
        raise NotHere(f"there is no file or folder {name}") from None
    except StorageError as error:
        file = "" if error.path == name else f": {error.path}"
        raise UserError(f"data.source {name} cannot be read: {error.reason}{file}") from None


def absolute_path(path: str) -> UPath:
    """Return the path as an absolute path or URL, the same for all processes of this machine."""
    found = location(path)
    if is_local(found):
        return UPath(Path(found.path).absolute())
    if found.protocol not in BUCKETS:
        raise UserError(
            f"data.source {path}: {found.protocol}:// is not supported; give a path, gs://... or s3://..."
        )
    return found


def _below(given: str, absolute: UPath) -> list[File]:
    """Return the files of one path or glob; `given`: the path as the user wrote it."""
    fs, path = absolute.fs, absolute.path
    if absolute.is_dir():
        return _list_folder(absolute, path)
    if absolute.exists():
        return [_file(absolute, fs.info(path), os.path.dirname(path))]
    if not any(sign in given for sign in "*?["):
        raise NotHere(f"there is no file or folder {absolute}")
    found = fs.glob(path, detail=True)
    if not found:
        raise NotHere(f"nothing matches {absolute}")
    # The common parent of all matches is not part of the files' names: `images/*` is the same as `images`.
    root = os.path.commonpath([os.path.dirname(match) for match in found])
    files = []
    for match, info in found.items():
        if info["type"] == "directory":
            files += _list_folder(_sibling(absolute, match), root)
        else:
            files.append(_file(absolute, info, root))
    return files


def _sibling(beside: UPath, path: str) -> UPath:
    """Return a path from a filesystem's listing, with the protocol of another path of the same filesystem."""
    return UPath(path) if is_local(beside) else UPath(f"{beside.protocol}://{path}")


def _file(beside: UPath, info: dict[str, Any], root: str) -> File:
    """Return a file from its filesystem's listing."""
    name = info["name"]
    return File(
        str(_sibling(beside, name)), _parts(name, root), -1 if is_local(beside) else int(info["size"])
    )


def _parts(path: str, root: str) -> tuple[str, ...]:
    return tuple(path.removeprefix(root).strip("/").split("/"))


def _list_folder(folder: UPath, root: str) -> list[File]:
    """Return all files below a folder; its subfolders are listed in parallel."""
    if is_local(folder):
        own: list[str] = []
        inside: list[str] = []
        with os.scandir(folder.path) as entries:
            for entry in entries:
                # A link to a folder is followed here but not further down, where links may lead back.
                if not entry.name.startswith("."):
                    (inside if entry.is_dir() else own).append(entry.path)
        own += [path for found in in_threads(_walk_folder, inside) for path in found]
        return _visible(File(path, _parts(path, root)) for path in own)
    fs = folder.fs
    listed = fs.ls(folder.path, detail=True)
    found = [entry for entry in listed if entry["type"] == "file"]
    inside = [entry["name"] for entry in listed if entry["type"] == "directory"]
    for entries_inside in in_threads(lambda name: list(fs.find(name, detail=True).values()), inside):
        found += entries_inside
    return _visible(_file(folder, entry, root) for entry in found)


def _walk_folder(folder: str) -> list[str]:
    """Return all files below a local folder.

    Raises:
        StorageError: a folder cannot be listed; without the error its class would be missing.
    """

    def refuse(error: OSError) -> None:
        raise storage_error(error, error.filename or folder, "read") from error

    return [
        os.path.join(inside, name) for inside, _, names in os.walk(folder, onerror=refuse) for name in names
    ]


def _visible(files: Iterable[File]) -> list[File]:
    """Leave out hidden files: those that macOS writes, and markers of folders made in a bucket's console."""
    return [file for file in files if not any(part.startswith(".") for part in file.parts)]
