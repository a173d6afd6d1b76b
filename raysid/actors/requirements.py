"""The check, before any role starts, that a run's machines have what its settings ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from raysid.cluster.connect import started_here
from raysid.config import Config, RoleResources
from raysid.errors import UserError
from raysid.ray_internals import autoscales


def role_resources(config: Config) -> dict[str, RoleResources]:
    """Return the resources of one process of each role, by the name of their setting."""
    roles = ("worker",) if config.placement == "colocated" else ("teacher", "fake_score", "generator")
    return {f"resources.{role}": getattr(config.resources, role) for role in roles}


def check_resources(roles: Mapping[str, RoleResources], local: bool, notify: Callable[[str], None]) -> None:
    """Check the resources that processes ask for. Without `local` Ray must be connected.

    Args:
        roles: resources of one process, by the name of their setting.
        local: all roles are in this process, which has the devices of this machine.
        notify: gets a warning for what may be a mistake: GPUs that stay idle, and what no node has yet.

    Raises:
        UserError: a process could never start.
    """
    for name, role in roles.items():
        if role.num_gpus > 1:
            notify(
                f"warning: {name}.num_gpus is {role.num_gpus:g}, and a role computes on one device: the others stay "
                "idle; give 1"
            )
        if local:
            if role.num_gpus > 0 and not torch.cuda.is_available():
                raise UserError(
                    f"{name}.num_gpus is {role.num_gpus:g}, and this machine has no CUDA device: give 0 to compute on "
                    "its cores"
                )
            continue
        from raysid.actors.capacity import describe_shortage  # it imports Ray

        if not fits_a_node(role):
            missing = f"{name} can never be placed: {describe_shortage([role])}"
            if not may_grow():
                raise UserError(f"{missing}; lower {name}, or add such a node first")
            notify(f"warning: {name}: {describe_shortage([role])}; waiting for the autoscaler")


def fits_a_node(role: RoleResources) -> bool:
    """Return True if some node is large enough for a process, whatever else runs there. Labels are not looked at."""
    import ray

    from raysid.actors.capacity import bundle

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return any(all(has.get(name, 0.0) >= amount for name, amount in bundle(role).items()) for has in nodes)


def may_grow() -> bool:
    """Return True unless the cluster is known to have no autoscaler."""
    return not started_here() and autoscales()
