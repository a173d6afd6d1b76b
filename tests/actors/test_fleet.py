"""The conditions under which a fleet of scorers grows and shrinks."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

import raysid.actors.fleet
from raysid.actors.fleet import RunStatus, Total
from raysid.actors.split import start_fleet
from tests.support.tiny_run import BATCH, tiny_config, tiny_teacher


def test_a_rate_is_of_the_last_seconds_alone() -> None:
    """Ten seconds at 0.5 a second, then ten at 0.1: both windows are available in any order."""
    total, value = Total(seconds=15), 0.0
    for second in range(21):
        total.add(second, value)
        value += 0.5 if second < 10 else 0.1
    assert total.rate(20, 5) == pytest.approx(0.1)
    assert total.rate(20, 15) == pytest.approx((5 * 0.5 + 10 * 0.1) / 15)
    assert total.rate(20, 5) == pytest.approx(0.1)


def test_a_rate_needs_its_whole_time() -> None:
    total = Total(seconds=10)
    total.add(0, 0.0)
    total.add(4, 2.0)
    assert total.rate(4, 5) is None
    assert total.rate(4, 4) == pytest.approx(0.5)


def test_a_total_that_falls_begins_anew() -> None:
    """A restarted scorer counts from zero."""
    total = Total(seconds=10)
    for second, value in enumerate([5.0, 6.0, 7.0, 0.0, 1.0]):
        total.add(second, value)
    assert total.rate(4, 4) is None
    assert total.rate(4, 1) == pytest.approx(1.0)


def test_a_service_of_two_runs_follows_the_one_that_waits(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It grows if one run waits, and ends a scorer only once neither run has calls outstanding with it."""
    monkeypatch.setattr(raysid.actors.fleet, "ENDING_SECONDS", 0.5)
    scaling = {"min_replicas": 1, "max_replicas": 2, "upscale_delay_s": 0.5, "downscale_delay_s": 1.0}
    config = tiny_config(
        tiny_teacher(tmp_path / "teacher"),
        tmp_path,
        teacher__autoscaling_config=scaling,
        microbatch_size=BATCH,
    )
    fleet = start_fleet(str(config.teacher.path), config, threads=1, runs=2)
    waited, knows = 0.0, {"waits": fleet.version, "does not": fleet.version}

    def ask_until(condition: Callable[[], bool], waiting: bool, what: str) -> None:
        nonlocal waited
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, what
            time.sleep(0.1)
            waited += 0.08 * waiting
            fleet.sync(RunStatus("waits", knows["waits"], waited))
            fleet.sync(RunStatus("does not", knows["does not"], 0.0))

    try:
        ask_until(lambda: len(fleet.members) == 2, True, "no second scorer")
        second = fleet.members[1].actor
        knows = dict.fromkeys(knows, fleet.version)
        ask_until(lambda: len(fleet.members) == 1, False, "two scorers without need")
        knows["waits"] = fleet.version
        retired = time.monotonic()
        ask_until(lambda: time.monotonic() - retired > 1.5, False, "")
        assert ray.get(second.report.remote())["microbatches"] == 0  # the other run may still call it
        knows["does not"] = fleet.version
        ask_until(lambda: died(second), False, "it lives on")
    finally:
        fleet.close()


def died(actor: Any) -> bool:
    try:
        ray.get(actor.report.remote())
    except RayActorError:
        return True
    return False
