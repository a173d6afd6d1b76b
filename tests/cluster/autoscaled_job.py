"""The job of the test of the autoscaling pool: a run in parts that records what happens to the pool.

    python -m tests.cluster.autoscaled_job RECIPE FOLDER

The first part guides the teacher, which makes it the slow role, until a second scorer has served; then the
second scorer's node is taken away while it scores, until another has come; the last part has no guidance,
until the pool is down to one scorer and the other's node has left. The learners' states and what happened go
to FOLDER.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ray

from raysid.actors.fleet import Scorer
from raysid.actors.split import SplitPlacement
from raysid.cluster.connect import connect
from raysid.config import Config
from raysid.recipes import load_recipe
from raysid.roles.step import take_step
from tests.support.tiny_run import inputs_for, save_whole

PATIENCE_SECONDS = 240
DELIVERY_SECONDS = 1.0


class Run:
    """Takes steps with a placement, counts them, and records events."""

    def __init__(self, config: Config, placement: SplitPlacement) -> None:
        self.config, self.placement = config, placement
        self.step = 0
        self.guided_steps = 0
        self.recomputes = 0.0
        self.events: list[str] = []

    def until(self, condition: Callable[[], bool], what: str, guided: bool) -> None:
        """Take steps until a condition holds."""
        began, before = time.monotonic(), self.placement.pool.report()
        while not condition():
            self.take(guided)
            seconds = time.monotonic() - began
            if seconds > PATIENCE_SECONDS:
                now = self.placement.pool.report()
                shares = {name: round((now[name] - before[name]) / seconds, 3) for name in now}
                raise AssertionError(f"{what}: not within {PATIENCE_SECONDS} s; {self.events}; {shares}")
        self.events.append(what)
        print(f"step {self.step}: {what}", flush=True)

    def take(self, guided: bool) -> None:
        config = self.config if guided else without_guidance(self.config)
        result = take_step(self.placement.roles, config, self.step)
        self.recomputes += self.placement.collect(result.reports).recomputes
        self.step += 1
        self.guided_steps += guided


def without_guidance(config: Config) -> Config:
    """The config with the teacher's guidance off."""
    guidance = config.method.guidance.model_copy(update={"eval_teacher": 1.0})
    return config.model_copy(update={"method": config.method.model_copy(update={"guidance": guidance})})


def main(recipe: str, folder: Path) -> None:
    """Run the parts, and write the events."""
    config = load_recipe(recipe, {}, kind="distill")
    connect()
    placement = SplitPlacement(*inputs_for(config), threads=1)
    pool = placement.pool
    run = Run(config, placement)
    try:
        run.until(lambda: len(pool.members.scorers) == 2, "a second scorer has come", guided=True)
        served = [microbatches(scorer) for scorer in pool.members.scorers]
        run.until(
            lambda: all(microbatches(s) > n + 2 for s, n in zip(pool.members.scorers, served, strict=True)),
            "both scorers serve",
            guided=True,
        )
        run.recomputes = 0.0
        nodes = teacher_nodes()
        take_away_while_scoring(run)
        assert run.recomputes >= 1, "nothing was computed again"
        run.until(
            lambda: bool(teacher_nodes() - nodes), "a node has come for the one taken away", guided=True
        )
        lost = pool.members.scorers[-1]
        run.until(lambda: lost in pool.present(), "its scorer is back", guided=True)
        run.until(
            lambda: len(pool.members.scorers) == 1, "without guidance one scorer is let go", guided=False
        )
        run.until(lambda: len(teacher_nodes()) == 1, "its node has left", guided=False)
        save_whole(placement, str(folder / "end"))
    finally:
        placement.close()
    (folder / "events.json").write_text(
        json.dumps({"steps": run.step, "guided_steps": run.guided_steps, "events": run.events})
    )


def microbatches(scorer: Scorer) -> float:
    """The number of microbatches that a scorer has served."""
    return float(ray.get(scorer.actor.report.remote())["microbatches"])


def teacher_nodes() -> set[str]:
    """The cluster's nodes for scorers."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"] and "teacher" in node["Resources"]}


def take_away_while_scoring(run: Run) -> None:
    """Kill a scorer's node during a call, as a preemption of a spot machine does."""
    pool = run.placement.pool
    doomed = pool.members.scorers[-1]
    pid, raylet = ray.get(doomed.actor.__ray_call__.remote(lambda role: (os.getpid(), os.getppid())))
    assert "raylet" in Path(f"/proc/{raylet}/comm").read_text()
    score, done = pool.score, []

    def score_then_kill(noised: object, cond: object, scale: float) -> object:
        if done or pool.next_scorer() != doomed:
            return score(noised, cond, scale)
        ray.wait([noised])
        os.kill(pid, signal.SIGSTOP)  # it takes the call, and will not answer
        answer = score(noised, cond, scale)
        time.sleep(DELIVERY_SECONDS)
        for process in (raylet, pid):
            os.kill(process, signal.SIGKILL)
        done.append(True)
        return answer

    pool.score = score_then_kill  # type: ignore[method-assign]
    run.until(lambda: bool(done), "a scorer's node is taken away while it scores", guided=True)
    run.take(guided=True)
    pool.score = score  # type: ignore[method-assign]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
