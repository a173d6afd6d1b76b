"""Learners of several ranks give the results of one rank, and are restored when a rank is lost."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from raysid.actors.results import get
from raysid.actors.split import SplitPlacement
from raysid.config import Config
from raysid.errors import LearnerLost, PeerLost, RunFailed
from raysid.recipes import override
from raysid.roles.messages import Slice
from raysid.roles.state_files import read_state
from raysid.roles.step import microbatches
from raysid.trainers.distill import distill
from tests.support.placement_ends import WITHOUT_DROPOUT, check_rule_2, ends, lost, whole_batch
from tests.support.processes import Moment, kill, killing
from tests.support.run_copies import continued
from tests.support.tiny_run import (
    BATCH,
    LAST_LOSS,
    STEPS,
    Weights,
    assert_same,
    assert_same_record,
    end_of,
    in_a_step,
    inputs_for,
    leaves,
    pid_of,
    run_of,
    tiny_config,
)

SLOW = pytest.mark.slow
SID: dict[str, Any] = {"method__adversarial": None}


def ranks(generator: int, fake_score: int) -> dict[str, int]:
    """Settings of `tiny_config` for the numbers of ranks of the two learners."""
    return {"generator__num_workers": generator, "fake_score__num_workers": fake_score}


# -- the same result ---------------------------------------------------------------------------------------


@SLOW
@pytest.mark.parametrize(
    ("method", "schedule", "generator", "fake_score"),
    [
        ("sida", "overlapped", 2, 2),
        ("sida", "overlapped", 2, 1),
        ("sida", "overlapped", 1, 2),
        ("sida", "alternating", 2, 2),
        ("sid", "overlapped", 2, 2),
        ("sid", "alternating", 2, 2),
        ("sid", "alternating", 1, 2),
    ],
)
def test_two_ranks_of_a_microbatch_each_are_one_process(
    ray_cluster: None,
    teacher: str,
    tmp_path: Path,
    method: str,
    schedule: str,
    generator: int,
    fake_score: int,
) -> None:
    """20 steps, with dropout: every weight, optimizer state and loss, bit for bit.

    This holds with two microbatches only: the sum of two numbers does not depend on their order.
    """
    changes = ({} if method == "sida" else SID) | {"schedule": schedule}
    weights, figures = ends(tiny_config(teacher, tmp_path, **changes), tmp_path / "local")
    config = tiny_config(teacher, tmp_path, **changes, **ranks(generator, fake_score))
    ranks_weights, ranks_figures = ends(config, tmp_path / "ranks", split=True)
    assert_same(ranks_weights, weights)
    assert ranks_figures == figures


@SLOW
def test_ranks_that_skip_each_others_real_images_are_one_process(
    ray_cluster: None, teacher: str, tmp_path: Path
) -> None:
    """The window is smaller than the set, so that each rank reads past the other's images."""
    window = {"data__shuffle_window": 200}
    weights, figures = ends(tiny_config(teacher, tmp_path, **window), tmp_path / "local")
    config = tiny_config(teacher, tmp_path, **window, **ranks(1, 2))
    ranks_weights, ranks_figures = ends(config, tmp_path / "ranks", split=True)
    assert_same(ranks_weights, weights)
    assert ranks_figures == figures


@pytest.mark.parametrize(
    ("generator", "fake_score", "microbatches_a_step", "under_way"),
    [(1, 1, 1, 2), (2, 2, 2, 4), (2, 1, 2, 4), (1, 4, 4, 2), (4, 16, 16, 8)],
)
def test_the_batch_is_cut_so_that_each_rank_has_a_part(
    teacher: str, tmp_path: Path, generator: int, fake_score: int, microbatches_a_step: int, under_way: int
) -> None:
    """Without microbatch_size; each of the generator's ranks has two microbatches in flight."""
    changes = SID if fake_score > 4 else {}  # a microbatch is no smaller than the discriminator's group
    config = tiny_config(teacher, tmp_path, microbatch_size=None, **changes, **ranks(generator, fake_score))
    cut = microbatches(config, 3)
    assert [at.index for at in cut] == list(range(microbatches_a_step))
    assert sum(at.count for at in cut) == BATCH
    assert config.in_flight == under_way


