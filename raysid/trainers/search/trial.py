"""A trial of a search: a distillation in a separate process that reports its evaluations to Ray Tune."""

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
from raysid.errors import Diverged, UserError
from raysid.recipes import override
from raysid.run.metrics import read_metrics
from raysid.storage import holds
from raysid.trainers.distill import distill
from raysid.trainers.search.callbacks import log
from raysid.trainers.search.results import TRIALS

SHARED = ".shared"  # a file by which every trial checks that its node shares the search's folder


def trial_config(config: TuneConfig, base: Config, values: Mapping[str, float], name: str) -> Config:
    """Return the config of a trial.

    Args:
        base: the config that the trials have in common.
        values: the values tried, by the first setting of their dimension.
        name: name of the trial's run.
    """
    return override(base, {**by_field(config, values), "run.name": name})


def by_field(config: TuneConfig, values: Mapping[str, float]) -> dict[str, float]:
    """Return the value of every setting: the tied settings of a dimension take the value of its first."""
    return {
        field: values[dimension.fields[0]]
        for dimension in config.space
        if dimension.fields[0] in values
        for field in dimension.fields
    }


def service_name(folder: UPath) -> str:
    """Return the name of the teacher service's actor for the search in `folder`."""
    return f"raysid-teacher-service-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"


def run_trial(
    values: dict[str, float],
    search: dict[str, Any],
    recipe: dict[str, Any],
    folder: str,
    teacher: str,
    shared: str,
) -> None:
    """Run a trial, in a separate process.

    Args:
        values: the values tried, by the first setting of their dimension.
        search: the search's config.
        recipe: the config that the trials have in common; its file need not exist on this node.
        folder: the search's folder.
        teacher: the teacher's folder.
        shared: content of the file `SHARED`.

    Raises:
        UserError: this node does not share the search's folder.
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
            return  # before the first update, so equal for all trials
        value = figures[config.metric]
        tune.report(
            {
                config.metric: value if value is not None and math.isfinite(value) else math.nan,
                "images": figures["images"],
                "step": figures["step"],
                "diverged": not math.isfinite(distance) or distance > config.diverged_above * first[0],
            }
        )

    group = get_current_placement_group()
    assert group is not None, "a trial runs in a placement group"
    within = Within(group, ray.get_actor(service_name(UPath(folder))))
    try:
        distill(run, within=within, on_evaluation=report)
    except Diverged as error:
        log(f"{run.run.name}: {error}")
        lines = read_metrics(UPath(run.storage) / str(run.run.name))
        step = max((entry["step"] for entry in lines), default=0)
        tune.report(
            {config.metric: math.nan, "images": step * run.batch_size, "step": step, "diverged": True}
        )
