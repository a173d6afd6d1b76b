"""Finding the files of a source of real images: a path, a glob or a list, on this machine or in a bucket."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from upath import UPath

from raysid.data.pictures import COMMON, SUFFIXES
from raysid.errors import NotHere, RaysidError, StorageError, UserError, printable
from raysid.storage import BUCKETS, is_local, location, storage_errors
from raysid.storage.failures import explain, storage_error

CONTAINERS = {".zip": "zip", ".parquet": "parquet", ".tar": "webdataset"}
KINDS = CONTAINERS | dict.fromkeys(SUFFIXES, "folder")
KIND_NAMES = {"zip": "a .zip", "parquet": ".parquet files", "webdataset": ".tar files", "folder": "pictures"}
FOREIGN = ("__MACOSX", "@eaDir")  # folders that macOS and Synology's NAS add, with pictures of their own
HIDDEN, EMPTY, BACK = "hidden files", "empty folders", "linked folders that lead back"
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
    """The files of a source, sorted by path, and their kind.

    Attributes:
        others: the other files, sorted by path.
        left_out: the number of files and folders that are not looked at, by the reason.
    """

    name: str
    kind: str
    files: list[File]
    others: list[File]
    left_out: Counter[str]


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
    left_out: Counter[str] = Counter()
    with reading_source(name):
        for path in given:
            root = absolute_path(path)
            with storage_errors(root, "read"):
                for file in _below(path, root, left_out):
                    files[file.path] = file
    if len({"://" in path for path in files}) > 1:
        raise UserError(
            f"data.source {name} is partly on this machine and partly in a bucket: give one of them"
        )
    by_kind: dict[str | None, list[File]] = {}
    for _, file in sorted(files.items()):
        by_kind.setdefault(KINDS.get(suffix(file)), []).append(file)
    held = {KINDS[suffix(file)] for file in files.values() if suffix(file) in (*COMMON, *CONTAINERS)}
    if kind is None and len(held) > 1:
        names = " and ".join(KIND_NAMES[found] for found in by_kind if found in held)
        raise UserError(f"data.source {name} holds {names}: give data.format")
    kind = kind or next(iter(held), None) or ("folder" if "folder" in by_kind else None)
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
    others = [file for found, some in by_kind.items() if found != kind for file in some]
    return Found(name, kind, by_kind[kind], sorted(others, key=lambda file: file.path), left_out)


def suffix(file: File) -> str:
    """The suffix of a file's name, in small letters, with its dot; empty if it has none."""
    return PurePosixPath(file.parts[-1]).suffix.lower()


def described(ending: str) -> str:
    """Describe the files that end so, as a reason why they are left out."""
    return f"{printable(ending)} files" if ending else "files without a suffix"


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


@contextmanager
def damaged_file(path: str, form: str) -> Iterator[None]:
    """Turn whatever a library raises for a damaged file into a UserError that names the file.

    Which class of exception that is depends on the place of the damage: sizes that overflow, names that are no text,
    memory that is not there.

    Args:
        form: what the file is read as, for the message.
    """
    try:
        yield
    except (RaysidError, FileNotFoundError):
        raise
    except Exception as error:
        raise UserError(f"{printable(path)} cannot be read as {form}: {explain(error)}") from None


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


def _below(given: str, absolute: UPath, left_out: Counter[str]) -> list[File]:
    """Return the files of one path or glob.

    Args:
        given: the path as the user wrote it.
        left_out: increased by what is left out, as in `Found`.
    """
    fs, path = absolute.fs, absolute.path
    if absolute.is_dir():
        return _list_folder(absolute, path, left_out)
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
            files += _list_folder(_sibling(absolute, match), root, left_out)
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


def _list_folder(folder: UPath, root: str, left_out: Counter[str]) -> list[File]:
    """Return all files below a folder; its subfolders are listed in parallel."""
    if is_local(folder):
        own, inside, hidden, back = _scan(folder.path, (os.path.realpath(folder.path),))
        left_out[HIDDEN] += hidden
        left_out[BACK] += back
        for found, hidden, back in in_threads(_walk_folder, inside):
            own += found
            left_out[EMPTY] += not found
            left_out[HIDDEN] += hidden
            left_out[BACK] += back
        return [File(path, _parts(path, root)) for path in own]
    fs = folder.fs
    listed = fs.ls(folder.path, detail=True)
    entries = [entry for entry in listed if entry["type"] == "file"]
    folders = [entry["name"] for entry in listed if entry["type"] == "directory"]
    for entries_inside in in_threads(lambda name: list(fs.find(name, detail=True).values()), folders):
        entries += entries_inside
    # A folder that was made in a bucket's console is an object whose name ends with a slash.
    files = [_file(folder, entry, root) for entry in entries if not entry["name"].endswith("/")]
    visible = [file for file in files if not is_hidden(file.parts)]
    left_out[HIDDEN] += len(files) - len(visible)
    return visible


Folder = tuple[str, tuple[str, ...]]
"""A local folder, and the real paths of itself and of those that led to it."""


def _walk_folder(folder: Folder) -> tuple[list[str], int, int]:
    """Return all files below a local folder, the number of hidden ones, and of linked folders that lead back.

    Raises:
        StorageError: a folder cannot be listed; without the error its class would be missing.
    """
    files: list[str] = []
    hidden, back = 0, 0
    folders = [folder]
    while folders:
        found, inside, more_hidden, more_back = _scan(*folders.pop())
        files += found
        folders += inside
        hidden, back = hidden + more_hidden, back + more_back
    return files, hidden, back


def _scan(folder: str, above: tuple[str, ...]) -> tuple[list[str], list[Folder], int, int]:
    """List a local folder: its files, its folders, the number of hidden ones, and of links to a folder in `above`."""
    files: list[str] = []
    folders: list[Folder] = []
    hidden, back = 0, 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden((entry.name,)):
                    hidden += 1
                elif not entry.is_dir():
                    files.append(entry.path)
                else:
                    real = (
                        os.path.realpath(entry.path)
                        if entry.is_symlink()
                        else os.path.join(above[-1], entry.name)
                    )
                    if real in above:
                        back += 1
                    else:
                        folders.append((entry.path, (*above, real)))
    except OSError as error:
        raise storage_error(error, error.filename or folder, "read") from error
    return files, folders, hidden, back


def is_hidden(parts: Sequence[str]) -> bool:
    """True if a name, or a folder in its path, is one that file systems hide, or that they add."""
    return any(part in FOREIGN or (part.startswith(".") and part not in (".", "..")) for part in parts)
