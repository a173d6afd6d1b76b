"""A node's notice before it leaves: nothing that was computed is lost, and nothing is left on the node."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from typing import Any

import pytest

from raysid.actors import notices
from raysid.actors.notices import LeavingNodes, Notice
from raysid.trainers.distill import distill
from raysid.trainers.distill import loop as loop_module
from tests.support.processes import errors_of
from tests.support.tiny_run import BATCH, assert_same, end_of, lines_of, run_of, tiny_config, write_recipe


@pytest.mark.slow
def test_scorers_and_learners_move_before_their_nodes_leave(teacher: str, tmp_path: Path) -> None:
    """A scorer's node, then the learners' node: a checkpoint at once; no step is taken twice."""
    changes: dict[str, Any] = {"total_images": 400 * BATCH, "checkpoint__every_images": 400 * BATCH}
    changes |= {"tracking__log_every_images": 5 * BATCH, "evaluation__every_images": 400 * BATCH}
    places = {
        f"resources__{role}": {"num_cpus": 0.1, "resources": {kind: 1.0}}
        for role, kind in (("teacher", "scorer"), ("fake_score", "learner"), ("generator", "learner"))
    }
    config = tiny_config(teacher, tmp_path, **changes, **places)
    recipe = write_recipe(config, tmp_path / "drained.yaml")
    output = errors_of("tests.trainers.drained_run", recipe, run_of(config))
    said = r"node [\d.]+ leaves the cluster in \d+ s"
    saved = re.findall(rf"{said}: writing a checkpoint of step ([\d,]+)", output)
    restored = re.findall(rf"{said}; restoring them from step ([\d,]+)", output)
    assert len(saved) == 2 and restored == saved[1:], output[-3000:]
    assert "lost a learner" not in output
    local = tiny_config(teacher, tmp_path / "local", placement="local", **changes)
    distill(local)
    assert_same(end_of(run_of(config)), end_of(run_of(local)))
    steps = [line["step"] for line in lines_of(run_of(config), "train")]
    assert steps == sorted(set(steps))


def test_a_notice_is_given_once_and_names_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    draining: dict[str, float] = {}
    monkeypatch.setattr(notices, "draining_nodes", lambda: dict(draining))
    monkeypatch.setattr(notices, "POLL_SECONDS", -1.0)
    named = [
        {"NodeID": "a", "NodeManagerAddress": "10.0.0.1"},
        {"NodeID": "b", "NodeManagerAddress": "10.0.0.2"},
    ]
    monkeypatch.setattr(notices.ray, "nodes", lambda: named)
    leaving = LeavingNodes()
    assert leaving.notice({"a"}, {"b"}) is None
    draining["b"] = math.inf
    assert leaving.notice({"a"}, {"b"}) == Notice("node 10.0.0.2 leaves the cluster", restarts=False)
    assert leaving.notice({"a"}, {"b"}) is None
    draining["a"] = time.time() + 29.7
    assert leaving.notice({"a"}, {"b"}) == Notice("node 10.0.0.1 leaves the cluster in 30 s", restarts=True)
    assert LeavingNodes().notice({"a"}, set(), movable=False) == Notice(
        "node 10.0.0.1 leaves the cluster in 30 s", restarts=False
    )
    draining["c"] = 0.0
    assert leaving.notice({"a"}, {"b"}) is None  # none of this run's


def test_a_notice_costs_a_checkpoint_and_no_step(
    tmp_path: Path, teacher: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a scorer's node at step 3, of a learner's at step 6: the second starts the roles again, from step 6."""
    config = tiny_config(teacher, tmp_path, placement="local")
    given, left = {3: Notice("one", restarts=False), 6: Notice("two", restarts=True)}, []
    heed = loop_module.TrainingLoop._heed_notice

    def with_notices(loop: loop_module.TrainingLoop) -> None:
        monkeypatch.setattr(loop.placement, "notice", lambda: given.pop(loop.step, None), raising=False)
        monkeypatch.setattr(loop.placement, "leave", left.append, raising=False)
        heed(loop)

    monkeypatch.setattr(loop_module.TrainingLoop, "_heed_notice", with_notices)
    distill(config)
    said = capsys.readouterr().err
    assert "one: writing a checkpoint of step 3" in said and "two: writing a checkpoint of step 6" in said
    assert "two; restoring them from step 6" in said and said.count("restoring") == 1
    assert left == ["two"] and not given
    whole = tiny_config(teacher, tmp_path / "whole", placement="local")
    distill(whole)
    assert_same(end_of(run_of(config)), end_of(run_of(whole)))
