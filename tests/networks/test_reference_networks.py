"""EDM's U-Nets against the authors' numbers; their treatment of labels, partial passes and precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from raysid.config.networks import Precision
from raysid.networks import EDMDenoiser, NetworkSettings, blocks, build_denoiser, layers
from tests.support.reference_folder import reference_cases, reference_folder

CASES = reference_cases("network_")

SMALL: dict[str, Any] = dict(
    img_resolution=8,
    img_channels=1,
    model_channels=16,
    channel_mult=[1, 2],
    num_blocks=1,
    attn_resolutions=[4],
    dropout=0.0,
)
NCSNPP: dict[str, Any] = dict(embedding_type="fourier", channel_mult_noise=2, resample_filter=[1, 3, 3, 1])
VARIANTS: dict[str, dict[str, Any]] = {
    "ddpmpp": SMALL,
    "residual": SMALL | NCSNPP | dict(encoder_type="residual"),
    "skip": SMALL | NCSNPP | dict(encoder_type="skip", decoder_type="skip"),
    "three_levels_skip": SMALL | dict(channel_mult=[1, 1, 2], encoder_type="skip", decoder_type="skip"),
    "adm": SMALL | dict(model_type="DhariwalUNet", model_channels=32),
}


def with_random_weights(settings: dict[str, Any]) -> EDMDenoiser:
    """A network in eval mode in which every weight has an effect: EDM initialises last layers at or near zero."""
    torch.manual_seed(0)
    denoiser = build_denoiser(NetworkSettings(**settings)).eval()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return denoiser


def noisy_batch(settings: dict[str, Any], batch: int = 4) -> tuple[Tensor, Tensor]:
    size = settings["img_resolution"]
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, settings["img_channels"], size, size, generator=generator)
    return images, torch.linspace(0.1, 5.0, batch)


def assert_close_to_largest(actual: Tensor, expected: Tensor, rtol: float = 1e-4) -> None:
    assert actual.shape == expected.shape
    difference = (actual.detach() - expected).abs().max().item()
    assert difference <= rtol * expected.abs().max().item()


@pytest.fixture(params=CASES, ids=[name for name, _ in CASES])
def reference(
    request: pytest.FixtureRequest,
) -> tuple[EDMDenoiser, dict[str, Tensor], tuple[Tensor | None, ...]]:
    """A reference case: the network, its numbers, and the arguments after `x`."""
    name, settings = request.param
    with np.load(reference_folder() / f"{name}.npz") as file:
        numbers = {key: torch.from_numpy(file[key]) for key in file.files}
    denoiser = build_denoiser(NetworkSettings(**settings)).eval()
    weights = {
        key.removeprefix("param/"): value for key, value in numbers.items() if key.startswith("param/")
    }
    denoiser.load_state_dict(weights, strict=True)
    labels, augment = (
        numbers[key] if numbers[key].shape[1] else None for key in ("labels", "augment_labels")
    )
    return denoiser, numbers, (numbers["sigma"], labels, augment)


def test_output_logits_and_gradient_agree(reference) -> None:
    denoiser, numbers, arguments = reference
    x = numbers["x"].clone().requires_grad_()
    denoised, logits = denoiser.predict_with_logits(x, *arguments)
    (gradient,) = torch.autograd.grad(denoised, x, numbers["cotangent"])
    assert_close_to_largest(denoised, numbers["denoised"])
    assert_close_to_largest(logits, numbers["encoder_logits"])
    assert_close_to_largest(gradient, numbers["vjp_x"])


def test_output_alone_agrees(reference) -> None:
    denoiser, numbers, arguments = reference
    assert_close_to_largest(denoiser(numbers["x"], *arguments), numbers["denoised"])


def test_encoder_alone_agrees(reference) -> None:
    denoiser, numbers, arguments = reference
    assert_close_to_largest(denoiser.encode(numbers["x"], *arguments), numbers["encoder_logits"])


def test_empty_labels_are_ignored(reference) -> None:
    # The reference files hold labels of width 0 for networks without labels.
    denoiser, numbers, (sigma, _, augment) = reference
    if not denoiser.settings.label_dim:
        assert_close_to_largest(
            denoiser(numbers["x"], sigma, numbers["labels"], augment), numbers["denoised"]
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_encoder_alone_equals_the_whole_pass(variant: str) -> None:
    denoiser = with_random_weights(VARIANTS[variant])
    x, sigma = noisy_batch(VARIANTS[variant])
    x.requires_grad_()
    x_hat, logits = denoiser.predict_with_logits(x, sigma)
    alone = denoiser.encode(x, sigma)
    assert x_hat.shape == x.shape
    assert alone.shape[:2] == (4, 1)
    torch.testing.assert_close(alone, logits, rtol=0, atol=0)
    gradients = [torch.autograd.grad(output.square().sum(), x)[0] for output in (logits, alone)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)
    assert gradients[0].abs().max() > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_gets_a_gradient(variant: str) -> None:
    settings = VARIANTS[variant] | dict(label_dim=3, augment_dim=2)
    denoiser = with_random_weights(settings).double()
    x, sigma = noisy_batch(settings)
    labels, augment = torch.eye(3)[[0, 1, 2, 0]].double(), torch.ones(4, 2).double()
    x_hat = denoiser(x.double(), sigma.double(), labels, augment)
    assert x_hat.dtype == torch.float64
    x_hat.square().sum().backward()
    missing = [
        name for name, p in denoiser.named_parameters() if p.grad is None or not p.grad.abs().max() > 0
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("settings", "millions"),
    [
        (
            dict(img_resolution=32, img_channels=3, model_channels=128, channel_mult=[2, 2, 2], num_blocks=4,
                 attn_resolutions=[16], augment_dim=9),
            55.7,
        ),
        (
            dict(model_type="DhariwalUNet", img_resolution=64, img_channels=3, model_channels=192,
                 channel_mult=[1, 2, 3, 4], num_blocks=3, attn_resolutions=[32, 16, 8], label_dim=1000),
            295.9,
        ),
    ],
    ids=["cifar10_ddpmpp", "imagenet64_adm"],
)  # fmt: skip
def test_parameter_counts_are_the_published_ones(settings: dict[str, Any], millions: float) -> None:
    with torch.device("meta"):
        denoiser = build_denoiser(NetworkSettings(**settings))
    assert round(sum(p.numel() for p in denoiser.parameters()) / 1e6, 1) == millions


@pytest.mark.parametrize("variant", ["ddpmpp", "adm"])
def test_unconditional_call_equals_zero_labels(variant: str) -> None:
    settings = VARIANTS[variant] | dict(label_dim=3)
    denoiser = with_random_weights(settings)
    x, sigma = noisy_batch(settings)
    torch.testing.assert_close(denoiser(x, sigma), denoiser(x, sigma, torch.zeros(4, 3)), rtol=0, atol=0)
    torch.testing.assert_close(denoiser.encode(x, sigma), denoiser.encode(x, sigma, torch.zeros(4, 3)))
    assert (denoiser(x, sigma) - denoiser(x, sigma, torch.eye(3)[[0, 1, 2, 0]])).abs().max() > 1e-3


@pytest.mark.parametrize("variant", ["ddpmpp", "adm"])
def test_label_dropout_acts_on_whole_labels_in_train_mode_only(variant: str) -> None:
    settings = VARIANTS[variant] | dict(label_dim=3, label_dropout=0.5)
    denoiser = with_random_weights(settings)
    x, sigma = noisy_batch(settings, batch=32)
    labels = torch.eye(3)[torch.arange(32) % 3]
    labelled, unlabelled = denoiser(x, sigma, labels), denoiser(x, sigma)
    torch.testing.assert_close(
        denoiser(x, sigma, labels), labelled, rtol=0, atol=0
    )  # eval mode: nothing is random

    torch.manual_seed(0)
    trained = denoiser.train()(x, sigma, labels)
    distances = [(trained - other).abs().amax(dim=(1, 2, 3)) for other in (labelled, unlabelled)]
    kept = distances[0] < distances[1]
    assert torch.minimum(*distances).max() < 1e-4  # every sample is entirely one or the other
    assert 5 < int(kept.sum()) < 27
    assert (labelled - unlabelled).abs().amax(dim=(1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_new_network_starts_as_the_skip_connection(variant: str) -> None:
    # The last convolution starts at (ADM) or near (DDPM++, NCSN++) zero, so F is about 0.
    torch.manual_seed(0)
    denoiser = build_denoiser(NetworkSettings(**VARIANTS[variant]))
    x, sigma = noisy_batch(VARIANTS[variant])
    c_skip = 0.25 / (sigma.square() + 0.25)
    torch.testing.assert_close(denoiser(x, sigma), c_skip[:, None, None, None] * x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("kernel", [0, 1, 3])
def test_box_resampling_equals_the_general_filter(direction: str, kernel: int) -> None:
    init = layers.WeightInit("kaiming_uniform", bias=1.0)
    convolution = layers.Conv2d(4, 4, kernel, init, up=direction == "up", down=direction == "down")
    x = torch.randn(2, 4, 8, 8)
    quick = convolution(x)
    convolution.box_filter = False
    torch.testing.assert_close(quick, convolution(x))


def test_fused_attention_equals_the_plain_products(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = with_random_weights(SMALL | dict(model_type="DhariwalUNet", model_channels=64))
    x, sigma = noisy_batch(SMALL)
    plain = denoiser(x, sigma)
    monkeypatch.setattr(blocks, "_FUSED_ATTENTION_PIXELS", 1)
    torch.testing.assert_close(denoiser(x, sigma), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("precision", "rtol"), [("bf16", 0.05), ("fp16", 0.006)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_returns_float32_near_full_precision(
    variant: str, precision: Precision, rtol: float
) -> None:
    torch.manual_seed(0)
    denoiser = with_random_weights(VARIANTS[variant])
    x, sigma = noisy_batch(VARIANTS[variant])
    expected, expected_logits = denoiser.predict_with_logits(x, sigma)
    denoiser.precision = precision
    x_hat, logits = denoiser.predict_with_logits(x, sigma)
    assert x_hat.dtype == logits.dtype == torch.float32
    assert not torch.equal(x_hat, expected)
    assert_close_to_largest(x_hat, expected, rtol=rtol)
    assert_close_to_largest(logits, expected_logits, rtol=rtol)
    x_hat.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in denoiser.parameters() if p.grad is not None)
    # A user's autocast around it gives the same, and full precision is unchanged.
    denoiser.precision = "float32"
    with torch.autocast("cpu", torch.bfloat16 if precision == "bf16" else torch.float16):
        torch.testing.assert_close(denoiser(x, sigma), x_hat)
    assert torch.equal(denoiser(x, sigma), expected)


def test_settings_survive_json() -> None:
    for name, settings in reference_cases("network_"):
        loaded = NetworkSettings(**settings)
        assert NetworkSettings.model_validate_json(loaded.model_dump_json()) == loaded, name


@pytest.mark.parametrize(
    "wrong",
    [
        dict(img_resolution=7),
        dict(resample_filter=[1, 2, 1]),
        dict(model_type="DhariwalUNet", encoder_type="residual"),
        dict(dropout=1.0),
        dict(channels=3),
        dict(sigma_min=1.0, sigma_max=0.5),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        NetworkSettings(**(SMALL | wrong))


def test_labels_of_another_width_are_refused() -> None:
    denoiser = build_denoiser(NetworkSettings(**SMALL, label_dim=3))
    x, sigma = noisy_batch(SMALL)
    with pytest.raises(ValueError, match=r"\(4, 3\)"):
        denoiser(x, sigma, torch.zeros(4, 2))
