"""Reaching a Ray cluster: the one that the environment names, else one on this machine."""

from __future__ import annotations

import logging
import os

from raysid.errors import UserError

ADDRESS = "RAY_ADDRESS"
PROBE_SECONDS = 5.0
DEFAULT_DASHBOARD = "http://127.0.0.1:8265"
TOKEN_HELP = (
    "this cluster asks for its token: put it into ~/.ray/auth_token, or name its file in RAY_AUTH_TOKEN_PATH, or "
    "give it in RAY_AUTH_TOKEN (on the cluster's head `ray get-auth-token` prints it)"
)


def connect() -> None:
    """Join the cluster that this process is part of or that RAY_ADDRESS names; else start one here.

    A cluster started here ends with this process.

    Raises:
        UserError: the address is none to join, nothing answers there, or it wants a token.
    """
    address = os.environ.get(ADDRESS, "")
    check_address(address)
    import ray
    from ray.exceptions import AuthenticationError

    if ray.is_initialized():
        return
    if address and _asks_for_token(address):
        use_token()
    # Ray's own notices (token authentication is on, a local instance was started) say nothing about the run.
    logging.getLogger("ray").setLevel(logging.WARNING)
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    # Ray starts its workers at niceness 15: on a machine that does anything else a run would starve.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # A lost learner fails every call in flight, and Ray would print ten lines for each; the run says it in one.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    try:
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except AuthenticationError:
        raise UserError(f"Ray cluster {address}: {TOKEN_HELP}") from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        if not address:
            raise
        raise UserError(
            f"no Ray cluster to join at {address}: {' '.join(str(error).split())[:200]}"
        ) from None


def check_address(address: str) -> None:
    """Refuse an address that a process on one of the cluster's own nodes could not join.

    Raises:
        UserError: it is a job server's, or a Ray Client's: the actors' arrays would travel through it.
    """
    if "://" in address:
        raise UserError(
            f"{address} is not a cluster that a command on this machine can join: give `auto` or HOST:PORT on one "
            "of its nodes, or hand the work to it with `raysid submit --address http://...`"
        )


def _asks_for_token(address: str) -> bool:
    """Whether a cluster authenticates by token; true where that cannot be found out.

    A process in token mode refuses the calls of a cluster that sends none: its actors would end unstarted, or
    never start, without a word of tokens.
    """
    import grpc
    from ray._private.services import canonicalize_bootstrap_address_or_die
    from ray.core.generated.gcs_service_pb2 import CheckAliveRequest  # type: ignore[attr-defined]
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return True
    try:
        with grpc.insecure_channel(canonicalize_bootstrap_address_or_die(address)) as channel:
            NodeInfoGcsServiceStub(channel).CheckAlive(CheckAliveRequest(), timeout=PROBE_SECONDS)
    except grpc.RpcError as error:
        return error.code() == grpc.StatusCode.UNAUTHENTICATED
    except ConnectionError:
        return True  # nothing to join: joining says so
    return False


def use_token() -> None:
    """Send this user's token for Ray clusters, where there is one and nothing else is said.

    As `ray start` does; without it Ray makes a token for a cluster that it starts here, and sends none to
    another.
    """
    from ray._private.authentication.authentication_token_setup import (
        maybe_enable_token_auth_if_token_available,
    )

    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
