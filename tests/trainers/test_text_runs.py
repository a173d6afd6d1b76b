"""Distillation of a text-to-image pipeline from prompts: placements agree, runs resume, mistakes get one line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from PIL import Image
from upath import UPath

from raysid.actors.local import LocalPlacement
from raysid.actors.placement import Placement
from raysid.actors.split import SplitPlacement
from raysid.config import Config
from raysid.errors import RunFailed, UserError
from raysid.generator import load_generator
from raysid.networks.files import load_card
from raysid.roles.messages import Slice
from raysid.roles.protocols import Roles
from raysid.run.checkpoint import Checkpoints
from raysid.trainers.distill import distill
from raysid.trainers.inputs import find_inputs, run_inputs
from raysid.trainers.teachers import trained_teacher
from tests.support.bucket_server import BUCKET, bucket_environment, bucket_server, in_bucket
from tests.support.command_line import raysid
from tests.support.processes import kill
from tests.support.tiny_pipeline import tiny_pipeline
from tests.support.tiny_run import (
    Weights,
    assert_same,
    learner_states,
    lines_of,
    pid_of,
    placement_end,
    run_of,
    tiny_config,
    tiny_teacher,
)

STEPS, BATCH = 4, 8
PROMPTS = [f"a {colour} {animal} in the {place}" for colour in ("red", "green", "blue")
           for animal in ("fox", "cat", "dog") for place in ("snow", "house", "grass")]  # fmt: skip


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline and prompts."""
    folder = tmp_path_factory.mktemp("given")
    tiny_pipeline(folder / "pipeline")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    return folder


