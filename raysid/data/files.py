"""Which files a source of real images is: a path, a glob or a list, on this machine or in a bucket."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from raysid.data.pictures import SUFFIXES, shown
from raysid.errors import NotHere, StorageError, UserError
from raysid.storage import BUCKETS, is_local, storage_errors
from raysid.storage.failures import storage_error
from raysid.storage.s3 import in_one_request

KINDS = {".zip": "zip", ".parquet": "parquet", ".tar": "webdataset"} | dict.fromkeys(SUFFIXES, "folder")
WHAT = {"zip": "a .zip", "parquet": ".parquet files", "webdataset": ".tar files", "folder": "pictures"}
LISTERS = 16  # folders that are listed, and files whose headers are read, at a time
TOGETHER_BYTES = 1 << 26  # of a bucket at a time

Value = TypeVar("Value")


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


class Texts:
    """Many texts as two numpy arrays, which travel between processes without a copy."""

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        self.ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        self.bytes = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, place: int) -> str:
        start = self.ends[place - 1] if place else 0
        return self.bytes[start : self.ends[place]].tobytes().decode("utf-8", "surrogateescape")


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
