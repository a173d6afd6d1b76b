"""What each role keeps in its device's memory, and what that comes to where several share one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from raysid.config import Config
from raysid.plan.costs import NetworkCosts

FLOAT = 4
ADAM = 2  # averages of each gradient and of its square
PROCESS = 600e6  # bytes of a process beside all tensors: the GPU's context and libraries (or torch, on a CPU)
FRAGMENTS = 0.1  # the share of a device that is left for what the allocator cannot use, and for workspaces
BUCKET = 256e6  # the copy of gradients that is summed at a time (raysid.roles.ranks)


@dataclass(frozen=True)
class RoleMemory:
    """Bytes of one process of a role.

    Attributes:
        weights: with gradients, Adam's averages and the moving average, as far as the role has them.
        graphs: of the microbatches that it keeps, at most at a time.
    """

    weights: float
    graphs: float

    @property
    def total(self) -> float:
        return self.weights + self.graphs


def passes(costs: NetworkCosts, scale: float) -> int:
    """Passes of the network for one guided prediction: the conditional one and, where guidance guides, the other."""
    return 2 if scale != 1.0 and costs.classes else 1


def role_memory(config: Config, costs: NetworkCosts) -> dict[str, RoleMemory]:
    """What one process of each role keeps when every one lives in its own (`split`), by role."""
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
            (1 + 1 + ADAM + 1) * weights + buckets["generator"], kept["generator"] * graphs.generate
        ),
        "teacher": RoleMemory(weights, teacher_kept * graphs.teacher),
        # What was scored is pulled back before psi learns from it.
        "fake_score": RoleMemory(
            (1 + 1 + ADAM) * weights + buckets["fake_score"],
            max(kept["fake_score"] * graphs.fake_score, graphs.learn),
        ),
    }


def whole_memory(config: Config, costs: NetworkCosts, ranks: int = 1) -> RoleMemory:
    """What a process keeps that holds all three roles: `local`, or one of the `ranks` workers of `colocated`."""
    weights = FLOAT * costs.parameters
    bucket = min(weights, BUCKET) if ranks > 1 else 0.0
    graphs = _graphs(config, costs)
    group = _group(config)
    generated, scored = group * graphs.generate, group * (graphs.teacher + graphs.fake_score)
    if config.schedule == "overlapped":
        # psi learns while theta's images still wait for their pulls' use.
        most = generated + max(scored, graphs.learn)
    else:
        most = max(generated + scored, graphs.learn)
    return RoleMemory((5 + 1 + 4) * weights + bucket, most)


def usable(memory: float, processes: int) -> float:
    """Bytes of a device that tensors of so many processes can have."""
    return (1 - FRAGMENTS) * memory - processes * PROCESS


@dataclass(frozen=True)
class _Graphs:
    """Bytes that a microbatch keeps: generating, scoring (teacher, fake score), psi's learning."""

    generate: float
    teacher: float
    fake_score: float
    learn: float


def _graphs(config: Config, costs: NetworkCosts) -> _Graphs:
    size, guidance = config.microbatch, config.method.guidance
    own, teachers = config.precision, config.teacher.precision or config.precision
    graph, copies = costs.graph(own), costs.copies(own)
    learn = passes(costs, guidance.train_fake) * graph.learn
    if config.method.adversarial is not None:
        learn += graph.encoder
    return _Graphs(
        generate=size * graph.learn + copies,
        teacher=size * passes(costs, guidance.eval_teacher) * costs.graph(teachers).pull
        + costs.copies(teachers),
        fake_score=size * passes(costs, guidance.eval_fake) * graph.pull + copies,
        learn=size * learn + copies,
    )


def _group(config: Config) -> int:
    """Microbatches that are under way at a time."""
    return min(config.in_flight, math.ceil(config.batch_size / config.microbatch))
