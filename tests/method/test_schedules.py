"""Schedules over the number of images: learning rates at the ends of ramps, the average's decay, phases."""

from __future__ import annotations

import math
from typing import Any

import pytest

from raysid.config import AdversarialSettings, EMASettings, LearningRateSchedule
from raysid.method.schedules import adversary_acts, ema_beta, generator_learns, learning_rate
from tests.support.reference_folder import reference_cases

CASES = reference_cases("training_")
BASE, TOTAL = 2e-3, 10_000


def rate(images: int, **schedule: Any) -> float:
    return learning_rate(BASE, LearningRateSchedule.model_validate(schedule), images, TOTAL)


# Learning rate.


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
def test_warm_up_rises_linearly_to_the_full_rate(decay: str) -> None:
    rates = [rate(images, warmup_images=1000, decay=decay) for images in (0, 250, 500, 750, 1000)]
    assert 0 < rates[0] < 0.01 * BASE
    assert rates == pytest.approx([BASE * share for share in (0, 0.25, 0.5, 0.75, 1)], rel=5e-3, abs=1e-5)
    assert rates[-1] == BASE


@pytest.mark.parametrize("decay", ["linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1000])
def test_decays_end_at_their_fraction_and_never_go_below(decay: str, warmup: int) -> None:
    schedule = {"warmup_images": warmup, "decay": decay, "final_fraction": 0.1}
    assert rate(warmup, **schedule) == BASE
    assert rate((warmup + TOTAL) // 2, **schedule) == pytest.approx(0.55 * BASE)
    assert rate(TOTAL, **schedule) == pytest.approx(0.1 * BASE)
    assert rate(2 * TOTAL, **schedule) == pytest.approx(0.1 * BASE)
    falling = [rate(images, **schedule) for images in range(warmup, TOTAL + 1, 100)]
    assert falling == sorted(falling, reverse=True)


def test_cosine_is_flat_at_both_ends_and_linear_is_not() -> None:
    for decay, shares in {"linear": (0.9, 0.1), "cosine": (0.9755, 0.0245)}.items():
        drawn = [rate(images, decay=decay, final_fraction=0.0) / BASE for images in (1000, 9000)]
        assert drawn == pytest.approx(shares, abs=1e-3)


def test_a_constant_rate_ignores_the_final_fraction() -> None:
    assert {rate(images, final_fraction=0.0) for images in (0, 5000, TOTAL)} == {BASE}


def test_a_warm_up_longer_than_the_run_is_no_error() -> None:
    assert 0 < rate(TOTAL - 1, warmup_images=2 * TOTAL, decay="linear") < BASE
    assert math.isfinite(rate(2 * TOTAL, warmup_images=2 * TOTAL, decay="cosine"))


# The average.


@pytest.mark.parametrize(("name", "case"), CASES, ids=[name for name, _ in CASES])
def test_the_averages_ramp_is_the_authors(name: str, case: dict[str, Any]) -> None:
    settings = EMASettings(halflife_images=case["ema_halflife_images"], rampup_ratio=case["ema_rampup_ratio"])
    for step, losses in enumerate(case["losses"]):
        assert ema_beta(settings, step * case["batch"], case["batch"]) == pytest.approx(losses["ema_beta"])


def test_the_average_keeps_half_after_its_half_life() -> None:
    settings = EMASettings(halflife_images=5000, rampup_ratio=0.05)
    late = 5000 / 0.05
    assert ema_beta(settings, int(late), 100) ** 50 == pytest.approx(0.5)
    assert ema_beta(settings, int(10 * late), 100) == ema_beta(settings, int(late), 100)
    assert ema_beta(settings, int(late / 2), 100) == pytest.approx(0.5 ** (100 / 2500))


def test_without_a_ramp_the_half_life_holds_from_the_start() -> None:
    settings = EMASettings(halflife_images=5000, rampup_ratio=0)
    assert ema_beta(settings, 0, 100) == ema_beta(settings, 10**6, 100) == pytest.approx(0.5 ** (100 / 5000))


# SiDA's start-up phases.


def test_phases_end_strictly_after_their_images() -> None:
    phases = AdversarialSettings(generator_start_images=100, adversarial_start_images=200)
    assert [generator_learns(phases, images) for images in (0, 99, 100, 101)] == [False, False, False, True]
    assert [adversary_acts(phases, images) for images in (0, 199, 200, 201)] == [False, False, False, True]


def test_phases_of_zero_images_are_over_at_the_start() -> None:
    phases = AdversarialSettings(generator_start_images=0, adversarial_start_images=0)
    assert generator_learns(phases, 0) and adversary_acts(phases, 0)


def test_without_the_adversarial_term_theta_learns_at_once_and_no_adversary_acts() -> None:
    assert generator_learns(None, 0) and not adversary_acts(None, 10**9)
