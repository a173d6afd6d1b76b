"""A run keeps its newest checkpoints, and the one whose generator has the best evaluation."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from raysid.errors import UserError
from raysid.networks.files import NetworkCard
from raysid.roles.state_files import write_state
from raysid.run.checkpoint import Checkpoints, find_checkpoint
from raysid.run.tracking import Tracker
from raysid.storage import children
from raysid.trainers import evaluation
from raysid.trainers.distill import distill
from tests.support.bucket_server import BUCKET, bucket_server, in_bucket
from tests.support.tiny_run import SHORT, lines_of, run_of, tiny_config

BEST_AT_2 = {0: 9.0, 2: 1.0, 4: 5.0, 5: 3.0}


@pytest.fixture(scope="module")
def bucket() -> Iterator[UPath]:
    with bucket_server() as address:
        yield in_bucket(address, f"gs://{BUCKET}/kept")


@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_the_newest_and_the_best_are_kept(where: str, bucket: UPath, tmp_path: Path) -> None:
    checkpoints = Checkpoints(UPath(tmp_path) if where == "folder" else bucket, keep=2)
    for step in (0, 4, 8, 12, 16, 20):
        files = [write_state(checkpoints.path(step), "generator", {"step": step})]
        checkpoints.finish(step, 32 * step, files)

    def left(distances: dict[int, float]) -> list[int]:
        checkpoints.remove_old(distances)
        assert [c.path.name for c in checkpoints.all()] == sorted(
            p.name for p in children(checkpoints.folder)
        )
        return [checkpoint.step for checkpoint in checkpoints.all()]

    assert left({0: 9.0, 8: 2.0, 10: 1.0, 12: 2.0}) == [8, 16, 20]  # there is none of step 10
    assert left({8: 2.0, 20: 3.0}) == [8, 16, 20]
    assert left({8: 2.0, 20: 1.0}) == [16, 20]  # the best is one of the newest
    assert left({}) == [16, 20]


def evaluated(monkeypatch: pytest.MonkeyPatch, distances: dict[int, float]) -> None:
    """Have evaluations return these distances, by step."""

    def measure(make: Any, card: NetworkCard, *arguments: Any) -> dict[str, Any]:
        distance = distances[card.trained["step"]]
        return {"frechet_distance": distance, "label_accuracy": None, "ms_per_image": 1.0, "num_samples": 1}

    monkeypatch.setattr(evaluation, "measure", measure)


def test_a_run_keeps_the_checkpoint_of_its_best_evaluation(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is kept across a resume, and a run can branch from it."""
    evaluated(monkeypatch, BEST_AT_2)
    config = tiny_config(teacher, tmp_path, **SHORT)
    folder = run_of(config) / "checkpoints"
    record = Tracker.evaluation

    def interrupted(self: Tracker, step: int, *arguments: Any) -> None:
        record(self, step, *arguments)
        if step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Tracker, "evaluation", interrupted)
        with pytest.raises(KeyboardInterrupt):
            distill(config)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000002", "step-00000004"]
    result = distill(config)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000002", "step-00000005"]
    assert result.best_checkpoint == str(folder / "step-00000002")
    assert f"checkpoint   {result.best_checkpoint}\n" in capsys.readouterr().out
    branch = tiny_config(teacher, tmp_path, "branch", **SHORT)
    distill(branch, resume_from=result.best_checkpoint)
    shutil.rmtree(folder / "step-00000002")  # as the first run does once a later checkpoint is better
    distill(branch, resume_from=result.best_checkpoint)  # the same command resumes from its own checkpoint
    with pytest.raises(UserError, match="no whole checkpoint at"):
        distill(branch, resume_from=result.best_checkpoint, fresh=True)
    assert [entry["step"] for entry in lines_of(run_of(branch), "train")][0] == 3


def test_the_best_checkpoint_is_removed_without_keep_best(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated(monkeypatch, BEST_AT_2)
    config = tiny_config(teacher, tmp_path, **SHORT, checkpoint__keep_best=False)
    result = distill(config)
    newest = find_checkpoint(run_of(config))
    assert [path.name for path in (run_of(config) / "checkpoints").iterdir()] == [newest.path.name]
    assert result.best_checkpoint is None
    assert f"checkpoint   {newest.path}\n" in capsys.readouterr().out
