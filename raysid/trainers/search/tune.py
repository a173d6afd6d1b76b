"""Search settings of a distillation with Ray Tune: a run for each trial, one teacher service for all of them."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
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
from raysid.cluster.connect import connect
from raysid.config import Config, SearchDimension, TuneConfig
from raysid.errors import LearnerLost, RunFailed, RunStopped, StorageError, UserError
from raysid.ray_internals import actor_ready, search_trials
from raysid.recipes import config_yaml, load_recipe
from raysid.run.events import TENSORBOARD
from raysid.run.folder import LOCK, lock_folder
from raysid.run.table import print_table
from raysid.storage import (
    children,
    empty_folder,
    for_ray,
    is_local,
    read_json,
    remove_folder,
    storage_folder,
    write_whole,
)
from raysid.storage.failures import MAKE_ROOM
from raysid.storage.lease import still_owned
from raysid.storage.mirror import Mirror
from raysid.trainers.evaluation import measures
from raysid.trainers.inputs import find_inputs
from raysid.trainers.search import callbacks
from raysid.trainers.search.callbacks import Diverged, Reporter, log
from raysid.trainers.search.plots import plot_search
from raysid.trainers.search.results import TrialResult, collect_trials
from raysid.trainers.search.trial import SHARED, by_field, run_trial, service_name, trial_config
from raysid.trainers.teacher_checks import check_method
from raysid.trainers.teachers import network_settings, trained_teacher

STATE, BEST, TABLE, PLOTS = "tune", "best.yaml", "trials.json", "plots"
DRIVER_CPUS = 0.01  # a trial's own process only passes references on, and Ray Tune does not accept 0


@dataclass(frozen=True)
class TuneResult:
    """The outcome of a search: its folder, its trials from best to worst, and the path of the best one's recipe."""

    path: str
    trials: list[TrialResult]
    best: str | None


def run_search(config: TuneConfig, fresh: bool = False) -> TuneResult:
    """Run a search, or finish one that was interrupted; print a table of its trials.

    The search's folder `<storage>/<run.name>/` holds `trials/` (a run's folder each), `tune/` (Ray Tune's own
    state, which is unpickled when a search is restored: restore only searches that you trust), `best.yaml`,
    `trials.json`, `plots/` and `tensorboard/`.

    Args:
        fresh: delete an earlier search in the folder, and start over.

    Raises:
        UserError: something given cannot be used, or the folder is of another search or in use.
        RunFailed: the teacher service could not start, the trials lack resources, or the storage fails.
        RunStopped: a signal stopped the search.
    """
    assert config.run.name is not None
    for field in (field for dimension in config.space for field in dimension.fields):
        if field.startswith("resources.") or field.endswith(".num_workers"):
            raise UserError(
                f"{field} cannot be searched: all trials use the same resources. Give it in `settings`"
            )
    base = _recipe(config, {})
    if base.placement == "colocated":
        raise UserError("a search's trials share one teacher service: give placement split, not colocated")
    candidates = [  # validated before anything starts
        _recipe(config, {dimension.fields[0]: value})
        for dimension in config.space
        for value in _values(dimension)
    ]
    folder = storage_folder(config.storage) / config.run.name
    lock = lock_folder(folder, lambda: "another search")
    try:
        _begin(folder, config, fresh)
        if not measures(base.data.source_name):
            raise UserError(
                f"a search compares figures, and {base.data.source_name or 'a run without real images'} gives none: "
                "data.source must be digits"
            )
        inputs = find_inputs(base)
        for candidate in candidates:
            check_method(candidate, network_settings(inputs.teacher))
        teacher = trained_teacher(base, inputs.teacher, inputs.source)
        log("connecting to Ray")
        connect()
        try:
            ended = _run_trials(config, base, folder, str(teacher.path))
            still_owned(lock)
            trials = collect_trials(config, folder, ended)
            return _report(config, base, folder, trials)
        except StorageError as error:
            again = MAKE_ROOM if error.full else "run the same command"
            raise RunFailed(f"{error}; {again} to resume the search") from error
    finally:
        lock.release()


def best_config(config: TuneConfig, base: Config, values: Mapping[str, float]) -> Config:
    """Return the recipe with a trial's values, and with the length and the intervals of the recipe itself."""
    own = load_recipe(config.recipe, {}, kind="distill")
    found = trial_config(config, base, values, f"{config.run.name}-best")
    lengths = ("total_images", "evaluation", "checkpoint", "tracking")
    return found.model_copy(update={name: getattr(own, name) for name in lengths})


def _recipe(config: TuneConfig, values: Mapping[str, float]) -> Config:
    """Load the search's recipe with its settings for all trials, and values for some dimensions."""
    overrides = {**config.settings, **by_field(config, values)}
    overrides["storage"] = str(storage_folder(config.storage))
    return load_recipe(config.recipe, overrides, kind="distill")


