"""The published recipes: the message about missing files, and a small run once the files exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from raysid import load_generator
from raysid.cli.main import cli
from raysid.config import Config
from raysid.errors import UserError
from raysid.networks.files import load_network
from raysid.recipes import load_recipe
from raysid.roles.state_files import read_state
from raysid.run.metrics import read_metrics
from raysid.trainers.distill import distill
from raysid.trainers.inputs import find_inputs
from tests.support.edm_zips import png
from tests.support.edm_zips import write_zip as write_small_zip
from tests.support.published_files import save_published
from tests.support.tiny_networks import save_generator, tiny_network

NOWHERE = "http://127.0.0.1:9/edm.pkl"  # the discard port: no process listens on it
SMALL: dict[str, Any] = {"img_channels": 3, "label_dim": 0, "augment_dim": 9}  # 4x4, in colour


def raysid(*arguments: str) -> tuple[int, str, str]:
    """Run a command; return its exit code, stdout and stderr."""
    result = CliRunner().invoke(cli, arguments, prog_name="raysid")
    return result.exit_code, result.stdout, result.stderr


def files(folder: Path) -> dict[str, str]:
    """Options that name small files of the kinds that a published SiD²A run needs."""
    return {
        "teacher.path": str(save_published(folder / "edm.pkl", tiny_network(1, **SMALL))),
        "data.source": write_small_zip(folder / "images.zip", 64),
        "generator.path": str(save_published(folder / "sid.pkl", tiny_network(2, **SMALL))),
    }


def small(folder: Path, **overrides: Any) -> dict[str, Any]:
    """Overrides that shrink a published run to seconds on CPUs."""
    return {
        "storage": str(folder / "runs"),
        "teacher.network": None,
        "total_images": 256,
        "batch_size": 64,
        "resources": {role: {"num_gpus": 0} for role in ("teacher", "fake_score", "generator")},
        "placement": "local",
        "torch_threads": 1,
    } | overrides


def test_missing_inputs_are_named_with_their_sources_and_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYSID_CACHE", str(tmp_path / "cache"))
    given = ["--teacher.path", NOWHERE, "--generator.path", NOWHERE, "--seed", "3"]
    code, out, error = raysid("distill", "cifar10-uncond-sid2a", *given)
    assert (code, out) == (2, "")
    first, data, teacher, generator, last = error.splitlines()
    assert first == "raysid: error: files that this run needs are missing"
    assert (
        f"data.source: there is no file or folder {tmp_path}/datasets/cifar10-32x32.zip; to get it: " in data
    )
    assert "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz" in data and "dataset_tool.py" in data
    for setting, line in (("teacher.path", teacher), ("generator.path", generator)):
        assert f"{setting}: {NOWHERE} cannot be fetched from this machine" in line
    # The last line is a command that runs once the placeholders are replaced.
    assert last.startswith("get them, then run the same command, or give paths of your own: raysid distill ")
    command = shlex.split(last.partition(": ")[2])
    assert command[2] == "cifar10-uncond-sid2a"
    options = dict(zip(command[3::2], command[4::2], strict=True))
    assert options == {
        "--seed": "3",
        "--data.source": "DATA_SOURCE",
        "--teacher.path": "TEACHER_PATH",
        "--generator.path": "GENERATOR_PATH",
    }
    assert not (tmp_path / "runs").exists()


def test_the_same_command_runs_once_the_files_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A minimal SiD²A run with its published recipe, then the same command again."""
    monkeypatch.chdir(tmp_path)
    overrides = {
        **files(tmp_path), "storage": "runs", "teacher.network": "null", "total_images": "256", "batch_size": "64",
        "placement": "local", "torch_threads": "1",
    } | {f"resources.{role}.num_gpus": "0" for role in ("teacher", "fake_score", "generator")}  # fmt: skip
    command = ["distill", "cifar10-uncond-sid2a", *(f"--{name}={value}" for name, value in overrides.items())]
    code, out, error = raysid(*command)
    assert code == 0, error
    assert "SiD²A from " in out and "64 real images of " in out
    assert "Fréchet" not in out  # there is no feature network for such images
    run = tmp_path / "runs" / "cifar10-uncond-sid2a"
    grids = sorted((run / "samples").glob("*.png"))
    assert [grid.name for grid in grids] == ["step-00000000.png", "step-00000004.png"]
    assert f"generator    {run.relative_to(tmp_path)}/generator" in out
    assert not (run / "generator-best").exists()
    kinds = {entry["kind"] for entry in read_metrics(run)}
    assert "evaluation" not in kinds and {"train", "samples", "table"} <= kinds
    assert load_generator(run).sample(2).shape == (2, 3, 4, 4)

    code, out, error = raysid(*command)
    assert code == 0 and "is finished already" in out
    code, out, error = raysid("evaluate", str(run))
    assert code == 2 and re.search(
        "was made for .*images.zip, and these are images that raysid cannot evaluate", error
    )
    code, out, error = raysid("watch", str(run))
    assert code == 0 and "finished" in out


