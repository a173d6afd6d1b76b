"""The record of a run, which a resumed run continues without repeats."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from upath import UPath

from raysid.run.metrics import read_metrics
from raysid.run.tracking import Tracker
from raysid.storage import make_folder, write_whole
from raysid.storage.mirror import Mirror
from tests.support.tensorboard_server import tensorboard

BATCH = 256
SETTINGS: dict[str, Any] = {
    "seed": 3,
    "total_images": 5120,
    "method": {"alpha": 1.2, "adversarial": None, "dropping": True},
    "betas": [0.0, 0.999],
}


def record(tracker: Tracker, steps: range, sign: int = 1) -> None:
    """Record steps of a run, with an evaluation and samples every five steps."""
    for step in steps:
        images = step * BATCH
        tracker.train(step, images, {"loss/sid": sign * step, "generator/gradient_norm": float("nan")})
        tracker.perf(step, images, {"images_per_second": 100.0 + step, "busy/teacher": 0.5})
        if step % 5 == 0:
            tracker.evaluation(step, images, {"frechet_distance": sign / step, "label_accuracy": None})
            tracker.sample_grid(step, images, np.zeros((9, 1, 8, 8)), torch.ones(9, 1, 8, 8))


def positions(folder: Path, kind: str) -> list[int]:
    return [line["step"] for line in read_metrics(folder) if line["kind"] == kind]


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_lines_are_strict_json_with_everything_a_plot_needs(tmp_path: Path) -> None:
    with Tracker(tmp_path / "run", SETTINGS) as tracker:
        figures = {
            "loss/sid": float("nan"),
            "loss/fake_score": np.float32("inf"),
            "loss/adversarial": torch.tensor(-torch.inf),
            "lr": np.float64(0.5),
            "count": np.int64(3),
            "absent": None,
        }
        tracker.train(7, 1792, figures)
    (line,) = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    entry = json.loads(line, parse_constant=refuse)
    assert 0 <= entry.pop("time") < 60
    assert abs(entry.pop("unix_time") - time.time()) < 60
    assert entry == {
        "kind": "train",
        "step": 7,
        "images": 1792,
        "loss/sid": "nan",
        "loss/fake_score": "inf",
        "loss/adversarial": "-inf",
        "lr": 0.5,
        "count": 3,
        "absent": None,
    }
    (read,) = read_metrics(tmp_path / "run")
    assert np.isnan(read["loss/sid"]) and read["loss/fake_score"] == np.inf
    assert read["loss/adversarial"] == -np.inf


def test_a_figure_cannot_take_a_lines_own_key(tmp_path: Path) -> None:
    with Tracker(tmp_path, SETTINGS) as tracker, pytest.raises(ValueError, match="images"):
        tracker.train(1, 1, {"images": 3})
    with pytest.raises(ValueError, match="closed"):
        tracker.train(1, 1, {"loss": 3})


def test_resuming_cuts_back_to_the_checkpoint(tmp_path: Path) -> None:
    with Tracker(tmp_path, SETTINGS) as tracker:
        record(tracker, range(1, 16))
        tracker.table([{"model": "teacher", "frechet_distance": 0.7}])
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert before.count(b'"kind": "table"') == 1
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"kind": "train", "step": 12, "ima')

    with Tracker(tmp_path, SETTINGS, resume_step=12) as tracker:
        assert positions(tmp_path, "train") == list(range(1, 13))
        record(tracker, range(13, 21), sign=-1)
    after = (tmp_path / "metrics.jsonl").read_bytes()
    assert after.startswith(before[: before.index(b'{"kind": "train", "step": 13')])
    for line in after.decode().splitlines():
        json.loads(line, parse_constant=refuse)
    assert positions(tmp_path, "train") == positions(tmp_path, "perf") == list(range(1, 21))
    assert positions(tmp_path, "evaluation") == positions(tmp_path, "samples") == [5, 10, 15, 20]
    assert positions(tmp_path, "table") == []
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        f"step-{step:08d}.png" for step in (5, 10, 15, 20)
    ]
    times = [line["time"] for line in read_metrics(tmp_path)]
    assert times == sorted(times)
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "samples", "tensorboard"}


def test_pictures_of_later_steps_are_removed(tmp_path: Path) -> None:
    with Tracker(tmp_path, SETTINGS) as tracker:
        record(tracker, range(1, 11))
    (tmp_path / "samples/of-my-own.png").write_bytes(b"kept")
    Tracker(tmp_path, SETTINGS, resume_step=7).close()
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {"step-00000005.png", "of-my-own.png"}


def test_the_checkpoints_own_step_is_not_recorded_again(tmp_path: Path) -> None:
    with Tracker(tmp_path, SETTINGS) as tracker:
        record(tracker, range(1, 11))
    with Tracker(tmp_path, SETTINGS, resume_step=10) as tracker:
        tracker.evaluation(10, 10 * BATCH, {"frechet_distance": 0.1, "milliseconds_per_image": 2.0})
        tracker.sample_grid(10, 10 * BATCH, np.zeros((4, 1, 8, 8)))
        tracker.table([{"model": "teacher"}])
    assert positions(tmp_path, "samples") == [5, 10]
    first, second, third = (line for line in read_metrics(tmp_path) if line["kind"] == "evaluation")
    assert "frechet_distance" in first and "frechet_distance" in second
    assert "frechet_distance" not in third and third["milliseconds_per_image"] == 2.0
    assert positions(tmp_path, "table") == [10]


def test_without_a_checkpoint_a_run_starts_over(tmp_path: Path) -> None:
    with Tracker(tmp_path, SETTINGS) as tracker:
        record(tracker, range(1, 6))
    with Tracker(tmp_path, SETTINGS) as tracker:
        assert read_metrics(tmp_path) == []
        record(tracker, range(1, 3))
    assert positions(tmp_path, "train") == [1, 2]
    assert list((tmp_path / "samples").iterdir()) == []


def test_a_run_goes_back_without_ending(tmp_path: Path) -> None:
    with Tracker(tmp_path, SETTINGS) as tracker:
        record(tracker, range(1, 8))
        tracker.cut_back(3)
        record(tracker, range(4, 7), sign=-1)
    assert [line["loss/sid"] for line in read_metrics(tmp_path) if line["kind"] == "train"] == [
        *(1, 2, 3, -4, -5, -6)
    ]
    assert [event.value for event in events(tmp_path)("train/loss/sid")] == [1, 2, 3, -4, -5, -6]


def test_a_run_branches_into_a_folder_of_its_own(tmp_path: Path) -> None:
    with Tracker(tmp_path, SETTINGS, resume_step=100) as tracker:
        record(tracker, range(101, 103))
    assert positions(tmp_path, "train") == [101, 102]


def test_reading_skips_a_line_that_was_cut_off(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    whole = '{"kind": "train", "step": 1, "name": "é"}\n'.encode()
    for cut in range(len(whole) - 1):
        (tmp_path / "metrics.jsonl").write_bytes(whole + whole[:cut])
        assert read_metrics(tmp_path) == [json.loads(whole)]


def test_a_kill_loses_nothing_that_was_recorded(tmp_path: Path) -> None:
    code = f"""
