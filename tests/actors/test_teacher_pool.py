"""A scorer dies at any moment of a step: the results are the same bits, and repeated work is counted."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray

import raysid.actors.split
from raysid.actors.fleet import Scorer
from raysid.actors.pool import PoolCall, TeacherPool
from raysid.actors.results import get
from raysid.actors.split import SplitPlacement, start_fleet
from raysid.config import Config
from raysid.errors import LearnerLost, RunFailed
from raysid.roles.messages import Slice
from raysid.roles.step import overlapped_step
from raysid.trainers.distill import distill
from tests.support.processes import kill, killing
from tests.support.tiny_run import (
    BATCH,
    STEPS,
    Figures,
    Weights,
    assert_same,
    end_of,
    figures_of,
    in_a_step,
    inputs_for,
    learner_states,
    lines_of,
    local_end,
    pid_of,
    run_of,
    save_whole,
    tiny_config,
    tiny_teacher,
)
from tests.support.uneven_scorers import UnevenActor

RECOMPUTES = "teacher_recomputes"
SCORER = "ray::TeacherActor"
MOMENTS = {2: "during score", 3: "between", 4: "during pullback", 5: "all of them"}
FEW_STEPS = 7
DELIVERY_SECONDS = 1.0  # by then a call with ready inputs has reached its stopped actor
STOPPED_SECONDS = (
    1.5  # by then a run waits for the stopped scorer: the loss of an idle one would have no effect
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny teacher's folder."""
    return tiny_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def unharmed(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Weights, list[Figures]]:
    """The states and figures after a few steps in one process, where no scorer can die."""
    folder = tmp_path_factory.mktemp("unharmed")
    return local_end(tiny_config(teacher, folder), folder / "end", FEW_STEPS)


class MortalPool:
    """A placement's teacher pool whose scorer in charge dies at one moment of a step.

    Attributes:
        moment: `during score`, `between` (score and pullback), `during pullback` or `all of them` (between, and
            every scorer); a death resets it to None.
    """

    def __init__(self, pool: TeacherPool) -> None:
        self.pool = pool
        self.moment: str | None = None
        self.keepers: dict[Any, Scorer] = {}

    def score(self, noised: Any, cond: Any, scale: float) -> Any:
        scorer = self.pool.next_scorer()
        if self.moment == "during score":
            with self._stopped_then_killed(scorer, noised):
                return self.pool.score(noised, cond, scale)
        answer = self.pool.score(noised, cond, scale)
        if self.moment in ("between", "all of them"):
            done = answer.end if isinstance(answer, PoolCall) else answer
            assert ray.wait([done], timeout=60)[0]
            for doomed in self.pool.members.scorers if self.moment == "all of them" else [scorer]:
                kill(pid_of(doomed.actor))
            self.moment = None
        self.keepers[noised] = scorer
        return answer

    def pullback(self, noised: Any, cond: Any, cotangent: Any, scale: float) -> Any:
        if self.moment == "during pullback":
            with self._stopped_then_killed(self.keepers[noised], noised, cotangent):
                return self.pool.pullback(noised, cond, cotangent, scale)
        return self.pool.pullback(noised, cond, cotangent, scale)

    @contextmanager
    def _stopped_then_killed(self, scorer: Scorer, *inputs: Any) -> Iterator[None]:
        """The scorer receives the call made in this block and never answers it."""
        pid = pid_of(scorer.actor)
        assert len(ray.wait(list(inputs), num_returns=len(inputs), timeout=60)[0]) == len(inputs)
        os.kill(pid, signal.SIGSTOP)
        yield
        time.sleep(DELIVERY_SECONDS)
        kill(pid)
        self.moment = None


