"""The check of a run's memory before it starts, on the devices that are known by then."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from raysid.config import Config
from raysid.errors import UserError
from raysid.networks.files import AnySettings
from raysid.plan.costs import NetworkCosts, quick_costs
from raysid.plan.devices import GB, KNOWN
from raysid.plan.memory import PROCESS, RoleMemory, role_memory, usable, whole_memory
from raysid.roles.faults import LESS_MEMORY

CGROUP = Path("/sys/fs/cgroup/memory.max")  # a container's limit
ROLES = ("generator", "fake_score", "teacher")


@dataclass(frozen=True)
class Room:
    """The devices of one kind that a run has.

    Attributes:
        device: `cuda` or `cpu`.
        memory: bytes of the largest one.
        count: number of devices; None if more may come.
    """

    device: str
    memory: float
    count: int | None = 1

    def holds(self, needs: list[float], free: float) -> bool:
        """True unless one process, or all together, need more bytes than there are; `free` bytes of each are taken."""
        room = self.memory - free
        return max(needs) <= room and (self.count is None or sum(needs) <= self.count * room)

    def __str__(self) -> str:
        if self.device == "cpu":
            return f"this machine has {self.memory / GB:.1f} GB"
        devices = (
            "a GPU" if self.count is None else "the GPU" if self.count == 1 else f"each of {self.count} GPUs"
        )
        return f"{devices} has {self.memory / GB:.1f} GB"


def check_run(config: Config, network: AnySettings) -> list[str]:
    """Check a run on the devices that are known here, as `check_memory`."""
    return check_memory(config, network, known_rooms(config))


def check_memory(config: Config, network: AnySettings, rooms: list[Room]) -> list[str]:
    """Compare the memory that a run needs by the plan with its devices.

    Returns:
        A warning for each kind of device on which the graphs of microbatches may not fit.

    Raises:
        UserError: weights, gradients and optimizer alone do not fit.
    """
    warnings: list[str] = []
    with suppress(RuntimeError, NotImplementedError):  # a module of the user's own that cannot be counted
        costs = quick_costs(network, config.teacher.factory, config.precision)
        for room in rooms:
            needs = _processes(config, costs, room.device)
            weights = [need.weights for need in needs]
            if not needs:
                continue
            if not room.holds(weights, 0.0):
                largest = "" if len(needs) == 1 else f", the largest process {max(weights) / GB:.1f} GB"
                raise UserError(
                    f"this run does not fit: {room}, and weights, gradients and optimizers alone are "
                    f"{sum(weights) / GB:.1f} GB in {len(needs)} process{'es' * (len(needs) > 1)}{largest}; use "
                    "devices with more memory, or more of them (`raysid plan RECIPE --devices` shows where it fits)"
                )
            if config.compute.activation_checkpointing:
                continue  # the plan has no figure for the graphs
            planned = [need.total + PROCESS for need in needs]
            if not room.holds(planned, room.memory - usable(room.memory, 0)):
                warnings.append(
                    f"this run may be out of memory: {room}, of which a tenth stays free, and the plan needs "
                    f"{max(planned) / GB:.1f} GB for the largest process and {sum(planned) / GB:.1f} GB in all, at "
                    f"microbatches of {config.microbatch}; {LESS_MEMORY}"
                )
    return warnings


def _processes(config: Config, costs: NetworkCosts, device: str) -> list[RoleMemory]:
    """Return the memory of each process of a run on one kind of device."""
    on_device = [role for role in ROLES if config.device_of(role) == device]  # type: ignore[arg-type]
    if config.placement != "split" and len(on_device) == len(ROLES):
        number = config.colocated.num_workers if config.placement == "colocated" else 1
        return [whole_memory(config, costs, number)] * number
    counts = config.learner_workers | {"teacher": config.teacher.scaling.min_replicas}
    memory = role_memory(config, costs)
    return [memory[role] for role in on_device for _ in range(counts[role])]


def known_rooms(config: Config) -> list[Room]:
    """Return the devices whose memory is known here: this machine's, and GPUs that the nodes' labels name.

    With `split` and `colocated` Ray must be connected.
    """
    here = Room("cpu", host_memory())
    gpu = float(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None
    if config.placement == "local":
        return [here, *([Room("cuda", gpu)] if gpu else [])]
    import ray

    from raysid.actors.requirements import may_grow

    nodes: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]
    grows = may_grow()
    rooms = [here] if len(nodes) == 1 and not grows else []
    with_gpus = [node for node in nodes if node["Resources"].get("GPU", 0) > 0]
    memories = [
        gpu if len(nodes) == 1 else _labelled(node.get("Labels", {}).get("ray.io/accelerator-type"))
        for node in with_gpus
    ]
    known = [memory for memory in memories if memory is not None]
    if known and len(known) == len(with_gpus):
        count = int(sum(node["Resources"]["GPU"] for node in with_gpus))
        rooms.append(Room("cuda", max(known), None if grows else count))
    return rooms


def _labelled(label: str | None) -> float | None:
    """Return the memory of the largest accelerator with this label; None if it is not known."""
    return max((device.memory for device in KNOWN if label and device.label == label), default=None)


def host_memory() -> float:
    """Return the bytes of this machine's memory, or of its container's limit."""
    limits = [float(psutil.virtual_memory().total)]
    with suppress(OSError, ValueError):  # `max` is no number
        limits.append(float(CGROUP.read_text()))
    return min(limits)
