"""Which files a source of real images is: a path, a glob or a list, on this machine or in a bucket."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from upath import UPath

from raysid.data.fetching import in_threads
from raysid.data.pictures import SUFFIXES, shown
from raysid.errors import NotHere, StorageError, UserError
from raysid.storage import BUCKETS, is_local, storage_errors
from raysid.storage.failures import storage_error

KINDS = {".zip": "zip", ".parquet": "parquet", ".tar": "webdataset"} | dict.fromkeys(SUFFIXES, "folder")
WHAT = {"zip": "a .zip", "parquet": ".parquet files", "webdataset": ".tar files", "folder": "pictures"}


@dataclass(frozen=True)
class File:
    """A file of a source.

    Attributes:
        path: from the root, or with the protocol; `UPath` opens it.
        parts: its path below the folder that the source names.
        size: in bytes; -1 where it was not asked for.
    """

    path: str
    parts: tuple[str, ...]
    size: int = -1


@dataclass(frozen=True)
class Found:
    """A source's files, sorted by path, and what they are."""

    name: str
    kind: str
    files: list[File]


def find_files(source: str | Sequence[str], kind: str | None = None) -> Found:
    """The files that `source` names.

    Args:
        kind: what they are, where their names do not say it; other files are left out.

    Raises:
        NotHere: there is nothing there.
        UserError: it cannot be reached, holds nothing that is known, or several things.
    """
    given = [source] if isinstance(source, str) else list(source)
    name = shown(", ".join(given))
    if not given:
        raise UserError("data.source is an empty list: name files, or null for none")
    files: dict[str, File] = {}
    with reading_source(name):
        for path in given:
            place = located(path)
            with storage_errors(place, "read"):
                for file in _below(path, place):
                    files[file.path] = file
    if len({"://" in path for path in files}) > 1:
        raise UserError(f"data.source {name} is in part here and in part in a bucket: give one place")
    by_kind: dict[str, list[File]] = {}
    for _, file in sorted(files.items()):
        if (found := KINDS.get(PurePosixPath(file.parts[-1]).suffix.lower())) is not None:
            by_kind.setdefault(found, []).append(file)
    if kind is None and len(by_kind) > 1:
        held = " and ".join(WHAT[found] for found in by_kind)
        raise UserError(f"data.source {name} holds {held}: say which by data.format")
    kind = kind or next(iter(by_kind), None)
    if kind is None:
        raise UserError(
            f"data.source {name} holds no images: pictures ({', '.join(SUFFIXES)}), .parquet, .tar or a .zip are needed"
        )
    if not by_kind.get(kind):
        raise UserError(
            f"data.source {name} holds no {WHAT[kind].removeprefix('a ')}, which data.format {kind} needs"
        )
    if kind != "folder":  # pictures are looked at one by one
        for file in by_kind[kind]:
            _check_regular(file)
    return Found(name, kind, by_kind[kind])


def _check_regular(file: File) -> None:
    """Refuse what is no file: opening a pipe waits for somebody who writes to it."""
    place = UPath(file.path)
    with suppress(OSError):  # which says more where it is opened
        if is_local(place) and not stat.S_ISREG(os.stat(place.path).st_mode):
            raise UserError(
                f"data.source: {shown(file.path)} is not a file, but a pipe, a device or a folder"
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


def located(path: str) -> UPath:
    """A path as any process of this machine finds it."""
    place = UPath(path)
    if is_local(place):
        return UPath(Path(place.path).expanduser().absolute())
    if place.protocol not in BUCKETS:
        raise UserError(
            f"data.source {path}: {place.protocol}:// is not read; give a path, gs://... or s3://..."
        )
    return place


def _below(given: str, place: UPath) -> list[File]:
    """The files that one path, or one pattern, stands for."""
    if place.is_dir():
        return _tree(place, place.path)
    if place.exists():
        return [_file(place, place.fs.info(place.path), os.path.dirname(place.path))]
    if not any(sign in given for sign in "*?["):
        raise NotHere(f"there is no file or folder {place}")
    found = place.fs.glob(place.path, detail=True)
    if not found:
        raise NotHere(f"nothing matches {place}")
    # What lies above all that match is not part of what files are called: `images/*` is `images`.
    root = os.path.commonpath([os.path.dirname(path) for path in found])
    files = []
    for path, info in found.items():
        files += (
            _tree(_same(place, path), root) if info["type"] == "directory" else [_file(place, info, root)]
        )
    return files


def _same(beside: UPath, path: str) -> UPath:
    """A path as a filesystem gives it, with the protocol of another of its paths."""
    return UPath(path) if is_local(beside) else UPath(f"{beside.protocol}://{path}")


def _file(beside: UPath, info: dict[str, Any], root: str) -> File:
    """A file as its filesystem tells of it."""
    name = info["name"]
    return File(str(_same(beside, name)), _parts(name, root), -1 if is_local(beside) else int(info["size"]))


def _parts(path: str, root: str) -> tuple[str, ...]:
    return tuple(path.removeprefix(root).strip("/").split("/"))


def _tree(folder: UPath, root: str) -> list[File]:
    """All files below a folder; its subfolders are listed side by side."""
    if is_local(folder):
        own: list[str] = []
        inside: list[str] = []
        with os.scandir(folder.path) as entries:
            for entry in entries:
                # A folder through a link too, but further down not: links may lead back.
                if not entry.name.startswith("."):
                    (inside if entry.is_dir() else own).append(entry.path)
        own += [path for found in in_threads(_walked, inside) for path in found]
        return _shown(File(path, _parts(path, root)) for path in own)
    fs = folder.fs
    listed = fs.ls(folder.path, detail=True)
    found = [entry for entry in listed if entry["type"] == "file"]
    inside = [entry["name"] for entry in listed if entry["type"] == "directory"]
    for entries_inside in in_threads(lambda name: list(fs.find(name, detail=True).values()), inside):
        found += entries_inside
    return _shown(_file(folder, entry, root) for entry in found)


def _walked(folder: str) -> list[str]:
    """All files below a local folder. Raises StorageError where one cannot be listed: a class would be missing."""

    def refuse(error: OSError) -> None:
        raise storage_error(error, error.filename or folder, "read") from error

    return [
        os.path.join(inside, name) for inside, _, names in os.walk(folder, onerror=refuse) for name in names
    ]


def _shown(files: Iterable[File]) -> list[File]:
    """Files that count: not what macOS and others hide beside them, nor a folder made in a bucket's console."""
    return [file for file in files if not any(part.startswith(".") for part in file.parts)]
