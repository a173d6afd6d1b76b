"""The teacher pool on an autoscaling cluster: nodes are added, removed and preempted as steps wait for scoring."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raysid.actors.local import LocalPlacement
from raysid.cluster.submit import JobServer
from raysid.roles.step import take_step
from tests.cluster.autoscaled_job import without_guidance
from tests.support.tiny_run import (
    assert_same,
    inputs_for,
    learner_states,
    save_whole,
    tiny_config,
    tiny_teacher,
    write_recipe,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_pool_follows_the_waiting_of_steps(cluster: str, tmp_path: Path) -> None:
    """It grows, loses a scoring node and shrinks during the run, with the weights of a local run."""
    learner = {"resources": {"learner": 1.0}}
    config = tiny_config(
        tiny_teacher(tmp_path / "teacher"),
        tmp_path,
        method={"guidance": {"eval_teacher": 3.0}},
        batch_size=256,
        microbatch_size=128,
        total_images=1_000_000,
        teacher__autoscaling_config={"max_replicas": 2, "upscale_delay_s": 3, "downscale_delay_s": 6},
        resources={"teacher": {"resources": {"teacher": 1.0}}, "fake_score": learner, "generator": learner},
    )
    recipe = write_recipe(config, tmp_path / "recipe.yaml")
    server = JobServer(cluster)
    job = server.start(
        ["python", "-m", "tests.cluster.autoscaled_job", str(recipe), str(tmp_path)],
        {"working_dir": str(ROOT)},
    )
    assert server.wait(job, seconds=900) == "SUCCEEDED", server.ray_commands(job)["log"]

    events = json.loads((tmp_path / "events.json").read_text())
    assert events["events"] == [
        "a second scorer has come",
        "both scorers serve",
        "a scorer's node is taken away while it scores",
        "a node has come for the one taken away",
        "its scorer is back",
        "without guidance one scorer is let go",
        "its node has left",
    ]
    placement = LocalPlacement(*inputs_for(config), threads=1)
    for step in range(events["steps"]):
        guided = step < events["guided_steps"]
        take_step(placement.roles, config if guided else without_guidance(config), step)
    save_whole(placement, str(tmp_path / "local"))
    assert_same(learner_states(tmp_path / "end"), learner_states(tmp_path / "local"))
