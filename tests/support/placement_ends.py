"""The states after a few steps of a placement, and their comparison (docs/design.md, rule 2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray

from raysid.actors.local import LocalPlacement
from raysid.actors.placement import Placement
from raysid.actors.split import SplitPlacement
from raysid.config import Config
from raysid.networks.files import load_network
from raysid.roles.state_files import read_state
from tests.support.reference_training import relative_change_error
from tests.support.tiny_run import BATCH, Figures, Weights, inputs_for, placement_end, tiny_config

WITHOUT_DROPOUT: dict[str, Any] = {"generator__dropout": 0.0, "fake_score__dropout": 0.0}


def ends(
    config: Config, folder: Path, split: bool = False, threads: int = 1
) -> tuple[Weights, list[Figures]]:
    """The learners' states after 20 steps of a new run, saved to `folder`, and their figures of each step."""
    inputs, source = inputs_for(config)
    placement: Placement = (SplitPlacement if split else LocalPlacement)(inputs, source, threads)
    return placement_end(placement, config, folder)


def whole_batch(teacher: str, folder: Path, **changes: Any) -> Path:
    """The states after 20 steps of one microbatch in one process."""
    ends(
        tiny_config(teacher, folder, **WITHOUT_DROPOUT | {"microbatch_size": BATCH} | changes),
        folder / "whole",
    )
    return folder / "whole"


def check_rule_2(teacher: str, folder: Path, other: Path) -> None:
    """The difference of two results is under 2% of the change, for theta, its average and psi."""
    start = load_network(teacher, "teacher")[1].state_dict()
    for learner, network in (("generator", "network"), ("generator", "ema"), ("fake_score", "network")):
        ours, theirs = (read_state(end, learner)[network] for end in (folder, other))
        error = relative_change_error(start, ours, theirs)
        assert error < 0.02, f"{learner}'s {network} is {error:.1%} of its change away"


def lost() -> Any:
    """A reference to the result of a task that fails."""

    def make() -> None:
        raise OSError("the machine that made it is gone")

    return ray.remote(make).options(num_cpus=0.25, max_retries=0).remote()
