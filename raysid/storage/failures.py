"""Translate the errors of the operating system and of the buckets' clients into StorageError."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from upath import UPath

from raysid.errors import StorageError
from raysid.storage import s3

MAKE_ROOM = "make room there, then run the same command"
_FULL_DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "no file may be that large here",
}
# Buckets refuse a write for a used-up quota with the same codes as for a missing permission: only the text differs.
# Other texts speak of quotas, too ("requires a quota project"), and so do names of buckets.
_FULL_BUCKET = re.compile(r"quota.{0,20}exceed|storage ?full|insufficient storage", re.IGNORECASE)
# The clients' own exceptions have no base class in common. A client that is not imported has raised nothing.
_CLIENT_ERRORS = (
    ("aiohttp", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("gcsfs.retry", "ChecksumError"),
    ("gcsfs.retry", "NonRetryableError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
)
_GOOGLE = "Google's credentials come from `gcloud auth application-default login`, or from the machine"


@contextmanager
def storage_errors(
    path: str | os.PathLike[str] | UPath, action: Literal["read", "written"]
) -> Iterator[None]:
    """Raise StorageError for what the operating system or a bucket's client raises inside the block.

    Reading lets FileNotFoundError pass: a missing file is an answer. Keep the block to calls that touch the storage.
    """
    try:
        yield
    except foreign_errors(path) as error:
        if action == "read" and isinstance(error, FileNotFoundError):
            raise
        raise storage_error(error, path, action) from error


def foreign_errors(path: str | os.PathLike[str] | UPath) -> tuple[type[Exception], ...]:
    """The exception classes by which a call that touches `path` reports a failure."""
    if "://" not in str(path):
        return (OSError,)
    # gcsfs raises ValueError for a bad request, fsspec RuntimeError, and ImportError where a client is not installed.
    return OSError, ValueError, RuntimeError, ImportError, *client_errors()


def client_errors() -> tuple[type[Exception], ...]:
    """The exception classes of the buckets' clients that are imported."""
    return tuple(
        getattr(sys.modules[module], name) for module, name in _CLIENT_ERRORS if module in sys.modules
    )


def storage_error(
    error: BaseException, path: str | os.PathLike[str] | UPath, action: Literal["read", "written"]
) -> StorageError:
    """Convert another library's error to a StorageError."""
    name = str(path)
    remote = "://" in name
    if full := _full(error, remote):
        return StorageError(name, action, full, full=True)
    system_text = None if remote else getattr(error, "strerror", None)
    return StorageError(name, action, system_text or _with_advice(error, name))


def explain(error: BaseException) -> str:
    """An error's text in one line of at most 200 characters, or its class where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"^\[Errno \d+\] ", "", text)  # s3fs makes the number up
    return text if len(text) <= 200 else text[:200] + "..."


def _full(error: BaseException, remote: bool) -> str | None:
    """The full resource that is the cause of an error; None if the cause is another."""
    if isinstance(error, OSError) and error.errno in _FULL_DISK:
        return _FULL_DISK[error.errno]
    code = str(getattr(error, "code", ""))
    # 429 is the answer to too many requests; its text speaks of a quota, too.
    if not remote or code == "429" or not (code == "507" or _FULL_BUCKET.search(str(error))):
        return None
    return f"the bucket's quota is used up ({explain(error)})"


def _with_advice(error: BaseException, path: str) -> str:
    text = explain(error)
    if isinstance(error, ImportError) and "s3fs" in text:
        return f"{text} ({s3.INSTALL})"
    if path.startswith("s3://"):
        advice = s3.advice(error)
        return f"{text.rstrip('.')}. {advice}" if advice else text
    if "credentials" in text.lower() or "anonymous" in text.lower() or "401" in text:
        return f"{text}. {_GOOGLE}"
    return text
