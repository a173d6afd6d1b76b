"""Diffusers' U-Nets as denoisers: conversion, conditions, precision, refusals."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, get_args

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor

from raysid.errors import UserError
from raysid.method.guidance import guided, guided_prediction
from raysid.method.predictions import PredictionType, to_prediction
from raysid.networks import diffusers as adapter
from raysid.networks.diffusers import DiffusersDenoiser, read_scheduler

KINDS = get_args(PredictionType)
CLASSES = 3
NULL = CLASSES  # the class after the others
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
NOISE, _ = read_scheduler(STABLE_DIFFUSION)
T = torch.tensor([20, 300, 979])
TINY: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": (4, 8),
    "norm_num_groups": 2,
}
TEXT = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 6,
    "attention_head_dim": 2,
}
LABELS = {
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "attention_head_dim": 2,
    "num_class_embeds": CLASSES + 1,
}


def unet(**changes: Any) -> UNet2DModel:
    """A tiny U-Net with classes, the last of them "no class"."""
    torch.manual_seed(0)
    return UNet2DModel(**{**TINY, **LABELS, **changes}).eval().requires_grad_(False)


def text_unet(**changes: Any) -> UNet2DConditionModel:
    """A tiny U-Net conditioned on text embeddings."""
    torch.manual_seed(0)
    return UNet2DConditionModel(**{**TINY, **TEXT, **changes}).eval().requires_grad_(False)


def labelled(kind: PredictionType = "epsilon", **changes: Any) -> DiffusersDenoiser:
    return DiffusersDenoiser(unet(**changes), NOISE, kind, null_class=True)


def images(seed: int = 0) -> Tensor:
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


class Perfect(UNet2DModel):
    """A U-Net that returns a given prediction."""

    answer: Tensor

    def forward(self, *_: Any, **__: Any) -> tuple[Tensor]:
        return (self.answer,)


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_predictor_gives_the_clean_image(kind: PredictionType) -> None:
    x, eps = images(0), images(1)
    a, s = (scale[:, None, None, None] for scale in NOISE.scales(T))
    model = Perfect(
        **TINY, down_block_types=LABELS["down_block_types"], up_block_types=LABELS["up_block_types"]
    )
    model.answer = eps if kind == "epsilon" else a * eps - s * x
    x_hat = DiffusersDenoiser(model, NOISE, kind)(NOISE.add_noise(x, T, eps), T)
    torch.testing.assert_close(x_hat, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_x_hat_agrees_with_the_networks_own_prediction(kind: PredictionType) -> None:
    network, x_t, labels = labelled(kind), images(), torch.tensor([2, 0, 1])
    prediction = unet()(x_t, T, class_labels=labels).sample
    assert prediction.std() > 0.01
    one_hot = torch.eye(CLASSES)[labels]
    assert torch.equal(network.predict(x_t, T, one_hot), prediction)
    x_hat = network(x_t, T, one_hot)
    torch.testing.assert_close(
        to_prediction(kind, x_hat, x_t, *NOISE.scales(T)), prediction, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_at_x_t_is_the_derivative(kind: PredictionType) -> None:
    network = DiffusersDenoiser(unet().double(), NOISE, kind, null_class=True)
    x_t, direction, cond = images().double().requires_grad_(), images(1).double(), torch.eye(CLASSES)
    weight = images(2).double()

    def value(at: Tensor) -> Tensor:
        return (weight * guided(network, at, T, cond, 2.0)[0]).sum()

    (gradient,) = torch.autograd.grad(value(x_t), x_t)
    step = 1e-5
    with torch.no_grad():
        slope = (value(x_t + step * direction) - value(x_t - step * direction)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-6)


def test_no_label_is_the_last_class() -> None:
    network, x_t = labelled(), images()
    expected = unet()(x_t, T, class_labels=torch.tensor([1, NULL, NULL])).sample
    one_hot = torch.eye(CLASSES)[[1, 1, 1]]
    one_hot[1:] = 0
    assert network.label_dim == CLASSES
    assert torch.equal(network.predict(x_t, T, one_hot), expected)
    assert torch.equal(network.predict(x_t, T)[1:], expected[1:])
    assert torch.equal(network.unconditional(one_hot), torch.zeros(3, CLASSES))


def test_a_network_without_such_a_class_refuses_no_label() -> None:
    network = DiffusersDenoiser(unet(), NOISE, "epsilon")
    assert network.label_dim == CLASSES + 1
    with pytest.raises(ValueError, match="no class"):
        network(images(), T)
    with pytest.raises(ValueError, match=r"shape \(3, 4\), not \(3, 2\)"):
        network(images(), T, torch.zeros(3, 2))


def test_a_network_without_classes_ignores_labels() -> None:
    network = DiffusersDenoiser(unet(num_class_embeds=None), NOISE, "epsilon")
    assert network.label_dim == 0
    assert torch.equal(network(images(), T, torch.eye(CLASSES)), network(images(), T))


def test_no_text_is_the_empty_prompt() -> None:
    cond, null_text = torch.randn(3, 5, 6), torch.randn(5, 6)
    network = DiffusersDenoiser(text_unet(), NOISE, "epsilon", null_text=null_text)
    x_t = images()
    repeated = null_text.expand(3, -1, -1)
    assert torch.equal(network.unconditional(cond), repeated)
    assert torch.equal(network(x_t, T), network(x_t, T, repeated))
    assert not torch.allclose(network(x_t, T), network(x_t, T, cond))
    assert set(network.state_dict()) == {f"model.{name}" for name in text_unet().state_dict()}


def test_text_of_a_wrong_shape_is_refused() -> None:
    network = DiffusersDenoiser(text_unet(), NOISE, "epsilon")
    with pytest.raises(ValueError, match="needs null_text"):
        network(images(), T)
    with pytest.raises(ValueError, match=r"shape \(3, tokens, width\), not \(2, 5, 6\)"):
        network(images(), T, torch.zeros(2, 5, 6))
    short = DiffusersDenoiser(text_unet(), NOISE, "epsilon", null_text=torch.zeros(4, 6))
    with pytest.raises(ValueError, match=r"\(3, 4, 6\), cond \(3, 5, 6\)"):
        short.unconditional(torch.zeros(3, 5, 6))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5, 4.0])
def test_guidance_combines_the_networks_own_predictions(kind: PredictionType, scale: float) -> None:
    network, x_t, cond = labelled(kind), images(), torch.eye(CLASSES)
    model = unet()
    conditional = model(x_t, T, class_labels=torch.arange(3)).sample
    unconditional = model(x_t, T, class_labels=torch.full((3,), NULL)).sample
    assert not torch.allclose(conditional, unconditional)
    expected = unconditional + scale * (conditional - unconditional)
    torch.testing.assert_close(guided_prediction(network, x_t, T, cond, scale)[0], expected)
    x_hat, logits = guided(network, x_t, T, cond, scale)
    torch.testing.assert_close(x_hat, network.clean(expected, x_t, T))
    assert logits is None


@pytest.mark.parametrize("cond", [None, torch.eye(CLASSES)], ids=["no condition", "scale 1"])
def test_with_nothing_to_guide_the_network_runs_once(cond: Tensor | None) -> None:
    network, passes = labelled(), []
    network.model.register_forward_hook(lambda *_: passes.append(1))
    x_hat, _ = guided(network, images(), T, cond, 3.0 if cond is None else 1.0)
    assert len(passes) == 1
    assert torch.equal(x_hat, network(images(), T, cond))


def test_guidance_refuses_networks_without_conditions() -> None:
    with pytest.raises(ValueError, match="no encoder logits"):
        guided(labelled(), images(), T, None, 1.0, with_logits=True)
    with pytest.raises(ValueError, match="no augmentation labels"):
        guided(labelled(), images(), T, None, 1.0, augment_labels=torch.zeros(3, 9))


@pytest.mark.parametrize("kind", KINDS)
def test_around_a_network_in_low_precision_everything_is_float32(kind: PredictionType) -> None:
    network = DiffusersDenoiser(unet().bfloat16(), NOISE, kind, null_class=True)
    x_t, cond = images(), torch.eye(CLASSES)
    prediction, x_hat = network.predict(x_t, T, cond), network(x_t, T, cond)
    assert prediction.dtype == x_hat.dtype == torch.float32
    # The clean image is exact for that prediction: only the network's own rounding remains.
    exact = network.clean(prediction.double(), x_t.double(), T)
    torch.testing.assert_close(x_hat.double(), exact, rtol=1e-5, atol=1e-5)
    assert network(x_t.bfloat16(), T, cond).dtype == torch.float32


def test_under_autocast_too() -> None:
    network, x_t, cond = labelled(), images(), torch.eye(CLASSES)
    with torch.autocast("cpu", torch.bfloat16):
        prediction, x_hat = network.predict(x_t, T, cond), network(x_t, T, cond)
    assert prediction.dtype == torch.float32
    assert not torch.equal(prediction, network.predict(x_t, T, cond))
    torch.testing.assert_close(x_hat, network.clean(prediction, x_t, T))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (torch.nn.Linear(1, 1), "a Linear cannot be used"),
        (unet(out_channels=2), "1 channels in and 2 out"),
        (unet(class_embed_type="timestep"), "class_embed_type 'timestep'"),
        (unet(time_embedding_type="fourier"), "time_embedding_type 'fourier'"),
        (text_unet(num_class_embeds=3), "num_class_embeds 3"),
        (
            text_unet(
                addition_embed_type="text_time",
                addition_time_embed_dim=4,
                projection_class_embeddings_input_dim=8,
            ),
            "addition_embed_type 'text_time'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_networks_that_need_more_are_refused(model: torch.nn.Module, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        DiffusersDenoiser(model, NOISE, "epsilon")
    assert "\n" not in str(caught.value)


def test_null_conditions_without_a_place_are_refused() -> None:
    with pytest.raises(ValueError, match="null_text"):
        DiffusersDenoiser(unet(), NOISE, "epsilon", null_text=torch.zeros(5, 6))
    with pytest.raises(ValueError, match="null_class"):
        DiffusersDenoiser(text_unet(), NOISE, "epsilon", null_class=True)


def test_a_schedulers_betas_give_the_noise() -> None:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    expected = (1 - betas).cumprod(0)
    torch.testing.assert_close(NOISE.alphas_cumprod.double(), expected, rtol=1e-4, atol=0)
    trained, _ = read_scheduler({"trained_betas": betas.tolist()})
    torch.testing.assert_close(trained.alphas_cumprod.double(), expected, rtol=1e-4, atol=0)


def test_a_scheduler_config_names_its_networks_prediction() -> None:
    # As in Stable Diffusion's files: another scheduler's name, and settings beside the schedule.
    config = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False}
    assert read_scheduler(config | STABLE_DIFFUSION)[1] == "epsilon"
    assert read_scheduler(STABLE_DIFFUSION | {"prediction_type": "v_prediction"})[1] == "v_prediction"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "no beta_schedule"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, "no beta_schedule"),
        ({"beta_schedule": "surprising"}, "surprising"),
        ({"beta_schedule": "linear", "beta_start": "low"}, "describes no noise schedule"),
        (STABLE_DIFFUSION | {"prediction_type": "sample"}, "'sample'"),
    ],
)
def test_other_configs_are_refused_in_one_line(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read_scheduler(config)
    assert "\n" not in str(caught.value)


def test_without_the_package_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    model = unet()
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for call in (
        lambda: read_scheduler(STABLE_DIFFUSION),
        lambda: adapter.DiffusersDenoiser(model, NOISE, "epsilon"),
    ):
        with pytest.raises(UserError, match=r"pip install diffusers") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_raysid_works_without_the_package() -> None:
    modules = "raysid.method.guidance, raysid.method.sampling, raysid.roles.build"
    code = f"import sys; sys.modules['diffusers'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
