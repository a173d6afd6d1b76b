"""Files from the web and from buckets: fetched once, whole or not at all, with errors of one line."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from raysid.errors import UserError
from raysid.networks.published import read_published
from raysid.storage import download
from raysid.storage.download import file_name, local_copy, read_copy
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
    assert "broke off after 50,000 of 100,000 bytes" in refused(url)
    assert web.asked["/half/a.pkl"] == 2  # without a tag it cannot be continued


def test_a_download_that_breaks_off_is_continued(web: Web, tmp_path: Path) -> None:
    content = bytes(range(256)) * 400
    web.files, web.tags = {"/half/a.pkl": content}, {"/half/a.pkl": '"v1"'}
    url = f"{web.address}/half/a.pkl"
    assert "broke off after 96,000 of 102,400 bytes" in refused(url)  # four answers, each half of the rest
    assert web.ranges == ["bytes=51200-", "bytes=76800-", "bytes=89600-"]
    while True:
        with suppress(UserError):
            copy = local_copy(url)
            break
    assert copy.read_bytes() == content
    assert {path.suffix for path in copy.parent.iterdir()} == {".file", ".json", ".lock"}


def test_a_file_that_changed_is_not_continued(web: Web) -> None:
    path = "/half/a.pkl"
    web.files, web.tags = {path: b"a" * 1000}, {path: '"v1"'}
    refused(web.address + path)
    web.files, web.tags = {path: b"b" * 3}, {path: '"v2"'}
    assert local_copy(web.address + path).read_bytes() == b"bbb"


def test_a_beginning_as_long_as_the_file_is_fetched_anew(web: Web, tmp_path: Path) -> None:
    web.files, web.tags = {"/a.pkl": b"whole"}, {"/a.pkl": '"v1"'}
    copy = local_copy(f"{web.address}/a.pkl")
    copy.rename(copy.with_suffix(".partial"))
    copy.with_suffix(".file.json").rename(copy.with_suffix(".partial.json"))
    assert local_copy(f"{web.address}/a.pkl").read_bytes() == b"whole"


def test_a_login_page_is_not_taken_for_a_file(web: Web) -> None:
    web.files = {"/page/a.pkl": b"<html>log in</html>"}
    for asked in (1, 2):
        assert "answers with a web page" in refused(f"{web.address}/page/a.pkl")
        assert web.asked["/page/a.pkl"] == asked


def test_a_copy_that_its_reader_refuses_is_not_kept(web: Web, tmp_path: Path) -> None:
    web.files = {"/a.pkl": b"<html>log in</html>"}
    url = f"{web.address}/a.pkl"
    for _ in range(2):
        with pytest.raises(UserError, match="a.pkl is truncated or damaged|a.pkl asks for"):
            read_copy(url, lambda copy: read_published(copy, url))
    assert web.asked["/a.pkl"] == 2
    web.files["/a.pkl"] = b"good"
    assert read_copy(url, Path.read_bytes) == read_copy(url, Path.read_bytes) == b"good"
    assert web.asked["/a.pkl"] == 3
    own = tmp_path / "own.pkl"
    own.write_bytes(b"<html>")
    with pytest.raises(UserError):
        read_copy(str(own), lambda copy: read_published(copy))
    assert own.exists()  # the user's own file


def test_a_copy_from_the_web_is_used_for_a_week(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    web.files = {"/a.pkl": b"first"}
    url = f"{web.address}/a.pkl"
    local_copy(url)
    web.files["/a.pkl"] = b"second"
    assert local_copy(url).read_bytes() == b"first"
    monkeypatch.setattr(download, "WEEK", 0)
    assert local_copy(url).read_bytes() == b"second"
    web.files, web.fails = {}, True
    assert local_copy(url).read_bytes() == b"second"  # the server does not answer


def test_one_file_does_not_wait_for_another(web: Web) -> None:
    web.files = {"/slow.pkl": b"slow", "/a.pkl": b"a"}
    with ThreadPoolExecutor() as threads:
        slow = [threads.submit(local_copy, f"{web.address}/slow.pkl") for _ in range(2)]
        assert local_copy(f"{web.address}/a.pkl").read_bytes() == b"a"
        assert not any(future.done() for future in slow)
        web.waiting.set()
        assert {future.result().read_bytes() for future in slow} == {b"slow"}
    assert web.asked["/slow.pkl"] == 1


def test_a_file_without_room_or_end_is_refused(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    web.files = {"/a.pkl": b"a" * 1000}
    url = f"{web.address}/a.pkl"
    monkeypatch.setattr(download, "MARGIN", 2**62)
    assert "has 1,000 bytes, and the disk of the cache" in refused(url) and "RAYSID_CACHE" in refused(url)
    monkeypatch.setattr(download, "MARGIN", 0)
    monkeypatch.setattr(download, "MAX_BYTES", 999)
    assert "has 1,000 bytes, more than any network" in refused(url)
    monkeypatch.setattr(download, "MAX_BYTES", 1000)
    assert len(local_copy(url).read_bytes()) == 1000


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