def text_config(given: Path, storage: Path, **changes: Any) -> Config:
    """A few steps of SiD-LSG with guidance, in two microbatches a step."""
    learner = {"lr": 1e-4, "betas": (0, 0.999)}
    tree: dict[str, Any] = {
        "storage": str(storage),
        "run": {"name": "text"},
        "placement": "local",
        "torch_threads": 1,
        "teacher": {"path": str(given / "pipeline")},
        "prompts": {"source": str(given / "prompts.txt")},
        "data": {"source": None},
        "method": {
            "sid_weight": 1.0,
            "guidance": {"train_fake": 1.5, "eval_fake": 2.0, "eval_teacher": 3.0, "condition_drop": 0.5},
        },
        "total_images": STEPS * BATCH,
        "batch_size": BATCH,
        "microbatch_size": BATCH // 2,
        "fake_score": learner,
        "generator": learner,
        "ema": {"halflife_images": 100},
        "evaluation": {"every_images": STEPS * BATCH},
        "checkpoint": {"every_images": STEPS * BATCH // 2},
    }
    return Config.model_validate(tree | changes)


@pytest.mark.parametrize("schedule", ["alternating", pytest.param("overlapped", marks=pytest.mark.slow)])
def test_three_actors_give_the_results_of_one_process(
    ray_cluster: None, given: Path, tmp_path: Path, schedule: str
) -> None:
    """With the reader of prompts and one of two scorers killed on the way: every weight, optimizer state and loss."""
    ends = []
    for name in ("local", "split"):
        scaling = {"num_replicas": 2} if name == "split" else {}
        teacher = {"path": str(given / "pipeline"), **scaling}
        config = text_config(given, tmp_path, placement=name, schedule=schedule, teacher=teacher)
        inputs = find_inputs(config)
        run = run_inputs(config, str(trained_teacher(config, inputs.teacher, None).path), None)
        placement: Placement = (
            LocalPlacement(run, None, 1) if name == "local" else SplitPlacement(run, None, 1)
        )
        if isinstance(placement, SplitPlacement):
            placement.roles = roles_with_a_loss(placement)  # type: ignore[assignment]
        ends.append(placement_end(placement, config, tmp_path / name, STEPS))
    assert_same(ends[1][0], ends[0][0])
    for ours, theirs in zip(ends[1][1], ends[0][1], strict=True):
        assert ours | {"teacher_recomputes": 0} == theirs | {"teacher_recomputes": 0}


def text_end(run: Path) -> Weights:
    """The results of a finished run: both learners' last states, and the generator's weights."""
    newest = Checkpoints(UPath(run / "checkpoints")).newest()
    assert newest is not None and newest.step == STEPS
    weights = safetensors.torch.load_file(run / "generator" / "model.safetensors")
    return learner_states(newest.path) | {f"product.{name}": value for name, value in weights.items()}


def roles_with_a_loss(placement: SplitPlacement) -> Roles:
    """The placement's roles; the reader of prompts is killed in step 1, and a scorer in step 2."""
    conditions = placement.roles.conditions

    class Killing:
        def __init__(self) -> None:
            self.left = {1: conditions.actor, 2: placement.pool.present()[0].actor}  # type: ignore[attr-defined]

        def of(self, at: Slice, purpose: Any) -> Any:
            if at.step in self.left:
                kill(pid_of(self.left.pop(at.step)))
            return conditions.of(at, purpose)

    return dataclasses.replace(placement.roles, conditions=Killing())


def test_whole_runs_give_the_same_results_in_every_placement(
    ray_cluster: None, given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = {}
    for name in ("local", "split", "colocated"):
        workers = {"colocated": {"num_workers": 2}} if name == "colocated" else {}
        config = text_config(given, tmp_path / name, placement=name, **workers)
        distill(config)
        shown = capsys.readouterr().out
        assert "SiD-LSG at k 1.5 / 2 / 3, overlapped: 32 generated images and 27 prompts of" in shown
        ends[name] = text_end(run_of(config))
    assert_same(ends["split"], ends["local"])
    assert_same(ends["colocated"], ends["local"])


def test_a_resumed_run_equals_an_uninterrupted_one(given: Path, tmp_path: Path) -> None:
    whole = text_config(given, tmp_path / "whole")
    half = text_config(given, tmp_path / "halves", total_images=STEPS * BATCH // 2)
    for config in (whole, half, half.model_copy(update={"total_images": STEPS * BATCH})):
        distill(config)
    assert_same(text_end(run_of(half)), text_end(run_of(whole)))


def test_a_run_leaves_what_people_take_away(given: Path, tmp_path: Path) -> None:
    """Grids with prompts, samples of a prompt, and a pipeline for stock diffusers; the teacher's folder is whole."""
    config = text_config(given, tmp_path)
    distill(config)
    run = run_of(config)
    grid = run / "samples" / f"step-{STEPS:08}.png"
    with Image.open(grid) as picture:
        assert picture.size[0] == 4 * 97 + 1
    assert [line["path"] for line in lines_of(run, "samples")][-1].endswith(grid.name)
    generator = load_generator(run)
    assert generator.takes_text and generator.sample(2, prompts="a red fox").shape == (2, 3, 16, 16)
    parts = Path(str(load_card(run / "generator").parts))
    assert {path.name for path in parts.iterdir()} >= {"text_encoder", "tokenizer", "vae", "scheduler"}
    out = tmp_path / "fox.png"
    assert raysid("sample", run, "--prompt", "a red fox in the snow", "-n", 4, "--out", out).exit_code == 0
    result = raysid("export", run, "--to", "diffusers", "--out", tmp_path / "one-step")
    assert result.exit_code == 0 and (tmp_path / "one-step" / "model_index.json").exists()


def test_prompts_whose_first_rows_are_left_out(given: Path, tmp_path: Path) -> None:
    """Scores are sorted, so all rows from which the grid's prompts would be taken are below the minimum."""
    file = tmp_path / "sorted.parquet"
    rows = {"text": [f"a red fox {number}" for number in range(1200)], "score": range(1200)}
    pq.write_table(pa.table(rows), file)
    prompts = {"source": str(file), "min": {"score": 1100}}
    config = text_config(given, tmp_path, prompts=prompts, total_images=BATCH)
    distill(config)
    assert (run_of(config) / "samples" / "step-00000001.png").exists()
    config = text_config(given, tmp_path / "none", prompts=prompts | {"min": {"score": 5000}})
    with pytest.raises(RunFailed, match="none of 1,200 consecutive prompts can be used: 1,200 are left out"):
        distill(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"prompts": {}},
            "makes images from text: give prompts.source, such as --prompts.source prompts.txt",
        ),
        ({"prompts": {"source": "nowhere.txt"}}, "prompts.source: there is no file or folder "),
        (
            {"data": {"source": "patches"}},
            "is distilled from prompts alone, without real images: give data.source null",
        ),
    ],
    ids=["none", "missing", "images"],
)
def test_a_run_that_cannot_be_is_refused(
    given: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as refused:
        distill(text_config(given, tmp_path, **changes))
    assert message in str(refused.value)
    assert not (tmp_path / "text").exists()


def test_prompts_are_refused_for_a_teacher_without_text(given: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_teacher(tmp_path / "teacher"), tmp_path, method__adversarial=None)
    config = config.model_copy(update={"prompts": text_config(given, tmp_path).prompts})
    with pytest.raises(UserError, match="prompts.source is for a teacher that takes text, and .* takes none"):
        distill(config)


@pytest.mark.slow
def test_a_run_in_a_bucket_with_prompts_and_a_pipeline_in_it(
    ray_cluster: None, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher's parts are copied from the bucket by each role, and its weights are those of a run in a folder."""
    here = text_config(given, tmp_path)
    distill(here)
    with bucket_server() as server:
        for name, value in bucket_environment(server, "gs").items():
            monkeypatch.setenv(name, value)
        for file in given.rglob("*"):
            if file.is_file():
                in_bucket(server, f"gs://{BUCKET}/given/{file.relative_to(given)}").write_bytes(
                    file.read_bytes()
                )
        there = text_config(
            given,
            Path("unused"),
            teacher={"path": f"gs://{BUCKET}/given/pipeline"},
            prompts={"source": f"gs://{BUCKET}/given/prompts.txt"},
        ).model_copy(update={"storage": f"gs://{BUCKET}/runs"})
        distill(there)
        own = load_generator(run_of(here)).network.state_dict()
        found = load_generator(f"gs://{BUCKET}/runs/text")
        assert found.sample(1, prompts="a red fox").shape == (1, 3, 16, 16)
        assert all(torch.equal(value, own[name]) for name, value in found.network.state_dict().items())
        out = ("export", f"gs://{BUCKET}/runs/text", "--to", "diffusers", "--out", f"gs://{BUCKET}/one-step")
        assert raysid(*out).exit_code == 0
        assert in_bucket(server, f"gs://{BUCKET}/one-step/model_index.json").exists()
