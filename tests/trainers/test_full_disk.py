"""A run on a full file system, or in a bucket without quota, ends in one line and can be resumed later."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from upath import UPath

from raysid.errors import RunFailed, RunStopped, StorageError
from raysid.roles.state_files import write_state
from raysid.run.checkpoint import Checkpoints
from raysid.run.folder import RunFolder
from raysid.run.metrics import read_metrics
from raysid.run.tracking import Tracker
from raysid.storage import write_whole
from raysid.storage.failures import storage_error
from raysid.storage.files import PARTIAL
from raysid.trainers.distill import distill
from raysid.trainers.distill.keeper import remove_unfinished
from tests.support.bucket_server import BUCKET, Connection, bucket_environment, bucket_server, in_bucket
from tests.support.command_line import raysid
from tests.support.picture_files import digit_pictures, write_folder
from tests.support.processes import Command, Moment
from tests.support.small_disk import KB, Disk
from tests.support.tiny_run import (
    SHORT,
    assert_same,
    assert_same_record,
    end_of,
    lines_of,
    run_of,
    tiny_config,
    write_recipe,
)

QUOTA = (403, "The project's storage quota has been exceeded.")
RATE = (429, "The project exceeded the rate limit for writes.")


def remains(run: Path) -> list[str]:
    """The partial files and torn checkpoints that a stopped run left."""
    checkpoints = Checkpoints(UPath(run) / "checkpoints")
    whole = {checkpoint.path.name for checkpoint in checkpoints.all()}
    torn = [path.name for path in (run / "checkpoints").glob("*") if path.name not in whole]
    return torn + [path.name for path in run.rglob(f"*{PARTIAL}")]


def assert_one_line(line: str, run: Path | str, newest: int | None) -> None:
    """The line names the file, the reason, the last whole checkpoint, and the command to run."""
    assert "\n" not in line and f"{run}" in line
    assert "could not be written" in line or "cannot be written" in line
    again = "make room there, then run the same command"
    left = f"there is no whole checkpoint yet: {again} to start again"
    if newest is not None:
        left = f"the last whole checkpoint is {run}/checkpoints/step-{newest:08d}: {again} to resume from it"
    assert line.endswith(left), line


def is_full(error: BaseException | None) -> bool:
    return isinstance(error, StorageError) and error.full


# -- a full disk -------------------------------------------------------------------------------------------


def test_a_run_on_a_full_disk_ends_in_a_line_and_resumes_when_there_is_room(
    teacher: str, tmp_path: Path, disk: Disk
) -> None:
    """The disk is full at the first checkpoint; then, enlarged, at a later one; then it suffices."""
    undisturbed = tiny_config(teacher, tmp_path, **SHORT)
    distill(undisturbed)
    config = tiny_config(teacher, disk.folder, **SHORT)
    run = run_of(config)
    for size, newest in ((500 * KB, None), (1900 * KB, 0)):
        disk.resize(size)
        with pytest.raises(RunFailed, match="the disk is full") as stopped:
            distill(config)
        assert is_full(stopped.value.__cause__)
        assert_one_line(str(stopped.value), run, newest)
        assert remains(run) == []
        found = Checkpoints(UPath(run) / "checkpoints").newest()
        assert (found.step if found else None) == newest
    disk.resize(20 << 20)
    distill(config)
    assert_same(end_of(run), end_of(run_of(undisturbed)))
    assert_same_record(run, run_of(undisturbed))


def test_a_run_that_cannot_record_its_figures_ends_in_a_line(
    teacher: str, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's own writes fail as well, here the record of an evaluation."""
    record = Tracker.evaluation

    def full(self: Tracker, step: int, *arguments: object) -> None:
        if step == 2:
            disk.fill()
        record(self, step, *arguments)  # type: ignore[arg-type]

    disk.resize(20 << 20)
    config = tiny_config(teacher, disk.folder, **SHORT)
    with monkeypatch.context() as patched:
        patched.setattr(Tracker, "evaluation", full)
        with pytest.raises(RunFailed, match="the disk is full") as stopped:
            distill(config)
    assert is_full(stopped.value.__cause__)
    assert_one_line(str(stopped.value), run_of(config), 2)
    assert remains(run_of(config)) == []
    with pytest.raises(
        StorageError, match=f"{run_of(config)}/.* cannot be written: the disk is full"
    ) as again:
        distill(config)
    assert is_full(again.value)
    disk.free()
    (
        run_of(config) / "generator" / f"model.safetensors.0a1b2c3d{PARTIAL}"
    ).touch()  # left by a kill during a write
    distill(config)
    assert remains(run_of(config)) == []
    assert [entry["step"] for entry in lines_of(run_of(config), "evaluation")] == [0, 2, 4, 5]


