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
def ray_cluster() -> Iterator[None]:
    """A Ray cluster of its own, with 2 CPU slots, for the whole session; never one that already runs."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
