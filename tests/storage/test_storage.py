"""Folders and buckets: the same work on both, leases where there are no locks, what is carried over."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest
from upath import UPath

from raysid.errors import RunFailed, StorageError, UserError
from raysid.storage import (
    children,
    copy_file,
    empty_folder,
    is_local,
    lease,
    mirror,
    read_json,
    read_whole,
    remove_folder,
    storage_folder,
    write_whole,
)
from raysid.storage.lease import Lease
from raysid.storage.mirror import Mirror
from tests.support.bucket_server import BUCKET, Connection, bucket_server, in_bucket, s3_server
from tests.support.processes import wait_until


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with bucket_server() as address:
        yield address


@pytest.fixture
def place(server: str, request: pytest.FixtureRequest) -> UPath:
    """A place in the bucket for one test."""
    return in_bucket(server, f"gs://{BUCKET}/{request.node.name}")


@pytest.fixture(params=["folder", "gs", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[UPath]:
    """A place of each kind."""
    if request.param == "s3":
        with s3_server() as address:
            yield in_bucket(address, f"s3://{BUCKET}/{request.node.name}")
    else:
        yield request.getfixturevalue("place") if request.param == "gs" else UPath(tmp_path)


# Files.


def test_files_are_written_read_copied_and_removed(root: UPath) -> None:
    assert children(root / "nowhere") == []
    with pytest.raises(FileNotFoundError):
        read_whole(root / "nothing.txt")
    assert read_json(root / "nothing.json") is None
    if is_local(root):
        (root / "run").mkdir()
    write_whole(root / "run" / "a.json", b'{"one": 1}')
    write_whole(root / "run" / "a.json", b'{"two": 2}')
    assert read_json(root / "run" / "a.json") == {"two": 2}
    copy_file(root / "run" / "a.json", root / "run" / "best" / "b.json")
    assert sorted(path.name for path in children(root / "run")) == ["a.json", "best"]
    assert read_whole(root / "run" / "best" / "b.json") == b'{"two": 2}'
    empty_folder(root / "run", keep={"a.json"})
    assert [path.name for path in children(root / "run")] == ["a.json"]
    remove_folder(root / "run")
    assert children(root / "run") == [] and not (root / "run" / "a.json").exists()
    remove_folder(root / "run")  # as a repeated command does


def test_a_large_file_arrives_whole(place: UPath) -> None:
    """One that goes over the wire in several parts."""
    content = os.urandom(1 << 20) * 110
    write_whole(place / "large", content)
    assert read_whole(place / "large") == content


def test_a_folder_made_in_the_console_is_not_in_itself(place: UPath) -> None:
    place.fs.pipe_file(f"{place.path}/", b"")
    write_whole(place / "a", b"1")
    assert [path.name for path in children(place)] == ["a"]


def test_a_storage_is_a_folder_or_a_bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage_folder("./runs").path == str(tmp_path / "runs")
    assert storage_folder("~/runs").path == str(Path.home() / "runs")
    assert str(storage_folder("gs://bucket/runs")) == "gs://bucket/runs"
    with pytest.raises(UserError, match="neither a folder nor a bucket"):
        storage_folder("memory://runs")


def test_a_bucket_that_does_not_know_who_asks_is_told_of_with_what_to_do(server: str) -> None:
    """What Google answers where there are no credentials."""
    connection = Connection(server, bad=False)
    connection.refusal = 401, "Anonymous caller does not have storage.objects.get access"
    connection.refuses_all = True
    found = os.environ | {"STORAGE_EMULATOR_HOST": connection.address}
    place = f"gs://{BUCKET}/some"
    for arguments in (["watch", place], ["evaluate", place], ["data", "check", place]):
        command = [sys.executable, "-m", "raysid", *arguments]
        done = subprocess.run(command, env=found, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        line = done.stderr.removeprefix(f"raysid {' '.join(arguments)}: loading torch and Ray\n")
        assert re.fullmatch(
            rf"raysid: error: [^\n]*{place}[^ \n]* cannot be re\w+: Anonymous caller does not have [^\n]*, 401. "
            r"Google's credentials come from `gcloud auth application-default login`, or from the machine\n",
            line,
        ), done.stderr
    connection.close()


# Leases.


def held_by(path: UPath, **changes: Any) -> None:
    """The lease of a process of this machine that has ended."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    held = {"id": "other", "renewed": time.time(), **lease.this_process(), "pid": ended.pid}
    write_whole(path, json.dumps(held | changes).encode())


def test_a_lease_has_one_owner(place: UPath) -> None:
    one, other = Lease(place / ".lock"), Lease(place / ".lock")
    one.acquire(timeout=0)
    with pytest.raises(filelock.Timeout):
        other.acquire(timeout=0)
    one.release()
    other.acquire(timeout=0)
    one.release()  # a second time: it is the other's by now
    assert read_json(place / ".lock")["id"] == other.id
    other.release()
    assert not (place / ".lock").exists()


def test_a_lease_is_taken_at_once_from_a_process_that_has_ended(place: UPath) -> None:
    held_by(place / ".lock")
    with Lease(place / ".lock"):
        assert read_json(place / ".lock")["pid"] == os.getpid()


