"""Connect to the Ray cluster that the environment names, or start one on this machine."""

from __future__ import annotations

import logging
import os

from raysid.errors import UserError
from raysid.ray_internals import AUTHENTICATION_LOG, cluster_address, enable_token, requires_token

ADDRESS = "RAY_ADDRESS"
PROBE_SECONDS = 5.0
DEFAULT_DASHBOARD = "http://127.0.0.1:8265"
TOKEN_HELP = (
    "this cluster asks for its token: put it into ~/.ray/auth_token, or name its file in RAY_AUTH_TOKEN_PATH, or "
    "give it in RAY_AUTH_TOKEN (on the cluster's head `ray get-auth-token` prints it)"
)

_started_here = False


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names or this process is part of; otherwise start one on this machine.

    A cluster started here ends with this process.

    Raises:
        UserError: the address cannot be joined or does not answer, or the token is missing.
    """
    global _started_here
    address = os.environ.get(ADDRESS, "")
    check_address(address)
    import ray
    from ray.exceptions import AuthenticationError

    if ray.is_initialized():
        return
    if address and _asks_for_token(address):
        use_token()
    # Ray's notices (token authentication is on, a local instance was started) are not about the run.
    logging.getLogger("ray").setLevel(logging.WARNING)
    logging.getLogger(AUTHENTICATION_LOG).setLevel(logging.ERROR)
    # Ray starts its workers at niceness 15: on a machine that does anything else a run would starve.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # A lost learner fails every call in flight; Ray would print ten lines for each, and the run reports it in one.
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
    _started_here = not address


def started_here() -> bool:
    """Return True if `connect` started the cluster in this process: nobody adds nodes to it."""
    return _started_here


def check_address(address: str) -> None:
    """Refuse an address that a process on a node of the cluster could not join.

    Raises:
        UserError: it is the URL of a job server or of Ray Client, through which all arrays would travel.
    """
    if "://" in address:
        raise UserError(
            f"{address} is not a cluster that a command on this machine can join: give `auto` or HOST:PORT on one "
            "of its nodes, or hand the work to it with `raysid submit --address http://...`"
        )


def _asks_for_token(address: str) -> bool:
    """True if a cluster authenticates by token, or if this is unknown.

    If raysid used tokens with a cluster that has none, actors would never start, and no message would mention tokens.
    """
    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return True
    try:
        return requires_token(cluster_address(address), PROBE_SECONDS)
    except ConnectionError:
        return True  # the address does not answer, which `connect` reports


def use_token() -> None:
    """Send the user's token for Ray clusters if there is one and RAY_AUTH_MODE is not set, as `ray start` does.

    Otherwise Ray makes a token for a cluster that it starts here, and sends none to another cluster.
    """
    logging.getLogger(AUTHENTICATION_LOG).setLevel(logging.ERROR)
    enable_token()
