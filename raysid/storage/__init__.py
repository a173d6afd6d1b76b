"""Where runs and teachers lie: a folder of this machine (or one that nodes share), or a bucket, through fsspec.

An object in a bucket is there whole or not at all, and can only be replaced, so what grows (metrics, TensorBoard's
events) is written on this machine and carried over (`raysid.storage.mirror`).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import traceback
import uuid
from collections.abc import Collection, Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import fsspec
from fsspec.config import conf
from upath import UPath

from raysid.errors import NoRoom, RaysidError, UserError
from raysid.storage import s3
from raysid.storage.no_room import AGAIN, no_room, of_file, one_line

LOCAL = ("", "file", "local")
CLIENTS = ("gcsfs", "google", "aiohttp", "requests", "botocore", "aiobotocore", "s3fs")
BUCKETS = ("gs", "gcs", "s3")
PARTIAL = ".partial"  # how the name of a file ends that is not whole yet

# gcsfs has a client for buckets of every kind, which asks for a bucket's kind by gRPC in each process. The plain one is
# what the tests go through, and imports in half of the time; what a user has set stays.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

# What a bucket's client gives up on comes as an exception, and is said once; its traces would say it in a page.
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)

# Other processes write to the same bucket: what was listed a moment ago may not be so now.
for _protocol in BUCKETS:
    conf.setdefault(_protocol, {}).setdefault("use_listings_cache", False)
# Without these a connection that has died silently is waited for without end, and what arrives is not compared
# with what was sent.
for _protocol in ("gs", "gcs"):
    conf[_protocol].setdefault(
        "requests_timeout", aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=120)
    )
    conf[_protocol].setdefault("consistency", "md5")


def storage_folder(storage: str) -> UPath:
    """A storage as an absolute folder, or as the place in a bucket that its URL names.

    Raises:
        UserError: nothing here can reach such a storage.
    """
    path = UPath(storage)
    if is_local(path):
        return UPath(Path(path.path).expanduser().absolute())
    if path.protocol not in BUCKETS:
        raise UserError(
            f"storage {storage} is neither a folder nor a bucket: give a folder that all nodes share, gs://BUCKET/... "
            "or s3://BUCKET/..."
        )
    try:
        fsspec.get_filesystem_class(path.protocol)
    except ImportError as error:
        raise UserError(f"storage {storage} cannot be reached: {explain(error)}") from None
    return path


def is_local(path: UPath | Path) -> bool:
    """Whether a path is on a file system, where files can be appended to and renamed."""
    return getattr(path, "protocol", "") in LOCAL  # a plain Path has none


def write_whole(path: UPath, content: bytes) -> None:
    """Write a file so that it is either there and whole, or as it was before, and nothing else is left."""
    if not is_local(path):
        path.fs.pipe_file(path.path, content)
        return
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        with open(partial.path, "wb") as file:
            file.write(content)
            file.flush()
            # On the disk before it counts: what is older is removed then, and some disks say only now that they
            # are full.
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise of_file(error, path.path) from None
        raise


def append_whole(path: Path, content: bytes) -> None:
    """Add to a file of this machine, in one write, or leave it as it was: a full disk takes a part of a write."""
    with open(path, "ab", buffering=0) as file:
        end, rest = os.fstat(file.fileno()).st_size, memoryview(content)
        try:
            while rest:  # a write that a full disk cuts short is no error; the next one is
                rest = rest[file.write(rest) :]
        except OSError as error:
            with suppress(OSError):
                file.truncate(end)
            raise of_file(error, path) from None


def write_new(path: UPath, content: bytes) -> None:
    """Write a file of a bucket where there is none: of several who do so at once the bucket lets one.

    Raises:
        FileExistsError: there is one.
    """
    try:
        path.fs.pipe_file(path.path, content, mode="create")
    except OSError as error:
        if s3.is_taken(error):
            raise FileExistsError(f"there is a file {path}") from None
        raise


def read_whole(path: UPath) -> bytes:
    """A file's content, in one request of a bucket. Raises FileNotFoundError where there is none."""
    if is_local(path):
        return path.read_bytes()
    return path.fs.cat_file(path.path, **s3.in_one_request(path.protocol))


def holds(path: UPath, content: str) -> bool:
    """Whether a file, as this process sees it, is there and says `content`."""
    try:
        return read_whole(path) == content.encode()
    except FileNotFoundError:
        return False


