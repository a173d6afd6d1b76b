"""Captions of pictures: the choice of their column, and what may be one."""

from __future__ import annotations

from collections.abc import Sequence

from raysid.data.labels import names_listed
from raysid.data.pictures import BadPicture
from raysid.data.source import NOT_UTF8, SEPARATOR, USUAL_COLUMNS
from raysid.errors import UserError


def caption_column(given: str | None, there: Sequence[str], where: str) -> str:
    """Return the column of the captions among those that are there.

    Args:
        given: `data.caption_column`.
        where: the origin of the columns, for the message.

    Raises:
        UserError: the column is not there, or none is given and there is none or several of the usual names.
    """
    if given is not None:
        if given not in there:
            raise UserError(f"{where} has no column of captions {given}; columns: {names_listed(there)}")
        return given
    usual = [column for column in USUAL_COLUMNS if column in there]
    if len(usual) != 1:
        held = f"several ({', '.join(usual)})" if usual else "none"
        raise UserError(
            f"{where} has {held} of the usual columns of captions ({', '.join(USUAL_COLUMNS)}): give "
            f"data.caption_column; columns: {names_listed(there)}"
        )
    return usual[0]


def joined_captions(value: object) -> str:
    """Return the captions of a picture as a block has them.

    Args:
        value: a text, or several in a list; anything else is no caption.

    Raises:
        BadPicture: there is none, or none that can be used.
    """
    values = value if isinstance(value, list | tuple) else [value]
    texts = [" ".join(each.replace(SEPARATOR, " ").split()) for each in values if isinstance(each, str)]
    if found := [text for text in texts if text and _is_utf8(text)]:
        return SEPARATOR.join(found)
    odd = next((each for each in values if each is not None and not isinstance(each, str)), None)
    if odd == NOT_UTF8 or any(texts):
        raise BadPicture("has a caption that is not UTF-8")
    if odd is not None:
        raise BadPicture(f"has a caption of type {type(odd).__name__}, not a text")
    raise BadPicture("has an empty caption" if texts else "has no caption")


def _is_utf8(text: str) -> bool:
    """True unless a text has half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
