"""The throughput of scorers of unequal speed against the ideal: `python -m tests.benchmarks.stragglers`.

The scorers sleep instead of computing, so that the figure is of the pool's division of the work alone. Ideal is the
sum of the scorers' own rates; in equal shares, all wait for the slowest.
"""

from __future__ import annotations

import argparse
import logging
import time
from typing import Any

import ray

from raysid.actors.attendance import Attendance
from raysid.actors.fleet import Members, Scorer
from raysid.actors.pool import TeacherPool
from raysid.actors.teacher_actor import Answered
from raysid.config import RoleResources
from raysid.roles.messages import Slice
from raysid.run.table import print_table


class SleepingScorer:
    """Stands in for a scorer: each call sleeps for `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def score(self, *arguments: Any) -> tuple[None, Answered]:
        time.sleep(self.seconds)
        return None, Answered(Slice(0, 0, 1), "")

    pullback = score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seconds", type=float, default=0.1, help="length of a fast scorer's call (default 0.1)"
    )
    parser.add_argument("--microbatches", type=int, default=16, help="microbatches of a step (default 16)")
    parser.add_argument("--steps", type=int, default=6, help="steps, of which two warm up (default 6)")
    options = parser.parse_args()
    for name in ("ray", "ray._private.authentication"):
        logging.getLogger(name).setLevel(logging.ERROR)
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    rows = []
    for slowness in ([1, 1], [1, 3], [1, 1, 1, 3], [1, 1, 2, 4]):
        ideal = sum(1 / (2 * options.seconds * factor) for factor in slowness)
        equal = len(slowness) / (2 * options.seconds * max(slowness))
        rate = measured(slowness, options.seconds, options.microbatches, options.steps)
        rows.append(
            [" ".join(map(str, slowness)), f"{ideal:.1f}", f"{equal / ideal:.0%}", f"{rate / ideal:.0%}"]
        )
    print_table(
        "Scorers of unequal speed",
        ["slowness of the scorers", "ideal, microbatches/s", "equal shares", "measured"],
        rows,
    )
    ray.shutdown()


def measured(slowness: list[float], seconds: float, microbatches: int, steps: int) -> float:
    """Return the microbatches a second of scorers that are so many times slower than `seconds` a call."""
    actor = ray.remote(num_cpus=0)(SleepingScorer)
    scorers = tuple(Scorer(n, actor.remote(seconds * factor)) for n, factor in enumerate(slowness))
    pool = TeacherPool(Attendance("", lambda status: Members(0, scorers), RoleResources(), timeout=60))
    there = ray.put(None)
    for step in range(steps):
        if step == 2:
            began = time.perf_counter()
        inputs = [ray.put(number) for number in range(microbatches)]
        scored = [(pool.score(noised, None, 1.0), there) for noised in inputs]
        pulls = [pool.pullback(inputs[number], None, there, 1.0) for number in pool.arrivals(scored)]
        for pull in pulls:
            pull.wait(there)
    rate = (steps - 2) * microbatches / (time.perf_counter() - began)
    for scorer in scorers:
        ray.kill(scorer.actor)
    return rate


if __name__ == "__main__":
    main()
