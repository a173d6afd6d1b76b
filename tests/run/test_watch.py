"""The status of a run in `watch`: from its record, its owner's process or its lease."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raysid.config import Config
from raysid.errors import RunFailed, RunStopped
from raysid.run.folder import RunFolder
from raysid.run.tracking import Tracker
from raysid.run.watch import state_of
from raysid.storage import make_folder
from raysid.storage.lease import is_running, this_process
from tests.support.tiny_run import run_of, tiny_config


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return tiny_config("no teacher", tmp_path)


@pytest.fixture
def folder(config: Config) -> Iterator[RunFolder]:
    """A run with metrics and a checkpoint of step 8."""
    with RunFolder(config) as folder:
        begin(folder)
        yield folder


def begin(folder: RunFolder) -> None:
    folder.begin("digest")
    with Tracker(folder.record, {}) as tracker:
        tracker.train(8, 256, {"loss/sid": 1.0})
    make_folder(folder.checkpoints.path(8))
    folder.checkpoints.finish(8, 256, [])


def status(config: Config) -> str:
    return state_of(str(run_of(config))).text.partition("\n")[0].removeprefix(f"{run_of(config)}: ")


def test_a_run_that_is_under_way(folder: RunFolder, config: Config) -> None:
    assert status(config) in ("running; last metrics 0 s ago", "running; last metrics 1 s ago")
    metrics = run_of(config) / "metrics.jsonl"
    (entry,) = map(json.loads, metrics.read_text().splitlines())
    for ago, text in ((44, "44 s"), (204, "3m 24s")):
        metrics.write_text(json.dumps(entry | {"unix_time": time.time() - ago}) + "\n")
        assert status(config) == f"running; last metrics {text} ago"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RunStopped("stopped by SIGTERM", signal.SIGTERM), "stopped by SIGTERM at step 8"),
        (RunFailed("the images\nare away"), "failed: the images are away"),
        (ZeroDivisionError("division by zero"), "failed: ZeroDivisionError: division by zero"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_a_run_that_ended_says_why_until_it_is_resumed(
    config: Config, error: BaseException, text: str
) -> None:
    with pytest.raises(type(error)), RunFolder(config) as folder:
        begin(folder)
        raise error
    assert status(config) == text
    with RunFolder(config) as folder:
        folder.begin("digest")
        assert status(config).startswith("running; ")


def test_a_run_that_was_killed_or_runs_elsewhere(folder: RunFolder, config: Config) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    for owner, text in (
        (this_process() | {"pid": ended.pid}, "not running; last metrics"),
        (this_process() | {"machine": "another"}, "last metrics"),
        ({"pid": 1, "host": "of an older version"}, "last metrics"),
    ):
        (run_of(config) / "owner.json").write_text(json.dumps(owner))
        assert status(config).startswith(text)


def test_a_lease_tells_if_its_owner_is_running() -> None:
    held = this_process() | {"id": "1", "machine": "another", "renewed": time.time()}
    assert is_running(held)
    assert is_running(held | {"renewed": time.time() - 61}) is False
