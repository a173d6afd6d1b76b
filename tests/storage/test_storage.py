"""Folders and buckets: the same operations on both, leases in buckets, mirrors of local folders."""

from __future__ import annotations

import json
import os
import re
import subprocess
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
from tests.support.command_line import raysid
from tests.support.processes import wait_until


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with bucket_server() as address:
        yield address


@pytest.fixture
def remote(server: str, request: pytest.FixtureRequest) -> UPath:
    """A folder in the bucket for one test."""
    return in_bucket(server, f"gs://{BUCKET}/{request.node.name}")


@pytest.fixture(params=["folder", "gs", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[UPath]:
    """A folder of each kind of storage."""
    if request.param == "s3":
        with s3_server() as address:
            yield in_bucket(address, f"s3://{BUCKET}/{request.node.name}")
    else:
        yield request.getfixturevalue("remote") if request.param == "gs" else UPath(tmp_path)


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


def test_a_large_file_arrives_whole(remote: UPath) -> None:
    """It is uploaded in several parts."""
    content = os.urandom(1 << 20) * 110
    write_whole(remote / "large", content)
    assert read_whole(remote / "large") == content


def test_a_folder_made_in_the_console_is_not_in_itself(remote: UPath) -> None:
    remote.fs.pipe_file(f"{remote.path}/", b"")
    write_whole(remote / "a", b"1")
    assert [path.name for path in children(remote)] == ["a"]


def test_a_storage_is_a_folder_or_a_bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage_folder("./runs").path == str(tmp_path / "runs")
    assert storage_folder("~/runs").path == str(Path.home() / "runs")
    assert str(storage_folder("gs://bucket/runs")) == "gs://bucket/runs"
    with pytest.raises(UserError, match="neither a path nor a bucket"):
        storage_folder("memory://runs")


def test_missing_credentials_end_a_command_with_the_remedy(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Google answers so to a request without credentials."""
    connection = Connection(server, bad=False)
    connection.refusal = 401, "Anonymous caller does not have storage.objects.get access"
    connection.refuses_all = True
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", connection.address)
    remote = f"gs://{BUCKET}/some"
    for arguments in (["watch", remote], ["evaluate", remote], ["data", "check", remote]):
        done = raysid(*arguments)
        assert (done.exit_code, done.stdout) == (2, "")
        assert re.fullmatch(
            rf"raysid: error: [^\n]*{remote}[^ \n]* cannot be re\w+: Anonymous caller does not have [^\n]*, 401. "
            r"Google's credentials come from `gcloud auth application-default login`, or from the machine\n",
            done.stderr,
        ), done.stderr
    connection.close()


# Leases.


def held_by(path: UPath, **changes: Any) -> None:
    """The lease of a process of this machine that has ended."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    held = {"id": "other", "renewed": time.time(), **lease.this_process(), "pid": ended.pid}
    write_whole(path, json.dumps(held | changes).encode())


def test_a_lease_has_one_owner(remote: UPath) -> None:
    one, other = Lease(remote / ".lock"), Lease(remote / ".lock")
    one.acquire(timeout=0)
    with pytest.raises(filelock.Timeout):
        other.acquire(timeout=0)
    one.release()
    other.acquire(timeout=0)
    one.release()  # a second time: it is the other's by now
    assert read_json(remote / ".lock")["id"] == other.id
    other.release()
    assert not (remote / ".lock").exists()


def test_the_lease_of_an_ended_process_is_taken_at_once(remote: UPath) -> None:
    held_by(remote / ".lock")
    with Lease(remote / ".lock"):
        assert read_json(remote / ".lock")["pid"] == os.getpid()


@pytest.mark.parametrize(("age", "free"), [(30, False), (61, True)])
def test_a_lease_of_another_machine_goes_stale_after_a_minute(remote: UPath, age: float, free: bool) -> None:
    held_by(remote / ".lock", machine="another", renewed=time.time() - age)
    mine = Lease(remote / ".lock")
    if free:
        mine.acquire(timeout=0)
        mine.release()
    else:
        with pytest.raises(filelock.Timeout):
            mine.acquire(timeout=0)


def test_a_reused_process_id_is_another_process(remote: UPath) -> None:
    held_by(remote / ".lock", pid=os.getpid(), started="1")
    with Lease(remote / ".lock"):
        pass


@pytest.mark.parametrize("alive", [True, False])
def test_an_owner_on_another_machine_is_watched_before_its_lease_is_taken(
    remote: UPath, monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    """The lease is taken after a minute, here two seconds, without a heartbeat, and not after a heartbeat."""
    monkeypatch.setattr(lease, "STALE_SECONDS", 2.0)
    held_by(remote / ".lock", machine="another")
    owner = threading.Timer(1, held_by, [remote / ".lock"], {"machine": "another", "id": "other"})
    if alive:
        owner.start()
    mine = Lease(remote / ".lock")
    if alive:
        with pytest.raises(filelock.Timeout):
            mine.acquire_if_abandoned()
        owner.join()
    else:
        mine.acquire_if_abandoned()
        mine.release()


@pytest.mark.parametrize("alive", [True, False])
def test_a_lease_from_the_future_is_taken_when_it_is_not_renewed(
    remote: UPath, monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    """The owner's clock is a day ahead: only its heartbeats show that it lives."""
    monkeypatch.setattr(lease, "STALE_SECONDS", 1.0)
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.5)
    tomorrow = time.time() + 86_400
    held_by(remote / ".lock", machine="another", renewed=tomorrow)
    for waits in (False, True):
        mine = Lease(remote / ".lock")
        owner = threading.Timer(
            0.7, held_by, [remote / ".lock"], {"machine": "another", "renewed": tomorrow + 1}
        )
        if alive:
            owner.start()
            with pytest.raises(filelock.Timeout):
                mine.acquire(timeout=1.6) if waits else mine.acquire_if_abandoned()
            owner.join()
            tomorrow += 1
        else:
            mine.acquire(timeout=10) if waits else mine.acquire_if_abandoned()
            mine.release()
            held_by(remote / ".lock", machine="another", renewed=tomorrow)
    held_by(remote / ".lock", renewed=tomorrow)  # of this machine, and ended
    with Lease(remote / ".lock"):
        pass


def test_an_owner_that_could_not_renew_its_lease_stops_writing(
    remote: UPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Lease(remote / ".lock") as mine:
        mine.check()
        monkeypatch.setattr(lease, "STALE_SECONDS", 0.0)
        with pytest.raises(RunFailed, match="this one writes no more"):
            mine.check()


def test_an_owner_keeps_its_lease_alive_and_notices_its_loss(
    remote: UPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    with Lease(remote / ".lock") as mine:
        began = read_json(remote / ".lock")["renewed"]
        wait_until(lambda: read_json(remote / ".lock")["renewed"] > began, 10, "a heartbeat")
        mine.check()
        held_by(remote / ".lock")
        wait_until(lambda: lost(mine), 10, "the loss")
    assert read_json(remote / ".lock")["id"] == "other"


def lost(mine: Lease) -> bool:
    try:
        mine.check()
    except RunFailed:
        return True
    return False


# Mirrors.


def contents(remote: UPath) -> dict[str, bytes]:
    return {path.name: read_whole(path) for path in children(remote)}


def test_changes_are_copied(remote: UPath, tmp_path: Path) -> None:
    write_whole(remote / "config.yaml", b"not the mirror's")
    copy = Mirror(tmp_path, remote)
    (tmp_path / "metrics.jsonl").write_bytes(b"1\n")
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "step-1.png").write_bytes(b"png")
    copy.sync()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b"2\n")
    (tmp_path / "samples" / "step-1.png").unlink()
    copy.close()
    assert contents(remote) == {"metrics.jsonl": b"1\n2\n", "config.yaml": b"not the mirror's"}


def test_fetched_files_are_continued(remote: UPath, tmp_path: Path) -> None:
    write_whole(remote / "metrics.jsonl", b"1\n")
    write_whole(remote / "samples" / "step-1.png", b"png")
    write_whole(remote / "checkpoints" / "large", b"not fetched")
    copy = Mirror(tmp_path, remote)
    copy.fetch("metrics.jsonl", "samples", "tensorboard")
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"metrics.jsonl", "samples/step-1.png"}
    (tmp_path / "samples" / "step-1.png").unlink()  # cut back: it goes there, too
    copy.close()
    assert children(remote / "samples") == []


def test_the_last_file_is_copied_last_and_partial_files_are_not_copied(
    remote: UPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def write(path: UPath, content: bytes) -> None:
        order.append(path.name)
        write_whole(path, content)

    monkeypatch.setattr(mirror, "write_whole", write)
    for name in ("a.jsonl", "picture.png", "picture.png.12.partial"):
        (tmp_path / name).write_bytes(b"1")
    Mirror(tmp_path, remote, last="a.jsonl").sync()
    assert order == ["picture.png", "a.jsonl"]


def test_nothing_is_copied_past_the_guard(remote: UPath, tmp_path: Path) -> None:
    def not_ours() -> None:
        raise RunFailed("another process has it")

    (tmp_path / "metrics.jsonl").write_bytes(b"1\n")
    with pytest.raises(RunFailed):
        Mirror(tmp_path, remote, guard=not_ours).close()
    assert children(remote) == []


def test_an_outage_of_the_bucket_loses_nothing(
    remote: UPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    away, tried = True, 0

    def write(path: UPath, content: bytes) -> None:
        nonlocal tried
        tried += 1
        if away:
            raise StorageError(str(path), "written", "the bucket is away")
        write_whole(path, content)

    monkeypatch.setattr(mirror, "write_whole", write)
    monkeypatch.setattr(mirror, "SECONDS", 0.05)
    copy = Mirror(tmp_path, remote, report=messages.append)
    (tmp_path / "metrics.jsonl").write_bytes(b"1\n")
    copy.start()
    wait_until(lambda: tried > 3, 10, "attempts")
    away = False
    wait_until(lambda: contents(remote) == {"metrics.jsonl": b"1\n"}, 10, "the file")
    copy.close()
    assert len(messages) == 1 and "the bucket is away" in messages[0]
