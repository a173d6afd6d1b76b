"""Fixtures of all tests."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("tests.support")

# Set before torch and numpy are imported, here and in the processes that tests start: tests compare results bit
# for bit, which needs equal thread counts, and their processes share two cores.
for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{_library}_NUM_THREADS"] = "1"

LONGEST_FIRST = ("trainers", "cluster", "actors", "bench", "plan")  # folders; the others follow


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests so that the processes of `make test`, which share them by file, end at about the same time."""
    rank = {folder: number for number, folder in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.parent.name, len(rank)))


@pytest.fixture(scope="session")
def cluster_bucket() -> Iterator[str]:
    """The address of the server that gs:// leads to in the processes of `ray_cluster`, for the whole session."""
    from tests.support.bucket_server import bucket_server

    with bucket_server() as address:
        yield address


@pytest.fixture(scope="session")
def forked_workers() -> Iterator[None]:
    """Make the workers of the Ray clusters that this process starts forks: see `tests.support.forked_workers`."""
    from tests.support import forked_workers

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        socket = f"{folder}/socket"
        # -P: the modules beside the script are not those that it imports.
        command = [sys.executable, "-P", str(forked_workers.__file__), "--serve", socket]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None and server.stdout.readline() == b"ready\n"
            patch.setenv(forked_workers.SOCKET, socket)
            forked_workers.start_forked_workers()
            yield


@pytest.fixture(scope="session")
def ray_cluster(cluster_bucket: str, forked_workers: None) -> Iterator[None]:
    """A new Ray cluster with 2 CPU slots, for the whole session."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", cluster_bucket)
        # Ray's workers start at niceness 15: beside another process of tests they would starve.
        patch.setenv("RAY_worker_niceness", "0")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
