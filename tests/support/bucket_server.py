"""Servers of Google Cloud Storage and of S3 on this machine, and a bad connection to them."""

from __future__ import annotations

import http.client
import json
import random
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from subprocess import DEVNULL, Popen

from upath import UPath

from tests.support.processes import answers, free_port, wait_until

BUCKET = "bucket"
_SERVE = (
    "import sys; from gcp_storage_emulator.server import create_server as c; "
    f"c('127.0.0.1', int(sys.argv[1]), in_memory=True, default_bucket='{BUCKET}').run()"
)


@contextmanager
def bucket_server() -> Iterator[str]:
    """A server with an empty bucket; its address, as STORAGE_EMULATOR_HOST takes it."""
    port = free_port()
    with _serving(port, "-c", _SERVE, str(port)) as address:
        yield address


@contextmanager
def s3_server() -> Iterator[str]:
    """An S3 server with an empty bucket; its address, as AWS_ENDPOINT_URL takes it."""
    port = free_port()
    with _serving(port, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)) as address:
        urllib.request.urlopen(urllib.request.Request(f"{address}/{BUCKET}", method="PUT")).close()
        yield address


@contextmanager
def _serving(port: int, *arguments: str) -> Iterator[str]:
    server = Popen([sys.executable, *arguments], stdout=DEVNULL, stderr=DEVNULL)
    try:
        wait_until(lambda: answers(port), 30, "the bucket's server")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def in_bucket(server: str, url: str) -> UPath:
    """A place in a server's bucket."""
    if url.startswith("s3://"):
        return UPath(url, endpoint_url=server, key="key", secret="secret")
    return UPath(url, endpoint_url=server, token="anon", use_listings_cache=False)


def s3_environment(server: str) -> dict[str, str]:
    """What a process goes by that is to find an S3 server at s3://; it looks at nobody's credentials."""
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    return {"AWS_ENDPOINT_URL": server, "AWS_DEFAULT_REGION": "us-east-1", **keys}


FATES = {"served": 72, "503": 20, "dropped before": 4, "dropped after": 4}  # in percent, where it is bad


class Connection:
    """Stands before a server. A bad one answers a fifth of the requests with 503, and drops some.

    A dropped one may have done its work: the client cannot know.

    Attributes:
        address: where it listens.
        met: how often each fate was met.
        sent: bytes that went to clients.
        before: called with a request's address and what it brings, before the server has it.
        refusal: what the server says to whoever writes, where it takes no more: a status and a reason, for S3 a code.
        refuses_all: it says so to whoever reads, too.
    """

    def __init__(self, server: str, bad: bool, seed: int = 0) -> None:
        self.met: Counter[str] = Counter()
        self.refusal: tuple[int, str] | None = None
        self.refuses_all = False
        self.sent = 0
        self.before: Callable[[str, bytes], None] = lambda path, body: None
        self._bad = bad
        self._chance = random.Random(seed)
        self._host = server.removeprefix("http://")
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def serve(self) -> None:
                outer._serve(self)

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = serve

            def log_message(self, *arguments: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *arguments: object) -> None:
                """A client that has gone away is none."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        fate = self._chance.choices([*FATES], [*FATES.values()])[0] if self._bad else "served"
        self.met[fate] += 1
        if fate == "dropped before":
            request.close_connection = True
            return
        if fate == "503":
            request.send_response(503)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if self.refusal is not None and (self.refuses_all or request.command in ("POST", "PUT")):
            status, reason = self.refusal
            said = json.dumps({"error": {"code": status, "message": reason}}).encode()
            if request.headers.get("Authorization", "").startswith(
                "AWS4"
            ):  # S3 has XML, and codes that are words
                said = f"<Error><Code>{reason}</Code><Message>not now</Message></Error>".encode()
            request.send_response(status)
            request.send_header("Content-Type", "application/json")
            request.send_header("Content-Length", str(len(said)))
            request.end_headers()
            if request.command != "HEAD":
                request.wfile.write(said)
            return
        self.before(request.path, body)
        connection = http.client.HTTPConnection(self._host, timeout=60)
        connection.request(request.command, request.path, body, dict(request.headers.items()))
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if fate == "dropped after":
            request.close_connection = True
            return
        request.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                request.send_header(name, value)
        length = len(content)
        if request.command == "HEAD":  # it tells of what a GET would bring
            length = int(answer.getheader("Content-Length") or 0)
        request.send_header("Content-Length", str(length))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content)
            self.sent += len(content)
