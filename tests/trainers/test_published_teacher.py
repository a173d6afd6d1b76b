"""`teacher.path: FILE.pkl`: a run reads the file once and saves the network with the storage's teachers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raysid.data import open_source
from raysid.errors import UserError
from raysid.networks.files import load_network
from raysid.trainers.distill import distill
from raysid.trainers.teachers import Teacher, find_teacher, trained_teacher
from tests.support.published_files import save_published
from tests.support.tiny_networks import digits_network
from tests.support.tiny_run import tiny_config


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return save_published(tmp_path / "edm-digits.pkl", digits_network(0))


def test_a_file_becomes_a_teacher_of_the_storage(file: Path, tmp_path: Path) -> None:
    config = tiny_config(str(file), tmp_path / "runs")
    source = open_source("digits")
    found = find_teacher(config, source)
    assert not isinstance(found, Teacher) and not (tmp_path / "runs").exists()  # looking writes nothing
    teacher = trained_teacher(config, found, source)
    assert teacher.path.parent == teacher.path.__class__(tmp_path / "runs" / "teachers")
    assert teacher.path.name.startswith("edm-digits-")
    weights = load_network(teacher.path, "teacher")[1].state_dict()
    assert all(torch.equal(weights[name], value) for name, value in digits_network(0).state_dict().items())
    assert find_teacher(config, source) == teacher


def test_a_run_distils_a_published_file(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(str(file), tmp_path / "runs", placement="local", total_images=64)
    result = distill(config)
    assert "teacher edm-digits-" in capsys.readouterr().out
    assert distill(config).path == result.path
    assert "is finished already" in capsys.readouterr().out


def test_a_file_for_other_images_is_one_line(tmp_path: Path) -> None:
    source = open_source("digits")
    for changes, words in (
        ({"img_channels": 3}, "makes images of shape"),
        ({"label_dim": 7}, "knows 7 classes"),
    ):
        file = save_published(tmp_path / "other.PKL", digits_network(0, **changes))
        with pytest.raises(UserError, match=f"teacher {file} {words}"):
            find_teacher(tiny_config(str(file), tmp_path / "runs"), source)
    with pytest.raises(UserError, match="there is no file .*/none.pkl"):
        find_teacher(tiny_config(f"{tmp_path}/none.pkl", tmp_path / "runs"), source)
    (tmp_path / "hostile.pkl").write_bytes(b"\x80\x04cos\nsystem\nX\x0a\0\0\0touch here\x85R.")
    with pytest.raises(UserError, match="hostile.pkl asks for os.system"):
        find_teacher(tiny_config(f"{tmp_path}/hostile.pkl", tmp_path / "runs"), source)
    assert not (tmp_path / "runs").exists()