@pytest.mark.parametrize("replicas", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_scorer_dies_at_every_moment_of_a_step(
    ray_cluster: None,
    teacher: str,
    unharmed: tuple[Weights, list[Figures]],
    tmp_path: Path,
    replicas: int,
) -> None:
    """One scorer, and one of two: each step has the same results and reports the repeated work."""
    config = tiny_config(teacher, tmp_path, teacher__num_replicas=replicas)
    weights, expected = unharmed
    with split_placement(config) as placement:
        mortal = MortalPool(placement.pool)
        roles = dataclasses.replace(placement.roles, teacher=mortal)
        for step in range(FEW_STEPS):
            mortal.moment = MOMENTS.get(step)
            result = overlapped_step(roles, config, step)
            assert mortal.moment is None, f"nobody died in step {step}"
            figures = figures_of(placement.collect(result.reports))
            again = figures[RECOMPUTES]
            assert 1 <= again <= 2 if step in MOMENTS else again == 0, f"step {step} recomputed {again}"
            assert figures | {RECOMPUTES: 0} == expected[step], f"step {step}, {MOMENTS.get(step)}"
        save_whole(placement, str(tmp_path / "end"))
    assert_same(learner_states(tmp_path / "end"), weights)


def test_a_slow_scorer_takes_what_it_can(
    ray_cluster: None, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two scorers, one slowed to a third, the fast one takes 3 of 4 microbatches, and nothing else changes."""
    steps = 5  # the first updates only psi; in the second the speeds are not known yet
    monkeypatch.setattr(raysid.actors.split, "TeacherActor", UnevenActor)
    config = tiny_config(teacher, tmp_path, teacher__num_replicas=2, microbatch_size=BATCH // 4)
    config = config.model_copy(update={"microbatches_in_flight": 4})
    with split_placement(config) as placement:
        shares = []
        for step in range(steps):
            before = served(placement.pool)
            placement.collect(overlapped_step(placement.roles, config, step).reports)
            shares.append({slow: now - before[slow] for slow, now in served(placement.pool).items()})
        save_whole(placement, str(tmp_path / "end"))
    assert [sum(share.values()) for share in shares] == [0] + [4] * (steps - 1)
    assert sum(share[False] == 3 for share in shares[2:]) >= steps - 3, shares  # but for a hiccup
    whole, _ = local_end(config, tmp_path / "local", steps)
    assert_same(learner_states(tmp_path / "end"), whole)


def served(pool: TeacherPool) -> dict[bool, int]:
    """The microbatches that each scorer has scored, by whether it is slow."""
    return dict(ray.get([scorer.actor.served.remote() for scorer in pool.present()]))


def test_a_lost_input_is_no_scorers_fault(ray_cluster: None, teacher: str, tmp_path: Path) -> None:
    """The generator dies during a call on one of two scorers: the learner is lost, not retried on the other."""
    config = tiny_config(teacher, tmp_path, teacher__num_replicas=2)
    with split_placement(config) as placement:
        pid = pid_of(placement.generator.ranks[0])
        os.kill(pid, signal.SIGSTOP)
        at = Slice(1, 0, 16)
        cond = placement.roles.conditions.of(at, "generator")
        noised, _ = placement.generator.generate(at, cond)
        answer = placement.pool.score(noised, cond, 1.0)
        kill(pid)
        cotangents = placement.generator.cotangents(at, answer, noised)
        with pytest.raises(LearnerLost, match=rf"^GeneratorActor: process {pid} on [\d.]+ died$"):
            get(list(cotangents))


@pytest.mark.parametrize("replicas", [1, 2])
def test_scorers_that_cannot_start_end_the_run(
    ray_cluster: None, teacher: str, tmp_path: Path, replicas: int
) -> None:
    """The teacher's folder is missing: one line at once, since a restart would not help."""
    config = tiny_config(str(tmp_path / "gone"), tmp_path, teacher__num_replicas=replicas)
    with pytest.raises(RunFailed, match=r"^TeacherActor could not start: .*no teacher at .*gone"):
        start_fleet(str(tmp_path / "gone"), config, threads=1)


@pytest.mark.slow
@pytest.mark.parametrize(("replicas", "seed"), [(1, 0), (2, 1)])
def test_a_scorer_dies_in_a_run(
    ray_cluster: None, teacher: str, tmp_path: Path, replicas: int, seed: int
) -> None:
    """At random moments of a whole run; its metrics count the repeated work."""
    config = steady_config(teacher, tmp_path, replicas)
    moment = in_a_step(run_of(config), random.Random(seed), stopped=STOPPED_SECONDS)
    with killing(SCORER, moment) as killings:
        distill(config)
    assert killings.done == [moment.name]
    check_run(config, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("replicas", "seed"), [(1, 2), (2, 3), (3, 4), (1, 5), (2, 6)])
def test_scorers_die_again_and_again_in_a_run(
    ray_cluster: None, teacher: str, tmp_path: Path, replicas: int, seed: int
) -> None:
    config = steady_config(teacher, tmp_path, replicas)
    chance = random.Random(seed)
    moments = [in_a_step(run_of(config), chance, first, first + 8, STOPPED_SECONDS) for first in (2, 10, 18)]
    with killing(SCORER, *moments) as killings:
        distill(config)
    assert killings.done == [moment.name for moment in moments]
    check_run(config, tmp_path / "whole")


def steady_config(teacher: str, storage: Path, replicas: int) -> Config:
    """A longer run with checkpoints and evaluations only at its ends, so that scorers are rarely idle."""
    never = 1_000_000
    return tiny_config(
        teacher,
        storage,
        teacher__num_replicas=replicas,
        total_images=2 * STEPS * BATCH,
        evaluation__every_images=never,
        checkpoint__every_images=never,
    )


def check_run(config: Config, folder: Path) -> None:
    """The run's learners equal those of the same steps in one process, and it counted the repeated work."""
    whole, _ = local_end(config, folder, config.total_steps)
    end = end_of(run_of(config))
    assert_same({name: end[name] for name in whole}, whole)
    steps = [entry["step"] for entry in lines_of(run_of(config), "train")]
    assert steps == list(range(2, config.total_steps + 1, 2))
    counts = [entry[RECOMPUTES] for entry in lines_of(run_of(config), "perf")]
    assert counts == sorted(counts) and counts[-1] >= 1, f"recomputes {counts}"


@contextmanager
def split_placement(config: Config) -> Iterator[SplitPlacement]:
    """A split placement for a config, closed with the block."""
    placement = SplitPlacement(*inputs_for(config), threads=1)
    try:
        yield placement
    finally:
        placement.close()
