"""Connecting to a running cluster."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import answers, free_port, wait_until

ASKS_AN_ACTOR = """
import ray
from raysid.cluster.connect import connect

class Answer:
    def get(self):
        return 42

connect()
print(ray.get(ray.remote(Answer).options(name="answer").remote().get.remote(), timeout=60))
"""


@pytest.mark.parametrize("mode", ["disabled", pytest.param("token", marks=pytest.mark.slow)])
def test_a_user_with_a_token_joins_clusters_that_ask_for_it_and_those_that_do_not(
    mode: str, tmp_path: Path
) -> None:
    token = tmp_path / "auth_token"
    token.write_text(secrets.token_hex(32))
    unset = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
    user = {name: value for name, value in os.environ.items() if name not in unset}
    user["RAY_AUTH_TOKEN_PATH"] = str(token)
    port = free_port()
    folder = f"/tmp/raysid-{mode}-{os.getpid()}"  # short: Ray makes sockets in it
    ray = Path(sys.executable).with_name("ray")
    start = (
        f"{ray} start --head --block --port={port} --num-cpus=1 --include-dashboard=false --temp-dir={folder}"
    )
    head = subprocess.Popen(start.split(), env=user | {"RAY_AUTH_MODE": mode}, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: answers(port), 60, "the cluster's head")
        asked = subprocess.run(
            [sys.executable, "-c", ASKS_AN_ACTOR],
            env=user | {"RAY_ADDRESS": f"127.0.0.1:{port}"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (asked.returncode, asked.stdout) == (0, "42\n"), asked.stderr
    finally:
        head.terminate()
        head.wait(60)
        shutil.rmtree(folder, ignore_errors=True)
