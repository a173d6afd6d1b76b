"""No room: a full disk, a used-up quota, of a file system or of a bucket."""

from __future__ import annotations

import errno
import os
import re

from raysid.errors import RaysidError

AGAIN = "make room there, then the same command"  # goes on, or begins again
_FILE_SYSTEM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "no file may be that large here",
}
# Buckets refuse for want of room as they refuse for want of permission, or as servers do that have much to do: what
# they say differs.
_CODES = ("429", "507")
_WORDS = re.compile(r"quota|rate ?limit|storage ?full|insufficient storage|too many requests", re.IGNORECASE)


def no_room(error: BaseException) -> str | None:
    """What there is no more of, where that is why something could not be written; None for any other error."""
    if isinstance(error, OSError) and error.errno in _FILE_SYSTEM:
        return _FILE_SYSTEM[error.errno]
    if isinstance(error, RaysidError) or getattr(error, "filename", None) is not None:
        return None  # it has its line, or is of a file system
    if str(getattr(error, "code", "")) in _CODES or _WORDS.search(str(error)):
        return "the bucket's quota is used up"
    return None


def of_file(error: OSError, path: str | os.PathLike[str]) -> OSError:
    """The error, named after the file that was to be written: a write does not know its file's name."""
    return error if error.errno is None else OSError(error.errno, error.strerror, os.fspath(path))