from raysid.run.tracking import Tracker
tracker = Tracker({str(tmp_path)!r}, {{}})
for step in range(1, 10**9):
    tracker.train(step, step, {{"loss/sid": float(step)}})
    print(step, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    recorded = 0
    for line in process.stdout:
        if line.endswith("\n"):
            recorded = int(line)
        if recorded >= 200 and process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    steps = positions(tmp_path, "train")
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= recorded

    # TensorBoard lacked the last ones; after the resume it has them.
    Tracker(tmp_path, {}, resume_step=recorded).close()
    assert [event.step for event in events(tmp_path)("train/loss/sid")] == list(range(1, recorded + 1))


def test_the_picture_has_fakes_and_reals_beside_them(tmp_path: Path) -> None:
    fakes, reals = -np.ones((64, 3, 8, 8)), np.ones((64, 3, 8, 8))
    with Tracker(tmp_path, SETTINGS) as tracker:
        alone = tracker.sample_grid(1, BATCH, fakes)
        both = tracker.sample_grid(2, 2 * BATCH, fakes, reals)
    assert both == tmp_path / "samples/step-00000002.png"
    with Image.open(alone) as small, Image.open(both) as large:
        assert large.height == small.height and large.width > 2 * small.width
        assert small.width == small.height
        assert large.getpixel((10, 10)) == (0, 0, 0)
        assert large.getpixel((large.width - 10, 10)) == (255, 255, 255)


def events(folder: Path) -> Callable[[str], Any]:
    """Read the scalars of a tag with TensorBoard's reader of event files."""
    accumulator = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    accumulator.Reload()
    return accumulator.Scalars


def test_a_long_record_is_not_uploaded_whole_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object of a bucket cannot grow: what has grown is uploaded whole. So TensorBoard has several files."""
    run, bucket = tmp_path / "run", UPath(tmp_path / "bucket")
    mirror = Mirror(run, bucket)
    uploaded: list[int] = []

    def upload(path: UPath, content: bytes) -> None:
        make_folder(path.parent)
        if "tfevents" in path.name:
            uploaded.append(len(content))
        write_whole(path, content)

    monkeypatch.setattr("raysid.storage.mirror.write_whole", upload)
    figures = {f"loss/{number}" * 5: float(number) for number in range(200)}
    with Tracker(run, SETTINGS) as tracker:
        for step in range(1, 400):
            tracker.train(step, step * BATCH, figures)
            if step % 100 == 0:
                mirror.sync()
        mirror.sync()
        whole = sum(uploaded)
        uploaded.clear()
        tracker.train(400, 400 * BATCH, figures)
        mirror.sync()
    assert sum(uploaded) < 1.1 * 2**20 and whole > 4 * 2**20
    for folder in (run, tmp_path / "bucket"):
        scalars = events(folder)
        assert [event.step for event in scalars(f"train/{'loss/7' * 5}")] == [
            s * BATCH for s in range(1, 401)
        ]


@pytest.mark.parametrize("fast", [True, False])
def test_a_resumed_run_in_tensorboard(tmp_path: Path, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raysid.run.events._FILE_BYTES", 3000)  # a few lines
    run = tmp_path / "digits-sida"
    with Tracker(run, SETTINGS) as tracker:
        record(tracker, range(1, 16))
    # A TensorBoard that is open during the resume must drop the purged events as well.
    with tensorboard(tmp_path, fast) as board:
        name = "digits-sida/tensorboard"
        board.wait_until(lambda: "train/loss/sid" in board.get("scalars/tags").get(name, {}))
        board.wait_until(lambda: len(board.scalars("train/loss/sid", name)) == 15)
        with Tracker(run, SETTINGS | {"total_images": 9999}, resume_step=7) as tracker:
            record(tracker, range(8, 13), sign=-1)
        expected = [(step * BATCH, step if step <= 7 else -step) for step in range(1, 13)]
        board.wait_until(lambda: board.scalars("train/loss/sid", name) == expected)
        assert [step for step, _ in board.scalars("eval/frechet_distance", name)] == [1280, 2560]

    with Tracker(run, SETTINGS | {"total_images": 9999}, resume_step=10) as tracker:
        record(tracker, range(11, 21))
        tracker.table(
            [
                {"model": "teacher, 35 evaluations", "frechet_distance": 0.72, "label_accuracy": 0.98},
                {"model": "generator, best EMA", "frechet_distance": 0.5, "label_accuracy": None},
            ]
        )
    assert [event.step for event in events(run)("train/loss/sid")] == [s * BATCH for s in range(1, 21)]

    with tensorboard(tmp_path, fast) as board:
        final = "final/generator_best_ema/frechet_distance"
        board.wait_until(lambda: final in board.get("scalars/tags").get(name, {}))
        tags = set(board.get("scalars/tags")[name])
        assert tags == {
            *("train/loss/sid", "train/generator/gradient_norm"),
            *("perf/images_per_second", "perf/busy/teacher", "eval/frechet_distance", final),
            *(f"final/teacher_35_evaluations/{key}" for key in ("frechet_distance", "label_accuracy")),
        }
        for tag in tags:
            steps = [step for step, _ in board.scalars(tag, name)]
            assert steps == sorted(set(steps)), tag
        assert [step for step, _ in board.scalars("train/loss/sid", name)] == [
            step * BATCH for step in range(1, 21)
        ]
        assert [step for step, _ in board.scalars("eval/frechet_distance", name)] == [
            *(1280, 2560, 3840, 5120)
        ]

        images = board.get("images/images", run=name, tag="eval/samples", sample=0)
        assert [image["step"] for image in images] == [1280, 2560, 3840, 5120]
        picture = board.read("images/individualImage", images[-1]["query"])
        assert picture == (run / "samples/step-00000020.png").read_bytes()

        assert {"config/text_summary", "table/text_summary"} <= set(board.get("text/tags")[name])
        (config,) = board.get("text/text", run=name, tag="config/text_summary")
        assert "alpha: 1.2" in config["text"]

        infos = board.post("hparams/experiment", {"experimentName": ""})["hparamInfos"]
        assert {info["name"] for info in infos} == {
            *("seed", "total_images", "method.alpha", "method.dropping", "betas")
        }
        (group,) = board.post(
            "hparams/session_groups",
            {
                "startIndex": 0,
                "sliceSize": 10,
                "allowedStatuses": ["STATUS_SUCCESS"],
                "colParams": [{"metric": {"group": "", "tag": final}}],
            },
        )["sessionGroups"]
        # The settings are those of the last resume.
        assert group["hparams"]["total_images"] == 9999 and group["hparams"]["method.alpha"] == 1.2
        values = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
        assert values[final] == 0.5
