"""The loop's pipeline: a line of metrics is written when its step is done, and no step waits for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raysid.actors.local import LocalPlacement
from raysid.roles.messages import StepReport
from raysid.roles.step import STEPS_IN_FLIGHT
from raysid.run.metrics import read_metrics
from raysid.trainers.distill import distill
from tests.support.tiny_run import SHORT, assert_same_record, run_of, tiny_config

LINES = {
    "tracking__log_every_images": 8,
    "checkpoint__every_images": 1_000_000,
    "evaluation__every_images": 1_000_000,
}


class Pipeline:
    """A placement in one process whose steps are done only when they are waited for, as those of slow actors.

    Attributes:
        events: `step N`, `report N` (the roles' figures are asked for) and `collect N`, in order.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self._taken = self._collected = 0
        step, collect, report = LocalPlacement.step, LocalPlacement.collect, LocalPlacement.begin_report

        def noted_step(placement: LocalPlacement, number: int) -> list[StepReport]:
            self._taken = number + 1
            self.events.append(f"step {self._taken}")
            return step(placement, number)

        def noted_collect(placement: LocalPlacement, reports: list[StepReport]) -> StepReport:
            self._collected += 1
            self.events.append(f"collect {self._collected}")
            return collect(placement, reports)

        def noted_report(placement: LocalPlacement) -> Callable[[], Any]:
            if self._taken:
                self.events.append(f"report {self._taken}")
            return report(placement)

        monkeypatch.setattr(LocalPlacement, "step", noted_step)
        monkeypatch.setattr(LocalPlacement, "collect", noted_collect)
        monkeypatch.setattr(LocalPlacement, "begin_report", noted_report)
        monkeypatch.setattr(LocalPlacement, "is_done", lambda placement, reports: False)


def test_a_line_of_metrics_does_not_drain_the_pipeline(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step has a line. Its figures are asked for at once, and collected two steps later, with the same values."""
    at_once = tiny_config(teacher, tmp_path, "at-once", **SHORT | LINES)
    distill(at_once)
    with monkeypatch.context() as patched:
        pipeline = Pipeline(patched)
        config = tiny_config(teacher, tmp_path, **SHORT | LINES)
        distill(config)
    steps = config.total_steps
    for step in range(1, steps + 1):
        asked, collected = (pipeline.events.index(f"{what} {step}") for what in ("report", "collect"))
        assert asked == pipeline.events.index(f"step {step}") + 1
        if step + STEPS_IN_FLIGHT <= steps:
            assert collected > pipeline.events.index(f"step {step + STEPS_IN_FLIGHT}")
    assert [e["step"] for e in read_metrics(run_of(config)) if e["kind"] == "train"] == [*range(1, steps + 1)]
    assert_same_record(run_of(config), run_of(at_once))
