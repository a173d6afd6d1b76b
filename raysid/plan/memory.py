"""The memory of a process: weights with optimizer state, and graphs of microbatches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from raysid.config import Config
from raysid.plan.costs import NetworkCosts

FLOAT, HALF = 4, 2
ADAM = 2  # moving averages of the gradient and of its square
PROCESS = 600e6  # bytes of a process beside its tensors: the GPU's context and libraries (on a CPU: torch)
FRAGMENTS = 0.1  # share of a device left free, for fragmentation and workspaces
BUCKET = 256e6  # the copy of gradients that is summed at a time (raysid.roles.ranks)


@dataclass(frozen=True)
class RoleMemory:
    """Bytes of one process of a role.

    Attributes:
        weights: weights, and what the role has of gradients, Adam's averages and the moving average; and those of the
            text encoder.
        graphs: graphs of the most microbatches that it keeps at a time.
    """

    weights: float
    graphs: float

    @property
    def total(self) -> float:
        return self.weights + self.graphs


def passes(costs: NetworkCosts, scale: float) -> int:
    """Return the passes of one guided prediction: 2 if a scale other than 1 guides a conditional network, else 1."""
    return 2 if scale != 1.0 and costs.conditional else 1


def role_memory(config: Config, costs: NetworkCosts) -> dict[str, RoleMemory]:
    """Return the memory of one process of each role in a `split` placement, by role."""
    workers = config.learner_workers
    kept = {role: -(-_group(config) // workers[role]) for role in workers}
    scorers = config.teacher.scaling.min_replicas
    graphs = _graphs(config, costs)
    weights = FLOAT * costs.parameters
    buckets = {role: min(weights, BUCKET) if workers[role] > 1 else 0.0 for role in workers}
    teacher_kept = max(1, min(config.graphs_kept, -(-_group(config) // scorers)))
    return {
        # weights, gradients, Adam, the average
        "generator": RoleMemory(
            (1 + 1 + ADAM + 1) * weights + buckets["generator"] + _text_bytes(config, costs, "generator"),
            kept["generator"] * graphs["generate"],
        ),
        "teacher": RoleMemory(
            weights + _text_bytes(config, costs, "teacher"), teacher_kept * graphs["teacher"]
        ),
        # Scored microbatches are pulled back before psi learns from them.
        "fake_score": RoleMemory(
            (1 + 1 + ADAM) * weights + buckets["fake_score"] + _text_bytes(config, costs, "fake_score"),
            max(kept["fake_score"] * graphs["fake_score"], graphs["learn"]),
        ),
    }


def whole_memory(config: Config, costs: NetworkCosts, ranks: int = 1) -> RoleMemory:
    """Return the memory of a process with all three roles: `local`, or one of `ranks` workers of `colocated`."""
    weights = FLOAT * costs.parameters
    bucket = min(weights, BUCKET) if ranks > 1 else 0.0
    graphs = _graphs(config, costs)
    group = _group(config)
    generated, scored = group * graphs["generate"], group * (graphs["teacher"] + graphs["fake_score"])
    if config.schedule == "overlapped":
        # psi learns while theta's graphs still wait for their pulls.
        most = generated + max(scored, graphs["learn"])
    else:
        most = max(generated + scored, graphs["learn"])
    return RoleMemory((5 + 1 + 4) * weights + bucket + _text_bytes(config, costs, "generator"), most)


def usable(memory: float, processes: int) -> float:
    """Return the bytes of a device that the tensors of so many processes can use."""
    return (1 - FRAGMENTS) * memory - processes * PROCESS


def _text_bytes(
    config: Config, costs: NetworkCosts, role: Literal["generator", "teacher", "fake_score"]
) -> float:
    """Return the bytes of a process's text encoder, which is in half precision on a GPU."""
    return (HALF if config.device_of(role) == "cuda" else FLOAT) * costs.text_parameters


def _graphs(config: Config, costs: NetworkCosts) -> dict[str, float]:
    """Return the bytes of a microbatch's graph: of generating, of scoring (teacher, fake score), of psi's learning."""
    size, guidance = config.microbatch, config.method.guidance
    own, teachers = config.precision, config.teacher.precision or config.precision
    graph, copies = costs.graph(own), costs.copies(own)
    learn = passes(costs, guidance.train_fake) * graph.learn
    if config.method.adversarial is not None:
        learn += graph.encoder
    return {
        "generate": size * graph.learn + copies,
        "teacher": size * passes(costs, guidance.eval_teacher) * costs.graph(teachers).pull
        + costs.copies(teachers),
        "fake_score": size * passes(costs, guidance.eval_fake) * graph.pull + copies,
        "learn": size * learn + copies,
    }


def _group(config: Config) -> int:
    """Return the number of microbatches in flight."""
    return min(config.in_flight, math.ceil(config.batch_size / config.microbatch))
