"""Augmentation: the authors' numbers, each transform's effect and frequency, and what it leaves unchanged."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from raysid.method.augment import LABEL_DIM, SYM6, Transforms, augment, draw_transforms
from raysid.method.draws import Draws
from tests.support.reference_folder import reference_folder

NUMBERS = np.load(reference_folder() / "augment.npz")
CASES = sorted({name.partition("/")[0] for name in NUMBERS})
NAMES = [field.name for field in dataclasses.fields(Transforms)]


def transforms(count: int, **values: Any) -> Transforms:
    """Transforms of `count` images: the given values for all of them, and no others."""
    return Transforms(**{name: torch.full((count,), float(values.get(name, 0.0))) for name in NAMES})


def images(count: int, *shape: int) -> Tensor:
    """Uniform noise in [-1, 1]."""
    return Draws(1, 0, 0, count).uniform("images", shape) * 2 - 1


def smooth_images(size: int) -> Tensor:
    """Two images of waves longer than a resampling filter's cut-off."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    return torch.stack([torch.sin(2 * x + y), torch.cos(x - 2.5 * y)])[:, None]


# The authors' numbers.


@pytest.mark.parametrize("case", CASES)
def test_reference_images_and_labels(case: str) -> None:
    numbers = {name: torch.from_numpy(NUMBERS[f"{case}/{name}"]) for name in (*NAMES, "images")}
    given = Transforms(**{name: numbers[name] for name in NAMES})
    for ours, name in zip(augment(numbers["images"], given), ("augmented", "labels"), strict=True):
        expected = NUMBERS[f"{case}/{name}"]
        assert len(expected) and ours.dtype == torch.float32
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


def test_the_filter_is_an_orthogonal_wavelets_with_six_vanishing_moments() -> None:
    taps, place = np.array(SYM6), np.arange(len(SYM6))
    for shift in range(6):
        product = (taps[: len(taps) - 2 * shift] * taps[2 * shift :]).sum()
        assert product == pytest.approx(float(shift == 0), abs=1e-11)
    for moment in range(6):
        assert ((-1.0) ** place * (place / 11) ** moment * taps).sum() == pytest.approx(0, abs=1e-11)


# The effect of each transform.


def test_flips_are_exact() -> None:
    x = images(3, 3, 6, 10)
    assert torch.equal(augment(x, transforms(3, xflip=1))[0], x.flip(3))
    assert torch.equal(augment(x, transforms(3, yflip=1))[0], x.flip(2))


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, -2), (-1, 1)])
def test_translation_is_in_eighths_of_each_size_rightwards_and_downwards(right: int, down: int) -> None:
    """For whole pixels the filters cancel; pixels that move in are the image's reflection."""
    height, width = 12, 20
    x = images(2, 3, height, width)
    moved, _ = augment(x, transforms(2, n_tx=right * 8 / width, n_ty=down * 8 / height))
    continued = torch.nn.functional.pad(x, (3, 3, 2, 2), mode="reflect")
    expected = continued.roll((down, right), (2, 3))[:, :, 2:-2, 3:-3]
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("quarters", [1, 2, -1])
def test_rotation_is_counter_clockwise(quarters: int) -> None:
    x = smooth_images(16)
    turned, _ = augment(x, transforms(2, rotation=quarters * math.pi / 2))
    torch.testing.assert_close(turned, x.rot90(quarters, (2, 3)), atol=0.05, rtol=0)


