"""A real TensorBoard, queried through the HTTP API that its web page uses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import wait_until


class TensorBoard:
    """Client of a TensorBoard server."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}/data/plugin/"
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def get(self, path: str, **query: Any) -> Any:
        return json.loads(self.read(path, urllib.parse.urlencode(query)))

    def read(self, path: str, query: str) -> bytes:
        with self._open(f"{self._base}{path}?{query}", timeout=30) as answer:
            return answer.read()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        json_type = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._base + path, json.dumps(body).encode(), json_type)
        with self._open(request, timeout=30) as answer:
            return json.loads(answer.read())

    def scalars(self, tag: str, run: str) -> list[tuple[int, float]]:
        return [(step, float(value)) for _, step, value in self.get("scalars/scalars", run=run, tag=tag)]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition on the server's answers holds."""
        wait_until(condition, 60, "TensorBoard's answer")


@contextmanager
def tensorboard(logs: Path | str, fast: bool = True) -> Iterator[TensorBoard]:
    """Run a TensorBoard on a free port of the loopback, with its fast data loader (the default) or the slow one."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--host", "127.0.0.1"]
    command += ["--port", "0", "--reload_interval", "1", "--load_fast", "auto" if fast else "false"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                yield TensorBoard(int(found[1]))
                break
        else:
            pytest.fail("TensorBoard did not start")
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
