"""A teacher, trained by Ray Train: kept, reused, better than untrained, resumed after `kill -9`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from upath import UPath

from raysid.config import PretrainConfig
from raysid.data import open_source, to_unit
from raysid.method.draws import Draws
from raysid.method.losses import denoising_loss
from raysid.method.noise import EDMNoise
from raysid.networks import EDMDenoiser
from raysid.networks.files import CONFIG, WEIGHTS, load_network
from raysid.recipes import config_yaml
from raysid.roles.state_files import write_state
from raysid.run.checkpoint import Checkpoints
from raysid.trainers.pretrain import PretrainResult, pretrain, teacher_folder
from raysid.trainers.pretrain_state import newest_checkpoint, read_checkpoint
from tests.support.command_line import raysid
from tests.support.processes import Command, Moment, killing
from tests.support.small_disk import KB, Disk
from tests.support.tiny_pretrain import BATCH, NETWORK, STEPS, tiny_pretrain


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    """The settings of `trained`."""
    return tiny_pretrain(tmp_path_factory.mktemp("storage"))


@pytest.fixture(scope="module")
def trained(ray_cluster: None, config: PretrainConfig) -> Path:
    """The folder of a teacher that nothing befell in its training."""
    return Path(pretrain(config).path)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_network(folder, "teacher")[1].state_dict()


def relative_difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], start: Any) -> float:
    """Norm of the difference over the norm of the change since `start`."""
    difference = sum(float((ours[name] - end).square().sum()) for name, end in theirs.items())
    change = sum(float((end - start[name]).square().sum()) for name, end in theirs.items())
    return (difference / change) ** 0.5


def initial(config: PretrainConfig) -> EDMDenoiser:
    """The network that training starts from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return EDMDenoiser(config.network)


def loss_on_digits(network: EDMDenoiser) -> float:
    """The training loss per image on all digits, at noise that is the same for every network."""
    source, noise = open_source("digits"), EDMNoise()
    blocks = list(source.blocks())
    pixels = np.concatenate([block["image"] for block in blocks])
    labels = np.concatenate([block["label"] for block in blocks])
    x = torch.from_numpy(to_unit(pixels, source.pixel_max))
    cond = torch.eye(10)[torch.from_numpy(labels)]
    draws = Draws(99, 0, 0, len(x))
    sigma = noise.fake_score_level(draws.normal("sigma"))
    x_t = noise.add_noise(x, sigma, draws.normal("eps", x.shape[1:]))
    with torch.no_grad():
        losses = denoising_loss(network.eval()(x_t, sigma, cond), x, noise.loss_weight(sigma))
    return losses.mean().item()


# The teacher.


def test_a_teacher_is_kept_under_the_hash_of_its_settings(trained: Path, config: PretrainConfig) -> None:
    assert trained == Path(config.storage).absolute() / "teachers" / trained.name
    assert trained == Path(str(teacher_folder(config)))
    card, _ = load_network(trained, "teacher")
    assert card.network == config.network
    assert card.trained["data"] == "digits" and card.trained["sampler_steps"] == 2
    figures = card.trained["evaluation"]
    assert figures["num_samples"] == 50 and figures["frechet_distance"] > 0
    assert figures["ms_per_image"] > 0 and 0 <= figures["label_accuracy"] <= 1


def test_nothing_but_the_teacher_is_kept(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} == {WEIGHTS, CONFIG}
    assert [path for path in trained.parent.iterdir() if path.is_dir()] == [trained]


def test_the_loss_falls(trained: Path, config: PretrainConfig) -> None:
    before, after = loss_on_digits(initial(config)), loss_on_digits(load_network(trained, "teacher")[1])
    assert after < 0.8 * before, f"{before:.1f} before, {after:.1f} after"


