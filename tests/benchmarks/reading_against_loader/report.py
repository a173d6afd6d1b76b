"""The output of a measurement of reading: a table and lines for a terminal, JSON for programs."""

from __future__ import annotations

from typing import Any

from raysid.bench.compare import format_ratio, ratio
from raysid.run.table import print_table
from tests.benchmarks.reading_against_loader.measure import STAND_IN, Reading, ReadSide


def print_reading(found: Reading) -> None:
    """Print a measurement."""
    rounds = len(found.stream.rounds)
    sides = [("raysid's stream, through Ray Data", found.stream)]
    if found.loader is not None:
        workers = f"{found.workers} worker{'s' * (found.workers != 1)}"
        sides.append((f"torch DataLoader, {workers}", found.loader))
    print_table(
        f"reading {found.source.name} alone: images a second, medians over {rounds} rounds",
        ["", "images/s", "lowest", "highest", "images a round", "s to the first batch"],
        [
            [
                title,
                *(f"{value:,.0f}" for value in (side.images_per_second, min(side.speeds), max(side.speeds))),
                f"{side.images:,}",
                f"{side.first_batch:.2f}",
            ]
            for title, side in sides
        ],
    )
    if found.loader is not None:
        print(format_ratio(ratio(found.stream, found.loader)))
    if found.no_loader:
        print(found.no_loader)
    print(
        f"batches of {found.config.batch_size}, windows of {found.window:,}; not counted: starting, and the reading "
        "for half a round that follows it"
    )
    if found.window == found.source.num_images:
        print(
            f"all {found.window:,} images fit data.shuffle_window: the stream reads them once, and has them in memory"
        )
    _print_waiting(found)


def as_json(found: Reading) -> dict[str, Any]:
    """Return all of a measurement in numbers: seconds, and shares of 1."""
    waiting = found.waiting
    tree: dict[str, Any] = ratio(found.stream, found.loader) | {
        "settings": found.config.model_dump(mode="json"),
        "recipe": found.recipe,
        "num_images": found.source.num_images,
        "image_shape": list(found.source.image_shape),
        "window": found.window,
        "stream": _numbers(found.stream),
        "learner": {
            "data_wait_share": waiting.share,
            "data_wait_share_by_round": [one.share for one in waiting.rounds],
            "seconds": waiting.seconds,
            "steps": waiting.steps,
            "new_windows": waiting.new_windows,
            "start_wait_seconds": waiting.start,
        },
    }
    if found.loader is not None:
        tree["loader"] = _numbers(found.loader) | {"num_workers": found.workers}
    return tree


def _print_waiting(found: Reading) -> None:
    waiting, config = found.waiting, found.config
    print()
    if found.recipe is None:
        channels, height, width = found.source.image_shape
        print(
            f"a run: no RECIPE was given: {STAND_IN}, its network for images of {width}x{height} in {channels} "
            f"channel{'s' * (channels != 1)}"
        )
    else:
        print(f"a run: {found.recipe}")
    shares = [one.share for one in waiting.rounds]
    print(
        f"the fake-score learner waits for real images {waiting.share:.2%} of the time "
        f"({min(shares):.2%} to {max(shares):.2%} by round)"
    )
    windows = f", {waiting.new_windows} new window{'s' * (waiting.new_windows != 1)} of {found.window:,}"
    print(
        f"{waiting.steps:,} steps of {config.batch_size} in {waiting.seconds:.1f} s, "
        f"{waiting.steps * config.batch_size / waiting.seconds:,.1f} images/s"
        f"{windows if waiting.new_windows else ''}; before the first step {waiting.start:.2f} s"
    )


def _numbers(side: ReadSide) -> dict[str, Any]:
    return {
        "images_per_second": side.images_per_second,
        "images_per_second_by_round": side.speeds,
        "images_by_round": [one.images for one in side.rounds],
        "first_batch_seconds": side.first_batch,
        "first_batch_seconds_by_round": [one.first_batch for one in side.rounds],
    }
