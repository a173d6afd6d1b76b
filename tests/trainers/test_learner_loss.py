"""A learner's process dies: the run restores both from its newest checkpoint, at most `max_failures` times."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from raysid.errors import RunFailed
from raysid.trainers.distill import distill
from tests.support.processes import Command, Moment, killing
from tests.support.tiny_run import (
    LAST_LOSS,
    assert_same,
    assert_same_record,
    end_of,
    in_a_step,
    lines_of,
    run_of,
    tiny_config,
    write_recipe,
)

LEARNERS = ("FakeScoreActor", "GeneratorActor")


# With these seeds the run has recorded steps beyond the newest checkpoint when the learner dies.
@pytest.mark.parametrize(
    ("learner", "replicas", "seed"),
    [("FakeScoreActor", 1, 3), pytest.param("GeneratorActor", 2, 9, marks=pytest.mark.slow)],
)
def test_a_lost_learner_is_restored_bit_for_bit(
    whole_run: Path,
    teacher: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    learner: str,
    replicas: int,
    seed: int,
) -> None:
    """Each of the two, at a random moment, with one scorer and with two; the run names the lost learner."""
    config = tiny_config(teacher, tmp_path, teacher__num_replicas=replicas)
    moment = in_a_step(run_of(config), random.Random(seed), last=LAST_LOSS)
    with killing(f"ray::{learner}", moment) as killings:
        distill(config)
    assert killings.done == [moment.name]
    said = capsys.readouterr().err.splitlines()
    [line] = [line for line in said if line.startswith("lost a learner")]
    assert learner in line and "restoring all from step" in line and line.endswith("failure 1 of 3")
    assert_same(end_of(run_of(config)), end_of(whole_run))
    assert_same_record(run_of(config), whole_run)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_learners_lost_again_and_again_are_restored_bit_for_bit(
    whole_run: Path, teacher: str, tmp_path: Path, seed: int
) -> None:
    """Three losses, the most that the defaults allow: at the start, in a step, in a checkpoint."""
    config = tiny_config(teacher, tmp_path, teacher__num_replicas=1 + seed // 2)
    run, chance = run_of(config), random.Random(seed)
    learner = LEARNERS[seed % 2]
    step = chance.choice([12, 16])
    folder = run / "checkpoints" / f"step-{step:08d}"
    moments = [
        Moment("its start", lambda _: (run / "run.json").exists(), chance.uniform(0, 3)),
        in_a_step(run, chance, last=LAST_LOSS),
        Moment(f"checkpoint {step}", lambda _: folder.exists()),
    ]
    with killing(f"ray::{learner}", *moments) as killings:
        distill(config)
    assert killings.done == [moment.name for moment in moments]
    assert_same(end_of(run), end_of(whole_run))
    assert_same_record(run, whole_run)


@pytest.mark.slow
def test_too_many_losses_end_the_run_and_the_same_command_resumes(
    whole_run: Path, teacher: str, tmp_path: Path
) -> None:
    """One loss more than allowed: one line, exit code 1, no work lost; then the same command finishes."""
    config = tiny_config(teacher, tmp_path, failure__max_failures=0)
    recipe = write_recipe(config, tmp_path / "tiny.yaml")
    first = Command("distill", recipe, log=tmp_path / "first.log")
    with killing(
        "ray::GeneratorActor", in_a_step(run_of(config), random.Random(3), last=LAST_LOSS), root=first.pid
    ) as killings:
        assert first.wait() == 1, first.output
    assert killings.done
    [line] = [line for line in first.output.splitlines() if line.startswith("raysid: ")]
    assert line.startswith("raysid: error: ")
    assert "failure.max_failures = 0" in line and "GeneratorActor" in line and "the same command" in line
    assert "Traceback" not in first.output and "Unhandled error" not in first.output

    second = Command("distill", recipe, log=tmp_path / "second.log")
    assert second.wait() == 0, second.output
    assert "resuming from" in second.output
    assert_same(end_of(run_of(config)), end_of(whole_run))
    assert_same_record(run_of(config), whole_run)


@pytest.mark.slow
def test_too_many_losses_raise_from_python(ray_cluster: None, teacher: str, tmp_path: Path) -> None:
    """With one failure allowed the second ends the run; its record is kept."""
    config = tiny_config(teacher, tmp_path, failure__max_failures=1)
    chance = random.Random(4)
    moments = [
        in_a_step(run_of(config), chance, last=LAST_LOSS),
        in_a_step(run_of(config), chance, last=LAST_LOSS),
    ]
    with (
        killing("ray::FakeScoreActor", *moments),
        pytest.raises(RunFailed, match="max_failures = 1") as raised,
    ):
        distill(config)
    assert "\n" not in str(raised.value) and "FakeScoreActor" in str(raised.value)
    steps = [entry["step"] for entry in lines_of(run_of(config), "train")]
    assert steps == sorted(set(steps))
    assert not lines_of(run_of(config), "table")
