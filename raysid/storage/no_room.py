"""No room: a full disk, a used-up quota, of a file system or of a bucket."""

from __future__ import annotations

import errno
import os
import re

from raysid.errors import RaysidError

AGAIN = "make room there, then run the same command"  # to resume, or to start again
_FILE_SYSTEM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "no file may be that large here",
}
# Buckets refuse for want of room as they refuse for want of permission: what they say differs. Much of it speaks of
# quotas that are not set, and buckets are called after them.
_WORDS = re.compile(r"quota.{0,20}exceed|storage ?full|insufficient storage", re.IGNORECASE)


def no_room(error: BaseException) -> str | None:
    """What there is no more of, where that is why something could not be written; None for any other error.

    One that is asked too often is none: a bucket says so by a code, and of a quota, too.
    """
    if isinstance(error, RaysidError):
        return None
    if isinstance(error, OSError) and error.errno in _FILE_SYSTEM:
        return _FILE_SYSTEM[error.errno]
    code = str(getattr(error, "code", ""))
    if getattr(error, "filename", None) is not None or code == "429":
        return None
    if code != "507" and not _WORDS.search(str(error)):
        return None
    return f"the bucket's quota is used up ({one_line(error)})"


def one_line(error: BaseException) -> str:
    """What an error says, or its class where it says nothing; 200 characters at most."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"^\[Errno \d+\] ", "", text)  # which s3fs makes up
    return text if len(text) <= 200 else text[:200] + "..."


def of_file(error: OSError, path: str | os.PathLike[str]) -> OSError:
    """The error, named after the file that was to be written: a write does not know its file's name."""
    return error if error.errno is None else OSError(error.errno, error.strerror, os.fspath(path))
