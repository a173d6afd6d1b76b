"""The paths that users give: `~`, variables, protocols in capitals, addresses with a typing error."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from upath import UPath

from raysid.config import Config
from raysid.data.files import absolute_path
from raysid.errors import StorageError, UserError
from raysid.generator import generator_folder
from raysid.recipes import load_recipe
from raysid.run.watch import state_of
from raysid.storage import is_local, location, open_file, read_json, read_whole, storage_folder
from raysid.storage.download import local_copy
from raysid.trainers.distill import distill
from tests.support.tiny_run import SHORT, tiny_config, tiny_teacher


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.delenv("NOWHERE", raising=False)
    return tmp_path


def test_the_home_folder_and_variables_are_expanded(home: Path) -> None:
    assert str(location("~/runs")) == str(home / "runs")
    assert str(location("${SCRATCH}/runs")) == str(home / "scratch" / "runs")
    assert str(storage_folder("${SCRATCH}")) == str(home / "scratch")
    assert str(location("price$5.png")) == "price$5.png"


@pytest.mark.parametrize("given", ["S3://bucket/x", "Gs://bucket/a/b.zip"])
def test_protocols_are_read_in_any_case(given: str) -> None:
    scheme, _, rest = given.partition("://")
    assert str(location(given)) == f"{scheme.lower()}://{rest}"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("r2://bucket/x", "r2:// is not read; give a path, gs://... or s3://..."),
        ("s3n://bucket/x", "s3n:// is not read"),
        ("gs:/bucket/x", "the address of a bucket has two slashes: gs://bucket/x"),
        ("s3:bucket/x", "has two slashes: s3://bucket/x"),
        ("${NOWHERE}/x", "the environment has no variable NOWHERE"),
    ],
)
def test_an_address_that_cannot_be_read_is_one_line_everywhere(home: Path, given: str, words: str) -> None:
    recipe = home / "mine.yaml"
    recipe.write_text("kind: distill\n")
    for use in (
        location,
        storage_folder,
        generator_folder,
        state_of,
        lambda path: distill(tiny_config(path, home)),
        lambda path: distill(tiny_config(str(home), home, data__source=path)),
        lambda path: distill(tiny_config(tiny_teacher(home / "teacher"), home), resume_from=path),
    ):
        with pytest.raises(UserError) as refused:
            use(given)
        assert words in str(refused.value) and "\n" not in str(refused.value)


def test_a_run_of_paths_with_tildes_and_variables(home: Path) -> None:
    tiny_teacher(home / "teachers" / "tiny")
    config = tiny_config("~/teachers/tiny", Path("${SCRATCH}"), **SHORT)
    result = distill(config)
    assert result.path == str(home / "scratch" / "tiny")
    assert state_of("${SCRATCH}/tiny").finished
    assert generator_folder("~/scratch/tiny", "best").exists()
    other = config.model_copy(update={"run": config.run.model_copy(update={"name": "branch"})})
    assert distill(other, resume_from="~/scratch/tiny").metrics["step"] == 5


def test_a_recipe_in_the_home_folder_and_what_it_extends(home: Path) -> None:
    (home / "scratch").mkdir()
    (home / "base.yaml").write_text("kind: distill\nteacher: {path: t}\nseed: 4\ntotal_images: 64\n")
    (home / "mine.yaml").write_text("extends: ${SCRATCH}/../base.yaml\n")
    for recipe in ("~/mine.yaml", "${SCRATCH}/../mine.yaml"):
        config = load_recipe(recipe)
        assert isinstance(config, Config) and config.seed == 4


@pytest.mark.parametrize(
    "scheme", ["http", "https", "ftp", "memory", "github", "data", "simplecache", "HTTP"]
)
def test_only_the_schemes_of_folders_and_buckets_are_read(scheme: str) -> None:
    with pytest.raises(UserError, match=f"{scheme.lower()}:// is not read; give a path"):
        location(f"{scheme}://host/folder")


@pytest.mark.parametrize(
    "name", ["zip::/tmp/x.zip", "simplecache::http://127.0.0.1/x", "data:text/plain,x", "a:b"]
)
def test_other_names_are_files_of_this_machine(name: str) -> None:
    found = location(name)
    assert is_local(found) and found.path.startswith("/")


@pytest.mark.parametrize("path", ["s3://[b]/x", "s3://]/x"])
def test_an_address_that_is_no_url_is_refused(path: str) -> None:
    with pytest.raises(UserError, match="is not the address of a bucket"):
        location(path)


@pytest.mark.parametrize("path", ["a\0b", "~a\0", "s3://b/\0", "${HOME}\0"])
def test_a_zero_byte_is_in_no_path(path: str) -> None:
    for read in (location, local_copy, storage_folder, absolute_path, load_recipe):
        with pytest.raises(UserError, match=r"\\x00.*: a path cannot have a zero byte"):
            read(path)  # type: ignore[operator]
    with pytest.raises(UserError, match="there is no file ~nobody-of-this-name/x"):
        local_copy("~nobody-of-this-name/x")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    for name in ("pipe", "zero", "socket"):
        path = UPath(tmp_path / name)
        for read in (read_whole, open_file, local_copy, read_json):
            with pytest.raises(
                StorageError, match=f"{name} cannot be read: it is a pipe, a device or a socket"
            ):
                read(path if read is not local_copy else str(path))  # type: ignore[operator]
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "file").write_bytes(b"1")
    assert read_whole(UPath(tmp_path / "link")) == b"1"
