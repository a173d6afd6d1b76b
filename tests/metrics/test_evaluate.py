"""The evaluator ranks generators sensibly: real images best, missing digits and noise worse."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from raysid.metrics.classifier import load_digits_classifier
from raysid.metrics.evaluate import Evaluator
from tests.support.train_digits_classifier import digits_split


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    split = digits_split()
    return (
        torch.cat([split.train_images, split.test_images]),
        torch.cat([split.train_labels, split.test_labels]),
    )


@pytest.fixture(scope="module")
def evaluator(digits) -> Evaluator:
    return Evaluator(digits[0], load_digits_classifier(), digits[1])


def replay(images: Tensor, labels: Tensor | None = None):
    """A generator that returns the given images in order."""

    def generate(start: int, count: int) -> tuple[Tensor, Tensor | None]:
        part = slice(start, start + count)
        return images[part], None if labels is None else labels[part]

    return generate


def test_the_real_images_themselves_score_perfectly(evaluator, digits) -> None:
    images, labels = digits
    figures = evaluator.evaluate(replay(images, labels), len(images), 500, 10)
    assert figures["frechet_distance"] < 1e-3
    assert figures["label_accuracy"] == evaluator.reference_figures()["label_accuracy_real"] >= 0.98
    assert figures["num_samples"] == 1797


def test_shuffled_labels_score_chance_and_leave_the_distance_alone(evaluator, digits) -> None:
    images, labels = digits
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    figures = evaluator.evaluate(replay(images, shuffled), len(images), 500, 10)
    assert figures["label_accuracy"] < 0.25
    assert figures["frechet_distance"] < 1e-3


@pytest.mark.parametrize("lost", range(10))
def test_losing_any_one_digit_shows_above_the_noise_floor(evaluator, digits, lost) -> None:
    images, labels = digits
    kept = images[labels != lost]
    figures = evaluator.evaluate(replay(kept), len(kept), 500)
    assert figures["frechet_distance"] > 2 * evaluator.reference_figures()["halves_distance"]
    assert figures["label_accuracy"] is None


def test_more_noise_is_further_away(evaluator, digits) -> None:
    images, _ = digits
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    distances = [
        evaluator.evaluate(replay(images + level * noise), 1797, 1797)["frechet_distance"]
        for level in (0.1, 0.2, 0.4, 0.8)
    ]
    assert distances == sorted(distances)


def test_figures_do_not_depend_on_the_batch_size(evaluator, digits) -> None:
    images, labels = digits
    noisy = images[:600] + 0.2
    small = evaluator.evaluate(replay(noisy, labels), 600, 7, 10)
    large = evaluator.evaluate(replay(noisy, labels), 600, 10_000, 10)
    assert small["frechet_distance"] == pytest.approx(large["frechet_distance"], rel=1e-4)
    assert small["label_accuracy"] == large["label_accuracy"]


def test_every_sample_is_drawn_once_after_one_warm_up(evaluator, digits) -> None:
    calls = []

    def generate(start: int, count: int) -> tuple[Tensor, None]:
        calls.append((start, count))
        assert not torch.is_grad_enabled()
        return digits[0][:count], None

    evaluator.evaluate(generate, 25, 10)
    assert calls == [(0, 10), (0, 10), (10, 10), (20, 5)]


def test_time_per_image_is_generation_alone_without_the_warm_up(
    evaluator, digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that moves in `generate` only."""
    now = 0.0
    seconds = iter([0.5, 0.02, 0.02])

    def generate(start: int, count: int) -> tuple[Tensor, None]:
        nonlocal now
        now += next(seconds)
        return digits[0][start : start + count], None

    monkeypatch.setattr("raysid.metrics.evaluate.time", SimpleNamespace(perf_counter=lambda: now))
    assert evaluator.evaluate(generate, 20, 10)["ms_per_image"] == pytest.approx(2.0)


def test_uint8_and_float_images_are_the_same_images(evaluator, digits) -> None:
    as_bytes = ((digits[0] + 1) * 127.5).round().to(torch.uint8)
    assert evaluator.evaluate(replay(as_bytes), 1797, 500)["frechet_distance"] < 0.01
    from_bytes = Evaluator(as_bytes, load_digits_classifier()).reference_figures(1)
    expected = evaluator.reference_figures(1)["halves_distance"]
    assert from_bytes["halves_distance"] == pytest.approx(expected, rel=0.01)
    assert from_bytes["label_accuracy_real"] is None


def test_values_outside_the_range_count_as_the_picture_they_would_be_saved_as(evaluator, digits) -> None:
    beyond = torch.where(digits[0] == 1, 1.5, digits[0])
    assert evaluator.evaluate(replay(beyond), 1797, 500)["frechet_distance"] < 1e-3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_diverged_generator_is_reported_not_raised(evaluator, digits, value) -> None:
    images, labels = digits[0].clone(), digits[1]
    images[5, 0, 3, 3] = value
    figures = evaluator.evaluate(replay(images, labels), 100, 50, 10)
    assert figures["frechet_distance"] == math.inf
    assert figures["label_accuracy"] == pytest.approx(0.99, abs=0.011)
    everything = evaluator.evaluate(replay(torch.full((20, 1, 8, 8), value), labels), 20, 10, 10)
    assert everything["frechet_distance"] == math.inf
    assert everything["label_accuracy"] == 0


def test_reference_figures_repeat_by_seed(evaluator) -> None:
    first = evaluator.reference_figures(0)
    assert first == evaluator.reference_figures(0)
    assert first["num_real"] == 1797
    assert first["halves_distance"] != evaluator.reference_figures(1)["halves_distance"]
    assert 1 < first["halves_distance"] < 10


ZEROS = torch.zeros(20, 1, 8, 8)


@pytest.mark.parametrize(
    ("generate", "num_samples", "batch_size", "message"),
    [
        (replay(ZEROS), 1, 10, "num_samples >= 2"),
        (replay(ZEROS), 10, 0, "batch_size >= 1"),
        (replay(ZEROS), 30, 20, r"generate\(20, 10\) returned 0 images"),
        (replay(ZEROS.long()), 10, 10, "float .* or uint8, got torch.int64"),
        (replay(torch.zeros(20, 3, 32, 32)), 10, 10, r"takes images \(B, 1, 8, 8\)"),
        (replay(ZEROS, torch.full((20,), 10)), 10, 10, r"labels must be in 0..9, got 10..10"),
        (replay(ZEROS, torch.zeros(20, 10)), 10, 10, r"labels must be integers \(10,\), got torch.float32"),
    ],
)
def test_a_generator_that_breaks_its_contract_gives_one_clear_line(
    evaluator, generate, num_samples, batch_size, message
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        evaluator.evaluate(generate, num_samples, batch_size, 10)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (ZEROS[0], None, r"\(N, C, H, W\)"),
        (ZEROS[:3], None, "N >= 4"),
        (ZEROS + 16, None, r"finite and in \[-1, 1\]"),
        (ZEROS + math.nan, None, r"finite and in \[-1, 1\]"),
        (ZEROS, torch.zeros(19), r"20 real images need labels \(20,\), got shape \(19,\)"),
    ],
)
def test_an_unusable_real_set_is_refused(images, labels, message) -> None:
    with pytest.raises(ValueError, match=message):
        Evaluator(images, load_digits_classifier(), labels)
