"""Runs on image files: equal images in other formats give equal weights; bad images do not stop a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raysid.config import Config
from raysid.errors import RunFailed
from raysid.roles.protocols import Roles
from raysid.roles.step import Share, StepResult, take_step
from raysid.run.metrics import METRICS, read_metrics
from raysid.trainers.distill import distill
from tests.support.bucket_server import BUCKET
from tests.support.command_line import raysid
from tests.support.picture_files import digit_pictures, write_folder, write_parquet, write_tars
from tests.support.tiny_pretrain import tiny_pretrain
from tests.support.tiny_run import BATCH, Weights, assert_same, learner_states, tiny_config, write_recipe

COUNT, STEPS = 150, 6  # a little more than an epoch


@pytest.fixture(scope="module")
def pictures() -> list[tuple[str, bytes, int]]:
    return digit_pictures(COUNT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pictures: Any) -> str:
    return write_folder(tmp_path_factory.mktemp("pictures") / "digits", pictures)


def end(teacher: str, storage: Path, source: Any, name: str, steps: int = STEPS, **changes: Any) -> Weights:
    """The learners' states after a few steps in this process; a known name resumes that run."""
    settings = {"placement": "local", "data__source": source, "total_images": steps * BATCH} | changes
    config = tiny_config(teacher, storage, name, **settings)
    result = distill(config)
    assert result.checkpoint is not None and result.checkpoint.endswith(f"step-{steps:08d}")
    return learner_states(Path(result.checkpoint))


