"""Files of other releases: a newer one's are refused and stay as they are, an older one's are read.

`tests/formats/` holds a run of every format ever released, stopped half way, its teacher, and its end.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from upath import UPath

from raysid.config import Config, TuneConfig
from raysid.errors import UserError
from raysid.networks.files import load_card
from raysid.recipes import load_recipe
from raysid.run.checkpoint import MANIFEST, Checkpoints, find_checkpoint
from raysid.run.folder import RunFolder
from raysid.run.metrics import read_metrics
from raysid.trainers.distill import distill
from raysid.trainers.search.tune import run_search

FORMATS = Path(__file__).parents[1] / "formats"


@pytest.fixture(params=sorted(path.name for path in FORMATS.iterdir()))
def release(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the files of one release."""
    return Path(shutil.copytree(FORMATS / str(request.param), tmp_path / "release"))


def config_of(release: Path) -> Config:
    """The settings of the kept run, with paths of the copy."""
    given = {"storage": str(release), "teacher.path": str(release / "teacher")}
    return load_recipe(str(release / "run" / "config.yaml"), given, kind="distill")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def edit(file: Path, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_a_run_of_an_earlier_release_resumes(release: Path) -> None:
    """It ends as that release ended it, up to the rounding of another CPU, and is recorded in today's format."""
    distill(config_of(release))
    ours = safetensors.torch.load_file(release / "run" / "generator" / "model.safetensors")
    theirs = safetensors.torch.load_file(release / "end" / "generator" / "model.safetensors")
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    lines = read_metrics(release / "run")
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4]
    record = json.loads((release / "run" / "run.json").read_text())
    assert record["format"] == "raysid-1" and len(record["sessions"]) == 2
    assert (release / "run" / "config.yaml").read_text().startswith("format: raysid-1\n")
    newest = find_checkpoint(release / "run" / "checkpoints" / "step-00000004")
    assert newest.step == 4 and json.loads((newest.path / MANIFEST).read_text())["format"] == "raysid-1"


def test_a_search_of_an_earlier_release_is_known_again(release: Path) -> None:
    """It differs from a new one in nothing but a setting that was changed."""
    folder = release / "searches" / "digits-tune"
    folder.mkdir(parents=True)
    shutil.copy(release / "search.json", folder)
    config = load_recipe("digits-tune", {"storage": str(folder.parent), "seed": 5}, kind="tune")
    assert isinstance(config, TuneConfig)
    with pytest.raises(UserError, match=r"is a search with other settings \(seed\)"):
        run_search(config)


def test_a_setting_that_is_gone_does_not_end_an_old_run(release: Path) -> None:
    file = release / "run" / "config.yaml"
    file.write_text(file.read_text().replace("tracking:\n", "tracking:\n  samples_every_images: 8\n"))
    assert "samples_every_images" in file.read_text()
    assert distill(config_of(release)).metrics["step"] == 4


NEWER = {
    "manifest": lambda run: edit(
        run / "checkpoints" / "step-00000002" / MANIFEST, lambda content: content.update(format="raysid-2")
    ),
    "record": lambda run: edit(run / "run.json", lambda content: content.update(format="raysid-2")),
    "config": lambda run: (run / "config.yaml").write_text("format: raysid-2\nkind: distil\n"),
}


@pytest.mark.parametrize("change", NEWER.values(), ids=NEWER.keys())
def test_a_run_of_a_newer_release_is_refused(release: Path, change: Callable[[Path], object]) -> None:
    config = config_of(release)
    change(release / "run")
    before = files_of(release / "run")
    with pytest.raises(UserError, match=r"newer release of raysid \(format raysid-2.*update raysid"):
        distill(config)
    after = files_of(release / "run")
    assert {name: after[name] for name in before} == before


MISUNDERSTOOD = {
    "an infinite step": lambda content: content.update(step=float("inf")),
    "files that are missing": lambda content: content.pop("files"),
    "a file elsewhere": lambda content: content["files"][0].update(name="../../../elsewhere.pt"),
    "a size in words": lambda content: content["files"][0].update(size="large"),
}


@pytest.mark.parametrize("change", MISUNDERSTOOD.values(), ids=MISUNDERSTOOD.keys())
def test_a_manifest_that_is_not_understood_removes_nothing(
    release: Path,
    change: Callable[[dict], object],  # type: ignore[type-arg]
) -> None:
    config = config_of(release)
    edit(release / "run" / "checkpoints" / "step-00000002" / MANIFEST, change)
    before = files_of(release / "run" / "checkpoints")
    with pytest.raises(UserError, match="is not a manifest that this release understands") as refused:
        distill(config)
    assert "\n" not in str(refused.value)
    assert files_of(release / "run" / "checkpoints") == before


@pytest.mark.parametrize("file", [MANIFEST, "generator.pt"])
def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_again(release: Path, file: str) -> None:
    config = config_of(release)
    damaged = release / "run" / "checkpoints" / "step-00000002" / file
    damaged.write_bytes(damaged.read_bytes()[:-20])
    before = files_of(release / "run" / "checkpoints")
    with pytest.raises(UserError, match=f"no checkpoint in .* is whole .*{file} is damaged"):
        distill(config)
    assert files_of(release / "run" / "checkpoints") == before


def test_a_damaged_checkpoint_that_is_passed_over_is_named(release: Path) -> None:
    checkpoints = release / "run" / "checkpoints"
    shutil.copytree(checkpoints / "step-00000002", checkpoints / "step-00000003")
    (checkpoints / "step-00000003" / MANIFEST).write_text("{")
    lines: list[str] = []
    newest = Checkpoints(UPath(checkpoints)).newest(lines.append)
    assert newest is not None and newest.step == 2
    assert lines == [f"{checkpoints / 'step-00000003' / MANIFEST} is damaged: that checkpoint is not used"]


def test_a_folder_that_is_no_checkpoint_stays(release: Path) -> None:
    """Someone's own copy beside the checkpoints is no business of the run."""
    copy = release / "run" / "checkpoints" / "before-the-holidays"
    copy.mkdir()
    (copy / "notes.txt").write_text("keep this")
    distill(config_of(release))
    assert (copy / "notes.txt").read_text() == "keep this"


def test_the_network_of_a_newer_release_is_refused(release: Path) -> None:
    edit(release / "teacher" / "config.json", lambda card: card.update(format="raysid-9", precision="fp4"))
    with pytest.raises(UserError, match=r"config.json was written by a newer release .*format raysid-9"):
        load_card(release / "teacher")


def test_a_run_of_the_first_release_does_not_go_on_with_other_images(tmp_path: Path) -> None:
    release = Path(shutil.copytree(FORMATS / "0.1.0", tmp_path / "release"))
    digest = json.loads((release / "run" / "run.json").read_text())["teacher_sha256"]
    before = files_of(release / "run" / "checkpoints")
    with RunFolder(config_of(release)) as run:
        with pytest.raises(
            UserError, match=r"release 0\.1\.0, which left out pictures \.bmp of data\.source"
        ):
            run.begin(digest, new_images="pictures .bmp")
        assert files_of(release / "run" / "checkpoints") == before
        run.begin(digest)
    with RunFolder(config_of(release)) as run:
        run.begin(digest, new_images="pictures .bmp")  # they were added since
