"""Download files of the web and of buckets into a cache on this machine."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import TypeGuard
from urllib.parse import urlsplit

import aiohttp
import filelock
import fsspec
from fsspec.core import OpenFile, OpenFiles
from fsspec.implementations.cached import WholeFileCacheFileSystem

from raysid.errors import NotHere, UserError
from raysid.storage.buckets import BUCKETS, expand, location
from raysid.storage.failures import client_errors, foreign_errors, storage_error
from raysid.storage.files import check_regular

WEB = ("https", "http")
SILENT_SECONDS = 60  # without an answer; a whole file may take any time


def cache_folder() -> Path:
    """The cache: RAYSID_CACHE, or `~/.cache/raysid`."""
    return Path(os.environ.get("RAYSID_CACHE") or Path.home() / ".cache" / "raysid")


def file_name(path: str) -> str:
    """The last part of a path or a URL, without a URL's query."""
    return PurePosixPath(urlsplit(path).path if _protocol(path) in WEB else path).name


def local_copy(path: str) -> Path:
    """Return a local file: `path` itself, or a copy of the file at a URL.

    A copy from the web is reused for a week, a copy from a bucket as long as the object does not change.

    Args:
        path: a local path, `gs://...`, `s3://...` or `https://...`.

    Raises:
        NotHere: there is no such file, or this machine cannot fetch it.
        UserError: the protocol is not supported, or the cache cannot be written.
    """
    path = expand(path)
    protocol = _protocol(path)
    if protocol in ("", "file"):
        local = Path(path.removeprefix("file://")).expanduser()
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
    try:
        return _cached(path, protocol, folder)
    except FileNotFoundError:
        raise NotHere(f"there is no file {path}") from None
    except foreign_errors(path) as error:
        if _is_disk_error(error):
            raise UserError(f"{path} cannot be copied to {folder}: {error.strerror}") from None
        reason = storage_error(error, path, "read").reason
        raise NotHere(f"{path} cannot be fetched from this machine: {reason}") from None


def _is_disk_error(error: BaseException) -> TypeGuard[OSError]:
    """True if the cache's disk raised an error of a copy, False if the client of the web or of the bucket did."""
    # The clients' own OSErrors have no number, or (s3fs) the server's answer as their cause.
    of_client = isinstance(error, client_errors()) or isinstance(error.__cause__, client_errors())
    return isinstance(error, OSError) and error.strerror is not None and not of_client


def _cached(path: str, protocol: str, folder: Path) -> Path:
    if protocol in WEB:
        # By default aiohttp allows five minutes for a whole file.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENT_SECONDS, sock_read=SILENT_SECONDS)
        name = path
        remote = fsspec.filesystem("https", client_kwargs={"timeout": timeout}, skip_instance_cache=True)
    else:
        found = location(path)
        name, remote = found.path, found.fs
    # The cache reads its list when it is opened: two processes must not fetch the same file at a time.
    with filelock.FileLock(folder / ".lock"):
        cache = WholeFileCacheFileSystem(
            fs=remote, cache_storage=str(folder), check_files=True, skip_instance_cache=True
        )
        with OpenFiles([OpenFile(cache, name)], mode="rb", fs=cache) as (file,):
            return Path(file.name)


def _protocol(path: str) -> str:
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", path)
    return match[1].lower() if match else ""
