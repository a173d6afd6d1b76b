"""A search with Ray Tune: every trial is a run on a shared teacher service; its results, failures and resumption."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray import tune
from ray.cluster_utils import Cluster
from ray.tune.experiment import Trial
from upath import UPath

from raysid.actors.split import start_fleet
from raysid.config import Config, TuneConfig
from raysid.errors import UserError
from raysid.recipes import load_recipe
from raysid.roles.generator_learner import GeneratorLearner
from raysid.roles.messages import Conditions, Slice
from raysid.run.folder import RunFolder
from raysid.run.metrics import read_metrics
from raysid.trainers.distill import distill
from raysid.trainers.search.results import TrialResult, collect_trials
from raysid.trainers.search.trial import SHARED, run_trial
from raysid.trainers.search.tune import run_search
from tests.support.processes import Command, Moment, wait_until
from tests.support.tensorboard_server import tensorboard
from tests.support.tiny_networks import tiny_network
from tests.support.tiny_run import (
    BATCH,
    SHORT,
    STEPS,
    assert_ends_as_local,
    tiny_config,
    tiny_teacher,
    write_recipe,
)

GUIDANCE = [f"method.guidance.{name}" for name in ("train_fake", "eval_fake", "eval_teacher")]


def search_of(folder: Path, *space: dict[str, Any], **changes: Any) -> TuneConfig:
    """A search over runs of seconds, with the recipe in `folder`."""
    recipe = write_recipe(tiny_config(tiny_teacher(folder / "teacher"), folder), folder / "tiny.yaml")
    tree = {"storage": str(folder / "runs"), "run": {"name": "search"}, "recipe": str(recipe), "space": space}
    return TuneConfig.model_validate(tree | {"scheduler": {"name": "none"}} | changes)


def test_every_value_is_a_run_and_the_best_is_a_recipe(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tied scales take one value; a trial's weights equal those of a separate run with its settings."""
    search = search_of(
        tmp_path,
        {"fields": ["method.alpha"], "grid": [0.5, 1.0]},
        {"fields": GUIDANCE, "choice": [1.5]},
    )
    result = run_search(search)
    tried = {tuple(trial.values.values()) for trial in result.trials}
    assert tried == {(0.5, 1.5), (1.0, 1.5)}
    assert {trial.status for trial in result.trials} == {"finished"}
    metrics = [trial.metric for trial in result.trials]
    assert metrics == sorted(metrics)

    for trial in result.trials:
        config = load_recipe(f"{trial.run}/config.yaml", {}, kind="distill")
        alpha, scale = trial.values.values()
        guidance = config.method.guidance
        assert config.method.alpha == alpha
        assert {guidance.train_fake, guidance.eval_fake, guidance.eval_teacher} == {scale}
        assert_ends_as_local(Path(trial.run), config, tmp_path / f"alone-{trial.values}")

    assert result.best is not None
    best = load_recipe(result.best, {}, kind="distill")
    assert best.run.name == "search-best"
    assert [best.method.alpha, best.method.guidance.eval_teacher] == list(result.trials[0].values.values())
    folder = Path(result.path)
    assert [trial["run"] for trial in json.loads((folder / "trials.json").read_text())] == [
        trial.run for trial in result.trials
    ]
    for dimension in search.space:
        assert (folder / "plots" / f"{dimension.fields[0]}.png").stat().st_size > 5000
    check_tensorboard(folder, search, result.trials)
    printed = capsys.readouterr().out
    assert f"raysid distill {result.best}" in printed


def check_tensorboard(folder: Path, search: TuneConfig, trials: list[TrialResult]) -> None:
    """TensorBoard has every trial's curves, a plot per dimension, and the table of hyperparameters."""
    names = {f"trials/{Path(trial.run).name}/tensorboard": trial for trial in trials}
    metric = "eval/frechet_distance"
    with tensorboard(folder) as board:
        board.wait_until(lambda: names.keys() <= board.get("scalars/tags").keys())
        for name, trial in names.items():
            values = [value for step, value in board.scalars(metric, name) if step]
            assert min(values) == pytest.approx(trial.metric)
        plots = board.get("images/tags")["tensorboard"]
        assert plots.keys() == {f"search/{dimension.fields[0]}" for dimension in search.space}
        board.post("hparams/experiment", {"experimentName": ""})
        asked = {"startIndex": 0, "sliceSize": 10, "allowedStatuses": ["STATUS_SUCCESS"]}
        groups = board.post(
            "hparams/session_groups",
            asked | {"colParams": [{"metric": {"group": "tensorboard", "tag": metric}}]},
        )["sessionGroups"]
        tried = {(g["hparams"]["method.alpha"], g["hparams"]["method.guidance.eval_teacher"]) for g in groups}
        assert tried == {tuple(trial.values.values()) for trial in trials}


