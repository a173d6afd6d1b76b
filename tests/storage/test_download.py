"""Files from the web and from buckets: fetched once, whole or not at all, with errors of one line."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from raysid.errors import UserError
from raysid.storage.download import file_name, local_copy
from tests.support.bucket_server import BUCKET, bucket_server, in_bucket
from tests.support.web_server import Web, web_server


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("RAYSID_CACHE", str(tmp_path / "cache"))
    with web_server() as web:
        yield web


def refused(path: str) -> str:
    with pytest.raises(UserError) as caught:
        local_copy(path)
    line = str(caught.value)
    assert path in line and line.isprintable() and len(line) < 500
    return line


def test_a_local_file_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pkl").touch()
    assert local_copy(str(tmp_path / "a.pkl")) == tmp_path / "a.pkl"
    assert local_copy(f"file://{tmp_path}/a.pkl") == tmp_path / "a.pkl"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_copy("~/a.pkl") == tmp_path / "a.pkl"


def test_a_file_of_the_web_is_fetched_once(web: Web, tmp_path: Path) -> None:
    web.files = {"/a [1].pkl": b"a" * 100_000, "/b.pkl": b"b"}
    url = f"{web.address}/b.pkl"
    copy = local_copy(url)
    assert copy.read_bytes() == b"b" and copy.is_relative_to(tmp_path / "cache")
    assert local_copy(url) == copy and web.asked["/b.pkl"] == 1
    other = local_copy(f"{url}?download=*")
    assert other.read_bytes() == b"b" and other != copy


def test_a_file_that_breaks_off_is_not_kept(web: Web) -> None:
    web.files = {"/half/a.pkl": b"a" * 100_000}
    url = f"{web.address}/half/a.pkl"
    assert "cannot be fetched" in refused(url)
    assert "cannot be fetched" in refused(url)
    assert web.asked["/half/a.pkl"] == 2


def test_an_error_of_the_web_is_one_line(web: Web) -> None:
    assert "there is no file" in refused(f"{web.address}/none.pkl")
    assert "500" in refused(f"{web.address}/error.pkl")
    assert "cannot be fetched" in refused("https://raysid.invalid/a.pkl")
    assert "cannot be fetched" in refused("https:///a.pkl")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert "cannot be fetched" in refused(f"http://127.0.0.1:{closed.getsockname()[1]}/a.pkl")
    assert "cannot be fetched" in refused(web.address.replace("http", "https") + "/a.pkl")


def test_other_protocols_are_refused() -> None:
    for path in (
        "ftp://a/b.pkl",
        "memory://b.pkl",
        "data://b",
        "simplecache::https://a/b.pkl",
        "github://a:b@c",
    ):
        if "::" not in path:
            assert "give a local path, gs://..., s3://... or https://..." in refused(path)
        else:
            assert "there is no file" in refused(path)  # no chain of protocols


def test_a_cache_that_cannot_be_written_is_one_line(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    web.files = {"/b.pkl": b"b"}
    monkeypatch.setenv("RAYSID_CACHE", "/proc/raysid")
    with pytest.raises(UserError, match="the cache /proc/raysid cannot be made: .*; set RAYSID_CACHE"):
        local_copy(f"{web.address}/b.pkl")


def test_a_file_of_a_bucket_is_fetched_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSID_CACHE", str(tmp_path / "cache"))
    with bucket_server() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server)
        url = f"gs://{BUCKET}/teachers/b.pkl"
        remote = in_bucket(server, url)
        for content in (b"first", b"second"):
            remote.fs.pipe_file(remote.path, content)
            assert local_copy(url).read_bytes() == content
            assert local_copy(url).read_bytes() == content
        assert "there is no file" in refused(f"gs://{BUCKET}/teachers/none.pkl")


def test_names_of_files() -> None:
    assert file_name("https://host/a/b.pkl?download=true#x") == "b.pkl"
    assert file_name("gs://bucket/a/b?.pkl") == "b?.pkl"
    assert file_name("/a/b.pkl") == "b.pkl"