@pytest.mark.parametrize(("age", "free"), [(30, False), (61, True)])
def test_a_lease_of_another_machine_goes_stale_after_a_minute(place: UPath, age: float, free: bool) -> None:
    held_by(place / ".lock", machine="another", renewed=time.time() - age)
    mine = Lease(place / ".lock")
    if free:
        mine.acquire(timeout=0)
        mine.release()
    else:
        with pytest.raises(filelock.Timeout):
            mine.acquire(timeout=0)


def test_a_process_that_has_the_number_of_an_ended_one_is_another(place: UPath) -> None:
    held_by(place / ".lock", pid=os.getpid(), started="1")
    with Lease(place / ".lock"):
        pass


@pytest.mark.parametrize("alive", [True, False])
def test_an_owner_elsewhere_is_watched_before_it_is_given_up(
    place: UPath, monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    """After a minute, here two seconds, without a heartbeat the lease is taken; at the first one it is not."""
    monkeypatch.setattr(lease, "STALE_SECONDS", 2.0)
    held_by(place / ".lock", machine="another")
    owner = threading.Timer(1, held_by, [place / ".lock"], {"machine": "another", "id": "other"})
    if alive:
        owner.start()
    mine = Lease(place / ".lock")
    if alive:
        with pytest.raises(filelock.Timeout):
            mine.acquire_if_abandoned()
        owner.join()
    else:
        mine.acquire_if_abandoned()
        mine.release()


def test_an_owner_that_could_not_renew_its_lease_stops_writing(
    place: UPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Lease(place / ".lock") as mine:
        mine.check()
        monkeypatch.setattr(lease, "STALE_SECONDS", 0.0)
        with pytest.raises(RunFailed, match="this one writes no more"):
            mine.check()


def test_an_owner_keeps_its_lease_alive_and_notices_its_loss(
    place: UPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    with Lease(place / ".lock") as mine:
        began = read_json(place / ".lock")["renewed"]
        wait_until(lambda: read_json(place / ".lock")["renewed"] > began, 10, "a heartbeat")
        mine.check()
        held_by(place / ".lock")
        wait_until(lambda: lost(mine), 10, "the loss")
    assert read_json(place / ".lock")["id"] == "other"


def lost(mine: Lease) -> bool:
    try:
        mine.check()
    except RunFailed:
        return True
    return False


# What is carried over.


def contents(place: UPath) -> dict[str, bytes]:
    return {path.name: read_whole(path) for path in children(place)}


def test_what_changes_is_carried_over(place: UPath, tmp_path: Path) -> None:
    write_whole(place / "config.yaml", b"not the mirror's")
    copy = Mirror(tmp_path, place)
    (tmp_path / "metrics.jsonl").write_bytes(b"1\n")
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "step-1.png").write_bytes(b"png")
    copy.sync()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b"2\n")
    (tmp_path / "samples" / "step-1.png").unlink()
    copy.close()
    assert contents(place) == {"metrics.jsonl": b"1\n2\n", "config.yaml": b"not the mirror's"}


def test_what_is_there_already_is_gone_on_with(place: UPath, tmp_path: Path) -> None:
    write_whole(place / "metrics.jsonl", b"1\n")
    write_whole(place / "samples" / "step-1.png", b"png")
    write_whole(place / "checkpoints" / "large", b"not fetched")
    copy = Mirror(tmp_path, place)
    copy.fetch("metrics.jsonl", "samples", "tensorboard")
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"metrics.jsonl", "samples/step-1.png"}
    (tmp_path / "samples" / "step-1.png").unlink()  # cut back: it goes there, too
    copy.close()
    assert children(place / "samples") == []


def test_what_names_the_others_goes_last_and_half_files_do_not_go(
    place: UPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def write(path: UPath, content: bytes) -> None:
        order.append(path.name)
        write_whole(path, content)

    monkeypatch.setattr(mirror, "write_whole", write)
    for name in ("a.jsonl", "picture.png", "picture.png.12.partial"):
        (tmp_path / name).write_bytes(b"1")
    Mirror(tmp_path, place, last="a.jsonl").sync()
    assert order == ["picture.png", "a.jsonl"]


def test_nothing_is_carried_over_past_the_guard(place: UPath, tmp_path: Path) -> None:
    def not_ours() -> None:
        raise RunFailed("another process has it")

    (tmp_path / "metrics.jsonl").write_bytes(b"1\n")
    with pytest.raises(RunFailed):
        Mirror(tmp_path, place, guard=not_ours).close()
    assert children(place) == []


def test_a_bucket_that_stays_away_for_a_while_loses_nothing(
    place: UPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    away, tried = True, 0

    def write(path: UPath, content: bytes) -> None:
        nonlocal tried
        tried += 1
        if away:
            raise StorageError(str(path), "written", "the bucket is away")
        write_whole(path, content)

    monkeypatch.setattr(mirror, "write_whole", write)
    monkeypatch.setattr(mirror, "SECONDS", 0.05)
    copy = Mirror(tmp_path, place, report=said.append)
    (tmp_path / "metrics.jsonl").write_bytes(b"1\n")
    copy.start()
    wait_until(lambda: tried > 3, 10, "attempts")
    away = False
    wait_until(lambda: contents(place) == {"metrics.jsonl": b"1\n"}, 10, "the file")
    copy.close()
    assert len(said) == 1 and "the bucket is away" in said[0]
