"""A local server that speaks as much of the Hugging Face Hub's protocol as a download takes."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.http_server import QuietHandler, serving

LARGE = ".safetensors"  # the ending of files that a redirect leads to, as the Hub's large files


class Hub:
    """The server's models.

    Attributes:
        address: for HF_ENDPOINT.
        models: the files of each revision of a model, by name and commit, and the commit of `main`.
        asked: number of GET requests by path.
        fails: True answers every request with 503.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.models: dict[str, dict[str, dict[str, bytes]]] = {}
        self.main: dict[str, str] = {}
        self.asked: Counter[str] = Counter()
        self.fails = False

    def publish(self, name: str, files: dict[str, bytes]) -> str:
        """Make files the newest revision of a model; return its commit."""
        content = json.dumps({path: hashlib.sha1(data).hexdigest() for path, data in files.items()})
        commit = hashlib.sha1(content.encode()).hexdigest()
        self.models.setdefault(name, {})[commit] = files
        self.main[name] = commit
        return commit

    def revision(self, name: str, revision: str) -> str | None:
        """The commit of a revision: `main` or a commit; None if there is none."""
        return (
            self.main.get(name) if revision == "main" else revision if revision in self.models[name] else None
        )


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serve until the block ends."""

    class Handler(QuietHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.command == "GET":
                hub.asked[self.path] += 1
            path = self.path.partition("?")[0]
            if hub.fails:
                return self.answer(503, b"busy")
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?/?", path):
                return self.api(match[1], match[2], match[3] or "main")
            if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                return self.resolve(*match.groups())
            if match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/([^/]+)/(.+)", path):
                return self.answer(200, hub.models[match[1]][match[2]][match[3]])
            self.answer(404, b"")

        def api(self, name: str, kind: str | None, revision: str) -> None:
            if name not in hub.models:
                return self.answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
            commit = hub.revision(name, revision)
            if commit is None:
                return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            files = hub.models[name][commit]
            content: object = {
                "id": name,
                "modelId": name,
                "sha": commit,
                "private": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": [{"rfilename": path} for path in files],
            }
            if kind == "tree":
                content = [
                    {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    | ({"lfs": self.large(data)} if path.endswith(LARGE) else {})
                    for path, data in files.items()
                ]
            self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def large(self, data: bytes) -> dict[str, object]:
            return {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 100}

        def resolve(self, name: str, revision: str, path: str) -> None:
            commit = hub.revision(name, revision) if name in hub.models else None
            data = hub.models[name][commit].get(path) if commit else None
            if data is None:
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            headers = {"X-Repo-Commit": str(commit)}
            if not path.endswith(LARGE):
                return self.answer(200, data, headers | {"ETag": f'"{hashlib.sha1(data).hexdigest()}"'})
            digest = hashlib.sha256(data).hexdigest()
            headers |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(data))}
            elsewhere = hub.address.replace("127.0.0.1", "localhost")  # the Hub redirects to another host
            self.answer(302, b"", headers | {"Location": f"{elsewhere}/cdn/{name}/{commit}/{path}"})

        def answer(self, code: int, content: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(code)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

    with serving(Handler) as address:
        hub = Hub(address)
        yield hub
