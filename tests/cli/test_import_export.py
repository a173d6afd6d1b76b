"""`raysid import` and `raysid export`: a round trip keeps every bit, and a refused command changes nothing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from raysid.generator import load_generator
from raysid.networks.files import load_network
from tests.support.command_line import raysid
from tests.support.published_files import save_published
from tests.support.reference_folder import reference_folder
from tests.support.tiny_networks import digits_network, save_generator, save_teacher, tiny_network
from tests.support.web_server import Web, web_server


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run each test in an empty folder."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A published network's file."""
    return save_published(tmp_path / "edm-tiny.pkl", tiny_network(0))


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("RAYSID_CACHE", str(tmp_path / "cache"))
    with web_server() as web:
        yield web


def done(*arguments: object) -> str:
    """Run a command that must succeed; return its output."""
    result = raysid(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> str:
    """Run a command that must be refused and leave nothing; return its error line."""
    before = set(Path.cwd().rglob("*"))
    result = raysid(*arguments)
    assert result.exit_code == 2 and result.stdout == "", result.output
    assert set(Path.cwd().rglob("*")) == before
    return result.stderr


def test_a_published_file_becomes_a_teacher(file: Path) -> None:
    assert done("import", file, "teacher") == f"Teacher: {Path.cwd() / 'teacher'}\n"
    card, network = load_network("teacher", "teacher")
    assert card.trained["imported_from"] == "edm-tiny.pkl" and re.fullmatch(
        "[0-9a-f]{64}", card.trained["sha256"]
    )
    expected = tiny_network(0).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(("given", "sigma_init"), [([], 2.5), (["--sigma-init", "1.5"], 1.5)])
def test_a_published_file_becomes_a_generator(file: Path, given: list[str], sigma_init: float) -> None:
    assert done("import", file, "g", "--as", "generator", *given) == f"Generator: {Path.cwd() / 'g'}\n"
    generator = load_generator("g")
    assert generator.sigma_init == sigma_init
    z, labels = torch.randn(5, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1])
    one_hot = torch.nn.functional.one_hot(labels, 3).float()
    with torch.no_grad():
        images = tiny_network(0).eval()(sigma_init * z, torch.full((5,), sigma_init), one_hot)
        assert torch.equal(generator(z, labels), images.clamp(-1, 1))
    done("sample", "g", "--out", "grid.png")


def test_a_reference_file_comes_through_bit_for_bit() -> None:
    """From the authors' file to a folder, and from there to both forms of export."""
    for file in sorted(reference_folder().glob("edm_*.pkl")):
        done("import", file, "in", "--as", "generator")
        done("export", "in", "--to", "safetensors", "--out", "out")
        done("export", "in", "--to", "torch", "--out", "out.pt")
        for name in ("model.safetensors", "config.json"):
            assert Path("in", name).read_bytes() == Path("out", name).read_bytes()
        weights = safetensors.torch.load_file("in/model.safetensors")
        plain = torch.load("out.pt", weights_only=True)
        assert type(plain) is dict and plain.keys() == weights.keys()
        assert all(torch.equal(plain[name], value) for name, value in weights.items())
        assert json.loads(Path("out.json").read_text()) == json.loads(Path("in/config.json").read_text())
        for path in ("in", "out"):
            shutil.rmtree(path)
        Path("out.pt").unlink()
        Path("out.json").unlink()


def test_a_file_is_imported_from_the_web(file: Path, web: Web) -> None:
    web.files = {"/edm-tiny.pkl": file.read_bytes()}
    done("import", f"{web.address}/edm-tiny.pkl?download=true", "teacher")
    assert load_network("teacher", "teacher")[0].trained["imported_from"] == "edm-tiny.pkl"
    assert refused("import", f"{web.address}/none.pkl", "other") == (
        f"raysid: error: there is no file {web.address}/none.pkl\n"
    )


def test_an_import_that_cannot_be_changes_nothing(file: Path) -> None:
    Path("damaged.pkl").write_bytes(file.read_bytes()[:5000])
    Path("hostile.pkl").write_bytes(b"\x80\x04cos\nsystem\nX\x0a\0\0\0touch here\x85R.")
    Path("file").write_text("mine")
    save_teacher("there", tiny_network(1))
    assert "there is no file nowhere.pkl" in refused("import", "nowhere.pkl", "out")
    assert "damaged.pkl is truncated" in refused("import", "damaged.pkl", "out")
    assert "hostile.pkl asks for os.system, which no network's file needs" in refused(
        "import", "hostile.pkl", "out"
    )
    assert "holds a network already: give another folder" in refused("import", file, "there")
    assert "is a file: give a folder" in refused("import", file, "file")
    assert "cannot be written" in refused("import", file, "/proc/raysid")
    assert "is neither a path nor a bucket" in refused("import", file, "https://a/b")
    assert "--sigma-init is for generators: add --as generator" in refused(
        "import", file, "out", "--sigma-init", "2.5"
    )
    for value in ("0", "-1", "nan", "inf"):
        assert "allowed: number above 0" in refused(
            "import", file, "out", "--as", "generator", "--sigma-init", value
        )


@pytest.fixture
def run() -> Path:
    """A run's folder with its generators only."""
    save_generator("run/generator", digits_network(1), step=8)
    save_generator("run/generator-best", digits_network(2), step=4)
    return Path("run")


def test_the_last_generator_is_exported_or_the_best(run: Path) -> None:
    for which, seed in (("last", 1), ("best", 2)):
        expected = digits_network(seed).state_dict()
        assert done(
            "export", run, "--which", which, "--to", "torch", "--out", f"to/{which}.pt"
        ).splitlines() == [
            f"{Path.cwd()}/to/{which}.pt",
            f"{Path.cwd()}/to/{which}.json",
        ]
        plain = torch.load(f"to/{which}.pt", weights_only=True)
        assert all(torch.equal(plain[name], value) for name, value in expected.items())
        done("export", run, "--which", which, "--to", "safetensors", "--out", f"to/{which}")
        assert load_generator(f"to/{which}").card == load_generator(run, which).card  # type: ignore[arg-type]
    assert json.loads(Path("to/last.json").read_text())["sigma_init"] == 2.5


def test_a_teacher_is_exported_too() -> None:
    save_teacher("teacher", tiny_network(3), data="digits")
    done("export", "teacher", "--to", "safetensors", "--out", "copy")
    assert load_network("copy", "teacher")[0] == load_network("teacher", "teacher")[0]


def test_an_export_that_cannot_be_changes_nothing(run: Path) -> None:
    Path("there.pt").write_text("mine")
    to_torch, to_folder = ("--to", "torch", "--out"), ("--to", "safetensors", "--out")
    assert "no run and no generator at nowhere" in refused("export", "nowhere", *to_torch, "out.pt")
    assert "there.pt exists already" in refused("export", run, *to_torch, "there.pt")
    assert "there.json is the name of the settings file" in refused("export", run, *to_torch, "there.json")
    assert "run exists already" in refused("export", run, *to_torch, "run")
    assert "holds a network already" in refused("export", run, *to_folder, "run/generator")
    assert "is a file: give a folder" in refused("export", run, *to_folder, "there.pt")
    assert "cannot be written" in refused("export", run, *to_torch, "/proc/raysid/out.pt")
    assert "Missing option '--to'" in refused("export", run, "--out", "out")
    (run / "generator" / "model.safetensors").write_bytes(b"")
    assert "is damaged" in refused("export", run, *to_torch, "out.pt")
    shutil.rmtree(run / "generator-best")
    assert "has no evaluated generator yet" in refused("export", run, "--which", "best", *to_torch, "out.pt")
