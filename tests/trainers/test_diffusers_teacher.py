"""`teacher.path: FOLDER` of diffusers: distilled like EDM's networks, in one process and on three actors."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

from raysid.actors.local import LocalPlacement
from raysid.actors.split import SplitPlacement
from raysid.config import Config, LearnerSettings
from raysid.data import open_source
from raysid.errors import UserError
from raysid.generator import load_generator
from raysid.networks import DiffusersSettings
from raysid.networks.diffusers import DiffusersDenoiser
from raysid.networks.files import load_card, load_network
from raysid.roles.build import learner_network
from raysid.trainers.distill import distill
from raysid.trainers.teachers import Teacher, find_teacher, trained_teacher
from tests.support.command_line import raysid
from tests.support.tiny_run import (
    BATCH,
    assert_same,
    end_of,
    inputs_for,
    placement_end,
    run_of,
    tiny_config,
)

SLOW = pytest.mark.slow
STEPS = 6
WEIGHTS, SCHEDULER = "diffusion_pytorch_model.safetensors", "scheduler_config.json"
UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "attention_head_dim": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}


def unet(**changes: Any) -> UNet2DModel:
    """A tiny U-Net; no parameter is zero, so that no gradient vanishes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = UNet2DModel(**UNET | changes)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def pipeline(folder: Path, prediction_type: str = "epsilon", **changes: Any) -> Path:
    """Write a pipeline's folder: the U-Net in unet/, its scheduler in scheduler/."""
    unet(**changes).save_pretrained(folder / "unet")
    DDPMScheduler(prediction_type=prediction_type).save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pipeline(tmp_path / "tiny-ddpm")


def sid(teacher: Path, storage: Path, **changes: Any) -> Config:
    """Settings of a few steps of SiD with dropout, evaluated on few images."""
    settings: dict[str, Any] = {
        "method__adversarial": None,
        "total_images": STEPS * BATCH,
        "evaluation__num_samples": 30,
        "evaluation__every_images": STEPS * BATCH,
        "checkpoint__every_images": STEPS * BATCH // 2,
        "checkpoint__keep": 10,
    }
    return tiny_config(str(teacher), storage, **settings | changes)


NETWORKS = [
    ("epsilon", None, 1.0),
    ("v_prediction", None, 1.0),
    ("v_prediction", 10, 1.0),
    ("epsilon", 11, 1.5),
]
"""Prediction type, number of classes (the eleventh stands for "no class"), guidance scales."""


def teacher_and_changes(
    folder: Path, prediction_type: str, num_class_embeds: int | None, guidance: float
) -> tuple[Path, dict[str, Any]]:
    """One of `NETWORKS`, and the settings to distil it with."""
    teacher = pipeline(folder, prediction_type, num_class_embeds=num_class_embeds)
    scales = ("train_fake", "eval_fake", "eval_teacher")
    return teacher, {f"method__guidance__{name}": guidance for name in scales}


@pytest.mark.parametrize("network", NETWORKS)
def test_it_distils_in_one_process(tmp_path: Path, network: Any) -> None:
    teacher, changes = teacher_and_changes(tmp_path / "teacher", *network)
    config = sid(teacher, tmp_path / "runs", placement="local", **changes)
    rows = {row["name"]: row for row in distill(config).metrics["table"]}
    assert rows["teacher"]["evaluations"] == 50 and rows["generator before"]["evaluations"] == 1
    generator = load_generator(run_of(config))
    assert generator.card.tau == generator.card.level == 440
    assert generator.num_classes == (10 if network[1] else 0)
    images = generator.sample(3, generator=torch.Generator().manual_seed(0))
    assert images.shape == (3, 1, 8, 8) and images.isfinite().all() and images.std() > 0

    start = load_network(find(config).path, "teacher")[1].state_dict()
    ends = end_of(run_of(config))
    for learner in ("generator", "fake_score"):
        moved = [not torch.equal(ends[f"{learner}.network.{name}"], value) for name, value in start.items()]
        assert sum(moved) > 0.9 * len(moved)


def find(config: Config) -> Teacher:
    """The teacher that the storage already holds."""
    found = find_teacher(config, open_source("digits"))
    assert isinstance(found, Teacher)
    return found


@pytest.mark.parametrize("network", [NETWORKS[0], *(pytest.param(NETWORKS[i], marks=SLOW) for i in (1, 3))])
def test_three_actors_give_the_same_results(ray_cluster: None, tmp_path: Path, network: Any) -> None:
    """Bit for bit at equal cut and threads: every weight, every optimizer state, every loss."""
    given, changes = teacher_and_changes(tmp_path / "given", *network)
    source = open_source("digits")
    made = sid(given, tmp_path)
    config = sid(
        Path(str(trained_teacher(made, find_teacher(made, source), source).path)), tmp_path, **changes
    )
    if network[1] is None:
        inputs = replace(inputs_for(config)[0], label_frequencies=(1.0,))
    else:
        inputs = inputs_for(config)[0]
    (end, said), (split_end, split_said) = (
        placement_end(make(inputs, None, 1), config, tmp_path / make.__name__, STEPS)
        for make in (LocalPlacement, SplitPlacement)
    )
    assert_same(end, split_end)
    assert said == split_said


