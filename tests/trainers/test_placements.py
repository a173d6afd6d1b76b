"""Neither placement nor the cut of the batch changes the results (docs/design.md, rules 1 to 3)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError

from raysid.actors.attendance import Attendance
from raysid.actors.local import LocalPlacement
from raysid.actors.placement import Placement
from raysid.actors.pool import TeacherPool
from raysid.actors.remote_learners import RemoteFakeScore, RemoteGenerator, learner_actor
from raysid.actors.results import get
from raysid.actors.split import SplitPlacement, start_fleet
from raysid.config import Config, RoleResources
from raysid.errors import RunFailed
from raysid.method.augment import LABEL_DIM
from raysid.networks import NetworkSettings
from raysid.networks.files import NetworkCard, save_network
from raysid.recipes import override
from raysid.roles.build import RunInputs
from raysid.roles.conditions import LabelConditions
from raysid.roles.messages import Slice, Token, check_tokens
from raysid.roles.protocols import Reports, Roles
from raysid.roles.state_files import read_state
from raysid.roles.step import StepResult, take_step
from tests.support.placement_ends import WITHOUT_DROPOUT, check_rule_2, ends, lost, whole_batch
from tests.support.recorded_actors import RecordedFakeScoreActor, RecordedGeneratorActor
from tests.support.reference_folder import reference_cases
from tests.support.reference_training import (
    RecordedDraws,
    check_losses,
    check_weights,
    initial_network,
    reference_config,
)
from tests.support.tiny_run import (
    BATCH,
    assert_same,
    inputs_for,
    learner_states,
    save_whole,
    tiny_config,
    tiny_teacher,
)

CASES = reference_cases("training_")
SLOW = pytest.mark.slow


# -- local and split ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "schedule"),
    [
        ("sida", "overlapped"),
        pytest.param("sid", "alternating", marks=SLOW),
        pytest.param("sida", "alternating", marks=SLOW),
        pytest.param("sid", "overlapped", marks=SLOW),
    ],
)
def test_local_and_split_are_the_same(
    ray_cluster: None, teacher: str, tmp_path: Path, method: str, schedule: str
) -> None:
    """20 steps at equal cut and threads: every weight, every optimizer state, every loss, bit for bit."""
    changes = {"method__adversarial": None} if method == "sid" else {}
    check_local_and_split(tiny_config(teacher, tmp_path, schedule=schedule, **changes), tmp_path)


@SLOW
def test_local_and_split_are_the_same_in_half_precision(
    ray_cluster: None, teacher: str, tmp_path: Path
) -> None:
    config = tiny_config(teacher, tmp_path, precision="bf16", teacher__precision="float32")
    check_local_and_split(config, tmp_path)


@pytest.mark.slow
def test_local_and_split_augment_the_same(ray_cluster: None, tmp_path: Path) -> None:
    teacher = tiny_teacher(tmp_path / "teacher", augment_dim=LABEL_DIM)
    check_local_and_split(tiny_config(teacher, tmp_path, fake_score__augment=0.3), tmp_path)


def check_local_and_split(config: Config, folder: Path) -> None:
    """Both placements give the same results, bit for bit."""
    weights, figures = ends(config, folder / "local")
    split_weights, split_figures = ends(config, folder / "split", split=True)
    assert_same(split_weights, weights)
    assert split_figures == figures


@SLOW
@pytest.mark.parametrize(("microbatches", "replicas"), [(1, 1), (1, 3), (2, 1), (2, 3), (4, 1), (4, 3)])
def test_cuts_and_scorers_do_not_matter(
    ray_cluster: None, teacher: str, tmp_path: Path, microbatches: int, replicas: int
) -> None:
    """At an equal cut bit for bit for any number of scorers; at another cut within 2% of the weights' change."""
    changes: dict[str, Any] = WITHOUT_DROPOUT | {"teacher__num_replicas": replicas}
    config = tiny_config(teacher, tmp_path, microbatch_size=BATCH // microbatches, **changes)
    check_local_and_split(config, tmp_path)
    check_rule_2(teacher, tmp_path / "split", whole_batch(teacher, tmp_path))


@pytest.mark.parametrize(
    ("method", "schedule"), [("sida", "overlapped"), pytest.param("sid", "alternating", marks=SLOW)]
)
def test_the_cut_does_not_matter(teacher: str, tmp_path: Path, method: str, schedule: str) -> None:
    """One, two and four microbatches in one process."""
    changes: dict[str, Any] = WITHOUT_DROPOUT | {"schedule": schedule}
    if method == "sid":
        changes["method__adversarial"] = None
    whole = whole_batch(teacher, tmp_path, **changes)
    for microbatches in (2, 4):
        folder = tmp_path / str(microbatches)
        ends(tiny_config(teacher, tmp_path, microbatch_size=BATCH // microbatches, **changes), folder)
        check_rule_2(teacher, folder, whole)


@SLOW
def test_threads_do_not_matter(ray_cluster: None, teacher: str, tmp_path: Path) -> None:
    """Two threads: the same bits in one process and in three, within 2% of the results of one thread."""
    config = tiny_config(teacher, tmp_path, microbatch_size=BATCH, **WITHOUT_DROPOUT)
    weights, _ = ends(config, tmp_path / "local", threads=2)
    split_weights, _ = ends(config, tmp_path / "split", split=True, threads=2)
    assert_same(split_weights, weights)
    check_rule_2(teacher, tmp_path / "local", whole_batch(teacher, tmp_path))


@pytest.mark.parametrize("graphs_kept", [0, pytest.param(1, marks=SLOW)])
def test_kept_graphs_do_not_matter(teacher: str, tmp_path: Path, graphs_kept: int) -> None:
    """With two microbatches in flight a scorer recomputes evicted graphs, to the same bits."""
    kept, figures = ends(tiny_config(teacher, tmp_path), tmp_path / "kept")
    config = tiny_config(teacher, tmp_path, teacher__graphs_kept=graphs_kept)
    recomputed, figures_recomputed = ends(config, tmp_path / "recomputed")
    assert_same(recomputed, kept)
    assert [said.get("teacher_recomputes", 0) for said in figures] == [0] * len(figures)
    expected = [0] + [2 - graphs_kept] * (len(figures) - 1)  # the first step updates psi only
    assert [said.get("teacher_recomputes", 0) for said in figures_recomputed] == expected


# -- the authors' runs -------------------------------------------------------------------------------------


# SiDA's fakeness is averaged over the authors' whole batch: split over ranks it is another loss.
RANKS = [pytest.param(name, settings, 1, id=f"{name}-1") for name, settings in CASES] + [
    pytest.param(name, settings, 2, id=f"{name}-2", marks=SLOW)
    for name, settings in CASES
    if not settings["adversarial"] and settings["batch"] % 2 == 0
]


@pytest.mark.parametrize(("name", "settings", "ranks"), RANKS)
def test_reference_training_on_actors(
    ray_cluster: None, tmp_path: Path, name: str, settings: dict[str, Any], ranks: int
) -> None:
    """Three iterations in the authors' order, each role or rank in its own process, give their losses and weights."""
    card = NetworkCard(kind="teacher", network=NetworkSettings.model_validate(settings["network"]))
    save_network(tmp_path / "teacher", card, initial_network(name, settings))
    workers = {"generator.num_workers": ranks, "fake_score.num_workers": ranks}
    config = override(reference_config(settings), workers)
    assert config.microbatch * ranks == settings["batch"]
    inputs = RunInputs(
        config, str(tmp_path / "teacher"), label_frequencies=(1.0,) * settings["network"]["label_dim"]
    )
    fleet = start_fleet(inputs.teacher, config, threads=1)
    pool = TeacherPool(Attendance("reference", fleet.sync, RoleResources(), timeout=60), single=True)
    learners = {
        role: [learner_actor(actor, num_cpus=0.25).remote(inputs, name, rank) for rank in range(ranks)]
        for role, actor in (("fake_score", RecordedFakeScoreActor), ("generator", RecordedGeneratorActor))
    }
    everyone = [*learners["fake_score"], *learners["generator"]]
    with actors(*everyone, *(scorer.actor for scorer in pool.members.scorers)):
        fake_score = RemoteFakeScore(learners["fake_score"], config.batch_size)
        generator = RemoteGenerator(learners["generator"], config.batch_size)
        get([*fake_score.join(), *generator.join()])
        labels = LabelConditions(inputs.label_frequencies, partial(RecordedDraws, name))
        roles = Roles(pool, fake_score, generator, labels)
        results = [take_step(roles, config, step) for step in range(len(settings["losses"]))]
        for result, expected in zip(results, settings["losses"], strict=True):
            for reports in zip(get(result.fake_score), get(result.generator), strict=True):
                check_losses(StepResult(*reports), expected)
        for actor in everyone:
            folder = str(tmp_path / f"end-{everyone.index(actor) % ranks}")
            get(actor.write.remote(actor.save.remote(folder)))
    for rank in range(ranks):
        end = tmp_path / f"end-{rank}"
        check_weights(name, settings, read_state(end, "fake_score"), read_state(end, "generator"))
        assert_same(learner_states(end), learner_states(tmp_path / "end-0"))


@contextmanager
def actors(*handles: Any) -> Iterator[tuple[Any, ...]]:
    """End the actors with the block."""
    try:
        yield handles
    finally:
        for actor in handles:
            ray.kill(actor)


# -- a lost token ------------------------------------------------------------------------------------------


def test_tokens_must_cover_the_batch_once() -> None:
    tokens = [Token(Slice(3, start, 8), {"loss": 1.0}) for start in (0, 8, 16, 24)]
    assert check_tokens(3, 32, tuple(reversed(tokens))) == {"loss": 4.0}
    other_step = Token(Slice(2, 24, 8), {"loss": 1.0})
    overlapping = Token(Slice(3, 20, 12), {"loss": 1.0})
    for wrong in (
        tokens[:3],  # the last is missing
        tokens[1:],  # the first
        [tokens[0], *tokens[2:]],  # one in between
        [*tokens, tokens[1]],  # one twice
        [*tokens[:3], tokens[2]],  # one twice, another missing
        [*tokens[:3], other_step],
        [*tokens[:3], overlapping],
        [],
    ):
        with pytest.raises(RuntimeError, match="step 3 has microbatches .* one was lost"):
            check_tokens(3, 32, tuple(wrong))


@pytest.mark.parametrize("split", [False, True], ids=["local", "split"])
def test_a_step_whose_token_is_lost_does_not_run(
    ray_cluster: None, teacher: str, tmp_path: Path, split: bool
) -> None:
    """One of the two microbatches never reaches a learner: neither its step nor its weights move.

    On Ray the call of the lost microbatch fails and later calls on the same actor still run, so the step itself
    has to refuse. With the failed call's own token it cannot even start.
    """
    config = tiny_config(teacher, tmp_path)
    inputs, source = inputs_for(config)
    placement: Placement = (SplitPlacement if split else LocalPlacement)(inputs, source, 1)
    generator, fake, labels = (
        getattr(placement.roles, name) for name in ("generator", "fake_score", "conditions")
    )
    first, second = (Slice(0, start, BATCH // 2) for start in (0, BATCH // 2))
    try:
        save_whole(placement, str(tmp_path / "before"))
        conds = {at: labels.of(at, "generator") for at in (first, second)}
        token = fake.accumulate(first, generator.generate(first, conds[first])[1], conds[first])
        if split:
            failed = fake.accumulate(second, lost(), conds[second])
            with pytest.raises(RunFailed, match="the machine that made it is gone"):
                collect(placement, fake.step(0, token, failed))
        with pytest.raises((RunFailed, RuntimeError), match="step 0 has microbatches .* one was lost"):
            collect(placement, fake.step(0, token))
        with pytest.raises((RunFailed, RuntimeError), match="step 0 has microbatches .* one was lost"):
            collect(placement, generator.step(0))
        save_whole(placement, str(tmp_path / "after"))
        assert_same(learner_states(tmp_path / "after"), learner_states(tmp_path / "before"))

        # Once the other microbatch arrives, the step runs.
        other = fake.accumulate(second, generator.generate(second, conds[second])[1], conds[second])
        collect(placement, fake.step(0, token, other))
        save_whole(placement, str(tmp_path / "stepped"))
        with pytest.raises(AssertionError, match="differ"):
            assert_same(learner_states(tmp_path / "stepped"), learner_states(tmp_path / "before"))
    finally:
        placement.close()


def collect(placement: Placement, reports: Reports) -> None:
    """Wait for one learner's step."""
    placement.collect(StepResult(reports, None).reports)


def test_psi_changes_only_at_the_end_of_a_step_that_may_wait_for_scorers(
    ray_cluster: None, teacher: str, tmp_path: Path
) -> None:
    """A run may have to stop while it waits for a lost scorer: its checkpoint holds both learners at one step."""
    config = tiny_config(teacher, tmp_path, teacher__num_replicas=2)
    placement = SplitPlacement(*inputs_for(config), threads=1)
    generator, fake = placement.generator, placement.fake_score
    try:
        save_whole(placement, str(tmp_path / "before"))
        halves = [Slice(0, start, BATCH // 2) for start in (0, BATCH // 2)]
        conds = [placement.roles.conditions.of(at, "generator") for at in halves]
        get(
            [
                fake.accumulate(at, generator.generate(at, c)[1], c)
                for at, c in zip(halves, conds, strict=True)
            ]
        )
        save_whole(placement, str(tmp_path / "after"))
        assert_same(learner_states(tmp_path / "after"), learner_states(tmp_path / "before"))
    finally:
        placement.close()


def test_ray_runs_a_later_call_when_an_earlier_one_failed(ray_cluster: None) -> None:
    """The reason for rule 3: if Ray changes this, the rule can go."""

    class Counter:
        def __init__(self) -> None:
            self.calls = 0

        def add(self, what: Any) -> int:
            self.calls += 1
            return self.calls

    with actors(ray.remote(Counter).options(num_cpus=0.25).remote()) as (counter,):
        failed = counter.add.remote(lost())
        later = counter.add.remote(None)
        assert ray.get(later) == 1
        with pytest.raises(RayTaskError):
            ray.get(failed)
