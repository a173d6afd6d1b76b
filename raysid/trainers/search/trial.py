"""One trial of a search, in its own process: a distillation that reports its evaluations to Ray Tune."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import ray
from ray import tune
from ray.util import get_current_placement_group
from upath import UPath

from raysid.actors.split import Within
from raysid.config import Config, TuneConfig
from raysid.errors import UserError
from raysid.recipes import override
from raysid.run.metrics import read_metrics
from raysid.storage import holds
from raysid.trainers.distill import distill
from raysid.trainers.search.results import TRIALS

SHARED = ".shared"  # written by the search's driver, looked for by every trial


def trial_config(config: TuneConfig, base: Config, values: Mapping[str, float], name: str) -> Config:
    """The distillation that a trial runs.

    Args:
        base: what the trials have in common.
        values: the values tried, by the first setting of their dimension.
        name: of the trial's run.
    """
    return override(base, {**by_field(config, values), "run.name": name})


def by_field(config: TuneConfig, values: Mapping[str, float]) -> dict[str, float]:
    """Values for every setting of their dimensions: tied ones take the first one's."""
    return {
        field: values[dimension.fields[0]]
        for dimension in config.space
        if dimension.fields[0] in values
        for field in dimension.fields
    }


def service_of(folder: UPath) -> str:
    """The name under which the trials of a search find its teacher service."""
    return f"raysid-teacher-service-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"


def run_trial(
    values: dict[str, float],
    search: dict[str, Any],
    recipe: dict[str, Any],
    folder: str,
    teacher: str,
    shared: str,
) -> None:
    """One trial, in its own process: a distillation that reports its evaluations to Ray Tune.

    The recipe comes as what it says: a trial's node need not have the search's file of it.
    """
    if not holds(UPath(folder) / SHARED, shared):
        raise UserError(f"{folder} is not shared: node {ray.util.get_node_ip_address()} does not see it")
    config = TuneConfig.model_validate(search)
    base = Config.model_validate(recipe)
    run = trial_config(config, base, values, tune.get_context().get_trial_id())
    run = run.model_copy(
        update={
            "storage": str(UPath(folder) / TRIALS),
            "teacher": run.teacher.model_copy(update={"path": teacher, "recipe": None}),
        }
    )
    first: list[float] = [
        entry["frechet_distance"]
        for entry in read_metrics(UPath(run.storage) / str(run.run.name))
        if entry["kind"] == "evaluation"
    ][:1]

    def report(figures: dict[str, Any]) -> None:
        distance = figures["frechet_distance"]
        first[:] = first or [distance]
        if figures["step"] == 0:
            return  # nothing that values could have changed
        exploded = not math.isfinite(distance) or distance > config.diverged_above * first[0]
        value = figures[config.metric]
        tune.report(
            {
                config.metric: value if value is not None and math.isfinite(value) else math.nan,
                "images": figures["images"],
                "diverged": exploded,
            }
        )

    group = get_current_placement_group()
    assert group is not None, "a trial runs within its places"
    distill(run, within=Within(group, ray.get_actor(service_of(UPath(folder)))), on_evaluation=report)
