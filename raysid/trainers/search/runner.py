"""Run the trials of a search under Ray Tune, beside one teacher service for all of them."""

from __future__ import annotations

import os
import signal
import sys
import time
import uuid
from contextlib import suppress
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.util.placement_group import remove_placement_group
from upath import UPath

from raysid.actors.capacity import bundle, learner_resources, on_this_node, reserve, wait_for_capacity
from raysid.actors.results import get
from raysid.actors.split import FleetActor
from raysid.config import Config, RoleResources, SearchDimension, TuneConfig
from raysid.errors import LearnerLost, RunFailed, RunStopped
from raysid.ray_internals import actor_ready, search_trials
from raysid.storage import for_ray, write_whole
from raysid.trainers.search import callbacks
from raysid.trainers.search.callbacks import Diverged, Reporter, log
from raysid.trainers.search.trial import SHARED, run_trial, service_name

STATE = "tune"  # Ray Tune's own state, within the search's folder
DRIVER_CPUS = 0.01  # a trial's own process only passes references on, and Ray Tune does not accept 0


def run_trials(config: TuneConfig, base: Config, folder: UPath, teacher: str) -> list[Trial]:
    """Have Ray Tune run the trials that are not finished yet; return all trials.

    Args:
        base: the config that the trials have in common.
        folder: the search's folder.
        teacher: the teacher's folder.

    Raises:
        RunFailed: the teacher service could not start, or the trials lack resources.
        RunStopped: a signal stopped the search.
    """
    learners = learner_resources(base)
    # There are resources for one trial at least.
    remove_placement_group(reserve(learners, base.failure.placement_timeout_s, log))
    service = _start_service(config, base, folder, teacher)
    try:
        trials: list[Trial] = search_trials(_tuner(config, base, folder, teacher, learners).fit())
    finally:
        ray.kill(service)
        _wait_until_gone(service_name(folder))
    if not all(trial.is_finished() for trial in trials):
        raise RunStopped(f"stopped; run the same command to resume the search in {folder}", signal.SIGINT)
    return trials


def _start_service(config: TuneConfig, base: Config, folder: UPath, teacher: str) -> Any:
    """Start the teacher service, and wait until it is ready. Raises RunFailed."""
    service: Any = (
        ray.remote(FleetActor)
        .options(name=service_name(folder), num_cpus=0, scheduling_strategy=on_this_node())
        .remote(teacher, base, base.torch_threads or 1, config.max_concurrent_trials + 1)
    )
    ready = actor_ready(service)
    wait_for_capacity(
        lambda seconds: bool(ray.wait([ready], timeout=seconds)[0]),
        "the teacher service",
        [base.resources.teacher] * base.teacher.scaling.min_replicas,
        base.failure.placement_timeout_s,
        log,
    )
    try:
        get(ready)
    except LearnerLost as lost:
        raise RunFailed(f"the teacher service ended while it started ({lost})") from lost
    return service


def _tuner(
    config: TuneConfig, base: Config, folder: UPath, teacher: str, learners: list[RoleResources]
) -> tune.Tuner:
    """Return Ray Tune's object for the search, restored if the search has begun."""
    shared = uuid.uuid4().hex
    write_whole(folder / SHARED, shared.encode())
    trainable = tune.with_resources(
        tune.with_parameters(
            run_trial,
            search=config.model_dump(mode="json"),
            recipe=base.model_dump(mode="json"),
            folder=str(folder),
            teacher=teacher,
            shared=shared,
        ),
        tune.PlacementGroupFactory(
            [{"CPU": DRIVER_CPUS}, *map(bundle, learners)],
            bundle_label_selector=[{}, *(role.label_selector for role in learners)],
        ),
    )
    state = folder / STATE
    _configure_tune()
    path, filesystem = for_ray(state)
    begun = tune.Tuner.can_restore(path, storage_filesystem=filesystem)
    if begun and any(state.glob("experiment_state-*.json")):
        print(f"resuming the search in {folder}", flush=True)
        # Earlier versions of raysid had the pickled callbacks there.
        sys.modules.setdefault("raysid.trainers.search_callbacks", callbacks)
        return tune.Tuner.restore(path, trainable, resume_unfinished=True, storage_filesystem=filesystem)
    return tune.Tuner(
        trainable,
        param_space={d.fields[0]: _domain(d) for d in config.space},
        tune_config=tune.TuneConfig(
            metric=config.metric,
            mode=config.mode,
            scheduler=_scheduler(config, base),
            search_alg=tune.search.BasicVariantGenerator(
                max_concurrent=config.max_concurrent_trials, random_state=config.seed
            ),
            num_samples=config.num_samples,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=STATE,
            storage_path=for_ray(folder)[0],
            storage_filesystem=filesystem,
            stop=Diverged(),
            callbacks=[
                Reporter(config.metric, service_name(folder), learners, base.failure.placement_timeout_s),
                JsonLoggerCallback(),
            ],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )


def _domain(dimension: SearchDimension) -> Any:
    """Return a dimension in Ray Tune's form."""
    if dimension.grid is not None:
        return tune.grid_search(dimension.grid)
    if dimension.choice is not None:
        return tune.choice(dimension.choice)
    if dimension.uniform is not None:
        return tune.uniform(*dimension.uniform)
    assert dimension.log_uniform is not None
    return tune.loguniform(*dimension.log_uniform)


def _scheduler(config: TuneConfig, base: Config) -> TrialScheduler:
    if config.scheduler.name == "none":
        return FIFOScheduler()
    # One image short of the end: a rung there would stop a complete trial before it has written its table.
    longest = base.total_steps * base.batch_size - 1
    return ASHAScheduler(
        time_attr="images",
        max_t=longest,
        grace_period=min(config.scheduler.grace_images, longest),
        reduction_factor=config.scheduler.reduction_factor,
        stop_last_trials=False,
    )


def _configure_tune() -> None:
    """Turn off Ray Tune's tables, its TensorBoard events (the runs write their own), and its change of a trial's
    working directory (the recipe may have relative paths)."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    # A resumed trial that was complete, but not reported, ends without a report.
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")


def _wait_until_gone(service: str) -> None:
    """Wait until the service's name is free again, for another search in this process."""
    with suppress(ValueError):
        for _ in range(100):
            ray.get_actor(service)
            time.sleep(0.1)
