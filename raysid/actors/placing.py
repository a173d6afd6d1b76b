"""Finding room for the roles on a cluster, and saying which resource is missing where there is none."""

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

NOTICE_SECONDS = 30.0
READER = RoleResources(num_cpus=READ_CPUS)
Say = Callable[[str], None]


def demand(resources: RoleResources) -> dict[str, float]:
    """What a role asks of a node, as a placement group's bundle has it."""
    amounts = {"CPU": resources.num_cpus, "GPU": resources.num_gpus, **resources.resources}
    return {name: amount for name, amount in amounts.items() if amount > 0}


def learner_places(config: Config) -> list[RoleResources]:
    """What the learners ask for: a place for each rank of the fake-score learner, then of the generator learner."""
    resources, workers = config.resources, config.learner_workers
    fake_score = [resources.fake_score] * workers["fake_score"]
    return fake_score + [resources.generator] * workers["generator"]


def reserve(learners: list[RoleResources], seconds: float, say: Say) -> PlacementGroup:
    """A placement group with a bundle for each rank of the learners.

    Raises:
        RunFailed: the cluster had no room for it in time.
    """
    group = placement_group(
        [demand(role) for role in learners], bundle_label_selector=[role.label_selector for role in learners]
    )
    try:
        wait_for_room(lambda timeout: group.wait(timeout), "the learners", learners, seconds, say)
    except BaseException:
        remove_placement_group(group)
        raise
    return group


def wait_for_room(
    ready: Callable[[float], bool],
    what: str,
    roles: list[RoleResources],
    seconds: float,
    say: Say,
) -> None:
    """Wait until roles have their places, telling every half minute what is missing.

    Args:
        ready: waits so many seconds for the places; whether they are there.
        what: whom the places are for.
        seconds: how long to wait in all; a cluster that autoscales needs minutes to start a node.

    Raises:
        RunFailed: they were not there in time; names the resource that is missing.
    """
    end = time.monotonic() + seconds
    while not ready(max(0.0, min(NOTICE_SECONDS, end - time.monotonic()))):
        report_missing(what, roles, time.monotonic() - (end - seconds), seconds, say)


def report_missing(what: str, roles: list[RoleResources], waited: float, seconds: float, say: Say) -> None:
    """Tell what keeps roles from their places.

    Args:
        what: whom the places are for.
        waited: how long they have been waited for.
        seconds: how long they may be.

    Raises:
        RunFailed: they have been waited for too long; names the resource that is missing.
    """
    missing = what_is_missing(roles)
    if waited >= seconds:
        raise RunFailed(
            f"no place for {what} within failure.placement_timeout_s = {seconds:g} s: {missing}; lower "
            "resources.*, add nodes, or wait longer"
        )
    say(f"waiting for {what}: {missing}")


def what_is_missing(roles: list[RoleResources]) -> str:
    """Which resource or label keeps roles from being placed on the cluster as it is now."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    reasons: dict[str, None] = {}
    for role in roles:
        for key, value in role.label_selector.items():
            if not any(_matches(node.get("Labels", {}).get(key), value) for node in nodes):
                reasons[f"no node has the label {key}: {value}"] = None
        for name, amount in demand(role).items():
            most = max((node["Resources"].get(name, 0.0) for node in nodes), default=0.0)
            if most < amount:
                has = f"the largest has {most:g}" if most else "none has any"
                reasons[f"no node has {amount:g} {name} ({has})"] = None
    if reasons:
        return ", ".join(reasons)
    wanted: dict[str, float] = {}
    for role in roles:
        for name, amount in demand(role).items():
            wanted[name] = wanted.get(name, 0.0) + amount
    free, total = ray.available_resources(), ray.cluster_resources()
    short = [name for name, amount in wanted.items() if free.get(name, 0.0) < amount]
    return (
        ", ".join(
            f"{wanted[name]:g} {name} asked for, {free.get(name, 0.0):g} of {total.get(name, 0.0):g} free"
            for name in short
        )
        or "the free resources are spread over nodes that are each too small"
    )


def _matches(has: Any, wanted: str) -> bool:
    """Whether a node's label fits a selector: `value`, `!value`, `in(a, b)`, `!in(a, b)`, as Ray has them."""
    negated, wanted = wanted.startswith("!"), wanted.removeprefix("!")
    if wanted.startswith("in(") and wanted.endswith(")"):
        fits = has in [choice.strip() for choice in wanted[3:-1].split(",")]
    else:
        fits = has == wanted
    return fits != negated


def wait_for_reading(timeout: float, say: Say) -> None:
    """Wait until the roles have left room to read the real images: Ray Data would wait for ever, without a word.

    Raises:
        RunFailed: they have not, in time.
    """

    def nothing() -> None:
        pass

    # Spread, as Ray Data has it: a trial's own tasks would look for room in the trial's places.
    task = ray.remote(nothing).options(scheduling_strategy="SPREAD", **amounts(READER)).remote()
    try:
        wait_for_room(
            lambda seconds: bool(ray.wait([task], timeout=seconds)[0]),
            "reading the real images",
            [READER],
            timeout,
            say,
        )
    except BaseException:
        # Not otherwise: Ray 2.60 aborts the driver where a task is cancelled just as it completes.
        ray.cancel(task)
        raise


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """Where an actor goes that holds no resources: an autoscaler may take another node from under it."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def amounts(resources: RoleResources) -> dict[str, float]:
    """CPUs and GPUs, as an actor's options have them."""
    return {"num_cpus": resources.num_cpus, "num_gpus": resources.num_gpus}
