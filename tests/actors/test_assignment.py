"""Which scorer takes which call, without a cluster."""

from __future__ import annotations

from itertools import count

import pytest

from raysid.actors.assignment import FORGET_SECONDS, WINDOW, Line, Speeds, assign


def finish(number: int, seconds: list[float], known: bool = True) -> tuple[list[int], float]:
    """Let scorers with calls of these lengths serve `number` calls; return the calls of each and the seconds taken."""
    lines: list[list[float]] = [[] for _ in seconds]  # the ends of each scorer's calls
    waiting, now, measured, served = number, 0.0, [known] * len(seconds), [0] * len(seconds)
    while waiting or any(lines):
        state = [
            Line(len(ends), max(ends, default=now) - now, own if has else None)
            for ends, own, has in zip(lines, seconds, measured, strict=True)
        ]
        for _, scorer in assign(waiting, state):
            lines[scorer].append(max([now, *lines[scorer]]) + seconds[scorer])
            waiting -= 1
            served[scorer] += 1
        assert all(len(ends) <= WINDOW for ends in lines)
        now = min(end for ends in lines for end in ends)
        for scorer, ends in enumerate(lines):
            measured[scorer] = measured[scorer] or now in ends
            lines[scorer] = [end for end in ends if end > now]
    return served, now


@pytest.mark.parametrize("known", [True, False])
def test_of_two_scorers_one_slowed_to_a_third_takes_one_of_four(known: bool) -> None:
    assert finish(4, [1.0, 3.0], known) == ([3, 1], 3.0)
    assert finish(4, [3.0, 1.0], known) == ([1, 3], 3.0)


def test_a_slow_scorer_takes_nothing_that_the_fast_one_ends_sooner() -> None:
    assert finish(2, [1.0, 3.0]) == ([2, 0], 2.0)


@pytest.mark.parametrize("number", [8, 16, 64])
@pytest.mark.parametrize("seconds", [[1.0, 3.0], [1.0, 1.0, 5.0], [1.0, 1.3, 0.7, 2.0]])
def test_many_calls_take_little_longer_than_if_divided_ideally(number: int, seconds: list[float]) -> None:
    ideal = number / sum(1 / own for own in seconds)
    assert finish(number, seconds)[1] <= ideal + max(seconds)


def test_equal_scorers_take_equal_shares_in_turn() -> None:
    assert finish(8, [1.0, 1.05, 0.95, 1.0])[0] == [2, 2, 2, 2]
    lines = [Line(0, 0.0, 1.0), Line(0, 0.0, 1.1), Line(0, 0.0, 0.9)]
    assert [assign(1, lines, turn) for turn in range(3)] == [[(0, 0)], [(0, 1)], [(0, 2)]]


def test_calls_wait_for_room_and_for_an_unknown_scorers_first_answer() -> None:
    assert assign(9, [Line(WINDOW, 0.1, 1.0)]) == []
    assert assign(9, [Line(0, 0.0, None), Line(0, 0.0, None)]) == [(0, 0), (1, 1)]
    assert assign(9, [Line(1, 0.0, None)]) == []
    assert assign(1, []) == []


def test_one_slow_call_says_nothing_about_a_scorer() -> None:
    """Its first one may compile, and any may be held up; after two it counts as slow."""
    speeds, clock = Speeds(), count(1.0)
    assert speeds.seconds("a", "score", 1.0) is None
    expected = [None, 0.1, 0.1, 0.1, 3.0]
    for seconds, then in zip((8.0, 0.1, 0.1, 3.0, 3.0), expected, strict=True):
        speeds.note("a", "score", seconds, now := next(clock))
        assert speeds.seconds("a", "score", now) == then
    assert speeds.seconds("a", "pullback", now) is None and speeds.seconds("b", "score", now) is None


def test_speeds_are_forgotten() -> None:
    """A scorer that has had no call for a while may be faster now: it is tried again."""
    speeds = Speeds()
    for now in (1.0, 2.0):
        speeds.note("a", "score", 3.0, now)
    assert speeds.seconds("a", "score", 2.0 + FORGET_SECONDS) == 3.0
    later = 3.0 + FORGET_SECONDS
    assert speeds.seconds("a", "score", later) is None
    speeds.note("a", "score", 0.1, later)
    assert speeds.seconds("a", "score", later) is None
