"""Reaching a Ray cluster: the one that the environment names, else one on this machine."""

from __future__ import annotations

import logging
import os


def connect() -> None:
    """Join the cluster that this process is part of or that RAY_ADDRESS names; else start one here.

    A cluster started here ends with this process.
    """
    import ray

    if ray.is_initialized():
        return
    # Ray's own notices (token authentication is on, a local instance was started) say nothing about the run.
    logging.getLogger("ray").setLevel(logging.WARNING)
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    # Ray starts its workers at niceness 15: on a machine that does anything else a run would starve.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # A lost learner fails every call in flight, and Ray would print ten lines for each; the run says it in one.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    ray.init(
        address=os.environ.get("RAY_ADDRESS"),
        include_dashboard=None if os.environ.get("RAY_ADDRESS") else False,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
