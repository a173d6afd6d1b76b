"""Search settings of a distillation with Ray Tune: a run for each trial, one teacher service for all of them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upath import UPath

from raysid.actors.requirements import check_resources, role_resources
from raysid.cluster.connect import connect
from raysid.config import Config, TuneConfig
from raysid.errors import InvalidConfig, RunFailed, StorageError, UserError
from raysid.formats import FORMAT
from raysid.recipes import config_yaml, load_recipe, validated
from raysid.recipes.migrations import migrated
from raysid.run.events import TENSORBOARD
from raysid.run.folder import LOCK, lock_folder
from raysid.run.table import print_table
from raysid.storage import (
    children,
    empty_folder,
    is_local,
    read_json,
    remove_folder,
    storage_folder,
    write_whole,
)
from raysid.storage.failures import MAKE_ROOM
from raysid.storage.lease import still_owned
from raysid.storage.mirror import Mirror
from raysid.trainers.inputs import find_inputs
from raysid.trainers.measuring import measures
from raysid.trainers.search.callbacks import log
from raysid.trainers.search.plots import plot_search
from raysid.trainers.search.results import TrialResult, collect_trials
from raysid.trainers.search.runner import run_trials
from raysid.trainers.search.trial import by_field, trial_config
from raysid.trainers.teacher_checks import check_method
from raysid.trainers.teachers import network_settings, trained_teacher

BEST, TABLE, PLOTS = "best.yaml", "trials.json", "plots"


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
        # Every value, or the two bounds.
        for value in dimension.grid or dimension.choice or dimension.uniform or dimension.log_uniform or ()
    ]
    folder = storage_folder(config.storage) / config.run.name
    lock = lock_folder(folder, lambda: "another search")
    try:
        _begin(folder, config, fresh)
        if not measures(base.data.source_name):
            raise UserError(
                f"a search compares figures, and {base.data.source_name or 'a run without real images'} has no "
                "evaluation: data.source must be digits"
            )
        inputs = find_inputs(base)
        for candidate in candidates:
            check_method(candidate, network_settings(inputs.teacher))
        teacher = trained_teacher(base, inputs.teacher, inputs.source)
        log("connecting to Ray")
        connect()
        check_resources(role_resources(base), False, log)
        try:
            ended = run_trials(config, base, folder, str(teacher.path))
            still_owned(lock)
            trials = collect_trials(config, folder, ended)
            return _report(config, base, folder, trials)
        except StorageError as error:
            again = MAKE_ROOM if error.full else "run the same command"
            raise RunFailed(f"{error}; {again} to resume the search") from error
    finally:
        lock.release()


def _recipe(config: TuneConfig, values: Mapping[str, float]) -> Config:
    """Load the search's recipe with its settings for all trials, and values for some dimensions."""
    overrides = {**config.settings, **by_field(config, values)}
    overrides["storage"] = str(storage_folder(config.storage))
    return load_recipe(config.recipe, overrides, kind="distill")


def _report(config: TuneConfig, base: Config, folder: UPath, trials: list[TrialResult]) -> TuneResult:
    """Write the table, the best recipe and the plots; print the table and the paths."""
    write_whole(folder / TABLE, (json.dumps([vars(trial) for trial in trials], indent=2) + "\n").encode())
    best = None
    if trials and trials[0].usable:
        best = folder / BEST
        found = trial_config(config, base, trials[0].values, f"{config.run.name}-best")
        # The length and the intervals are those of the recipe itself, not of the search's settings.
        own = load_recipe(config.recipe, {}, kind="distill")
        lengths = {
            name: getattr(own, name) for name in ("total_images", "evaluation", "checkpoint", "tracking")
        }
        write_whole(best, config_yaml(found.model_copy(update=lengths)).encode())
    plots = _plot(config, trials, folder)
    names = [dimension.fields[0] for dimension in config.space]
    short = [name.rpartition(".")[2] for name in names]
    columns = [*(short if len({*short}) == len(short) else names), config.metric.replace("_", " ")]
    print_table(
        f"Trials of {folder.name}, the best first",
        [*columns, "images", "status", "run"],
        [
            [*trial.values.values(), trial.metric, trial.images, trial.outcome, UPath(trial.run).name]
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
    if before is not None and (begun := _recorded(before, config, record)) != settings:
        changed = [name for name in settings if begun.get(name) != settings[name]]
        raise UserError(
            f"{folder} is a search with other settings ({', '.join(changed)}): give another --run.name, or --fresh "
            "to start over"
        )
    write_whole(record, (json.dumps({"format": FORMAT} | settings, indent=2) + "\n").encode())


def _recorded(before: Any, config: TuneConfig, record: UPath) -> dict[str, Any]:
    """The settings of the search that began in a folder, as this release would record them. Raises UserError."""
    values = migrated(before, record) if isinstance(before, dict) else {}
    try:
        found = validated(TuneConfig, values | {"storage": config.storage}, record.name)
    except InvalidConfig as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{record} is damaged ({reason}): put a copy of it back, or give --fresh to start over"
        ) from None
    return found.model_dump(mode="json", exclude={"storage"})
