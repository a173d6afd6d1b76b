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
from raysid.errors import RunFailed, RunStopped, UserError
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


# -- records that are damaged, or of another program -------------------------------------------------------

COMMON = {"step": 8, "images": 256, "time": 3.0, "unix_time": 1_700_000_000.0}
ODD = [None, True, "x", "nan", "inf", "-inf", -1, 10**400, 1e300, [], {}, [[]], "\x1b[2J\nnot this", 0]
FIGURES = {
    "train": ["loss/sid", "generator/bad_samples"],
    "perf": ["images_per_second", "busy/teacher", "replicas/teacher", "waited/teacher", "teacher_recomputes"],
    "evaluation": ["frechet_distance", "label_accuracy"],
    "warning": ["text"],
}


def record(folder: Path, *lines: object, config: str = "total_images: 640\n") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(config)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def shown(folder: Path) -> str:
    """The text of a run's state; it may steer no terminal."""
    text = state_of(str(folder)).text
    assert all(character.isprintable() for line in text.split("\n") for character in line)
    return text


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:12])
def test_any_value_of_a_figure_is_shown_or_left_out(tmp_path: Path, value: object) -> None:
    good = {"kind": "train", "loss/sid": 1.0} | COMMON
    for kind, names in FIGURES.items():
        for name in [*names, *COMMON, "kind"]:
            bad = {"kind": kind} | COMMON | {name: value}
            text = shown(record(tmp_path / "run", good, bad))
            assert " of 640 images (" in text
        assert shown(record(tmp_path / "run", good, {"kind": kind} | COMMON))  # without any figure


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("total_images: many", "config.yaml has no total_images"),
        ("[]", "config.yaml has no total_images"),
        ("a: [", "config.yaml: line 1"),
        ("{" * 5000, "config.yaml: nested too deeply"),
        ("\x00", "config.yaml: "),
    ],
)
def test_a_damaged_config_is_named_and_the_rest_is_shown(tmp_path: Path, config: str, words: str) -> None:
    text = shown(record(tmp_path / "run", {"kind": "train", "loss/sid": 1.0} | COMMON, config=config))
    assert (
        f"unreadable  {words}" in text and "step        8, 256 images" in text and "losses      sid 1" in text
    )


def test_foreign_lines_are_counted(tmp_path: Path) -> None:
    run = record(tmp_path / "run", {"kind": "train", "loss/sid": 1.0} | COMMON, [], 3, None, {})
    with (run / "metrics.jsonl").open("a") as file:
        file.write("[" * 100_000 + '\nnot JSON\n{"kind": "tra')  # a kill cuts the last one off
    assert "unreadable  metrics.jsonl: 6 of its lines are not a run's" in shown(run)
    (run / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"has recorded nothing yet: .*1 of its lines is not a run's"):
        state_of(str(run))


@pytest.mark.parametrize(
    "content", ["{", "[]", "3", '{"sessions": 3}', '{"sessions": [null]}', '{"sessions": [{"ended": 4}]}']
)
@pytest.mark.parametrize("name", ["run.json", "owner.json"])
def test_damaged_files_beside_the_record(tmp_path: Path, name: str, content: str) -> None:
    run = record(tmp_path / "run", {"kind": "train", "loss/sid": 1.0} | COMMON)
    (run / name).write_text(content)
    assert "last metrics" in shown(run)