def test_a_signal_on_a_full_disk_leaves_nothing_half_written(
    teacher: str, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Tracker.train

    def full(self: Tracker, step: int, *arguments: object) -> None:
        record(self, step, *arguments)  # type: ignore[arg-type]
        if step == 3:
            disk.fill()
            os.kill(os.getpid(), signal.SIGTERM)

    disk.resize(20 << 20)
    intervals = {"checkpoint__every_images": 16, "evaluation__every_images": 40}
    config = tiny_config(teacher, disk.folder, **SHORT | intervals)
    monkeypatch.setattr(Tracker, "train", full)
    with pytest.raises(RunStopped, match=r"none of step 3 \(.*: the disk is full"):
        distill(config)
    assert remains(run_of(config)) == []


def test_a_process_that_lost_a_run_removes_nothing_of_its_new_owner(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost() -> None:
        raise RunFailed("another process has it")

    with RunFolder(tiny_config(teacher, tmp_path)) as folder:
        unfinished = folder.checkpoints.path(2)
        write_state(unfinished, "generator", {"step": 2})
        with monkeypatch.context() as patch:
            patch.setattr(folder, "check", lost)
            remove_unfinished(folder)
        assert unfinished.exists()
        remove_unfinished(folder)
        assert not unfinished.exists()


def test_a_checkpoint_without_room_for_its_manifest_is_none(disk: Disk) -> None:
    checkpoints = Checkpoints(UPath(disk.folder), keep=1)
    files = [write_state(checkpoints.path(1), "generator", {"step": 1})]
    checkpoints.finish(1, 32, files)
    files = [write_state(checkpoints.path(2), "generator", {"step": 2})]
    disk.fill()
    with pytest.raises(StorageError, match="the disk is full") as full:
        checkpoints.finish(2, 64, files)
    assert is_full(full.value) and full.value.path == str(checkpoints.path(2) / "manifest.json")
    assert [checkpoint.step for checkpoint in checkpoints.all()] == [1]
    assert [path.name for path in checkpoints.path(2).iterdir()] == ["generator.pt"]


def test_a_line_that_fits_in_part_is_not_there(disk: Disk) -> None:
    """Lines and TensorBoard events before and after it are whole."""
    with Tracker(disk.folder, {}) as tracker:
        disk.fill(but=8 * KB)
        recorded = 0
        with pytest.raises(StorageError, match="the disk is full") as full:
            for step in range(1000):
                tracker.train(step, step, {"loss/sid": float(step), "long": "x" * 300})
                recorded = step
        assert is_full(full.value) and full.value.path.startswith(str(disk.folder))
        lines = (disk.folder / "metrics.jsonl").read_bytes()
        assert lines.endswith(b"}\n")
        disk.free()
        tracker.train(2000, 2000, {"loss/sid": 1.0})
    steps = [entry["step"] for entry in read_metrics(disk.folder)]
    assert steps in (
        [*range(recorded + 1), 2000],
        [*range(recorded + 2), 2000],
    )  # the last line may lack its event
    with Tracker(disk.folder, {}, resume_step=2000) as tracker:
        disk.fill()
        with pytest.raises(StorageError, match="the disk is full"):
            tracker.sample_grid(3000, 3000, np.zeros((9, 1, 8, 8)))
    assert list((disk.folder / "samples").iterdir()) == []


def test_a_conversion_on_a_full_disk_resumes_when_there_is_room(
    ray_cluster: None, tmp_path: Path, disk: Disk
) -> None:
    source, target = write_folder(tmp_path / "pictures", digit_pictures(300)), disk.folder / "out"
    (target / ".part-killed").mkdir(parents=True)
    disk.fill()
    stopped = raysid("data", "convert", source, target)
    *_, line = stopped.stderr.splitlines()
    assert stopped.exit_code == 1 and line.startswith(f"raysid: error: {target}/")
    assert line.endswith(
        " cannot be written: the disk is full; make room there, then run the same command to resume"
    )
    assert list(target.iterdir()) == []
    disk.free()
    again = raysid("data", "convert", source, target)
    assert again.exit_code == 0 and again.stdout == f"300 images in 1 file: {target}\n"


@pytest.mark.parametrize("argument", ["recipes", "--help"])
def test_a_log_on_a_full_disk_ends_a_command_without_a_trace(argument: str) -> None:
    command = [sys.executable, "-m", "raysid", argument]
    with open("/dev/full", "wb") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr == b"raysid: error: the output cannot be written: the disk is full\n"


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["split", "colocated"])
def test_actors_on_a_full_disk(teacher: str, tmp_path: Path, disk: Disk, placement: str) -> None:
    config = tiny_config(teacher, disk.folder, placement=placement)
    recipe, run = write_recipe(config, tmp_path / "tiny.yaml"), run_of(config)
    disk.resize(2600 * KB)
    stopped = Command("distill", recipe, log=tmp_path / "stopped.log")
    assert stopped.wait() == 1, stopped.output
    assert "Traceback" not in stopped.output
    *_, line = stopped.output.splitlines()
    assert_one_line(line, run, 0)
    assert remains(run) == []
    disk.resize(20 << 20)
    again = Command("distill", recipe, log=tmp_path / "again.log")
    assert again.wait() == 0, again.output
    assert f"resuming from {run}/checkpoints/step-00000000, step 0\n" in again.output
    undisturbed = tiny_config(teacher, tmp_path, placement="local")
    distill(undisturbed)
    assert_same_record(run, run_of(undisturbed))
    ours, theirs = end_of(run), end_of(run_of(undisturbed))
    assert_same({name: ours[name] for name in theirs}, theirs)


# -- a used-up quota ---------------------------------------------------------------------------------------


@contextmanager
def connected() -> Iterator[Connection]:
    with bucket_server() as server:
        connection = Connection(server, bad=False)
        yield connection
        connection.close()


def test_a_buckets_quota_is_distinguished_from_a_lack_of_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    from gcsfs.retry import HttpError  # which reads that message

    with connected() as connection:
        place = in_bucket(connection.address, f"gs://{BUCKET}/quota")
        too_often = HttpError({"code": 429, "message": "Quota exceeded for writes per second"})
        assert not storage_error(too_often, place, "written").full

        def refused(*refusal: object) -> StorageError:
            connection.refusal = refusal  # type: ignore[assignment]
            with pytest.raises(StorageError) as error:
                write_whole(place / "state.pt", b"1")
            assert error.value.path == str(place / "state.pt")
            return error.value

        full = refused(*QUOTA)
        assert full.full and QUOTA[1] in str(full)
        for reason in (
            "somebody does not have storage.objects.create access",
            "The storage.googleapis.com API requires a quota project, which is not set by default.",
        ):
            assert not refused(403, reason).full
        connection.refusal = None
        write_whole(place / "state.pt", b"1")


@pytest.mark.slow
@pytest.mark.parametrize("refusal", [QUOTA, RATE], ids=["403", "429"])
def test_a_run_whose_bucket_takes_no_more(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: tuple[int, str]
) -> None:
    with connected() as connection:
        for name, value in bucket_environment(connection.address).items():
            monkeypatch.setenv(name, value)
        config = tiny_config(teacher, tmp_path, total_images=100 * 32).model_copy(
            update={"storage": f"gs://{BUCKET}/full"}
        )
        recipe = write_recipe(config, tmp_path / "tiny.yaml")
        url, run = f"gs://{BUCKET}/full/tiny", in_bucket(connection.address, f"gs://{BUCKET}/full/tiny")
        checkpoints = Checkpoints(run / "checkpoints")
        stopped = Command("distill", recipe, log=tmp_path / "stopped.log")
        stopped.wait_for_moment(Moment("a checkpoint", lambda _: (checkpoints.newest_step() or 0) >= 8))
        connection.refusal = refusal
        assert stopped.wait() == 1, stopped.output
        assert "Traceback" not in stopped.output
        *_, line = stopped.output.splitlines()
        newest = checkpoints.newest_step()
        if refusal == QUOTA:
            assert_one_line(line, url, newest)
        else:  # a rate limit: making room would not help
            assert url in line and "run the same command to resume from" in line and "room" not in line
        assert refusal[1] in line
        connection.refusal = None
        again = Command("distill", recipe, log=tmp_path / "again.log")
        again.wait_for(f"resuming from {url}/checkpoints/step-{newest:08d}")
        again.kill()
