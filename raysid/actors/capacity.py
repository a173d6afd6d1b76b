"""Waiting until the cluster has the resources for the roles, and reporting which resource is missing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysid.config import Config, RoleResources
from raysid.data.source import READ_CPUS
from raysid.errors import RunFailed
from raysid.ray_internals import draining_nodes

NOTICE_SECONDS = 30.0
READER = RoleResources(num_cpus=READ_CPUS)

Notify = Callable[[str], None]
"""Shows the user a line of progress."""


def bundle(resources: RoleResources) -> dict[str, float]:
    """Return a role's resources as a bundle of a placement group."""
    amounts = {"CPU": resources.num_cpus, "GPU": resources.num_gpus, **resources.resources}
    return {name: amount for name, amount in amounts.items() if amount > 0}


def actor_amounts(resources: RoleResources) -> dict[str, Any]:
    """Return a role's resources as options of an actor, except its label selector."""
    return resources.model_dump(exclude={"label_selector"})


def learner_resources(config: Config) -> list[RoleResources]:
    """Return the resources of each rank of the fake-score learner, then of the generator learner."""
    resources, workers = config.resources, config.learner_workers
    fake_score = [resources.fake_score] * workers["fake_score"]
    return fake_score + [resources.generator] * workers["generator"]


def reserve(learners: list[RoleResources], seconds: float, notify: Notify) -> PlacementGroup:
    """Create a placement group with a bundle for each rank of the learners.

    Raises:
        RunFailed: the cluster did not have the resources in time.
    """
    group = placement_group(
        [bundle(role) for role in learners], bundle_label_selector=[role.label_selector for role in learners]
    )
    try:
        wait_for_capacity(group.wait, "the learners", learners, seconds, notify)
    except BaseException:  # an interrupt, too, releases the resources
        remove_placement_group(group)
        raise
    return group


def wait_for_capacity(
    ready: Callable[[float], bool],
    what: str,
    roles: list[RoleResources],
    seconds: float,
    notify: Notify,
) -> None:
    """Wait until the cluster has scheduled roles, reporting every half minute what is missing.

    Args:
        ready: waits up to a number of seconds; returns True once the roles are scheduled.
        what: name of the roles, for messages.
        seconds: time limit; a cluster that autoscales needs minutes to start a node.

    Raises:
        RunFailed: they were not scheduled in time; names the missing resource.
    """
    end = time.monotonic() + seconds
    while not ready(max(0.0, min(NOTICE_SECONDS, end - time.monotonic()))):
        report_shortage(what, roles, time.monotonic() - (end - seconds), seconds, notify)


def report_shortage(
    what: str, roles: list[RoleResources], waited: float, seconds: float, notify: Notify
) -> None:
    """Report the resource that roles wait for.

    Args:
        what: name of the roles, for messages.
        waited: seconds waited so far.
        seconds: time limit.

    Raises:
        RunFailed: the limit is reached; names the missing resource.
    """
    missing = describe_shortage(roles)
    if waited >= seconds:
        raise RunFailed(
            f"no resources for {what} within failure.placement_timeout_s = {seconds:g} s: {missing}; lower "
            "resources.*, add nodes, or wait longer"
        )
    notify(f"waiting for {what}: {missing}")


def describe_shortage(roles: list[RoleResources]) -> str:
    """Describe the resource or label that keeps Ray from scheduling roles on the cluster as it is now."""
    leaving = draining_nodes()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
    reasons: dict[str, None] = {}
    for role in roles:
        for key, value in role.label_selector.items():
            if not any(_matches(node.get("Labels", {}).get(key), value) for node in nodes):
                reasons[f"no node has the label {key}: {value}"] = None
        for name, amount in bundle(role).items():
            most = max((node["Resources"].get(name, 0.0) for node in nodes), default=0.0)
            if most < amount:
                has = f"the largest has {most:g}" if most else "none has any"
                reasons[f"no node has {amount:g} {name} ({has})"] = None
    if reasons:
        return ", ".join(reasons)
    wanted: dict[str, float] = {}
    for role in roles:
        for name, amount in bundle(role).items():
            wanted[name] = wanted.get(name, 0.0) + amount
    free, total = ray.available_resources(), ray.cluster_resources()
    short = [name for name, amount in wanted.items() if free.get(name, 0.0) < amount]
    return (
        ", ".join(
            f"{wanted[name]:g} {name} requested, {free.get(name, 0.0):g} of {total.get(name, 0.0):g} free"
            for name in short
        )
        or "the free resources are spread over nodes that are each too small"
    )


def _matches(has: Any, wanted: str) -> bool:
    """True if a node's label matches a selector: `value`, `!value`, `in(a, b)` or `!in(a, b)`, as in Ray."""
    negated, wanted = wanted.startswith("!"), wanted.removeprefix("!")
    if wanted.startswith("in(") and wanted.endswith(")"):
        fits = has in [choice.strip() for choice in wanted[3:-1].split(",")]
    else:
        fits = has == wanted
    return fits != negated


def wait_for_reading(timeout: float, notify: Notify) -> None:
    """Wait until the roles leave the resources to read real images: Ray Data would wait forever, in silence.

    Raises:
        RunFailed: they do not, in time.
    """

    def nothing() -> None:
        pass

    # Spread, as Ray Data's tasks are: a trial's own tasks would be scheduled in the trial's placement group.
    task = ray.remote(nothing).options(scheduling_strategy="SPREAD", **actor_amounts(READER)).remote()
    try:
        wait_for_capacity(
            lambda seconds: bool(ray.wait([task], timeout=seconds)[0]),
            "reading the real images",
            [READER],
            timeout,
            notify,
        )
    except BaseException:
        # Only here: Ray 2.60 aborts the driver when a task is cancelled as it completes.
        ray.cancel(task)
        raise


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """Schedule an actor without resources on this node: an autoscaler may remove any other node under it."""
    return NodeAffinitySchedulingStrategy(this_node(), soft=False)


def this_node() -> str:
    """Return the ID of this process's node."""
    return ray.get_runtime_context().get_node_id()
