"""One request for a file of the web, or for the rest of one that broke off."""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

from raysid.storage.failures import explain

SILENT_SECONDS = 60  # without a byte; a whole file may take any time


class NoFile(Exception):
    """There is no such file."""


class Unreachable(Exception):
    """A server does not answer as it must; the text is the reason in one line."""


@dataclass(frozen=True)
class Part:
    """An answer: the file, or the rest of it.

    Attributes:
        start: bytes of the file before this answer.
        total: bytes of the whole file; None if the server gives none.
        version: changes with the file; None if the server gives none, and the file cannot be continued.
    """

    start: int
    total: int | None
    version: str | None
    _answer: Any

    def pieces(self, size: int) -> Iterator[bytes]:
        """Yield the content in pieces. Raises Unreachable if the connection fails."""
        while piece := self._read(size):
            yield piece

    def _read(self, size: int) -> bytes:
        try:
            content: bytes = self._answer.read(size)
            return content
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"the answer broke off ({explain(error)})") from None


@contextmanager
def get(url: str, start: int = 0, version: str | None = None) -> Iterator[Part]:
    """Ask for a file, or for its rest from byte `start` if it still has this `version`.

    Raises:
        NoFile: the server has no such file.
        Unreachable: it cannot be reached, or answers with an error or with a web page, as for a login.
    """
    headers = {"User-Agent": "raysid", "Accept-Encoding": "identity"}
    if start and version:
        headers |= {"Range": f"bytes={start}-", "If-Range": version}
    try:
        # As browsers do, without quoting again what is quoted.
        request = Request(quote(url, safe="%/:=&?~#+!$,;'@()*[]"), headers=headers)
        answer = urlopen(request, timeout=SILENT_SECONDS)
    except HTTPError as error:
        error.close()
        if error.code == 416 and start:  # the file is not as long as its beginning here
            with get(url) as part:
                yield part
            return
        if error.code in (404, 410):
            raise NoFile from None
        raise Unreachable(f"the server answers {error.code} ({error.reason})") from None
    except URLError as error:
        reason = error.reason
        raise Unreachable(explain(reason) if isinstance(reason, Exception) else str(reason)) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Unreachable(explain(error)) from None
    with answer:
        yield _part(answer, start)


def _part(answer: Any, start: int) -> Part:
    if answer.headers.get_content_type() == "text/html":
        raise Unreachable("the server answers with a web page, not with the file: it may need a login")
    version = answer.headers["ETag"] or answer.headers["Last-Modified"]
    if version and version.startswith("W/"):
        version = None  # a weak tag does not tell contents apart
    if answer.status == 206:
        given = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers["Content-Range"] or "")
        if given is None or int(given[1]) != start:
            raise Unreachable("the server answers with another part of the file than it was asked for")
        return Part(start, int(given[2]), version, answer)
    length = answer.headers["Content-Length"]
    return Part(0, int(length) if length and length.isdigit() else None, version, answer)