@SLOW
@pytest.mark.parametrize("method", ["sida", "sid"])
@pytest.mark.parametrize(
    ("generator", "fake_score", "microbatches", "replicas"),
    [(2, 2, 2, 1), (2, 2, 4, 3), (2, 1, 4, 1), (1, 2, 4, 1), (4, 2, 4, 1)],
)
def test_ranks_cuts_and_scorers_do_not_matter(
    ray_cluster: None,
    teacher: str,
    tmp_path: Path,
    method: str,
    generator: int,
    fake_score: int,
    microbatches: int,
    replicas: int,
) -> None:
    """For any number of ranks, within 2% of the weights' change of one microbatch in one process."""
    changes = ({} if method == "sida" else SID) | WITHOUT_DROPOUT
    cut = {"microbatch_size": BATCH // microbatches, "teacher__num_replicas": replicas}
    config = tiny_config(teacher, tmp_path, **changes, **cut, **ranks(generator, fake_score))
    ends(config, tmp_path / "ranks", split=True)
    check_rule_2(teacher, tmp_path / "ranks", whole_batch(teacher, tmp_path, **changes))


@SLOW
def test_a_run_resumes_with_other_ranks(whole_run: Path, whole_config: Config, tmp_path: Path) -> None:
    """A checkpoint does not depend on ranks: begun with one of each learner, resumed with two, then two others."""
    config = continued(whole_run, whole_config, tmp_path, before=9, placement="split")
    for generator, fake_score, steps in ((2, 2, 16), (1, 2, STEPS)):
        workers = {"generator.num_workers": generator, "fake_score.num_workers": fake_score}
        distill(override(config, workers | {"total_images": steps * BATCH}))
    assert_same(end_of(run_of(config)), end_of(whole_run))


@SLOW
def test_ranks_that_leave_no_cpu_for_reading_are_refused(
    ray_cluster: None, teacher: str, tmp_path: Path
) -> None:
    """Three ranks and a scorer leave 0.2 of 2 CPUs, with which Ray Data would wait for ever."""
    places = {f"resources__{role}__num_cpus": 0.45 for role in ("generator", "fake_score", "teacher")}
    config = tiny_config(teacher, tmp_path, failure__placement_timeout_s=15, **ranks(2, 1), **places)
    with pytest.raises(
        RunFailed, match=r"^no resources for reading the real images .*: 0.25 CPU requested, 0.2 of 2 free"
    ):
        SplitPlacement(*inputs_for(config), threads=1)


# -- a lost token ------------------------------------------------------------------------------------------


@SLOW
def test_a_step_whose_token_is_lost_runs_on_no_rank(ray_cluster: None, teacher: str, tmp_path: Path) -> None:
    """One rank's microbatch never arrives: no rank takes the step, and none waits for the other."""
    config = tiny_config(teacher, tmp_path, **ranks(1, 2))
    first, second = (Slice(0, start, BATCH // 2) for start in (0, BATCH // 2))
    placement = SplitPlacement(*inputs_for(config), threads=1)
    generator, fake = placement.roles.generator, placement.roles.fake_score
    try:
        before = states_of(placement.fake_score.ranks, tmp_path / "before")
        assert_same(before[1], before[0])
        conds = {at: placement.roles.conditions.of(at, "generator") for at in (first, second)}
        token = fake.accumulate(first, generator.generate(first, conds[first])[1], conds[first])
        failed = fake.accumulate(second, lost(), conds[second])
        for step in fake.step(0, token, failed):
            with pytest.raises(RunFailed, match="the machine that made it is gone"):
                get(step)
        for step in fake.step(0, token):
            with pytest.raises(RunFailed, match="step 0 has microbatches .* one was lost"):
                get(step)
        for after in states_of(placement.fake_score.ranks, tmp_path / "after"):
            assert_same(after, before[0])

        # Once the other microbatch arrives, the step runs on both ranks.
        other = fake.accumulate(second, generator.generate(second, conds[second])[1], conds[second])
        placement.collect(fake.step(0, token, other))
        stepped = states_of(placement.fake_score.ranks, tmp_path / "stepped")
        assert_same(stepped[1], stepped[0])
        with pytest.raises(AssertionError, match="differ"):
            assert_same(stepped[0], before[0])
    finally:
        placement.close()


def states_of(learner: Sequence[Any], folder: Path) -> list[Weights]:
    """The state of the fake-score learner on each rank."""
    states = []
    for number, rank in enumerate(learner):
        end = folder / str(number)
        get(rank.write.remote(rank.save.remote(str(end))))
        states.append(leaves("fake_score", read_state(end, "fake_score")))
    return states


# -- a lost rank -------------------------------------------------------------------------------------------


@SLOW
@pytest.mark.parametrize("dies", [0, 1])
def test_a_rank_that_dies_while_another_waits_for_it_is_named(
    ray_cluster: None, teacher: str, tmp_path: Path, dies: int
) -> None:
    """It is stopped first, so that the other waits in the all-reduce when it dies; rank 0 hosts the rendezvous."""
    config = tiny_config(teacher, tmp_path, **ranks(1, 2))
    placement = SplitPlacement(*inputs_for(config), threads=1)
    generator, fake = placement.generator, placement.fake_score
    pid = pid_of(fake.ranks[dies])
    try:
        tokens = []
        for at in microbatches(config, 0):
            cond = placement.roles.conditions.of(at, "generator")
            tokens.append(fake.accumulate(at, generator.generate(at, cond)[1], cond))
        get(tokens)
        os.kill(pid, signal.SIGSTOP)
        figures = fake.step(0, *tokens)
        time.sleep(1)
        kill(pid)
        began = time.monotonic()
        with pytest.raises(LearnerLost, match=rf"^FakeScoreActor: process {pid} on [\d.]+ died$"):
            placement.collect(figures)
        with pytest.raises(PeerLost, match=f"^fake_score: rank {1 - dies} of 2 lost the others: "):
            get(figures[1 - dies])
        assert time.monotonic() - began < 10

        # The next call fails in the same way, although no step is in flight.
        with pytest.raises(LearnerLost, match=f"process {pid} on"):
            placement.report()
    finally:
        placement.close()


@SLOW
@pytest.mark.parametrize(("learner", "which", "seed"), [("FakeScoreActor", 0, 3), ("GeneratorActor", 1, 9)])
def test_a_lost_rank_is_restored_bit_for_bit(
    whole_run: Path,
    teacher: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    learner: str,
    which: int,
    seed: int,
) -> None:
    """At the start, in a step and in a checkpoint: the run names the lost rank, restores all, and ends the same."""
    config = tiny_config(teacher, tmp_path, **ranks(2, 2))
    run, chance = run_of(config), random.Random(seed)
    moments = [
        Moment("its start", lambda _: (run / "run.json").exists(), chance.uniform(0, 3)),
        in_a_step(run, chance, last=LAST_LOSS),
        Moment("checkpoint 16", lambda _: (run / "checkpoints" / "step-00000016").exists()),
    ]
    with killing(f"ray::{learner}", *moments, which=which) as killings:
        distill(config)
    assert killings.done == [moment.name for moment in moments]
    said = capsys.readouterr().err.splitlines()
    lines = [line for line in said if line.startswith("lost a learner")]
    assert len(lines) == 3 and all(learner in line and "restoring all from step" in line for line in lines)
    assert_same(end_of(run), end_of(whole_run))
    assert_same_record(run, whole_run)
