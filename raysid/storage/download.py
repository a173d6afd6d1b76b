"""Download files of the web and of buckets into a cache on this machine.

Each file has three entries in the cache: the copy, a description of where it is from, and a lock, so that processes
wait only for those that fetch the same file. A download that broke off is continued if the file has not changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

import filelock

from raysid.errors import NotHere, UserError
from raysid.storage.buckets import BUCKETS, expand, location
from raysid.storage.failures import foreign_errors, storage_error
from raysid.storage.files import check_regular
from raysid.storage.web import NoFile, Unreachable, get

WEB = ("https", "http")
WEEK = 7 * 86_400
MAX_BYTES = 50 * 2**30  # far above every published network
MARGIN = 64 * 2**20  # bytes that stay free on the cache's disk
CHUNK = 4 * 2**20
TRIES = 4  # for a download that breaks off, as long as each brings it forward

Value = TypeVar("Value")


def cache_folder() -> Path:
    """The cache: RAYSID_CACHE, or `~/.cache/raysid`."""
    return Path(os.environ.get("RAYSID_CACHE") or Path.home() / ".cache" / "raysid")


def file_name(path: str) -> str:
    """The last part of a path or a URL, without a URL's query."""
    return PurePosixPath(urlsplit(path).path if _protocol(path) in WEB else path).name


def read_copy(path: str, read: Callable[[Path], Value]) -> Value:
    """Return what `read` makes of a local file or of the copy of a file at a URL.

    A copy that it refuses, as a login page under a network's URL, is not kept.

    Raises:
        NotHere, UserError: as `local_copy`, and as `read`.
    """
    copy = local_copy(path)
    try:
        return read(copy)
    except UserError:
        if _protocol(expand(path)) not in ("", "file"):
            with suppress(OSError):
                copy.unlink()
        raise


def local_copy(path: str) -> Path:
    """Return a local file: `path` itself, or a copy of the file at a URL.

    A copy from the web is reused for a week, and longer while the server does not answer; a copy from a bucket as long
    as the object does not change.

    Args:
        path: a local path, `gs://...`, `s3://...` or `https://...`.

    Raises:
        NotHere: there is no such file, or this machine cannot fetch it.
        UserError: the protocol is not supported, the file is too large, or the cache cannot be written.
    """
    path = expand(path)
    protocol = _protocol(path)
    if protocol in ("", "file"):
        local = Path(os.path.expanduser(path.removeprefix("file://")))
        if not local.exists():
            raise NotHere(f"there is no file {path}")
        check_regular(local)
        return local
    if protocol not in (*WEB, *BUCKETS):
        raise UserError(f"{path} cannot be reached: give a local path, gs://..., s3://... or https://...")
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the cache {folder} cannot be made: {error.strerror}; set RAYSID_CACHE") from None
    entry = _Entry(path, folder)
    try:
        with filelock.FileLock(entry.file("lock")):
            return _fetched(entry) if protocol in WEB else _fetched_object(entry)
    except NoFile:
        raise NotHere(f"there is no file {path}") from None
    except OSError as error:  # of the cache's disk: those of servers are Unreachable
        raise UserError(f"{path} cannot be copied to {folder}: {error.strerror or error}") from None
    except Unreachable as error:
        raise NotHere(f"{path} cannot be fetched from this machine: {error}") from None


@dataclass(frozen=True)
class _Origin:
    """The version of a file that a copy, or the beginning of one, is of.

    Attributes:
        url: the file.
        version: changes with its content; None if the server gives none.
        fetched: Unix time.
    """

    url: str
    version: str | None
    fetched: float


