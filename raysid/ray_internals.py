"""Ray's undocumented names that raysid uses, each with its purpose. Check every one when Ray is upgraded.

Written against Ray 2.60. Ray is imported inside the functions, so that importing this module costs nothing.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any

# Loggers of notices that no user of raysid needs. Watch: a logger whose module has moved logs again.
AUTHENTICATION_LOG = "ray._private.authentication"  # tokens are on, at every start
PROGRESS_LOG = "ray.data._internal.progress"  # progress bars are off
PACKAGING_LOG = "ray._private.runtime_env.packaging"  # every upload of a job


def actor_ready(actor: Any) -> Any:
    """Return a reference that is ready once the actor has started, again after a restart, or cannot start.

    Every actor has the method `__ray_ready__`; Ray's own libraries use it too. Watch: a rename.
    """
    return actor.__ray_ready__.remote()


def actor_state(actor: Any) -> str | None:
    """Return the state of an actor (`ALIVE`, `RESTARTING`, `PENDING_CREATION`, ...) without calling it.

    The documented `ray.util.state.get_actor` needs the dashboard, which a run may not have. Watch: the states' names.
    """
    import ray

    return ray._private.state.actors(actor._actor_id.hex()).get("State")  # type: ignore[attr-defined]


def actor_node(actor: Any) -> str | None:
    """Return the ID of the node of an actor, without calling it; None while it has none. Watch: as `actor_state`."""
    import ray

    found = ray._private.state.actors(actor._actor_id.hex())  # type: ignore[attr-defined]
    return found.get("Address", {}).get("NodeID") or None if found.get("State") == "ALIVE" else None


def draining_nodes() -> dict[str, float]:
    """Return the nodes that are about to leave, as `ray drain-node` and the autoscaler announce it.

    No documented name has it; Ray's own libraries use this one. Watch: the unit of the deadlines.

    Returns:
        The Unix time of each node's end, by its ID; infinite without a deadline.
    """
    import ray

    deadlines = ray._private.state.state.get_draining_nodes()  # type: ignore[attr-defined]
    return {node: deadline / 1000 if deadline else math.inf for node, deadline in deadlines.items()}


def leave_notices_to_raysid() -> None:
    """Keep Ray Train from waiting for a leaving node's end before it restarts its workers elsewhere.

    The documented settings only lengthen that wait. Call before Ray Train starts. Watch: the variable's name.
    """
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")


def task_attempt() -> int:
    """Return how often Ray has run the current call before, because its process died.

    It lets a scorer count work that is done again. No documented name has it. Watch: a move of the core worker.
    """
    import ray

    worker: Any = ray._private.worker.global_worker  # type: ignore[attr-defined]
    return worker.core_worker.get_current_task_attempt_number()


def autoscales() -> bool:
    """Return True unless the connected cluster's monitor reports that nobody adds nodes to it.

    The monitor calls the types of nodes `node_<id>` if it has no autoscaler's config. No documented name has this.
    Watch: the key, the report's names, and the prefix.
    """
    from ray.experimental.internal_kv import _internal_kv_get

    try:
        report = json.loads(_internal_kv_get("__autoscaling_status") or b"{}")
        types = list(report["autoscaler_report"]["active_nodes"])
    except (KeyError, TypeError, ValueError):
        return True
    return not types or not all(name.startswith("node_") for name in types)


def controller_callback() -> Any:
    """Return Ray Train's base class for callbacks that run in its controller.

    The documented `UserCallback` does not report a change of the workers' number before it happens; without that
    news a driver takes an elastic resize for a failure. Watch: the names of the two methods that `train_workers` has.
    """
    from ray.train.v2._internal.execution.callback import ControllerCallback

    return ControllerCallback


def worker_errors(error: Exception) -> list[Exception]:
    """Return the exceptions of Ray Train's workers, from the error that its `fit` raised.

    The documented `worker_failures` holds wrappers whose text is the whole traceback. Watch: the wrapper's attribute.
    """
    wrapped = getattr(error, "worker_failures", {}).values()
    return [getattr(failure, "_base_exc", failure) for failure in wrapped]


def search_trials(results: Any) -> list[Any]:
    """Return the trials of Ray Tune's `ResultGrid`.

    The documented results lack the values of a trial that never reported. Watch: the attribute's name.
    """
    return list(results._experiment_analysis.trials)


def cluster_address(address: str) -> str:
    """Return `host:port` of a cluster's head for an address that `ray.init` takes (`auto`, a host, ...).

    Raises:
        ConnectionError: there is no cluster to join.
    """
    from ray._private.services import canonicalize_bootstrap_address_or_die

    return canonicalize_bootstrap_address_or_die(address)


def requires_token(address: str, timeout: float) -> bool:
    """Return True if the cluster at `host:port` refuses a call without a token.

    Calls the head's `CheckAlive` by gRPC; Ray 2.60 has no documented way to ask. Watch: the generated modules' paths.
    """
    import grpc
    from ray.core.generated.gcs_service_pb2 import CheckAliveRequest  # type: ignore[attr-defined]
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

    with grpc.insecure_channel(address) as channel:
        try:
            NodeInfoGcsServiceStub(channel).CheckAlive(CheckAliveRequest(), timeout=timeout)
        except grpc.RpcError as error:
            return error.code() == grpc.StatusCode.UNAUTHENTICATED
    return False


def enable_token() -> None:
    """Send the user's token for Ray clusters, if there is one, as `ray start` does. Watch: a documented setting."""
    from ray._private.authentication.authentication_token_setup import (
        maybe_enable_token_auth_if_token_available,
    )

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