def children(folder: UPath) -> list[UPath]:
    """What lies in a folder, in one request of a bucket; nothing where there is no such folder."""
    try:
        if is_local(folder):
            return list(folder.iterdir())
        # A folder made in a bucket's console is an object of its own name in it.
        itself = folder.path.rstrip("/")
        entries = (entry.rstrip("/") for entry in folder.fs.ls(folder.path, detail=False))
        return [folder / entry.rpartition("/")[2] for entry in entries if entry != itself]
    except FileNotFoundError:
        return []


def read_json(path: UPath) -> Any:
    """The content of a JSON file, or None where there is none. Raises UserError where it is damaged."""
    try:
        return json.loads(read_whole(path))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def copy_file(source: UPath, target: UPath) -> None:
    """Copy a file within a storage; `target` is replaced at once. In a bucket nothing travels through here."""
    if is_local(source):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, source.read_bytes())
    else:
        source.fs.cp_file(source.path, target.path)


def remove_file(path: UPath) -> None:
    """Remove a file, where it is there. A removal that is repeated after a lost answer finds nothing."""
    with suppress(FileNotFoundError):
        path.unlink() if is_local(path) else path.fs.rm_file(path.path)


def remove_folder(folder: UPath) -> None:
    """Remove a folder and all in it, where it is there."""
    if is_local(folder):
        with suppress(FileNotFoundError):
            shutil.rmtree(folder.path)
        return
    for name in folder.fs.find(folder.path):  # one by one: `rm` would take brackets in a name for a pattern
        with suppress(FileNotFoundError):
            folder.fs.rm_file(name)


def remove_partial(*folders: UPath) -> None:
    """Remove what a kill left of files that were being written in folders. A bucket never has such files."""
    for folder in folders:
        if is_local(folder):
            for path in Path(folder.path).glob(f"*{PARTIAL}"):
                path.unlink(missing_ok=True)


def empty_folder(folder: UPath, keep: Set[str]) -> None:
    """Remove what is in a folder, but for what is named in `keep`."""
    for path in children(folder):
        if path.name in keep:
            continue
        linked = is_local(path) and Path(path.path).is_symlink()
        remove_folder(path) if path.is_dir() and not linked else remove_file(path)


def for_ray(path: UPath) -> tuple[str, Any]:
    """A path as Ray Train and Ray Tune take it: `storage_path` and `storage_filesystem`.

    Ray's own reading of a URL would go by other credentials and settings than the rest of a run's.
    """
    if is_local(path):
        return path.path, None
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return path.path, PyFileSystem(FSSpecHandler(path.fs))


@contextmanager
def reaching(storage: str) -> Iterator[None]:
    """What keeps a storage from being used comes out as one line that says so.

    Raises:
        NoRoom: it is full, or its quota used up.
        UserError: no permission, no such bucket, no credentials, nobody who answers.
    """
    try:
        yield
    except Exception as error:
        of_bucket = of_a_bucket(error)
        if not (of_bucket or isinstance(error, OSError)):
            raise
        if no_room(error):
            named = getattr(error, "filename", None)
            file = f"{named}: " if named else ""
            raise NoRoom(
                f"storage {storage} cannot be written: {file}{explain(error)}; {AGAIN} to resume"
            ) from None
        why = (None if of_bucket else getattr(error, "strerror", None)) or explain(error)
        done = "written" if isinstance(error, OSError) else "reached"
        raise UserError(f"storage {storage} cannot be {done}: {why}") from None


@contextmanager
def reading(place: str) -> Iterator[None]:
    """A bucket that cannot be read comes out as one line that says why. Raises UserError."""
    try:
        yield
    except Exception as error:
        if not of_a_bucket(error):
            raise
        raise UserError(f"{place} cannot be read: {explain(error)}") from None


def explain(error: BaseException) -> str:
    """Why a bucket did not do what it was asked, or something could not be written, and what to do about it."""
    if isinstance(error, RaysidError):
        return str(error)
    if why := no_room(error):
        return why
    said = one_line(error)
    if isinstance(error, ImportError) and "s3fs" in said:
        return f"{said} ({s3.INSTALL})"
    if _raised_in(error, ("botocore", "aiobotocore", "s3fs")):
        advice = s3.advice(error)
        return f"{said.rstrip('.')}. {advice}" if advice else said
    if "credentials" in said.lower() or "anonymous" in said.lower() or "401" in said:
        return f"{said}. Google's credentials come from `gcloud auth application-default login`, or from the machine"
    return said


def of_a_bucket(error: BaseException) -> bool:
    """Whether a client of a bucket raised it: their errors have no class in common, and some are Python's own."""
    return not isinstance(error, RaysidError) and _raised_in(error, CLIENTS)


def _raised_in(error: BaseException, packages: Collection[str]) -> bool:
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(name.split(".")[0] in packages for name in (type(error).__module__, *frames))