@SLOW
def test_whole_runs_give_the_same_results(ray_cluster: None, folder: Path, tmp_path: Path) -> None:
    """With evaluations, checkpoints, and both generators' folders."""
    local, split = (sid(folder, tmp_path / where, placement=where) for where in ("local", "split"))
    distill(local)
    distill(split)
    assert_same(end_of(run_of(split)), end_of(run_of(local)))


def test_a_resumed_run_equals_an_uninterrupted_one(folder: Path, tmp_path: Path) -> None:
    whole = sid(folder, tmp_path / "whole", placement="local")
    distill(whole)
    half = sid(folder, tmp_path / "halves", placement="local", total_images=STEPS * BATCH // 2)
    distill(half)
    distill(half.model_copy(update={"total_images": STEPS * BATCH}))
    ends = [
        {
            name: value
            for name, value in end_of(run_of(config)).items()
            if not name.startswith("generator-best")
        }
        for config in (half, whole)
    ]
    assert_same(*ends)


def test_a_run_records_its_settings_and_the_command_samples_its_generator(
    folder: Path, tmp_path: Path
) -> None:
    config = sid(folder, tmp_path / "runs", placement="local", total_images=BATCH)
    distill(config)
    recorded = (run_of(config) / "config.yaml").read_text()
    # The values that the run used, although none were given.
    assert "tmax: 712" in recorded and "noise_steps:\n    tau: 440\n    tmin: 38\n" in recorded
    out = tmp_path / "images.png"
    result = raysid("sample", run_of(config), "-n", "4", "--out", out)
    assert result.exit_code == 0, result.output
    assert out.stat().st_size > 100


def test_the_folder_becomes_a_teacher_of_the_storage(folder: Path, tmp_path: Path) -> None:
    config, source = sid(folder, tmp_path / "runs"), open_source("digits")
    found = find_teacher(config, source)
    assert not isinstance(found, Teacher) and not (tmp_path / "runs").exists()  # looking writes nothing
    teacher = trained_teacher(config, found, source)
    assert teacher.path.name.startswith("tiny-ddpm-") and find(config) == teacher
    card, network = load_network(teacher.path, "teacher")
    assert isinstance(card.network, DiffusersSettings) and isinstance(network, DiffusersDenoiser)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([30, 900])
    with torch.no_grad():
        assert torch.equal(network.eval().predict(x, t), unet().eval()(x, t).sample)
    copied = learner_network(str(teacher.path), LearnerSettings(dropout=0.3))
    assert copied.settings.dropout == 0.3 and network.settings.dropout == 0.0


@pytest.mark.parametrize("beside", [True, False])
def test_a_models_folder_with_its_scheduler_beside_it_or_below(
    folder: Path, tmp_path: Path, beside: bool
) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder / "unet", model)
    shutil.copytree(folder / "scheduler", model if beside else model / "scheduler", dirs_exist_ok=True)
    card = find_teacher(sid(model, tmp_path / "runs"), open_source("digits")).card  # type: ignore[union-attr]
    assert card.network.scheduler.num_train_timesteps == 1000
    assert card.network.scheduler.beta_schedule == "linear"


def test_attention_under_its_old_names_is_read(folder: Path, tmp_path: Path) -> None:
    import safetensors.torch

    file = folder / "unet" / WEIGHTS
    new = safetensors.torch.load_file(file)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, value in new.items():
        for ours, theirs in names.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
        old[name] = value
    assert old.keys() != new.keys()
    safetensors.torch.save_file(old, file)
    found = find_teacher(sid(folder, tmp_path / "runs"), open_source("digits"))
    weights = found.network().state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(weights[f"model.{name}"], value) for name, value in new.items())


# -- what is refused ---------------------------------------------------------------------------------------


def refused(teacher: Path, tmp_path: Path, **changes: Any) -> str:
    """The error line of a run that is refused at its start; nothing is written."""
    with pytest.raises(UserError) as caught:
        distill(sid(teacher, tmp_path / "runs", placement="local", **changes))
    line = str(caught.value)
    assert "\n" not in line and not (tmp_path / "runs").exists()
    return line


def change(file: Path, **values: Any) -> None:
    """Set values in a JSON file; None removes a value."""
    tree = json.loads(file.read_text()) | values
    file.write_text(json.dumps({name: value for name, value in tree.items() if value is not None}))


def test_sida_is_refused_with_exit_code_2(folder: Path, tmp_path: Path) -> None:
    arguments = ["distill", "digits-sida", "--storage", str(tmp_path / "runs"), "--teacher.recipe", "null"]
    result = raysid(*arguments, "--teacher.path", folder)
    assert result.exit_code == 2
    assert f"method.adversarial (SiDA) is not for teacher {folder}: a network of diffusers" in result.output
    assert not (tmp_path / "runs").exists()


