"""A local web server of files, with paths that fail."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.http_server import QuietHandler, serving


class Web:
    """The server's files and counters.

    Attributes:
        address: the server's address.
        files: content by path; of a file under `/half/...` each answer holds only the first half, `/error...` answers
            500, `/page...` a web page.
        tags: ETag of a file, by path; those files can be continued.
        fails: True answers every request with 500.
        ranges: the Range headers of the requests.
        waiting: requests under `/slow...` are answered once it is set.
        asked: number of GET requests by path.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.files: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        self.ranges: list[str] = []
        self.fails = False
        self.waiting = threading.Event()
        self.asked: Counter[str] = Counter()


@contextmanager
def web_server() -> Iterator[Web]:
    """Serve until the block ends."""

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            web.asked[self.path] += 1
            if self.path.startswith("/error") or web.fails:
                return self.send_error(500)
            content = web.files.get(self.path.partition("?")[0])
            if content is None:
                return self.send_error(404)
            if self.path.startswith("/slow"):
                web.waiting.wait(30)
            wanted, tag, total = self.headers["Range"], web.tags.get(self.path), len(content)
            if wanted:
                web.ranges.append(wanted)
            if wanted and tag and self.headers["If-Range"] == tag:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= total:
                    return self.send_error(416)
                content = content[start:]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            else:
                self.send_response(200)
            if tag:
                self.send_header("ETag", tag)
            if self.path.startswith("/page"):
                self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                half = (len(content) + 1) // 2
                self.wfile.write(content[:half] if self.path.startswith("/half") else content)

        do_HEAD = do_GET

    with serving(Handler) as address:
        web = Web(address)
        yield web
