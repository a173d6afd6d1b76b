"""A run on a cluster that gains a node and loses it: `python -m tests.trainers.elastic_run RECIPE RUN`.

It is a separate process because a process can join only one cluster.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from tests.support.processes import wait_until
from tests.support.tiny_run import lines_of

SECONDS = 150


def main(recipe: str, run: Path) -> int:
    """Distil the recipe, whose workers each need one `slot`; return the exit code."""
    head = {"num_cpus": 2, "resources": {"slot": 1}, "include_dashboard": False}
    cluster: Any = Cluster(initialize_head=True, head_node_args=head)
    command = [sys.executable, "-m", "raysid", "distill", recipe]
    process = subprocess.Popen(command, env=os.environ | {"RAY_ADDRESS": cluster.address})
    try:
        wait_until(lambda: bool(workers_of(run)), SECONDS, "the first worker's steps")
        node = cluster.add_node(num_cpus=1, resources={"slot": 1})
        wait_until(lambda: workers_of(run)[-4:] == [2] * 4, SECONDS, "steps of two workers")
        cluster.remove_node(node)
        return process.wait(4 * SECONDS)
    finally:
        process.kill()
        cluster.shutdown()


def workers_of(run: Path) -> list[int]:
    """The number of workers in each of the run's lines of metrics."""
    lines = lines_of(run, "perf") if (run / "metrics.jsonl").exists() else []
    return [int(line["replicas/worker"]) for line in lines]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
