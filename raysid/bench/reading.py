"""What reading real images costs: the stream against a DataLoader, in turns, and a learner's wait in a real run."""

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
from raysid.bench.compare import stand_in_teacher, steady
from raysid.bench.loader import no_loader
from raysid.bench.readers import LoaderProcess, StreamReader, Turn
from raysid.bench.sides import Side
from raysid.bench.speeds import InRounds
from raysid.cluster.connect import connect
from raysid.config import Config, RoleResources
from raysid.data import ImageSource, open_source
from raysid.errors import UserError
from raysid.networks.files import load_card
from raysid.recipes import load_recipe
from raysid.trainers.inputs import run_inputs
from raysid.trainers.teacher_checks import check_fits

STAND_IN = "quickstart-digits-sida"

Say = Callable[[str], None]


@dataclass(frozen=True)
class ReadSide(InRounds):
    """One side's rounds."""

    rounds: list[Turn]

    @property
    def images(self) -> int:
        """Images of a round, the median."""
        return int(statistics.median(one.images for one in self.rounds))

    @property
    def first_batch(self) -> float:
        """Seconds to the first batch, the median over rounds."""
        return statistics.median(one.first_batch for one in self.rounds)


@dataclass(frozen=True)
class Wait:
    """A round of a run's steps.

    Attributes:
        seconds: wall time.
        waited: seconds of it in which the fake-score learner's reading of real images held it up.
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
        start: seconds that it waited before its first steps, which are not in the rounds.
        new_windows: how often the rounds came to images that were not in memory.
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
        """Of the time of all rounds."""
        return sum(one.waited for one in self.rounds) / self.seconds


@dataclass(frozen=True)
class DataBench:
    """What a bench of real images found.

    Attributes:
        recipe: whose run was measured; None where one was made up for the images.
        window: images in memory at a time.
        stream, loader: the two sides; `loader` is None where there is none for such a source.
        no_loader: why.
        workers: the DataLoader's.
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


def bench_data(
    recipe: str | None,
    overrides: dict[str, Any],
    rounds: int = 5,
    seconds: float = 10.0,
    say: Say = lambda line: None,
) -> DataBench:
    """Measure the stream alone against a DataLoader, then a learner's wait for the stream in a run.

    Args:
        recipe: whose run is measured; None takes the quickstart's, its network made for the images.
        overrides: settings by dotted name; `data.source` says which images.
        rounds: of each side, and parts of the run.
        seconds: about how long a round takes.
        say: takes a line after every round.

    Raises:
        UserError: something given cannot be used.
        RunFailed: the cluster has no room, or reading failed.
    """
    config = load_recipe(recipe or STAND_IN, overrides, kind="distill")
    if config.method.adversarial is None:
        raise UserError(
            f"{recipe or 'method.adversarial null'} is SiD, which uses no real images: --data is for SiDA's recipes"
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
        sides = _read_in_turns(config, source, 0 if why else workers, rounds, seconds, say)
        waiting = _wait_of_learner(config, source, teacher, rounds, seconds, say)
    stream, loader = [*sides, None][:2]
    assert stream is not None
    window = min(config.data.shuffle_window, source.num_images)
    return DataBench(config, recipe, source, window, stream, loader, why, workers, waiting)


def _made_for(source: ImageSource) -> dict[str, Any]:
    """The quickstart's network, but for these images."""
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
    config: Config, source: ImageSource, workers: int, rounds: int, seconds: float, say: Say
) -> list[ReadSide]:
    """Rounds of the stream, and of a DataLoader of so many workers where that is not 0."""
    with _sides(config, source, workers, say) as sides:
        for (
            turn
        ) in sides:  # their processes are started, and the files are in the disk's cache if they ever are
            turn(config.seed, seconds / 2)
        turns: list[list[Turn]] = [[] for _ in sides]
        for number in range(rounds):
            for turn, of_side in zip(sides, turns, strict=True):
                # Another order each time: not the pictures that the last round left in that cache.
                of_side.append(turn(config.seed + 1 + number, seconds))
            speeds = " against ".join(f"{of_side[-1].images_per_second:,.0f}" for of_side in turns)
            say(f"reading, round {number + 1} of {rounds}: {speeds} images/s")
    return [ReadSide(of_side) for of_side in turns]


@contextmanager
def _sides(
    config: Config, source: ImageSource, workers: int, say: Say
) -> Iterator[list[Callable[[int, float], Turn]]]:
    """`Reader.turn` of each side: the stream in an actor, as the fake-score learner is one, and the DataLoader."""
    timeout = config.failure.placement_timeout_s
    place = RoleResources(num_cpus=config.resources.fake_score.num_cpus)  # it computes nothing
    stream: Any = ray.remote(StreamReader).options(num_cpus=place.num_cpus).remote(config, source)
    loader = LoaderProcess(config, source, workers) if workers else None
    try:
        there = [stream.ready.remote()]
        wait_for_capacity(
            lambda wait: bool(ray.wait(there, timeout=wait)[0]), "the stream", [place], timeout, say
        )
        get(there)
        wait_for_reading(timeout, say)
        of_stream = [lambda seed, seconds: get(stream.turn.remote(seed, seconds))]
        yield of_stream + ([loader.turn] if loader else [])
    finally:
        ray.kill(stream)
        if loader is not None:
            loader.close()


def _wait_of_learner(
    config: Config, source: ImageSource, teacher: str, rounds: int, seconds: float, say: Say
) -> Waiting:
    """Steps of a run, as many as come to whole windows where the set is larger than one."""
    window, size = config.data.shuffle_window, config.batch_size
    side = Side(run_inputs(config, teacher, source), source)
    try:
        steps = rounds * side.warm_up(seconds)
        new_windows = 0
        if window < source.num_images:
            new_windows = math.ceil(steps * size / window)
            steps = math.ceil(new_windows * window / size)
        start = before = side.data_wait()
        found: list[Wait] = []
        for number in range(rounds):
            count = steps * (number + 1) // rounds - steps * number // rounds
            if not count:
                continue
            of_round = side.round(count)
            after = side.data_wait()
            found.append(Wait(count, of_round.seconds, after - before))
            before = after
            say(
                f"a run, round {number + 1} of {rounds}: waits {found[-1].share:.2%} of {of_round.seconds:.1f} s, "
                f"{of_round.images_per_second:,.1f} images/s"
            )
    finally:
        side.close()
    return Waiting(start, found, new_windows)
