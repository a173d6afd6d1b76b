"""The seconds of each call of each role on a microbatch: counted operations over a stated speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from raysid.config import Config
from raysid.plan.costs import NetworkCosts
from raysid.plan.devices import EFFICIENCY, Arithmetic, Device
from raysid.plan.memory import passes

ROLES = ("fake_score", "generator", "teacher")

Seconds = Mapping[tuple[str, str], float]
"""Seconds of one call on a microbatch, by role and method."""

LAUNCH = 8e-6  # seconds that PyTorch takes to launch an operation on a GPU, which bound small batches


class Parts(Protocol):
    """The source of a prediction's seconds."""

    def seconds(self, config: Config, workers: int) -> Seconds:
        """Return the seconds of each call; `workers`: processes that hold all roles; 0 for `split`."""

    def all_reduce(self, ranks: int, one_node: bool) -> float:
        """Return the seconds of summing a network's gradients over some ranks."""


def arithmetic(config: Config, role: str) -> Arithmetic:
    """Return the arithmetic of a role's network."""
    precision = (config.teacher.precision if role == "teacher" else None) or config.precision
    return "tf32" if precision == "float32" and config.compute.tf32 else precision


@dataclass(frozen=True)
class CountedParts:
    """Seconds from counted operations.

    Attributes:
        efficiency: share of the data sheet's speed that is reached; None: `EFFICIENCY`.
        network: bytes per second between nodes.
    """

    costs: NetworkCosts
    device: Device
    teacher_device: Device
    efficiency: float | None
    network: float

    def speed(self, config: Config, role: str, separate_teacher: bool = True) -> float:
        """Return the operations per second of a role's device.

        Args:
            separate_teacher: the teacher has devices of its own.

        Raises:
            UserError: the device lacks the config's arithmetic.
        """
        kind = arithmetic(config, role)
        teacher = role == "teacher"
        setting = "teacher.precision" if teacher and config.teacher.precision else "precision"
        peak = (self.teacher_device if teacher and separate_teacher else self.device).peak(kind, setting)
        return peak * (self.efficiency or EFFICIENCY[kind])

    def seconds(self, config: Config, workers: int) -> Seconds:
        costs, guidance, size = self.costs, config.method.guidance, config.microbatch
        speed = {role: self.speed(config, role, workers == 0) for role in ROLES}

        def call(role: str, operations: float, launches: float) -> float:
            """Return seconds; `launches` is in forward passes."""
            return max(size * operations / speed[role], launches * costs.kernels * LAUNCH)

        teacher, eval_fake, train_fake = (
            passes(costs, scale) for scale in (guidance.eval_teacher, guidance.eval_fake, guidance.train_fake)
        )
        learn = train_fake * (costs.forward + costs.backward)
        if config.method.adversarial is not None:
            learn += costs.encoder + costs.encoder_backward
        # A graph that is not kept is computed again.
        again = costs.forward if config.graphs_kept == 0 else 0.0
        # A process keeps a microbatch's embeddings; with `alternating` psi learns from prompts of its own.
        text = {role: costs.encode if workers == 0 or role == "generator" else 0.0 for role in ROLES}
        learn += text["fake_score"] if config.schedule == "alternating" else 0.0
        return {
            ("generator", "images"): call("generator", text["generator"] + costs.forward, 1),
            ("generator", "generate"): call("generator", text["generator"] + costs.forward, 1),
            ("generator", "cotangents"): call("generator", 0.0, 0.1),
            ("generator", "accumulate"): call("generator", costs.backward, 2),
            ("generator", "step"): call("generator", 0.0, 0.2),
            ("teacher", "score"): call("teacher", text["teacher"] + teacher * costs.forward, teacher),
            ("teacher", "pullback"): call("teacher", teacher * (again + costs.pullback), teacher),
            ("fake_score", "score"): call(
                "fake_score", text["fake_score"] + eval_fake * costs.forward, eval_fake
            ),
            ("fake_score", "pullback"): call("fake_score", eval_fake * costs.pullback, eval_fake),
            ("fake_score", "accumulate"): call("fake_score", learn, 3 * train_fake),
            ("fake_score", "step"): call("fake_score", 0.0, 0.2),
        }

    def all_reduce(self, ranks: int, one_node: bool) -> float:
        rate = self.device.link if one_node else self.network
        return all_reduce_bytes(self.costs.parameters, ranks) / rate


def calls_of(role: str, config: Config, seconds: Seconds) -> list[float]:
    """Return the seconds of each call of a role on a microbatch, without its step."""
    return [
        value
        for (other, method), value in seconds.items()
        if other == role and method != "step" and (method != "images" or config.schedule == "alternating")
    ]


def role_seconds(role: str, config: Config, seconds: Seconds) -> float:
    """Return the seconds that a role works in a step, as one process."""
    count = config.batch_size // config.microbatch
    return sum(calls_of(role, config, seconds)) * count + seconds.get((role, "step"), 0.0)


def all_reduce_bytes(parameters: int, ranks: int) -> float:
    """Return the bytes that each rank sends to sum a network's gradients in a ring."""
    return 2 * (ranks - 1) / ranks * 4 * parameters
