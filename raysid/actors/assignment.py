"""The choice of a scorer for each call: the one that is expected to finish it first, by the speeds measured so far."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import fmean

WINDOW = 2  # calls that a scorer has at a time: it computes one while the next one's inputs travel
FORGET_SECONDS = 60.0  # then a scorer may have become faster
ABOUT_AS_SOON = 0.25  # of the fastest one's call: so much later is as good, so that equal scorers take turns


class Speeds:
    """The measured lengths of the calls of each scorer, by kind of call; old ones are forgotten.

    The shorter one of the last two counts: a scorer's first call, which may compile, and a single hiccup say nothing
    about its speed.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[Hashable, str], tuple[float, deque[float]]] = {}

    def note(self, scorer: Hashable, kind: str, seconds: float, now: float) -> None:
        """Note the length of a call that ended at the time `now`, in seconds."""
        at, lengths = self._last.get((scorer, kind), (now, deque(maxlen=2)))
        if now - at > FORGET_SECONDS:
            lengths.clear()
        lengths.append(seconds)
        self._last[scorer, kind] = now, lengths

    def seconds(self, scorer: Hashable, kind: str, now: float) -> float | None:
        """Return the expected length of a call; None if too few have been measured of late."""
        at, lengths = self._last.get((scorer, kind), (now, ()))
        return min(lengths) if len(lengths) == 2 and now - at <= FORGET_SECONDS else None


@dataclass
class Line:
    """A scorer's calls as they are now.

    Attributes:
        calls: number of calls that it has.
        left: seconds in which it is expected to finish them.
        seconds: expected length of one more call with what it entails; None if it is not known.
    """

    calls: int
    left: float
    seconds: float | None


def assign(number: int, lines: Sequence[Line], turn: int = 0) -> list[tuple[int, int]]:
    """Choose the scorers of the first of `number` equal calls that wait.

    Each call goes to the scorer that would finish it first, although another one may be free: a slow scorer takes a
    call only if the fast ones would need longer for all of theirs. Only as many are submitted as the scorers' windows
    have room for. A scorer of unknown speed has one call at a time.

    Args:
        turn: index of the line that is preferred among those that would finish at about the same time.

    Returns:
        Pairs of a waiting call's index and a line's index.
    """
    known = [line.seconds for line in lines if line.seconds is not None]
    usual = fmean(known) if known else 1.0
    lengths = [usual if line.seconds is None else line.seconds for line in lines]
    lefts, calls = [line.left for line in lines], [line.calls for line in lines]
    pairs = []
    for call in range(number):
        able = [k for k, line in enumerate(lines) if line.seconds is not None or not calls[k]]
        if not able:
            break
        ends = {k: lefts[k] + lengths[k] for k in able}
        first = min(ends.values())
        as_soon = [k for k in able if ends[k] <= first + ABOUT_AS_SOON * min(lengths)]
        chosen = min(as_soon, key=lambda k: (calls[k], (k - turn - call) % len(lines)))
        lefts[chosen], calls[chosen] = ends[chosen], calls[chosen] + 1
        if calls[chosen] <= WINDOW:
            pairs.append((call, chosen))
    return pairs
