"""Teachers of the Hugging Face Hub, from a local server: what is downloaded, cached, recorded and refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from diffusers import DDPMScheduler
from huggingface_hub import constants

from raysid.errors import NotHere
from raysid.networks.hub import hub_folder, is_hub_name, pinned
from raysid.trainers.distill import distill
from tests.support.hub_server import Hub, hub_server
from tests.support.tiny_networks import digits_network, save_teacher
from tests.support.tiny_run import run_of, write_recipe
from tests.trainers.test_diffusers_teacher import unet
from tests.trainers.test_noise_steps import short

NAME = "org/ddpm-digits"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a pipeline, with others that a teacher does not need."""
    folder = tmp_path_factory.mktemp("ddpm")
    unet().save_pretrained(folder / "unet")
    DDPMScheduler().save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    stem = WEIGHTS.removesuffix(".safetensors")
    extra = (
        "README.md",
        f"unet/{stem}.fp16.safetensors",
        f"unet/{stem}.bin",
        "all-of-it.safetensors",
        "logs/a.json",
    )
    return files | {name: b"not needed" for name in extra}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.chdir(tmp_path)
        yield hub


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def missing(name: str) -> str:
    with pytest.raises(NotHere) as caught:
        hub_folder(name)
    line = str(caught.value)
    assert f"there is no folder {name}" in line and "\n" not in line and len(line) < 500
    return line


def test_only_what_a_teacher_needs_is_downloaded_and_once(hub: Hub, ddpm: dict[str, bytes]) -> None:
    commit = hub.publish(NAME, ddpm)
    folder = hub_folder(NAME)
    assert folder.name == commit
    needed = {"model_index.json", "unet/config.json", f"unet/{WEIGHTS}", "scheduler/scheduler_config.json"}
    assert files_of(folder) == needed
    assert (folder / "unet" / WEIGHTS).read_bytes() == ddpm[f"unet/{WEIGHTS}"]
    assert hub_folder(NAME) == folder
    assert sum(hub.asked[path] for path in hub.asked if "/cdn/" in path) == 1


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (("{}.fp16.safetensors", "{}.bin"), {"{}.fp16.safetensors"}),
        (
            (
                "{}.safetensors.index.json",
                "{}-00001-of-00002.safetensors",
                "{}-00002-of-00002.safetensors",
                "{}.bin",
            ),
            {"{}.safetensors.index.json", "{}-00001-of-00002.safetensors", "{}-00002-of-00002.safetensors"},
        ),
    ],
)
def test_variants_and_shards(hub: Hub, names: tuple[str, ...], taken: set[str]) -> None:
    stem = WEIGHTS.removesuffix(".safetensors")
    hub.publish(NAME, {"config.json": b"{}"} | {name.format(stem): name.encode() for name in names})
    assert files_of(hub_folder(NAME)) == {"config.json"} | {name.format(stem) for name in taken}


def test_a_revision_is_a_commit_that_stays(hub: Hub, ddpm: dict[str, bytes]) -> None:
    first = hub.publish(NAME, ddpm)
    assert pinned(NAME, None) == f"{NAME}@{first}"
    second = hub.publish(NAME, ddpm | {"scheduler/scheduler_config.json": b"{}"})
    assert pinned(NAME, None) == f"{NAME}@{second}"
    assert pinned(NAME, f"{NAME}@{first}") == pinned(f"{NAME}@main", f"{NAME}@{first}") == f"{NAME}@{first}"
    assert pinned(f"{NAME}@{first}", f"{NAME}@{second}") == f"{NAME}@{first}"  # given by the user
    assert pinned(NAME, f"org/other@{first}") == f"{NAME}@{second}"
    assert hub_folder(f"{NAME}@{first}").name == first


def test_without_an_answer_the_cache_is_used(
    hub: Hub, ddpm: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish(NAME, ddpm)
    folder = hub_folder(NAME)
    hub.fails = True
    assert hub_folder(NAME) == folder and "could be taken from the Hub: " in missing("org/other")
    hub.fails = False
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = hub.asked.total()
    assert hub_folder(NAME) == folder and hub.asked.total() == asked
    assert "could be taken from the Hub: " in missing("org/other")


def test_without_network_the_line_says_that_neither_was_found(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "and no model of that name could be taken from the Hub" in missing(NAME)


def test_what_the_hub_does_not_have_is_one_line(hub: Hub, ddpm: dict[str, bytes]) -> None:
    assert "the Hub has no model of that name (a private one needs `hf auth login`)" in missing("org/none")
    hub.publish(NAME, ddpm)
    assert f"the model {NAME} on the Hub has no revision v9" in missing(f"{NAME}@v9")


def test_a_local_folder_wins(hub: Hub, tmp_path: Path) -> None:
    assert is_hub_name(NAME) and is_hub_name(f"{NAME}@main")
    (tmp_path / NAME).mkdir(parents=True)
    assert not is_hub_name(NAME)
    for path in (
        "name",
        "a/b/c",
        "./a/b",
        "/a/b",
        "~/a",
        "../a",
        "a/",
        "/a",
        "gs://a/b",
        "-a/b",
        "a/b@",
        "a b/c",
        "a/b.pkl",
        "",
    ):
        assert not is_hub_name(path)


# -- whole runs ----------------------------------------------------------------------------------------------


def test_a_run_records_the_commit_and_resumes_with_it(
    hub: Hub, ddpm: dict[str, bytes], tmp_path: Path
) -> None:
    commit = hub.publish(NAME, ddpm)
    config = short(NAME, tmp_path / "runs", steps=1)
    distill(config)
    assert (
        yaml.safe_load((run_of(config) / "config.yaml").read_text())["teacher"]["path"] == f"{NAME}@{commit}"
    )
    card = next((tmp_path / "runs" / "teachers").glob("ddpm-digits-*/config.json"))
    assert json.loads(card.read_text())["trained"]["imported_from"] == f"{NAME}@{commit}"

    hub.publish(NAME, {"config.json": b"{}"})  # the newest revision is another network
    distill(short(NAME, tmp_path / "runs", steps=2))


def test_the_command_takes_a_teacher_of_raysids_own_form(hub: Hub, tmp_path: Path) -> None:
    folder = Path(save_teacher(tmp_path / "own", digits_network(0)))
    hub.publish(NAME, {path.name: path.read_bytes() for path in folder.iterdir()})
    recipe = write_recipe(short(NAME, tmp_path / "runs", steps=1), tmp_path / "mine.yaml")
    environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "raysid", "distill", str(recipe)]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    (copied,) = (tmp_path / "runs" / "teachers").iterdir()
    assert copied.name.startswith("ddpm-digits-")
    assert (copied / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
