"""Listing the files of a path or a glob, on this machine or in a bucket."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from upath import UPath

from raysid.data.patterns import SIGNS, escaped
from raysid.errors import NotHere
from raysid.storage import is_local, listed_path, location
from raysid.storage.failures import storage_error

FOREIGN = ("__MACOSX", "@eaDir")  # folders that macOS and Synology's NAS add, with pictures of their own
HIDDEN, EMPTY, BACK = "hidden files", "empty folders", "linked folders that lead back"
LINKED = "linked folders below the first level"  # which release 0.1.0 did not follow
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


def in_threads(work: Callable[..., Value], *items: Iterable[Any]) -> Iterator[Value]:
    """Like `map`, with several calls at a time, for work that waits for disks or networks."""
    with ThreadPoolExecutor(REQUESTS) as pool:
        yield from pool.map(work, *items)


def absolute_path(path: str) -> UPath:
    """Return the path as an absolute path or URL, the same for all processes of this machine."""
    found = location(path)
    return UPath(Path(found.path).absolute()) if is_local(found) else found


def list_path(given: str, absolute: UPath, left_out: Counter[str]) -> list[File]:
    """Return the files of one path or glob.

    Args:
        given: the path as the user wrote it.
        left_out: increased by what is left out, as in `Found`.
    """
    fs, path = absolute.fs, absolute.path
    if not is_local(absolute) and "//" in path and not fs.isfile(path):
        if files := _list_prefix(absolute, left_out):
            return files
        absolute = listed_path(f"{absolute.protocol}://{re.sub('/+', '/', path)}")
        path = absolute.path
    if absolute.is_dir():
        return _list_folder(absolute, path, left_out)
    if absolute.exists():
        return [_file(absolute, {**fs.info(path), "name": path}, os.path.dirname(path))]
    if not any(sign in given for sign in SIGNS):
        raise NotHere(f"there is no file or folder {absolute}")
    found = fs.glob(escaped(path, fs.isdir), detail=True)
    if not found:
        raise NotHere(f"nothing matches {absolute}")
    # The common parent of all matches is not part of the files' names: `images/*` is the same as `images`.
    root = os.path.commonpath([os.path.dirname(match) for match in found])
    files = []
    for match, info in found.items():
        if info["type"] == "directory":
            files += _list_folder(_sibling(absolute, match), root, left_out)
        else:
            files.append(_file(absolute, info, root))
    return files


def _sibling(beside: UPath, path: str) -> UPath:
    """Return a path from a filesystem's listing, with the protocol of another path of the same filesystem."""
    return UPath(path) if is_local(beside) else listed_path(f"{beside.protocol}://{path}")


def _file(beside: UPath, info: dict[str, Any], root: str) -> File:
    """Return a file from its filesystem's listing."""
    name = info["name"]
    return File(
        str(_sibling(beside, name)), _parts(name, root), -1 if is_local(beside) else int(info["size"])
    )


def _parts(path: str, root: str) -> tuple[str, ...]:
    parts = tuple(part for part in path.removeprefix(root).split("/") if part)
    return parts or (path.rpartition("/")[2],)  # an object may have the name of its folder


def _list_folder(folder: UPath, root: str, left_out: Counter[str]) -> list[File]:
    """Return all files below a folder; its subfolders are listed in parallel."""
    if is_local(folder):
        own, inside, counts = _scan(folder.path, (os.path.realpath(folder.path),))
        left_out.update(counts)
        for found, counts in in_threads(_walk_folder, inside):
            own += found
            left_out.update(counts)
            left_out[EMPTY] += not found
        return [File(path, _parts(path, root)) for path in own]
    fs = folder.fs
    listed = fs.ls(folder.path, detail=True)
    entries = [entry for entry in listed if entry["type"] == "file"]
    folders = [entry["name"] for entry in listed if entry["type"] == "directory"]
    for entries_inside in in_threads(lambda name: list(fs.find(name, detail=True).values()), folders):
        entries += entries_inside
    return _visible(folder, entries, root, left_out)


def _list_prefix(folder: UPath, left_out: Counter[str]) -> list[File]:
    """Return the objects of a bucket whose names begin with a path that has empty parts, which no folder has."""
    bucket, _, key = folder.path.partition("/")
    entries = folder.fs.find(bucket, prefix=f"{key.rstrip('/')}/", detail=True).values()
    return _visible(folder, entries, folder.path, left_out)


def _visible(
    folder: UPath, entries: Iterable[dict[str, Any]], root: str, left_out: Counter[str]
) -> list[File]:
    # A folder that was made in a bucket's console is an object whose name ends with a slash.
    files = [_file(folder, entry, root) for entry in entries if not entry["name"].endswith("/")]
    visible = [file for file in files if not is_hidden(file.parts)]
    left_out[HIDDEN] += len(files) - len(visible)
    return visible


Folder = tuple[str, tuple[str, ...]]
"""A local folder, and the real paths of itself and of those that led to it."""


def _walk_folder(folder: Folder) -> tuple[list[str], Counter[str]]:
    """Return all files below a local folder, and the number of what is left out or linked.

    Raises:
        StorageError: a folder cannot be listed; without the error its class would be missing.
    """
    files: list[str] = []
    counts: Counter[str] = Counter()
    folders = [folder]
    while folders:
        found, inside, more = _scan(*folders.pop())
        files += found
        folders += inside
        counts.update(more)
        counts[LINKED] += sum(os.path.islink(path) for path, _ in inside)
    return files, counts


def _scan(folder: str, above: tuple[str, ...]) -> tuple[list[str], list[Folder], Counter[str]]:
    """List a local folder: its files and folders, and the number of hidden ones and of links to a folder in `above`."""
    files: list[str] = []
    folders: list[Folder] = []
    counts: Counter[str] = Counter()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden((entry.name,)):
                    counts[HIDDEN] += 1
                elif not entry.is_dir():
                    files.append(entry.path)
                else:
                    linked = entry.is_symlink()
                    real = os.path.realpath(entry.path) if linked else os.path.join(above[-1], entry.name)
                    if real in above:
                        counts[BACK] += 1
                    else:
                        folders.append((entry.path, (*above, real)))
    except OSError as error:
        raise storage_error(error, error.filename or folder, "read") from error
    return files, folders, counts


def is_hidden(parts: Sequence[str]) -> bool:
    """True if a name, or a folder in its path, is one that file systems hide, or that they add."""
    return any(part in FOREIGN or (part.startswith(".") and part not in (".", "..")) for part in parts)
