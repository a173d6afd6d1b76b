"""The autoscaling cluster on one machine, for the tests that need their own cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import free_port

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="package")  # not longer: its processes would slow down the tests that follow
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The autoscaling cluster of `make cluster`, on free ports; yields the address of its job server."""
    folder = f"/tmp/raysid-test-{os.getpid()}"  # short: Ray makes sockets in it
    port, dashboard = free_port(), free_port()
    local = [sys.executable, str(ROOT / "cluster" / "local.py")]
    options = [f"--folder={folder}", f"--port={port}", f"--dashboard-port={dashboard}"]
    subprocess.run([*local, "up", *options], check=True)
    yield f"http://127.0.0.1:{dashboard}"
    subprocess.run([*local, "down", f"--folder={folder}"], check=True)
