"""Local servers of Google Cloud Storage and S3, and an unreliable connection to them."""

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

from tests.support.http_server import QuietHandler
from tests.support.processes import answers, free_port, wait_until

BUCKET = "bucket"
_SERVE = (
    "import sys; from gcp_storage_emulator.server import create_server as c; "
    f"c('127.0.0.1', int(sys.argv[1]), in_memory=True, default_bucket='{BUCKET}').run()"
)


@contextmanager
def bucket_server() -> Iterator[str]:
    """Serve an empty bucket of Google Cloud Storage; yield the address for STORAGE_EMULATOR_HOST."""
    port = free_port()
    with _serving(port, "-c", _SERVE, str(port)) as address:
        yield address


@contextmanager
def s3_server() -> Iterator[str]:
    """Serve an empty S3 bucket; yield the address for AWS_ENDPOINT_URL."""
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
    """A path in a server's bucket."""
    if url.startswith("s3://"):
        return UPath(url, endpoint_url=server, key="key", secret="secret")
    return UPath(url, endpoint_url=server, token="anon", use_listings_cache=False)


def s3_environment(server: str) -> dict[str, str]:
    """Environment variables that direct s3:// to a server, which accepts any credentials."""
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    return {"AWS_ENDPOINT_URL": server, "AWS_DEFAULT_REGION": "us-east-1", **keys}


def bucket_environment(address: str, protocol: str = "gs") -> dict[str, str]:
    """Environment variables that direct gs:// or s3:// to a server."""
    if protocol == "s3":
        return s3_environment(address)
    return {"STORAGE_EMULATOR_HOST": address}


FATES = {"served": 72, "503": 20, "dropped before": 4, "dropped after": 4}  # percent, of a bad connection


class Connection:
    """A proxy in front of a server. A bad one answers a fifth of the requests with 503 and drops some.

    A dropped request may have been carried out: the client cannot know.

    Attributes:
        address: the address on which the proxy listens.
        met: number of requests by fate.
        sent: bytes sent to clients.
        before: called with a request's path and body before the server receives it.
        refusal: if set, the status and reason (for S3: the error code) with which writes are refused.
        refuses_all: refuse reads as well.
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

        class Handler(QuietHandler):
            protocol_version = "HTTP/1.1"

            def serve(self) -> None:
                outer._serve(self)

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = serve

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *arguments: object) -> None:
                """Ignore clients that have disconnected."""

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
            content = json.dumps({"error": {"code": status, "message": reason}}).encode()
            if request.headers.get("Authorization", "").startswith("AWS4"):  # S3: XML, error codes are words
                content = f"<Error><Code>{reason}</Code><Message>not now</Message></Error>".encode()
            request.send_response(status)
            request.send_header("Content-Type", "application/json")
            request.send_header("Content-Length", str(len(content)))
            request.end_headers()
            if request.command != "HEAD":
                request.wfile.write(content)
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
        if request.command == "HEAD":  # the length that a GET would return
            length = int(answer.getheader("Content-Length") or 0)
        request.send_header("Content-Length", str(length))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content)
            self.sent += len(content)