def test_sid2a_starts_from_the_generator_and_psi_from_the_teacher(tmp_path: Path) -> None:
    """Theta and its average start from the SiD generator; a resumed run starts from its own checkpoint."""
    generator = save_generator(tmp_path / "sid", tiny_network(2, **SMALL))
    overrides = small(tmp_path) | files(tmp_path) | {"generator.path": generator}
    config = load_recipe("cifar10-uncond-sid2a", overrides, kind="distill")
    distill(config)
    start, theirs = (tiny_network(seed, **SMALL).state_dict() for seed in (2, 1))
    run = Path(config.storage) / "cifar10-uncond-sid2a"
    checkpoints = {path.name: path for path in (run / "checkpoints").iterdir()}
    first, last = (checkpoints[f"step-{step:08d}"] for step in (0, 4))
    state = read_state(first, "generator")
    for weights in (state["network"], state["ema"]):
        assert all(torch.equal(value, start[name]) for name, value in weights.items())
    assert all(torch.equal(v, theirs[n]) for n, v in read_state(first, "fake_score")["network"].items())
    # In the first phase only psi learns; with another length the run resumes and does not start over.
    resumed = config.model_copy(update={"total_images": 512})
    before = read_state(last, "fake_score")["optimizer"]["state"][0]["step"]
    distill(resumed)
    after = read_state(run / "checkpoints" / "step-00000008", "fake_score")["optimizer"]["state"][0]["step"]
    assert (int(before), int(after)) == (4, 8)


def test_a_finished_run_is_a_start_too(tmp_path: Path) -> None:
    """A SiD²A run can start from the generator of a finished SiD run."""
    sid = load_recipe(
        "cifar10-uncond-sid", small(tmp_path) | only(files(tmp_path), "teacher.path"), kind="distill"
    )
    product = distill(sid).path
    config = load_recipe(
        "cifar10-uncond-sid2a",
        small(tmp_path) | files(tmp_path) | {"generator.path": product},
        kind="distill",
    )
    run = Path(distill(config).path)
    ema = read_state(run / "checkpoints" / "step-00000000", "generator")["ema"]
    left = load_network(Path(product) / "generator", "generator")[1].state_dict()
    assert all(torch.equal(value, left[name]) for name, value in ema.items())
    assert not all(torch.equal(v, left[n]) for n, v in tiny_network(1, **SMALL).state_dict().items())


def only(options: dict[str, str], *names: str) -> dict[str, str]:
    return {name: options[name] for name in names}


def refused(tmp_path: Path, **overrides: Any) -> str:
    """The error line of a SiD²A run with these settings, which writes nothing."""
    config: Config = load_recipe(
        "cifar10-uncond-sid2a", small(tmp_path) | files(tmp_path) | overrides, kind="distill"
    )
    with pytest.raises(UserError) as caught:
        find_inputs(config)
    assert not (tmp_path / "runs").exists()
    return str(caught.value)


def test_a_start_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    other = save_published(tmp_path / "wide.pkl", tiny_network(1, **SMALL | {"model_channels": 8}))
    assert "is another network than the teacher" in refused(tmp_path, **{"generator.path": str(other)})
    assert "runs at sigma_init 2.5, and method.sigma_init is 1" in refused(
        tmp_path, **{"method.sigma_init": 1.0}
    )
    assert "no run and no generator at" in refused(tmp_path, **{"generator.path": str(tmp_path / "none")})
    assert "holds no generator" in refused(tmp_path, **{"generator.path": str(tmp_path)})


def test_another_teacher_than_the_recipes_is_one_line(tmp_path: Path) -> None:
    network = load_recipe("cifar10-uncond-sid", kind="distill").teacher.network
    assert "differs from teacher.network" in refused(tmp_path, **{"teacher.network": network})


def test_images_of_another_size_than_the_teachers_is_one_line(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "large.zip", "w") as archive:
        archive.writestr("a.png", png(np.zeros((3, 8, 8), np.uint8)))
    assert "makes images of shape (3, 4, 4)" in refused(
        tmp_path, **{"data.source": str(tmp_path / "large.zip")}
    )


def test_sida_without_images_is_one_line() -> None:
    with pytest.raises(UserError, match="method.adversarial needs real images: give data.source"):
        load_recipe("digits-sida", {"data.source": "null"})


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_in_half_precision(tmp_path: Path, precision: str) -> None:
    """A whole run in half precision gives losses near those of float32; its weights stay float32."""
    ends = {}
    for name in ("float32", precision):
        overrides = small(tmp_path) | files(tmp_path) | {
            "run.name": name, "precision": name, "generator.lr": 1e-3, "fake_score.lr": 1e-3,
            "method.adversarial.generator_start_images": 0, "method.adversarial.adversarial_start_images": 0,
        }  # fmt: skip
        config = load_recipe("cifar10-uncond-sid2a", overrides, kind="distill")
        run = Path(distill(config).path)
        ends[name] = (
            read_metrics(run),
            read_state(run / "checkpoints" / "step-00000004", "generator")["network"],
        )
    start = tiny_network(2, **SMALL).state_dict()
    (full_metrics, full), (metrics, half) = ends["float32"], ends[precision]
    assert all(value.dtype == torch.float32 for value in half.values())
    assert all(value.isfinite().all() for value in half.values())
    assert any(not torch.equal(half[name], full[name]) for name in full)
    assert any(not torch.equal(half[name], start[name]) for name in full)
    losses, full_losses = (
        [entry["loss/fake_score"] for entry in entries if entry["kind"] == "train"]
        for entries in (metrics, full_metrics)
    )
    assert losses == pytest.approx(full_losses, rel=0.1)
