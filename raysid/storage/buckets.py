"""Storage locations: folders and buckets, and the settings of the buckets' clients."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

import aiohttp
import fsspec
from fsspec.config import conf
from upath import UPath

from raysid.errors import UserError, printable
from raysid.storage.failures import storage_error

LOCAL = ("", "file", "local")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
BUCKETS = ("gs", "gcs", "s3")

# gcsfs has a client for buckets of every kind, which asks for a bucket's kind by gRPC in each process. The plain one
# is the one that the tests cover, and it imports in half the time. A user's own setting stays.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

# An error of the client arrives as an exception and is reported once; its log would add a page of traces.
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)

# Other processes write to the same bucket, so a listing is out of date at once.
for _protocol in BUCKETS:
    conf.setdefault(_protocol, {}).setdefault("use_listings_cache", False)
# By default a silently dead connection is waited for without end, and received bytes are not checked.
for _protocol in ("gs", "gcs"):
    conf[_protocol].setdefault(
        "requests_timeout", aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=120)
    )
    conf[_protocol].setdefault("consistency", "md5")


def location(path: str | os.PathLike[str] | UPath) -> UPath:
    """Return the file or folder that a user's path names.

    `~` and `${NAME}` of the environment are expanded, and protocols are read in any case, as in `S3://`.

    Raises:
        UserError: a variable is not set, a protocol does not exist, or the address of a bucket has one slash.
    """
    if isinstance(path, UPath):
        return path
    text = expand(os.fspath(path))
    scheme, separator, rest = text.partition(":")
    scheme = scheme.lower()
    if separator and scheme in BUCKETS and not rest.startswith("//"):
        raise UserError(f"{text}: the address of a bucket has two slashes: {scheme}://{rest.lstrip('/')}")
    if not rest.startswith("//") or not _SCHEME.fullmatch(scheme):
        local = Path(os.path.expanduser(text))
        # fsspec sees protocols in `data:x` and `zip::x`, too, but not in absolute paths.
        return UPath(local.absolute() if ":" in text else local)
    if scheme not in (*LOCAL, *BUCKETS):  # fsspec has more, some of which fetch from the web or run programs
        raise UserError(
            f"{text} is neither a path nor a bucket: {scheme}:// is not read; give a path, gs://... or s3://..."
        )
    try:
        return listed_path(f"{scheme}:{rest}")
    except ValueError as error:  # of urllib, for `s3://[b`
        raise UserError(f"{text} is not the address of a bucket: {error}") from None


def listed_path(path: str) -> UPath:
    """Return the path of a file as a listing gives it: `~`, variables and `::` in it are parts of its name."""
    scheme, separator, rest = path.partition("://")
    bucket, _, key = rest.partition("/")
    # The first argument of UPath may be a chain of protocols, in which `::` separates them.
    return UPath(f"{scheme}://{bucket}", key) if separator and scheme in BUCKETS and key else UPath(path)


def expand(text: str) -> str:
    """Replace each `${NAME}` by the environment's variable. Raises UserError if one is not set, or for a zero byte."""
    if "\0" in text:
        raise UserError(f"{printable(text)}: a path cannot have a zero byte")

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise UserError(f"{text}: the environment has no variable {match[1]}")
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", value, text)


def storage_folder(storage: str) -> UPath:
    """Return a storage as an absolute folder, or as the URL of a bucket.

    Raises:
        UserError: as by `location`.
        StorageError: the bucket's client is not installed.
    """
    path = location(storage)
    if is_local(path):
        return UPath(Path(path.path).absolute())
    try:
        fsspec.get_filesystem_class(path.protocol)
    except ImportError as error:
        raise storage_error(error, storage, "written") from None
    return path


def is_local(path: UPath | Path) -> bool:
    """True if a path is on a file system, where files can be appended to and renamed."""
    return getattr(path, "protocol", "") in LOCAL  # a plain Path has none


def for_ray(path: UPath) -> tuple[str, Any]:
    """Return a path as `storage_path` and `storage_filesystem` of Ray Train and Ray Tune.

    From a URL Ray would make a separate client, with other credentials and settings than the rest of the run.
    """
    if is_local(path):
        return path.path, None
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return path.path, PyFileSystem(FSSpecHandler(path.fs))