def test_scalings_are_in_fifths_of_an_octave() -> None:
    """Scale 2 halves every coordinate; along an axis at 90 degrees it doubles y and halves x."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 17)] * 2, indexing="ij")
    ramps = torch.stack([x, y])[:, None]
    inside = slice(5, 12)  # inside, where even the half-size image does not include reflections
    larger, _ = augment(ramps, transforms(2, n_scale=5))
    torch.testing.assert_close(larger[..., inside, inside], ramps[..., inside, inside] / 2, atol=0.02, rtol=0)
    for axis, factors in ((0.0, (0.5, 2.0)), (math.pi / 2, (2.0, 0.5))):
        stretched, _ = augment(ramps, transforms(2, n_aniso=5, aniso_axis=axis))
        expected = ramps * torch.tensor(factors).reshape(2, 1, 1, 1)
        torch.testing.assert_close(
            stretched[..., inside, inside], expected[..., inside, inside], atol=0.02, rtol=0
        )


def test_nothing_comes_from_beyond_one_reflection() -> None:
    moved, _ = augment(torch.ones(1, 1, 8, 8), transforms(1, n_tx=30))
    assert moved.abs().max() == 0


# Unchanged images.


def test_an_image_that_no_transform_moves_stays_bit_for_bit_beside_others_that_move() -> None:
    x, given = images(64, 3, 8, 8), draw_transforms(Draws(0, 0, 0, 64), "images", 0.2)
    augmented, labels = augment(x, given)
    kept = (labels == 0).all(1)
    assert 4 < kept.sum() < 60
    assert torch.equal(augmented[kept], x[kept])
    assert not any(torch.equal(one, other) for one, other in zip(augmented[~kept], x[~kept], strict=True))


def test_probability_zero_changes_nothing() -> None:
    x, given = images(64, 3, 8, 8), draw_transforms(Draws(0, 0, 0, 64), "images", 0.0)
    augmented, labels = augment(x, given)
    assert torch.equal(augmented, x)
    assert torch.equal(labels, torch.zeros(64, LABEL_DIM))


# Draws.


def test_the_cut_does_not_matter() -> None:
    x, count = images(12, 3, 8, 8), 12
    whole = augment(x, draw_transforms(Draws(7, 3, 0, count), "images", 0.5))
    for cut in [(6, 6), (4, 4, 4), (1,) * 12, (5, 1, 3, 3)]:
        starts = itertools.accumulate(cut, initial=0)
        parts = [
            augment(x[start : start + size], draw_transforms(Draws(7, 3, start, size), "images", 0.5))
            for start, size in zip(starts, cut, strict=False)
        ]
        for ours, theirs in zip(map(torch.cat, zip(*parts, strict=True)), whole, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_other_images_have_other_transforms() -> None:
    draws = Draws(7, 3, 0, 100)
    first = draw_transforms(draws, "generated", 0.5).labels
    assert torch.equal(draw_transforms(draws, "generated", 0.5).labels, first)
    for other in (
        draw_transforms(draws, "real", 0.5),
        draw_transforms(dataclasses.replace(draws, step=4), "generated", 0.5),
        draw_transforms(dataclasses.replace(draws, start=100), "generated", 0.5),
    ):
        assert np.abs(np.corrcoef(first.T, other.labels.T)[:LABEL_DIM, LABEL_DIM:]).max() < 0.5


@pytest.mark.parametrize("probability", [0.12, 1.0])
def test_transforms_act_as_often_as_they_should(probability: float) -> None:
    """x-flips occur in half the images at any probability, y-flips in half of the augmented ones."""
    count = 8000
    drawn = draw_transforms(Draws(0, 0, 0, count), "images", probability)
    acting = {name: (getattr(drawn, name) != 0).numpy() for name in NAMES}
    expected = dict.fromkeys(NAMES, probability) | {
        "xflip": 0.5,
        "yflip": probability / 2,
        "aniso_axis": probability / 2,
    }
    for name, share in expected.items():
        error = math.sqrt(share * (1 - share) / count)
        assert abs(acting[name].mean() - share) <= 4 * error, name
    assert (acting["n_tx"] == acting["n_ty"]).all()
    assert not (acting["aniso_axis"] & ~acting["n_aniso"]).any()
    if probability < 1:
        assert np.abs(np.corrcoef([acting[name] for name in NAMES[:5]]) - np.eye(5)).max() < 0.06


def test_transforms_have_their_distributions() -> None:
    drawn = draw_transforms(Draws(3, 0, 0, 4000), "images", 1.0)
    for name in ("n_scale", "n_aniso", "n_tx", "n_ty"):
        assert stats.kstest(getattr(drawn, name), "norm").pvalue > 1e-3, name
    turned = drawn.aniso_axis[drawn.aniso_axis != 0]
    for angles in (drawn.rotation, turned):
        assert stats.kstest(angles, stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-3