class _Entry:
    """A file's entry in the cache."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.key = hashlib.sha256(url.encode()).hexdigest()[:40]
        self.copy, self.partial = self.file("file"), self.file("partial")

    def file(self, kind: str) -> Path:
        return self.folder / f"{self.key}.{kind}"

    def origin(self, kind: str) -> _Origin | None:
        """The origin of the copy ("file") or of its beginning ("partial"); None if there is none."""
        try:
            found = _Origin(**json.loads(self.file(f"{kind}.json").read_bytes()))
            return found if self.file(kind).exists() and found.url == self.url else None
        except (OSError, TypeError, ValueError):
            return None

    def begin(self, version: str | None) -> None:
        """Start a download from the file's beginning."""
        self.partial.unlink(missing_ok=True)
        origin = asdict(_Origin(self.url, version, time.time()))
        self.file("partial.json").write_text(json.dumps(origin))
        self.partial.touch()

    def received(self) -> int:
        """Bytes of the download so far."""
        return self.partial.stat().st_size

    def append(self, pieces: Iterator[bytes], total: int | None) -> None:
        """Add pieces to the download. Raises UserError if the file is too large, or the disk."""
        count = self.received()
        _check_room(self.url, self.folder, total, count)
        with self.partial.open("ab") as file:
            for piece in pieces:
                count += len(piece)
                if count > MAX_BYTES:
                    raise UserError(
                        f"{self.url} has over {MAX_BYTES:,} bytes, more than any network: give another file"
                    )
                file.write(piece)

    def finish(self) -> Path:
        """Make the download the copy."""
        # The copy first: after a kill in between its old description makes it be fetched again.
        os.replace(self.partial, self.copy)
        os.replace(self.file("partial.json"), self.file("file.json"))
        return self.copy


def _check_room(url: str, folder: Path, total: int | None, received: int) -> None:
    """Refuse a file that is too large, in itself or for the cache's disk, before anything is written."""
    if total is None:
        return
    if total > MAX_BYTES:
        raise UserError(f"{url} has {total:,} bytes, more than any network: give another file")
    room = max(shutil.disk_usage(folder).free - MARGIN, 0)
    if total - received > room:
        raise UserError(
            f"{url} has {total:,} bytes, and the disk of the cache {folder} has room for {room:,}: make room there, or "
            "set RAYSID_CACHE"
        )


def _fetched(entry: _Entry) -> Path:
    """Return the copy of a file of the web, fetched if there is none or it is older than a week."""
    known = entry.origin("file")
    if known is not None and 0 <= time.time() - known.fetched < WEEK:
        return entry.copy
    reason = ""
    for _ in range(TRIES):
        begun = entry.origin("partial")
        before = entry.received() if begun and begun.version else 0
        try:
            with get(entry.url, before, begun.version if begun else None) as part:
                if part.start == 0:
                    entry.begin(part.version)
                before = part.start
                entry.append(part.pieces(CHUNK), part.total)
            if part.total is None or entry.received() == part.total:
                return entry.finish()
            reason = f"the answer broke off after {entry.received():,} of {part.total:,} bytes"
        except Unreachable as error:
            reason = str(error)
        begun = entry.origin("partial")
        if begun is None or begun.version is None or entry.received() <= before:
            break
    if known is not None:
        return entry.copy  # an old copy is better than none
    raise Unreachable(reason)


def _fetched_object(entry: _Entry) -> Path:
    """Return the copy of an object in a bucket, fetched if there is none or the object has changed."""
    with _server_errors(entry.url):
        found = location(entry.url)
        name, remote = found.path, found.fs
        version, total = str(remote.ukey(name)), int(remote.info(name)["size"])
    if (known := entry.origin("file")) is not None and known.version == version:
        return entry.copy
    begun = entry.origin("partial")
    if begun is None or begun.version != version or entry.received() > total:
        entry.begin(version)
    entry.append(_pieces(entry.url, remote, name, entry.received()), total)
    if entry.received() != total:
        raise Unreachable(f"the object broke off after {entry.received():,} of {total:,} bytes")
    return entry.finish()


def _pieces(url: str, remote: Any, name: str, start: int) -> Iterator[bytes]:
    """Yield the content of an object from byte `start`."""
    with _server_errors(url):
        file = remote.open(name, "rb")
    with file:
        file.seek(start)
        while True:
            with _server_errors(url):
                piece = file.read(CHUNK)
            if not piece:
                return
            yield piece


@contextmanager
def _server_errors(url: str) -> Iterator[None]:
    """Raise NoFile or Unreachable for what a bucket's client raises inside the block."""
    try:
        yield
    except FileNotFoundError:
        raise NoFile from None
    except foreign_errors(url) as error:
        raise Unreachable(storage_error(error, url, "read").reason) from None


def _protocol(path: str) -> str:
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", path)
    return match[1].lower() if match else ""