def _run_trials(config: TuneConfig, base: Config, folder: UPath, teacher: str) -> list[Trial]:
    """Have Ray Tune run the trials that are not finished yet."""
    timeout = base.failure.placement_timeout_s
    learners = learner_resources(base)
    remove_placement_group(reserve(learners, timeout, log))  # there are resources for one trial at least
    service: Any = (
        ray.remote(FleetActor)
        .options(name=service_name(folder), num_cpus=0, scheduling_strategy=on_this_node())
        .remote(teacher, base, base.torch_threads or 1, config.max_concurrent_trials + 1)
    )
    ready = actor_ready(service)
    scorers = [base.resources.teacher] * base.teacher.scaling.min_replicas
    wait_for_capacity(
        lambda seconds: bool(ray.wait([ready], timeout=seconds)[0]),
        "the teacher service",
        scorers,
        timeout,
        log,
    )
    try:
        get(ready)
    except LearnerLost as lost:
        raise RunFailed(f"the teacher service ended while it started ({lost})") from lost
    places = tune.PlacementGroupFactory(
        [{"CPU": DRIVER_CPUS}, *map(bundle, learners)],
        bundle_label_selector=[{}, *(role.label_selector for role in learners)],
    )
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
        places,
    )
    state = folder / STATE
    _configure_tune()
    path, filesystem = for_ray(state)
    begun = tune.Tuner.can_restore(path, storage_filesystem=filesystem)
    if begun and any(state.glob("experiment_state-*.json")):
        print(f"resuming the search in {folder}", flush=True)
        # Earlier versions of raysid had the pickled callbacks there.
        sys.modules.setdefault("raysid.trainers.search_callbacks", callbacks)
        tuner = tune.Tuner.restore(path, trainable, resume_unfinished=True, storage_filesystem=filesystem)
    else:
        tuner = tune.Tuner(
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
                    Reporter(config.metric, service_name(folder), learners, timeout),
                    JsonLoggerCallback(),
                ],
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )
    try:
        trials: list[Trial] = search_trials(tuner.fit())
    finally:
        ray.kill(service)
        _wait_until_gone(service_name(folder))
    if not all(trial.is_finished() for trial in trials):
        raise RunStopped(f"stopped; run the same command to resume the search in {folder}", signal.SIGINT)
    return trials


def _report(config: TuneConfig, base: Config, folder: UPath, trials: list[TrialResult]) -> TuneResult:
    """Write the table, the best recipe and the plots; print the table and the paths."""
    write_whole(folder / TABLE, (json.dumps([vars(trial) for trial in trials], indent=2) + "\n").encode())
    best = None
    if trials and trials[0].usable:
        best = folder / BEST
        write_whole(best, config_yaml(best_config(config, base, trials[0].values)).encode())
    plots = _plot(config, trials, folder)
    names = [dimension.fields[0] for dimension in config.space]
    short = [name.rpartition(".")[2] for name in names]
    columns = [*(short if len({*short}) == len(short) else names), config.metric.replace("_", " ")]
    print_table(
        f"Trials of {folder.name}, the best first",
        [*columns, "images", "status", "run"],
        [
            [*trial.values.values(), trial.metric, trial.images, trial.status, UPath(trial.run).name]
            for trial in trials
        ],
    )
    print(f"search       {folder}")
    print(f"plots        {', '.join(map(str, plots))}")
    if best is not None:
        print(f"best         raysid distill {best}")
    print(f"TensorBoard  tensorboard --logdir {folder}", flush=True)
    return TuneResult(str(folder), trials, None if best is None else str(best))


def _plot(config: TuneConfig, trials: list[TrialResult], folder: UPath) -> list[UPath]:
    """Write the plots into the search's folder and its TensorBoard events; return the paths of the PNGs."""
    if is_local(folder):
        plot_search(config, trials, Path(folder.path) / PLOTS, Path(folder.path) / TENSORBOARD)
    else:
        remove_folder(folder / TENSORBOARD)
        with tempfile.TemporaryDirectory() as here:
            plot_search(config, trials, Path(here) / PLOTS, Path(here) / TENSORBOARD)
            Mirror(Path(here), folder).sync()
    return [folder / PLOTS / f"{dimension.fields[0]}.png" for dimension in config.space]


def _begin(folder: UPath, config: TuneConfig, fresh: bool) -> None:
    """Record the search's config. Raises UserError if the folder holds another search, or something else."""
    record = folder / "search.json"
    others = {path.name for path in children(folder)} - {LOCK}
    if fresh and others:
        if record.name not in others:
            raise UserError(f"{folder} is not a search's folder, so --fresh does not empty it")
        empty_folder(folder, keep={LOCK})
        others = set()
    settings = config.model_dump(mode="json", exclude={"storage"})
    before = read_json(record)
    if before is None and others:
        raise UserError(f"{folder} holds something other than a search: give another --run.name")
    if before is not None and before != settings:
        changed = [name for name in settings if before.get(name) != settings[name]]
        raise UserError(
            f"{folder} is a search with other settings ({', '.join(changed)}): give another --run.name, or --fresh "
            "to start over"
        )
    write_whole(record, (json.dumps(settings, indent=2) + "\n").encode())


def _wait_until_gone(service: str) -> None:
    """Wait until the service's name is free again, for another search in this process."""
    with suppress(ValueError):
        for _ in range(100):
            ray.get_actor(service)
            time.sleep(0.1)


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


def _values(dimension: SearchDimension) -> Sequence[float]:
    """Return every value of a dimension, or the two bounds of its values."""
    return dimension.grid or dimension.choice or dimension.uniform or dimension.log_uniform or ()


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