def test_a_kept_teacher_is_not_trained_again(
    trained: Path, config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("raysid.trainers.pretrain._train", refuse)
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    again = pretrain(config)
    assert again.path == str(trained)
    assert again.metrics == load_network(trained, "teacher")[0].trained["evaluation"]
    elsewhere = pretrain(config.model_copy(update={"num_workers": 2}))
    assert elsewhere.path == str(trained)
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before
    with pytest.raises(AssertionError, match="trained again"):
        pretrain(config.model_copy(update={"lr": 1e-3}))


# Settings that identify a teacher.


@pytest.mark.parametrize(
    "change",
    [
        {"num_workers": 2},
        {"storage": "/elsewhere"},
        {"torch_threads": 2},
        {"worker_resources": {"num_cpus": 1}},
        {"failure": {"max_failures": 0}},
        {"checkpoint": {"every_images": 10**6, "keep": 1}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_settings_of_how_it_is_computed_make_no_other_teacher(change: dict[str, Any]) -> None:
    config = tiny_pretrain(Path("storage"))
    changed = PretrainConfig.model_validate(config.model_dump() | change)
    assert changed != config and teacher_folder(changed).name == teacher_folder(config).name


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 1e-3},
        {"seed": 1},
        {"total_images": 64},
        {"batch_size": 32},
        {"network": NETWORK | {"label_dropout": 0.0}},
        {"data": {"shuffle_window": 100}},
        {"ema": {"halflife_images": 501}},
        {"betas": (0.8, 0.999)},
        {"lr_schedule": {"decay": "cosine"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_settings_that_change_the_training_make_another_teacher(change: dict[str, Any]) -> None:
    config = tiny_pretrain(Path("storage"))
    changed = PretrainConfig.model_validate(config.model_dump() | change)
    assert teacher_folder(changed).parent == teacher_folder(config).parent
    assert teacher_folder(changed) != teacher_folder(config)


@pytest.mark.slow
def test_a_teacher_does_not_depend_on_how_many_workers_trained_it(ray_cluster: None, tmp_path: Path) -> None:
    """At dropout 0; the loss's sum is cut in two, so Adam sees other roundings."""
    short = {"total_images": 10 * BATCH, "network": NETWORK | {"dropout": 0.0, "label_dropout": 0.0}}
    one, two = (tiny_pretrain(tmp_path, num_workers=workers, **short) for workers in (1, 2))
    ends = [
        weights(Path(pretrain(config, out=str(tmp_path / f"by-{config.num_workers}")).path))
        for config in (one, two)
    ]
    assert relative_difference(ends[0], ends[1], initial(one).state_dict()) < 0.02


# Killed in the middle.


def training_folder(folder: Path) -> Path:
    """The folder of a teacher's checkpoints until it is kept in `folder`."""
    return folder.with_name(f"{folder.name}-training-{folder.name[:8]}")


def steps_so_far(training: Path) -> int:
    """The step of the newest checkpoint, 0 before the first."""
    return Checkpoints(UPath(training) / "checkpoints").newest_step() or 0


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_teacher(trained: Path, tmp_path: Path) -> None:
    """The same settings resume from the newest checkpoint."""
    config = tiny_pretrain(tmp_path / "storage")
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(config_yaml(config))
    folder = Path(str(teacher_folder(config)))
    training = training_folder(folder)

    first = Command("pretrain", recipe, log=tmp_path / "killed.log")
    first.wait_for_moment(Moment("a checkpoint", lambda _: steps_so_far(training) > 0), seconds=180)
    first.process.kill()  # at once: the workers are still training
    first.process.wait()
    done = steps_so_far(training)
    assert not folder.exists() and 0 < done < STEPS
    again = Command("pretrain", recipe, log=tmp_path / "again.log")
    assert again.wait() == 0, again.output

    # Ray's workers outlive the killed process for a moment, in which they may write one more checkpoint.
    begun = re.search(rf"resuming from {training}, step (\d+)\n", again.output)
    assert begun and done <= int(begun[1]) <= STEPS, again.output
    assert not training.exists()
    ours, theirs = weights(folder), weights(trained)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.slow
def test_a_lost_worker_is_replaced_and_the_teacher_is_the_same(
    ray_cluster: None, trained: Path, tmp_path: Path
) -> None:
    config = tiny_pretrain(tmp_path)
    folder = Path(str(teacher_folder(config)))
    first_checkpoint = Moment("a checkpoint", lambda _: steps_so_far(training_folder(folder)) > 0)
    with killing("ray::RayTrainWorker", first_checkpoint) as killings:
        pretrain(config)
    assert killings.done == ["a checkpoint"]
    ours, theirs = weights(folder), weights(trained)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.slow
@pytest.mark.parametrize("version", ["this", "earlier"])
def test_a_training_killed_before_its_teacher_was_kept_ends_at_once(
    ray_cluster: None, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    config = tiny_pretrain(tmp_path)
    folder = Path(str(teacher_folder(config)))

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("raysid.trainers.pretrain.save_network", die)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config)
    assert not folder.exists()
    assert steps_so_far(training_folder(folder)) == STEPS
    if version == "earlier":
        checkpoints = training_folder(folder) / "checkpoints"
        (checkpoints / f"step-{STEPS:08d}").rename(
            checkpoints.with_name("checkpoint_2026-11-30_20-00-00.000000")
        )
        shutil.rmtree(checkpoints)
    pretrain(config)
    ours, theirs = weights(folder), weights(trained)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_a_training_begun_under_an_earlier_version_is_resumed(tmp_path: Path) -> None:
    """Its checkpoints are those that Ray Train kept; the newest may be cut short by a kill."""
    training = UPath(tmp_path / "training")
    checkpoints = Checkpoints(training / "checkpoints")
    assert newest_checkpoint(training, checkpoints, BATCH) is None
    for step in (20, 30):
        state = {"step": step, "network": {"weight": torch.full((100,), float(step))}}
        write_state(training / f"checkpoint_2026-11-30_20-{step}-00.123456", "state", state)
    (training / "checkpoint_manager_snapshot.json").write_text("{}")
    torn = training / "checkpoint_2026-11-30_20-40-00.123456"
    write_state(torn, "state", state)
    whole = (torn / "state.pt").read_bytes()
    (torn / "state.pt").write_bytes(whole[: len(whole) // 2])
    (training / "checkpoint_2026-11-30_20-50-00.123456").mkdir()
    newest = newest_checkpoint(training, checkpoints, BATCH)
    assert newest is not None and (newest.step, newest.images) == (30, 30 * BATCH)
    state = read_checkpoint(newest.path)
    assert state["step"] == 30 and torch.equal(state["network"]["weight"], torch.full((100,), 30.0))
    assert not list(training.glob("checkpoint_2*"))
    assert newest_checkpoint(training, checkpoints, BATCH) == newest


@pytest.mark.slow
def test_a_training_on_a_full_disk_resumes_when_there_is_room(tmp_path: Path, disk: Disk) -> None:
    """The second checkpoint does not fit."""
    config = tiny_pretrain(
        disk.folder,
        total_images=400 * BATCH,
        checkpoint={"every_images": 100 * BATCH, "keep": 2},
        failure={"max_failures": 0},
    )
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(config_yaml(config))
    training = training_folder(Path(str(teacher_folder(config))))
    disk.resize(1500 * KB)
    stopped = Command("pretrain", recipe, log=tmp_path / "stopped.log")
    assert stopped.wait() == 1, stopped.output
    assert stopped.output.endswith(
        f"raysid: error: {training}/checkpoints/step-00000200/state.pt cannot be written: the disk is full; make room "
        "there, then run the same command to resume from the last whole checkpoint, of step 100\n"
    )
    assert [path.name for path in (training / "checkpoints").iterdir()] == ["step-00000100"]
    disk.resize(20 << 20)
    again = Command("pretrain", recipe, log=tmp_path / "again.log")
    assert again.wait() == 0, again.output
    assert f"resuming from {training}, step 100\n" in again.output
    assert not training.exists()


def test_a_teacher_that_cannot_be_measured_ends_with_its_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    result = PretrainResult("/teachers/my own", {}, loss=0.12345)
    monkeypatch.setattr("raysid.trainers.pretrain.pretrain", lambda config, out: result)
    done = raysid("pretrain", "digits-teacher")
    assert (done.exit_code, done.stdout) == (
        0,
        "Loss: 0.1235 per image in the last step\n"
        "Teacher: /teachers/my own\n"
        "Distil it: raysid distill RECIPE --teacher.path '/teachers/my own'\n",
    )
