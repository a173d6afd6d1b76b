"""Resuming: after `kill -9`, with a torn checkpoint, after the end, longer, in another placement, branched."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from raysid.actors.local import LocalPlacement
from raysid.config import Config
from raysid.errors import UserError
from raysid.networks import EDMDenoiser
from raysid.networks.files import NetworkCard, save_network
from raysid.roles.messages import StepReport
from raysid.run.checkpoint import MANIFEST, Checkpoint
from raysid.run.tracking import Tracker
from raysid.trainers.distill import distill
from tests.support.processes import Command, Moment, no_orphans
from tests.support.run_copies import checkpoints_of, continued, copied
from tests.support.tiny_run import (
    BATCH,
    CHECKPOINT_STEPS,
    NETWORK,
    STEPS,
    assert_same,
    assert_same_record,
    end_of,
    in_a_step,
    lines_of,
    run_of,
    step_recorded,
    tiny_config,
    write_recipe,
)

# -- kill -9 -----------------------------------------------------------------------------------------------


def test_a_driver_killed_in_a_checkpoint_resumes_bit_for_bit(
    whole_run: Path, teacher: str, tmp_path: Path
) -> None:
    config = tiny_config(teacher, tmp_path)
    survives(config, tmp_path, [in_a_checkpoint(run_of(config), 8)])
    assert_same(end_of(run_of(config)), end_of(whole_run))
    assert_same_record(run_of(config), whole_run)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_driver_killed_repeatedly_resumes_bit_for_bit(
    whole_run: Path, teacher: str, tmp_path: Path, seed: int
) -> None:
    config = tiny_config(teacher, tmp_path, teacher__num_replicas=1 + seed % 2)
    run, chance = run_of(config), random.Random(seed)
    moments = [
        Moment("its start", lambda _: (run / "run.json").exists(), chance.uniform(0, 5)),
        in_a_step(run, chance, last=8),
        in_a_checkpoint(run, 12),
        in_a_step(run, chance, first=10),
        Moment("its end", lambda began: step_recorded(run, began) == STEPS, chance.uniform(0, 0.5)),
    ]
    survives(config, tmp_path, moments)
    assert_same(end_of(run), end_of(whole_run))
    assert_same_record(run, whole_run)


def survives(config: Config, folder: Path, moments: list[Moment]) -> None:
    """Kill a run at each of these moments and repeat its command, which resumes from the newest whole checkpoint.

    No process that a killed driver started outlives it.
    """
    recipe = write_recipe(config, folder / "tiny.yaml")
    left: Checkpoint | None = None
    for number, moment in enumerate([*moments, None]):
        command = Command("distill", recipe, log=folder / f"session-{number}.log")
        if moment is None:
            assert command.wait() == 0, command.output
        else:
            no_orphans(command.kill_when(moment))
        if moment is None or moment.name != "its start":  # else it has only just started
            says = f"resuming from {left.path}, step {left.step:,}\n" if left else "resuming from"
            assert (says in command.output) == (left is not None), command.output
        left = checkpoints_of(config).newest()


def in_a_checkpoint(run: Path, step: int) -> Moment:
    """While the checkpoint of `step` is being written."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    return Moment(f"checkpoint {step}", lambda _: folder.exists() and not (folder / MANIFEST).exists())


# -- torn checkpoints --------------------------------------------------------------------------------------


def without_a_manifest(checkpoint: Path) -> None:
    (checkpoint / MANIFEST).unlink()


