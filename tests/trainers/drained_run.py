"""A run whose nodes are drained, as a cloud's notice before a preemption does: `python -m tests.trainers.drained_run`.

Arguments: RECIPE RUN. It is a separate process because a process can join only one cluster.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from raysid.ray_internals import draining_nodes
from tests.support.processes import wait_until
from tests.support.tiny_run import step_recorded

SECONDS = 180
NOTICE_SECONDS = 100


def main(recipe: str, run: Path) -> int:
    """Distil a recipe whose scorers each need one `scorer`, and learners one `learner`; return the exit code."""
    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False)
    scorers = cluster.add_node(num_cpus=1, resources={"scorer": 1})
    learners = cluster.add_node(num_cpus=1, resources={"learner": 2})
    command = [sys.executable, "-m", "raysid", "distill", recipe]
    process = subprocess.Popen(command, env=os.environ | {"RAY_ADDRESS": cluster.address})
    try:
        wait_until(lambda: step_recorded(run) >= 2, SECONDS, "the first steps")
        other = cluster.add_node(num_cpus=1, resources={"scorer": 1, "learner": 2})
        drain(cluster.address, scorers.node_id)
        wait_until(lambda: homes("TeacherActor") == {other.node_id}, SECONDS, "the scorer's move")
        cluster.remove_node(scorers, allow_graceful=False)
        step = step_recorded(run)
        wait_until(lambda: step_recorded(run) > step + 4, SECONDS, "steps with the other scorer")
        drain(cluster.address, learners.node_id)
        wait_until(lambda: homes("GeneratorActor") == {other.node_id}, SECONDS, "the learners' move")
        cluster.remove_node(learners, allow_graceful=False)
        return process.wait(2 * SECONDS)
    finally:
        process.kill()
        ray.shutdown()
        cluster.shutdown()


def drain(address: str, node: str) -> None:
    """Give a node notice, as `ray drain-node` does."""
    command = ["ray", "drain-node", "--address", address, "--node-id", node]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "preempted"]
    command += ["--deadline-remaining-seconds", str(NOTICE_SECONDS)]
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", *command[1:]], check=True)
    wait_until(lambda: node in draining_nodes(), 30, "the notice")


def homes(name: str) -> set[str]:
    """The IDs of the nodes of the living actors of a class."""
    actors = ray._private.state.actors().values()  # type: ignore[attr-defined]
    alive = [one for one in actors if one["ActorClassName"] == name and one["State"] == "ALIVE"]
    return {one["Address"]["NodeID"] for one in alive}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