@pytest.fixture(scope="module")
def from_folder(teacher: str, folder: str, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return end(teacher, tmp_path_factory.mktemp("runs"), folder, "folder")


@pytest.mark.parametrize("kind", ["parquet", "tars"])
def test_the_same_images_in_other_files_give_the_same_weights(
    teacher: str, from_folder: Weights, pictures: Any, tmp_path: Path, kind: str
) -> None:
    source = (
        write_parquet(tmp_path / "d" / "d.parquet", pictures)
        if kind == "parquet"
        else write_tars(tmp_path / "d", pictures, 40)
    )
    assert_same(end(teacher, tmp_path, source, kind), from_folder)


def test_converted_images_give_the_same_weights_with_a_window_smaller_than_the_set(
    ray_cluster: None, teacher: str, folder: str, tmp_path: Path
) -> None:
    ran = raysid("data", "convert", folder, tmp_path / "converted")
    assert ran.exit_code == 0, ran.stderr
    small = {"data__shuffle_window": 40}
    ours = end(teacher, tmp_path, str(tmp_path / "converted"), "converted", **small)
    assert_same(ours, end(teacher, tmp_path, folder, "folder", **small))


def test_converted_images_in_a_bucket_give_the_same_weights(
    ray_cluster: None,
    cluster_bucket: str,
    teacher: str,
    folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray Data's workers write them to the bucket, and read them from it for the actors."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", cluster_bucket)
    ran = raysid("data", "convert", folder, url := f"gs://{BUCKET}/converted")
    assert ran.exit_code == 0, ran.stderr
    small = {"data__shuffle_window": 40}
    ours = end(teacher, tmp_path, url, "bucket", placement="split", **small)
    theirs = end(teacher, tmp_path, folder, "folder", **small)
    assert_same({name: ours[name] for name in theirs}, theirs)


def test_a_run_resumed_within_an_epoch_equals_an_uninterrupted_one(
    teacher: str, folder: str, tmp_path: Path
) -> None:
    small = {"data__shuffle_window": 40, "data__xflip": True, "lr_schedule__decay": "constant"}
    whole = end(teacher, tmp_path, folder, "whole", **small)
    end(teacher, tmp_path, folder, "cut", steps=3, **small)
    assert_same(end(teacher, tmp_path, folder, "cut", **small), whole)


@pytest.fixture
def damaged(tmp_path: Path, pictures: Any) -> str:
    """The folder with 153 images, 3 of which are bad."""
    root = write_folder(tmp_path / "damaged", pictures)
    (tmp_path / "damaged" / "0" / "empty.png").write_bytes(b"")
    (tmp_path / "damaged" / "1" / "text.jpg").write_text("not a picture")
    (tmp_path / "damaged" / "beside.png").write_bytes(pictures[0][1])
    return root


def test_bad_images_are_skipped_and_named_once(
    teacher: str, damaged: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = end(teacher, tmp_path / "runs", damaged, "damaged", data__max_bad_fraction=0.02, steps=4)
    lines = [entry for entry in read_metrics(tmp_path / "runs" / "damaged") if entry["kind"] == "bad_images"]
    named = [
        f"{damaged}/0/empty.png is empty (0 bytes)",
        f"{damaged}/1/text.jpg is not a PNG, JPEG or WebP",
        f"{damaged}/beside.png has no label",
    ]
    assert [name for entry in lines for name in entry["names"]] == named
    assert "3 real images skipped so far" in capsys.readouterr().err
    end(teacher, tmp_path / "runs", damaged, "damaged", data__max_bad_fraction=0.02)
    lines = [entry for entry in read_metrics(tmp_path / "runs" / "damaged") if entry["kind"] == "bad_images"]
    assert [name for entry in lines for name in entry["names"]] == named
    assert_same(
        end(teacher, tmp_path / "runs", damaged, "again", data__max_bad_fraction=0.02, steps=4), first
    )


def test_too_many_bad_images_stop_the_run_with_their_names(
    teacher: str, damaged: str, tmp_path: Path
) -> None:
    """Its error line names the first few; its metrics name all that were read, once each over repeated runs."""
    for number in range(4):
        (tmp_path / "damaged" / "0" / f"zero-{number}.png").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(RunFailed) as caught:
            end(teacher, tmp_path / "runs", damaged, "damaged")
        line = str(caught.value)
        assert "7 of 157 real images cannot be used, which is more than data.max_bad_fraction = 0.01" in line
        assert "is empty" in line and "and 2 more, which `raysid data check` names" in line
        assert "\n" not in line
        lines = [e for e in read_metrics(tmp_path / "runs" / "damaged") if e["kind"] == "bad_images"]
        named = [name.split()[0].removeprefix(f"{damaged}/") for entry in lines for name in entry["names"]]
        zeros = [f"0/zero-{number}.png" for number in range(4)]
        assert sorted(named) == sorted(["0/empty.png", *zeros, "1/text.jpg", "beside.png"])


def test_a_run_that_loses_its_images_writes_a_checkpoint_and_resumes_when_they_are_back(
    teacher: str, pictures: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_tars(tmp_path / "tars", pictures, 50)
    # Little is read ahead, so that the missing images are noticed before the run ends.
    settings = {"data__shuffle_window": 10, "checkpoint__every_images": 100 * BATCH}
    whole = end(teacher, tmp_path, source, "whole", **settings)

    def then_gone(roles: Roles, config: Config, step: int, share: Share) -> StepResult:
        if step == 3:
            (tmp_path / "tars").rename(tmp_path / "elsewhere")
        return take_step(roles, config, step, share)

    with monkeypatch.context() as patch, pytest.raises(RunFailed) as caught:
        patch.setattr("raysid.actors.local.take_step", then_gone)
        end(teacher, tmp_path, source, "cut", **settings)
    assert "run the same command to resume; checkpoint of step 4 written" in str(caught.value)
    (tmp_path / "elsewhere").rename(tmp_path / "tars")
    assert_same(end(teacher, tmp_path, source, "cut", **settings), whole)


@pytest.mark.slow
def test_actors_that_read_by_ray_data_give_the_same_weights(
    ray_cluster: None, teacher: str, folder: str, from_folder: Weights, tmp_path: Path
) -> None:
    assert_same(end(teacher, tmp_path, folder, "split", placement="split"), from_folder)
    small = {"data__shuffle_window": 40}
    local = end(teacher, tmp_path, folder, "local-small", **small)
    assert_same(end(teacher, tmp_path, folder, "split-small", placement="split", **small), local)


@pytest.mark.slow
def test_a_teacher_is_trained_on_a_folder_and_distilled_with_it(
    ray_cluster: None, folder: str, tmp_path: Path
) -> None:
    data = tiny_pretrain(tmp_path).data.model_copy(update={"source": folder})
    recipe = tiny_pretrain(tmp_path).model_copy(update={"data": data})
    write_recipe(recipe, tmp_path / "teacher.yaml")  # type: ignore[arg-type]
    config = tiny_config("none", tmp_path, "whole", data__source=folder, placement="local", total_images=64)
    teacher = config.teacher.model_copy(update={"path": None, "recipe": str(tmp_path / "teacher.yaml")})
    distill(config.model_copy(update={"teacher": teacher}))
    assert (tmp_path / "whole" / METRICS).exists()
    assert (tmp_path / "whole" / "generator" / "model.safetensors").exists()