def test_a_pickle_of_weights_is_refused_unopened(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "teacher")
    (folder / "unet" / WEIGHTS).unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    line = refused(folder, tmp_path)
    assert (
        "diffusion_pytorch_model.bin, which could run a program and is never opened" in line
        and "safe_serialization=True" in line
    )


def test_other_schedulers_are_refused(folder: Path, tmp_path: Path) -> None:
    file = folder / "scheduler" / SCHEDULER
    for values, words in (
        ({"prediction_type": "sample"}, "prediction_type"),
        ({"prediction_type": "epsilon", "num_train_timesteps": 100}, "num_train_timesteps 100"),
        ({"num_train_timesteps": 40}, "num_train_timesteps"),
        ({"num_train_timesteps": 1000, "beta_schedule": "steep"}, "steep"),
        ({"beta_schedule": None}, "has no beta_schedule"),
    ):
        change(file, **values)
        assert words in refused(folder, tmp_path)
    file.unlink()
    assert "has no scheduler" in refused(folder, tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sample_size": 16}, "makes images of shape"),
        ({"in_channels": 3, "out_channels": 3}, "makes images of shape"),
        ({"num_class_embeds": 7}, "knows 7 classes"),
        ({"num_class_embeds": 12}, "knows 12 classes"),
        ({"sample_size": None}, "sample_size"),
        ({"sample_size": (8, 16)}, "sample_size"),
        ({"out_channels": 2}, "1 channels in and 2 out"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type"),
    ],
)
def test_a_network_for_something_else_is_refused(tmp_path: Path, changes: Any, words: str) -> None:
    assert words in refused(pipeline(tmp_path / "teacher", **changes), tmp_path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"_class_name": "UNet2DConditionModel"},
            "text_encoder is missing: copy the whole folder of the pipeline",
        ),
        ({"down_block_types": ["DownBlock2D", "os.system"]}, "os.system"),
        ({"block_out_channels": [8, 32]}, "does not fit"),
        ({"block_out_channels": [9, 16]}, "cannot be used"),
        ({"norm_num_groups": "4"}, "cannot be used"),
        ({"num_class_embeds": -1}, "num_class_embeds"),
    ],
)
def test_a_config_of_another_network_is_refused(
    folder: Path, tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    change(folder / "unet" / "config.json", **values)
    assert words in refused(folder, tmp_path)


def test_images_that_cannot_be_halved_so_often_are_refused(tmp_path: Path) -> None:
    deep = {
        "block_out_channels": (8,) * 5,
        "down_block_types": ("DownBlock2D",) * 5,
        "up_block_types": ("UpBlock2D",) * 5,
    }
    assert "cannot be used" in refused(pipeline(tmp_path / "teacher", **deep), tmp_path)


def test_damaged_files_are_refused(folder: Path, tmp_path: Path) -> None:
    for name in (WEIGHTS, "config.json"):
        file = folder / "unet" / name
        whole = file.read_bytes()
        for content in (whole[: len(whole) // 2], b"", b"null", b"[" * 100_000):
            file.write_bytes(content)
            assert str(folder) in refused(folder, tmp_path)
        file.unlink()
        assert str(folder) in refused(folder, tmp_path)
        file.write_bytes(whole)


def test_settings_that_the_network_does_not_support_are_refused(folder: Path, tmp_path: Path) -> None:
    for tmax in (38, 5, 1001):
        assert "integer above 38" in refused(folder, tmp_path, method__tmax=tmax)
    assert "augment_dim 0" in refused(folder, tmp_path, fake_score__augment=0.1)
    classes = pipeline(tmp_path / "classes", num_class_embeds=10)
    line = refused(classes, tmp_path, method__guidance__eval_teacher=1.5)
    assert "no class for unconditional images" in line


def test_a_card_holds_its_generators_level_and_no_unknown_fields(folder: Path, tmp_path: Path) -> None:
    config = sid(folder, tmp_path / "runs", placement="local", total_images=BATCH)
    distill(config)
    generator = run_of(config) / "generator"
    file = generator / "config.json"
    whole = file.read_text()
    for field, value, words in (("tau", None, "tau"), ("tau", 1000, "tau"), ("surprise", 1, "surprise")):
        change(file, **{field: value})
        with pytest.raises(UserError, match=f"does not describe a network: .*{words}"):
            load_card(generator)
        file.write_text(whole)
    card = json.loads(whole)
    card["network"]["unet"]["surprise"] = 1
    file.write_text(json.dumps(card))
    with pytest.raises(UserError, match="does not describe a network: .*surprise"):
        load_generator(generator)
    card["network"]["surprise"] = card["network"]["unet"].pop("surprise")
    file.write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"does not describe a network: network\.surprise: "):
        load_generator(generator)
