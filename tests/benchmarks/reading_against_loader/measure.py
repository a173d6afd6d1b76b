"""Measuring reading: the stream against a DataLoader, in turns, and a learner's wait for the stream in a run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from raysid.actors.capacity import wait_for_capacity, wait_for_reading
from raysid.actors.placement import all_cores
from raysid.actors.results import get
from raysid.bench.compare import InRounds, stand_in_teacher, steady
from raysid.bench.sides import Side
from raysid.cluster.connect import connect
from raysid.config import Config, RoleResources
from raysid.data import ImageSource, open_source
from raysid.errors import UserError
from raysid.networks.files import load_card
from raysid.recipes import load_recipe
from raysid.trainers.inputs import run_inputs
from raysid.trainers.teacher_checks import check_fits
from tests.benchmarks.reading_against_loader.loader import no_loader
from tests.benchmarks.reading_against_loader.readers import LoaderProcess, StreamReader, Turn

STAND_IN = "quickstart-digits-sida"

Report = Callable[[str], None]


@dataclass(frozen=True)
class ReadSide(InRounds):
    """The rounds of one side."""

    rounds: list[Turn]

    @property
    def images(self) -> int:
        """Images of a round: the median."""
        return int(statistics.median(one.images for one in self.rounds))

    @property
    def first_batch(self) -> float:
        """Seconds to the first batch: the median over rounds."""
        return statistics.median(one.first_batch for one in self.rounds)


@dataclass(frozen=True)
class Wait:
    """A round of a run's steps.

    Attributes:
        seconds: wall time.
        waited: seconds of it in which the fake-score learner waited for real images.
    """

    steps: int
    seconds: float
    waited: float

    @property
    def share(self) -> float:
        return self.waited / self.seconds


@dataclass(frozen=True)
class Waiting:
    """The fake-score learner's wait for real images in a run.

    Attributes:
        start: seconds of waiting before the first steps, which are not in the rounds.
        new_windows: number of windows that the rounds began.
    """

    start: float
    rounds: list[Wait]
    new_windows: int

    @property
    def steps(self) -> int:
        return sum(one.steps for one in self.rounds)

    @property
    def seconds(self) -> float:
        return sum(one.seconds for one in self.rounds)

    @property
    def share(self) -> float:
        """The share of the time of all rounds."""
        return sum(one.waited for one in self.rounds) / self.seconds


@dataclass(frozen=True)
class Reading:
    """The result of a measurement.

    Attributes:
        recipe: recipe of the measured run; None for the stand-in.
        window: images in memory at a time.
        stream, loader: the two sides; `loader` is None for a source that no DataLoader reads.
        no_loader: the reason for that.
        workers: worker processes of the DataLoader.
    """

    config: Config
    recipe: str | None
    source: ImageSource
    window: int
    stream: ReadSide
    loader: ReadSide | None
    no_loader: str | None
    workers: int
    waiting: Waiting


def measure_reading(
    recipe: str | None,
    overrides: dict[str, Any],
    rounds: int = 5,
    seconds: float = 10.0,
    report: Report = lambda line: None,
) -> Reading:
    """Measure the stream alone against a DataLoader, then a learner's wait for the stream in a run.

    Args:
        recipe: recipe of the run; None takes the quickstart's, with a network for the images.
        overrides: settings by dotted name, `data.source` among them.
        rounds: rounds of each side, and parts of the run.
        seconds: approximate length of a round.
        report: called with a line after every round.

    Raises:
        UserError: an argument cannot be used.
        RunFailed: the cluster lacks resources, or reading failed.
    """
    config = load_recipe(recipe or STAND_IN, overrides, kind="distill")
    if config.method.adversarial is None:
        raise UserError(
            f"{recipe or 'method.adversarial null'} is SiD, which uses no real images: give a recipe of SiDA"
        )
    source = open_source(config.data)
    if recipe is None:
        config = load_recipe(STAND_IN, _made_for(source) | overrides, kind="distill")
    config = steady(config)
    with stand_in_teacher(config) as teacher:
        check_fits(load_card(teacher, "teacher").network, recipe or "the stand-in network", source)
        connect()
        why = no_loader(source)
        workers = all_cores()
        sides = _read_in_turns(config, source, 0 if why else workers, rounds, seconds, report)
        waiting = _wait_of_learner(config, source, teacher, rounds, seconds, report)
    stream, loader = [*sides, None][:2]
    assert stream is not None
    window = min(config.data.shuffle_window, source.num_images)
    return Reading(config, recipe, source, window, stream, loader, why, workers, waiting)


def _made_for(source: ImageSource) -> dict[str, Any]:
    """Return overrides that give the quickstart a network for these images."""
    channels, height, width = source.image_shape
    if height != width or height % 2:
        raise UserError(
            f"the images of {source.name} are {width}x{height}: give --data.resolution with an even number, or a "
            "RECIPE whose network is for them"
        )
    teacher = load_recipe(STAND_IN, kind="distill").teacher.recipe
    assert teacher is not None
    network = load_recipe(teacher, kind="pretrain").network.model_dump(mode="json")
    own = {"img_resolution": height, "img_channels": channels, "label_dim": source.num_classes}
    return {"teacher.network": network | own}


def _read_in_turns(
    config: Config, source: ImageSource, workers: int, rounds: int, seconds: float, report: Report
) -> list[ReadSide]:
    """Measure rounds of the stream, and of a DataLoader with so many workers unless that is 0."""
    with _sides(config, source, workers, report) as sides:
        for turn in sides:  # starts their processes, and fills the disk's cache
            turn(config.seed, seconds / 2)
        turns: list[list[Turn]] = [[] for _ in sides]
        for number in range(rounds):
            for turn, own in zip(sides, turns, strict=True):
                # Another order each time: the cache holds the last pictures of the round before.
                own.append(turn(config.seed + 1 + number, seconds))
            speeds = " against ".join(f"{own[-1].images_per_second:,.0f}" for own in turns)
            report(f"reading, round {number + 1} of {rounds}: {speeds} images/s")
    return [ReadSide(own) for own in turns]


@contextmanager
def _sides(
    config: Config, source: ImageSource, workers: int, report: Report
) -> Iterator[list[Callable[[int, float], Turn]]]:
    """Yield `Reader.turn` of each side: the stream in an actor, as in the fake-score learner, and the DataLoader."""
    timeout = config.failure.placement_timeout_s
    needs = RoleResources(num_cpus=config.resources.fake_score.num_cpus)
    stream: Any = ray.remote(StreamReader).options(num_cpus=needs.num_cpus).remote(config, source)
    loader = LoaderProcess(config, source, workers) if workers else None
    try:
        ready = [stream.ready.remote()]
        wait_for_capacity(
            lambda wait: bool(ray.wait(ready, timeout=wait)[0]), "the stream", [needs], timeout, report
        )
        get(ready)
        wait_for_reading(timeout, report)
        stream_turn = [lambda seed, seconds: get(stream.turn.remote(seed, seconds))]
        yield stream_turn + ([loader.turn] if loader else [])
    finally:
        ray.kill(stream)
        if loader is not None:
            loader.close()


def _wait_of_learner(
    config: Config, source: ImageSource, teacher: str, rounds: int, seconds: float, report: Report
) -> Waiting:
    """Measure steps of a run: whole windows of images, if the set is larger than one."""
    window, size = config.data.shuffle_window, config.batch_size
    side = Side(run_inputs(config, teacher, source), source)
    try:
        steps = rounds * side.warm_up(seconds)
        new_windows = 0
        if window < source.num_images:
            new_windows = math.ceil(steps * size / window)
            steps = math.ceil(new_windows * window / size)
        start = before = _data_wait(side)
        found: list[Wait] = []
        for number in range(rounds):
            count = steps * (number + 1) // rounds - steps * number // rounds
            if not count:
                continue
            measured = side.round(count)
            after = _data_wait(side)
            found.append(Wait(count, measured.seconds, after - before))
            before = after
            report(
                f"a run, round {number + 1} of {rounds}: waits {found[-1].share:.2%} of {measured.seconds:.1f} s, "
                f"{measured.images_per_second:,.1f} images/s"
            )
    finally:
        side.close()
    return Waiting(start, found, new_windows)


def _data_wait(side: Side) -> float:
    """Return the seconds that the fake-score learner has waited for real images so far."""
    return side.placement.report()["fake_score"]["data_wait_seconds"]
