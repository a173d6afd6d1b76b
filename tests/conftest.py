"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Before torch and numpy are imported, here and in the processes that tests start: figures are compared bit for
# bit, which holds at equal thread counts, and the tests' processes share two cores.
for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{_library}_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def cluster_bucket() -> Iterator[str]:
    """The address of a bucket's server that the processes of `ray_cluster` find at gs://, for the whole session."""
    from tests.support.bucket_server import bucket_server

    with bucket_server() as address:
        yield address


@pytest.fixture(scope="session")
def ray_cluster(cluster_bucket: str) -> Iterator[None]:
    """A Ray cluster of its own, with 2 CPU slots, for the whole session; never one that already runs."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", cluster_bucket)
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
