"""Versions of the files that raysid writes, recorded in them as `"format": "raysid-1"`.

Listing the recipes imports this: it needs no library.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from raysid.errors import UserError

if TYPE_CHECKING:
    from upath import UPath

NEWEST = 1
FORMAT = f"raysid-{NEWEST}"


def check_format(found: Any, path: str | UPath) -> None:
    """Refuse a file whose format this release does not know.

    Args:
        found: the file's `format`; None in a file of release 0.1.0, which is read.
        path: the file, for the message.

    Raises:
        UserError: a newer release wrote the file, or the format is no version.
    """
    if found is None:
        return
    version = re.fullmatch(r"raysid-(\d{1,9})", found) if isinstance(found, str) else None
    if version is None:
        raise UserError(f"{path} has the unknown format {str(found)[:80]!r}; this release reads {FORMAT}")
    if int(version[1]) > NEWEST:
        raise UserError(
            f"{path} was written by a newer release of raysid (format {found}; this one reads up to {FORMAT}): "
            "update raysid; nothing was changed"
        )