def with_half_a_manifest(checkpoint: Path) -> None:
    content = (checkpoint / MANIFEST).read_bytes()
    (checkpoint / MANIFEST).write_bytes(content[: len(content) // 2])


def with_a_truncated_file(checkpoint: Path) -> None:
    content = (checkpoint / "generator.pt").read_bytes()
    (checkpoint / "generator.pt").write_bytes(content[:-1])


def with_another_byte(checkpoint: Path) -> None:
    content = bytearray((checkpoint / "fake_score.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint / "fake_score.pt").write_bytes(content)


def with_a_missing_file(checkpoint: Path) -> None:
    (checkpoint / "fake_score.pt").unlink()


def never_finished(checkpoint: Path) -> None:
    without_a_manifest(checkpoint)
    (checkpoint / "generator.pt").rename(checkpoint / "generator.pt.0a1b2c3d.partial")


TEARS = [
    without_a_manifest,
    with_half_a_manifest,
    with_a_truncated_file,
    with_another_byte,
    with_a_missing_file,
    never_finished,
]


@pytest.mark.parametrize("tear", TEARS, ids=lambda tear: tear.__name__)
def test_a_torn_checkpoint_is_passed_over(
    whole_run: Path, whole_config: Config, tmp_path: Path, tear: Callable[[Path], None]
) -> None:
    """The newest checkpoint is damaged: the run resumes from the one before and replaces the torn one."""
    config = continued(whole_run, whole_config, tmp_path, before=16)
    torn = run_of(config) / "checkpoints" / "step-00000016"
    shutil.copytree(whole_run / "checkpoints" / torn.name, torn)
    tear(torn)
    newest = checkpoints_of(config).newest()
    assert newest is not None and newest.step == 12
    distill(config)
    assert_same(end_of(run_of(config)), end_of(whole_run))
    assert_same_record(run_of(config), whole_run)
    kept = {path.name for path in (run_of(config) / "checkpoints").iterdir()}
    assert kept == {f"step-{step:08d}" for step in range(0, STEPS + 1, CHECKPOINT_STEPS)}
    assert {path.name for path in torn.iterdir()} == {"fake_score.pt", "generator.pt", MANIFEST}


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["split", "colocated"])
def test_actors_pass_over_a_checkpoint_that_differs_from_its_manifest(
    whole_run: Path, whole_config: Config, tmp_path: Path, placement: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The learners find the damage; the driver starts them again from the checkpoint before."""
    config = continued(whole_run, whole_config, tmp_path, before=17, placement=placement)
    torn = run_of(config) / "checkpoints" / "step-00000016"
    with_another_byte(torn)
    distill(config)
    shown = capsys.readouterr()
    assert f"{torn}/fake_score.pt is damaged: that checkpoint is not used" in shown.out + shown.err
    assert_same(end_of(run_of(config)), end_of(whole_run))
    assert_same_record(run_of(config), whole_run)


def test_a_resumed_run_reads_each_file_of_its_checkpoint_once(
    whole_run: Path, whole_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = continued(whole_run, whole_config, tmp_path, before=17)
    read, read_bytes = [], Path.read_bytes

    def counting(path: Path) -> bytes:
        if path.suffix == ".pt":
            read.append(f"{path.parent.name}/{path.name}")
        return read_bytes(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", counting)
        distill(config)
    assert sorted(read) == ["step-00000016/fake_score.pt", "step-00000016/generator.pt"]


def test_with_no_whole_checkpoint_a_run_begins_again(
    whole_run: Path, whole_config: Config, tmp_path: Path
) -> None:
    config = continued(whole_run, whole_config, tmp_path, before=4)
    without_a_manifest(run_of(config) / "checkpoints" / "step-00000000")
    distill(config)
    assert_same(end_of(run_of(config)), end_of(whole_run))
    assert_same_record(run_of(config), whole_run)


def test_going_on_from_another_step_is_noticed(whole_run: Path, whole_config: Config, tmp_path: Path) -> None:
    """The comparison of these tests detects a run that resumes one step off."""
    config = continued(whole_run, whole_config, tmp_path, before=16)
    manifest = run_of(config) / "checkpoints" / "step-00000012" / MANIFEST
    manifest.write_text(manifest.read_text().replace('"step": 12', '"step": 13'))
    distill(config)
    with pytest.raises(AssertionError, match="differ"):
        assert_same(end_of(run_of(config)), end_of(whole_run))


# -- the same command, changed -----------------------------------------------------------------------------


def test_a_finished_run_shows_its_table_again(
    whole_run: Path, whole_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = copied(whole_run, whole_config, tmp_path)
    distill(config)  # records the copy's new storage
    before = files_of(run_of(config))
    capsys.readouterr()
    result = distill(config)
    shown = capsys.readouterr().out
    assert "finished already" in shown and "generator, best evaluated EMA" in shown
    assert files_of(run_of(config)) == before
    assert result.metrics["step"] == STEPS and len(result.metrics["table"]) == 5
    assert Path(str(result.checkpoint)).name == "step-00000020"


def test_a_run_killed_before_its_table_makes_it(
    whole_run: Path, whole_config: Config, tmp_path: Path
) -> None:
    config = copied(whole_run, whole_config, tmp_path)
    metrics = run_of(config) / "metrics.jsonl"
    *lines, table = metrics.read_text().splitlines(keepends=True)
    assert '"kind": "table"' in table
    metrics.write_text("".join(lines) + table[: len(table) // 2])  # killed while it was written
    distill(config)
    assert_same(end_of(run_of(config)), end_of(whole_run))
    assert_same_record(run_of(config), whole_run)


def test_the_best_generator_is_the_best_recorded(
    whole_run: Path, whole_config: Config, teacher: str, tmp_path: Path
) -> None:
    """A run that is killed once the best generator's figures are recorded also has the generator."""
    config = tiny_config(teacher, tmp_path, placement="local", checkpoint__keep=100)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Tracker, "evaluation", interrupted_at(STEPS))
        with pytest.raises(KeyboardInterrupt):
            distill(config)
    distill(config)
    assert_same(end_of(run_of(config)), end_of(whole_run))
    assert_same_record(run_of(config), whole_run)


def interrupted_at(last: int) -> Callable[..., None]:
    """A `Tracker.evaluation` that records the figures of step `last` and is interrupted."""
    record = Tracker.evaluation

    def evaluation(self: Tracker, step: int, images: int, figures: Mapping[str, Any]) -> None:
        record(self, step, images, figures)
        if step == last:
            raise KeyboardInterrupt

    return evaluation


def test_a_longer_run_resumes(whole_run: Path, whole_config: Config, teacher: str, tmp_path: Path) -> None:
    """24 steps in two parts equal 24 steps at once, except for the first part's final evaluation."""
    longer = (STEPS + CHECKPOINT_STEPS) * BATCH
    config = continued(whole_run, whole_config, tmp_path, total_images=longer, placement="local")
    distill(config)
    at_once = tiny_config(teacher, tmp_path, "at-once", total_images=longer, placement="local")
    distill(at_once)
    ours, theirs = run_of(config), run_of(at_once)
    assert_same(end_of(ours), end_of(theirs))
    assert lines_of(ours, "train") == lines_of(theirs, "train")
    assert [entry["step"] for entry in lines_of(ours, "table")] == [24]
    assert [entry["step"] for entry in lines_of(ours, "evaluation")] == [0, 8, 16, 20, 24]


def test_fresh_starts_over(whole_run: Path, whole_config: Config, tmp_path: Path) -> None:
    """A change that forbids resuming (another seed) starts over; nothing of the old run is left."""
    config = copied(whole_run, whole_config, tmp_path, seed=5, placement="local")
    (run_of(config) / "samples" / "step-00000003.png").touch()
    with pytest.raises(UserError, match="seed = 0 and cannot resume with 5"):
        distill(config)
    distill(config, fresh=True)
    assert lines_of(run_of(config), "train")[0]["step"] == 2
    assert lines_of(run_of(config), "train") != lines_of(whole_run, "train")
    assert not (run_of(config) / "samples" / "step-00000003.png").exists()
    with pytest.raises(AssertionError, match="differ"):
        assert_same(end_of(run_of(config)), end_of(whole_run))


@pytest.mark.parametrize("whence", [pytest.param("run", marks=pytest.mark.slow), "checkpoint"])
def test_a_branch_leaves_its_origin_alone(
    whole_run: Path, whole_config: Config, teacher: str, tmp_path: Path, whence: str
) -> None:
    """From a run: from its newest checkpoint; from a checkpoint: from that one."""
    origin = copied(whole_run, whole_config, tmp_path)
    before = files_of(run_of(origin), record=True)
    longer = (STEPS + CHECKPOINT_STEPS) * BATCH
    branch = tiny_config(teacher, tmp_path, "branch", placement="local", total_images=longer)
    given = run_of(origin) if whence == "run" else run_of(origin) / "checkpoints" / "step-00000012"
    distill(branch, resume_from=str(given))
    assert files_of(run_of(origin), record=True) == before
    first = STEPS if whence == "run" else 12
    steps = [entry["step"] for entry in lines_of(run_of(branch), "train")]
    assert steps == list(range(first + 2, STEPS + CHECKPOINT_STEPS + 1, 2))
    at_once = tiny_config(teacher, tmp_path, "at-once", placement="local", total_images=longer)
    distill(at_once)
    ours, theirs = end_of(run_of(branch)), end_of(run_of(at_once))
    assert_same(ours, theirs)
    distill(branch, resume_from=str(given))  # the same command again: the branch is finished
    assert_same(end_of(run_of(branch)), ours)
    with pytest.raises(UserError, match="has begun already"):
        distill(branch, resume_from=str(run_of(at_once)))


def test_a_branch_from_another_network_is_refused(
    whole_run: Path, whole_config: Config, tmp_path: Path
) -> None:
    """Its weights would not fit; no run is started."""
    origin = copied(whole_run, whole_config, tmp_path)
    other = tmp_path / "other-teacher"
    network = EDMDenoiser(NETWORK.model_copy(update={"model_channels": 16}))
    save_network(other, NetworkCard(kind="teacher", network=network.settings), network)
    branch = tiny_config(str(other), tmp_path, "branch", placement="local")
    with pytest.raises(UserError, match="is of another network than teacher"):
        distill(branch, resume_from=str(run_of(origin)))
    assert not (run_of(branch) / "run.json").exists()


# -- elsewhere ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [8, 12])
def test_a_split_run_resumes_in_one_process(
    whole_run: Path, whole_config: Config, tmp_path: Path, start: int
) -> None:
    config = continued(whole_run, whole_config, tmp_path, before=start + 1, placement="local")
    distill(config)
    assert_same(end_of(run_of(config)), end_of(whole_run))
    assert_same_record(run_of(config), whole_run)


@pytest.mark.slow
def test_a_run_of_one_process_resumes_split(whole_run: Path, teacher: str, tmp_path: Path) -> None:
    """Interrupted in one process (by an error instead of a kill), finished on three actors."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(LocalPlacement, "collect", interrupted_after(14))
        with pytest.raises(KeyboardInterrupt):
            distill(tiny_config(teacher, tmp_path, placement="local", checkpoint__keep=100))
    config = tiny_config(teacher, tmp_path, checkpoint__keep=100)
    newest = checkpoints_of(config).newest()
    assert newest is not None and newest.step == 12
    distill(config)
    assert_same(end_of(run_of(config)), end_of(whole_run))
    assert_same_record(run_of(config), whole_run)


def interrupted_after(calls: int) -> Callable[..., StepReport]:
    """A `LocalPlacement.collect` that is interrupted in the step after `calls`."""
    done, method = iter(range(calls)), LocalPlacement.collect

    def collect(self: LocalPlacement, reports: list[StepReport]) -> StepReport:
        if next(done, None) is None:
            raise KeyboardInterrupt
        return method(self, reports)

    return collect


# -- copies of the whole run -------------------------------------------------------------------------------


def files_of(run: Path, record: bool = False) -> dict[str, bytes]:
    """Every file of a run with its content; with `record` also the session's records (owner, start time)."""
    notes = set() if record else {"run.json", "owner.json"}
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and path.name not in notes
    }
