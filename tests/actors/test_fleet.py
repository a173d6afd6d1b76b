"""What makes a fleet of scorers grow and shrink."""

from __future__ import annotations

import pytest

from raysid.actors.fleet import Total


def test_a_rate_is_of_the_last_seconds_alone() -> None:
    """Ten seconds at 0.5 a second, then ten at 0.1: both windows are there, whichever is asked for first."""
    total, value = Total(seconds=15), 0.0
    for second in range(21):
        total.add(second, value)
        value += 0.5 if second < 10 else 0.1
    assert total.rate(20, 5) == pytest.approx(0.1)
    assert total.rate(20, 15) == pytest.approx((5 * 0.5 + 10 * 0.1) / 15)
    assert total.rate(20, 5) == pytest.approx(0.1)


def test_a_rate_needs_its_whole_time() -> None:
    total = Total(seconds=10)
    total.add(0, 0.0)
    total.add(4, 2.0)
    assert total.rate(4, 5) is None
    assert total.rate(4, 4) == pytest.approx(0.5)


def test_a_total_that_falls_begins_anew() -> None:
    """A scorer that was started again counts from zero."""
    total = Total(seconds=10)
    for second, value in enumerate([5.0, 6.0, 7.0, 0.0, 1.0]):
        total.add(second, value)
    assert total.rate(4, 4) is None
    assert total.rate(4, 1) == pytest.approx(1.0)