@pytest.mark.slow
def test_trials_have_places_for_every_rank(ray_cluster: None, tmp_path: Path) -> None:
    """Two ranks of one learner, one of the other: a trial's weights equal those of one process."""
    search = search_of(
        tmp_path,
        {"fields": ["method.alpha"], "grid": [0.5, 1.0]},
        settings={"fake_score.num_workers": 2},
        max_concurrent_trials=1,
    )
    result = run_search(search)
    assert {trial.status for trial in result.trials} == {"finished"}
    for trial in result.trials:
        config = load_recipe(f"{trial.run}/config.yaml", {}, kind="distill")
        assert config.learner_workers == {"generator": 1, "fake_score": 2}
        assert_ends_as_local(Path(trial.run), config, tmp_path / f"alone-{trial.values}")


@pytest.mark.slow
def test_a_trial_that_diverges_is_marked_and_the_search_continues(ray_cluster: None, tmp_path: Path) -> None:
    search = search_of(
        tmp_path, {"fields": ["generator.lr"], "grid": [1000.0, 1e-3]}, max_concurrent_trials=1
    )
    result = run_search(search)
    assert [(trial.values["generator.lr"], trial.status) for trial in result.trials] == [
        (1e-3, "finished"),
        (1000.0, "diverged"),
    ]
    assert result.trials[1].images < STEPS * BATCH or result.trials[1].metric is None
    assert result.best is not None and load_recipe(result.best, {}, kind="distill").generator.lr == 1e-3


