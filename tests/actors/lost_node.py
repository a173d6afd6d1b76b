"""A scorer's node is lost between its answer and the fetch of the answer: `python -m tests.actors.lost_node`.

It is a separate process because a process can join only one cluster. It prints the scorers that answered, and the
number of the fetched answer's bytes.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster
from ray.exceptions import ObjectLostError

from raysid.actors.attendance import Attendance
from raysid.actors.fleet import Members, Scorer
from raysid.actors.pool import TeacherPool
from raysid.actors.teacher_actor import Answered
from raysid.config import RoleResources
from raysid.roles.messages import Slice

QUICKLY = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}


class Answering:
    """Stands in for a scorer: answers with an array that is too large for Ray to send it along with the call."""

    def __init__(self, number: int) -> None:
        self.number = number

    def score(
        self, noised: np.ndarray, cond: None, scale: float, run: str, moved: bool
    ) -> tuple[np.ndarray, Answered]:
        answer = Answered(Slice(0, 0, 1), ray.get_runtime_context().get_node_id())
        return np.append(2 * noised, [self.number, moved]), answer

    def pullback(
        self, noised: np.ndarray, cond: None, cotangent: np.ndarray, scale: float, run: str, moved: bool
    ) -> tuple[np.ndarray, Answered]:
        return self.score(noised + cotangent, cond, scale, run, moved)


class Receiver:
    """Stands in for the learner that needs the answers."""

    def receive(self, message: np.ndarray) -> None:
        pass

    def sum(self, message: np.ndarray) -> list[float]:
        return [float(message[:-2].sum()), float(message[-2]), float(message[-1])]


def main() -> None:
    cluster: Any = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": QUICKLY},
    )
    ray.init(address=cluster.address, log_to_driver=False)
    receiver = ray.remote(num_cpus=0)(Receiver).options(resources={"node:__internal_head__": 0.01}).remote()
    nodes = [cluster.add_node(num_cpus=1, resources={f"scorer{number}": 1}) for number in range(3)]
    actor = ray.remote(num_cpus=0, max_restarts=-1)(Answering)
    scorers = [
        Scorer(number, actor.options(resources={f"scorer{number}": 1}).remote(number)) for number in range(3)
    ]
    doomed = [0]  # the scorers whose nodes are to be lost after their next answer

    def deliver(result: Any, answered: Answered) -> Any:
        if doomed and answered.node == nodes[doomed[-1]].node_id:
            cluster.remove_node(nodes[doomed.pop(0)], allow_graceful=False)
            try:
                ray.get(receiver.sum.remote(result))
            except ObjectLostError:
                pass
            else:
                raise AssertionError("the answer is not lost with its node")
        return receiver.receive.remote(result)

    pool = TeacherPool(
        Attendance("", lambda status: Members(0, tuple(scorers)), RoleResources(), 120), deliver=deliver
    )
    noised, cotangent, fake = ray.put(np.ones(1 << 18)), ray.put(np.ones(1 << 18)), ray.put(None)
    scored: Any = pool.score(noised, None, 1.0)
    score = ray.get(receiver.sum.remote(scored.wait(fake)))
    doomed.append(scored.scorer.number)  # the one that holds the graph
    pull = ray.get(receiver.sum.remote(pool.pullback(noised, None, cotangent, 1.0).wait(fake)))
    print(json.dumps({"score": score, "pullback": pull}))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