def test_a_run_without_a_good_sample_is_a_diverged_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run ends with an error that names a checkpoint. The trial reports NaN instead of failing."""
    teacher, search = (
        tiny_teacher(tmp_path / "teacher"),
        search_of(tmp_path, {"fields": ["generator.lr"], "grid": [1e38]}),
    )
    (tmp_path / SHARED).write_text("shared")
    base = tiny_config(teacher, tmp_path, **SHORT)
    reported: list[dict[str, Any]] = []

    def alone(config: Config, within: object, on_evaluation: Any) -> None:
        distill(config, on_evaluation=on_evaluation)

    monkeypatch.setattr("raysid.trainers.search.trial.distill", alone)  # without a cluster
    monkeypatch.setattr(ray, "get_actor", lambda name: None)
    monkeypatch.setattr("raysid.trainers.search.trial.get_current_placement_group", lambda: "a group")
    monkeypatch.setattr(tune, "get_context", lambda: SimpleNamespace(get_trial_id=lambda: "first"))
    monkeypatch.setattr(tune, "report", reported.append)
    settings = (search.model_dump(mode="json"), base.model_dump(mode="json"))
    run_trial({"generator.lr": 1e38}, *settings, str(tmp_path), teacher, "shared")
    last = reported[-1]
    assert last["diverged"] and math.isnan(last["frechet_distance"]) and last["step"] >= 0
    ended = SimpleNamespace(
        trial_id="first", last_result=last, status=Trial.TERMINATED, config={"generator.lr": 1e38}
    )
    (result,) = collect_trials(search, UPath(tmp_path), [ended])  # type: ignore[list-item]
    assert result.status == "diverged" and not result.usable
    assert result.outcome == f"diverged at step {last['step']}"


@pytest.mark.slow
def test_a_killed_search_is_finished_by_the_same_command(tmp_path: Path) -> None:
    """Killed once a trial has ended: that trial is not run again, the others are finished."""
    search = search_of(
        tmp_path, {"fields": ["method.alpha"], "grid": [0.5, 1.0, 1.2]}, max_concurrent_trials=1
    )
    file = tmp_path / "search.yaml"
    file.write_text(json.dumps(search.model_dump(mode="json")))  # JSON is YAML
    trials = Path(search.storage) / "search" / "trials"

    def ended() -> list[Path]:
        return [run for run in trials.glob("*") if any(e["kind"] == "table" for e in read_metrics(run))]

    def second_trial_runs(began: float) -> bool:
        return len(ended()) == 1 and len([run for run in trials.glob("*") if read_metrics(run)]) == 2

    first = Command("tune", file, log=tmp_path / "first.log")
    first.kill_when(Moment("the second trial", second_trial_runs), seconds=200)
    (done,) = ended()
    again = Command("tune", file, log=tmp_path / "again.log")
    assert again.wait(300) == 0, again.output
    table = json.loads((trials.parent / "trials.json").read_text())
    assert [trial["status"] for trial in table] == ["finished"] * 3
    assert sorted(trial["values"]["method.alpha"] for trial in table) == [0.5, 1.0, 1.2]
    assert len(json.loads((done / "run.json").read_text())["sessions"]) == 1


@pytest.mark.slow
def test_a_search_that_loses_its_learners_node_names_what_is_missing_and_resumes(
    tmp_path: Path,
) -> None:
    places = {f"resources.{role}.resources": {"learner": 1} for role in ("fake_score", "generator")}
    search = search_of(
        tmp_path,
        {"fields": ["method.alpha"], "grid": [0.5, 1.0]},
        settings=places | {"failure.placement_timeout_s": 15},
        max_concurrent_trials=1,
    )
    file = tmp_path / "search.yaml"
    file.write_text(json.dumps(search.model_dump(mode="json")))
    trials = Path(search.storage) / "search" / "trials"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=2, resources={"learner": 2})
        address = ["--address", cluster.address]
        first = Command("tune", file, *address, log=tmp_path / "first.log")
        wait_until(lambda: any(trials.glob("*/checkpoints/*/manifest.json")), 120, "a trial's checkpoint")
        cluster.remove_node(node)
        assert first.wait(180) == 1
        *_, last = first.output.splitlines()
        assert "no node has 1 learner (none has any)" in last and "a trial's learners" in last
        cluster.add_node(num_cpus=2, resources={"learner": 2})
        again = Command("tune", file, *address, log=tmp_path / "again.log")
        assert again.wait(300) == 0, again.output
    finally:
        cluster.shutdown()
    table = json.loads((trials.parent / "trials.json").read_text())
    assert "finished" in {trial["status"] for trial in table}


def test_an_impossible_search_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="method.alfa"):
        run_search(search_of(tmp_path, {"fields": ["method.alfa"], "grid": [1.0]}))
    with pytest.raises(UserError, match="sigma_init is -1"):
        run_search(search_of(tmp_path, {"fields": ["method.sigma_init"], "grid": [1.0, -1.0]}))
    with pytest.raises(UserError, match=r"fake_score.augment is 0.12, but .* has augment_dim 0"):
        space = {"fields": ["fake_score.augment"], "grid": [0.0, 0.12]}
        run_search(search_of(tmp_path, space, run={"name": "augment"}))
    for field, value in (("generator.num_workers", 2.0), ("resources.teacher.num_gpus", 0.5)):
        with pytest.raises(UserError, match=f"{field} cannot be searched: all trials use the same resources"):
            run_search(search_of(tmp_path, {"fields": [field], "grid": [value]}, run={"name": "places"}))
    run = RunFolder(tiny_config("unused", tmp_path / "runs", "search"))
    run.begin("digest")
    run.close()
    with pytest.raises(UserError, match="holds something other than a search"):
        run_search(search_of(tmp_path, {"fields": ["method.alpha"], "grid": [1.0]}))


def test_fifty_runs_that_end_between_score_and_pullback_leave_no_graphs(
    ray_cluster: None, tmp_path: Path
) -> None:
    """A service for two runs keeps at most the graphs of two, however many runs it has served."""
    config = tiny_config(tiny_teacher(tmp_path / "teacher"), tmp_path, microbatch_size=BATCH)
    cond = Conditions({"labels": torch.arange(BATCH) % 10})
    noised, _ = GeneratorLearner(config, tiny_network(3, img_resolution=8, label_dim=10)).generate(
        Slice(1, 0, BATCH), cond
    )
    fleet = start_fleet(str(config.teacher.path), config, threads=1, runs=2)
    try:
        (scorer,) = fleet.members
        batch = ray.put(noised)
        memory, pages = Path("/proc/self/statm"), []  # the second number: resident pages of 4096 bytes
        for run in range(50):
            ray.get(scorer.actor.score.remote(batch, cond, 1.0, f"run {run}", False))
            pages.append(ray.get(scorer.actor.__ray_call__.remote(lambda role: memory.read_text())))
        report = ray.get(scorer.actor.report.remote())
        assert report["graphs"] <= 2 * config.graphs_kept
        grown = [int(text.split()[1]) * 4096 for text in (pages[9], pages[-1])]
        assert grown[1] - grown[0] < 50e6  # forty more graphs of this network would be 200e6
    finally:
        fleet.close()
