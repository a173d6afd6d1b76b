"""What reading real images costs: the stream against a DataLoader, in turns, and a learner's wait in a real run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from raysid.actors.placement import all_cores
from raysid.actors.placing import on_this_node, wait_for_reading, wait_for_room
from raysid.actors.results import get
from raysid.bench.compare import stand_in_teacher, steady
from raysid.bench.loader import no_loader
from raysid.bench.readers import LoaderReader, StreamReader, Taken
from raysid.bench.sides import Side
from raysid.cluster import connect
from raysid.config import Config, RoleResources
from raysid.data import ImageSource, open_source
from raysid.errors import UserError
from raysid.networks.files import load_card
from raysid.recipes import load_recipe
from raysid.trainers.inputs import run_inputs
from raysid.trainers.teachers import check_fits

STAND_IN = "quickstart-digits-sida"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Turn:
    """A round of one side.

    Attributes:
        first_batch: seconds from opening to the first batch; not part of what follows.
        taken: the images counted.
    """

    first_batch: float
    taken: Taken

    @property
    def images_per_second(self) -> float:
        return self.taken.images / self.taken.seconds


@dataclass(frozen=True)
class ReadSide:
    """One side's rounds."""

    turns: list[Turn]

    @property
    def speeds(self) -> list[float]:
        """Images a second, by round."""
        return [turn.images_per_second for turn in self.turns]

    @property
    def images_per_second(self) -> float:
        """The median over rounds."""
        return statistics.median(self.speeds)

    @property
    def first_batch(self) -> float:
        """Seconds to the first batch, the median over rounds."""
        return statistics.median(turn.first_batch for turn in self.turns)


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
        round_images: images of a round of reading.
        stream, loader: the two sides; `loader` is None where there is none for such a source.
        no_loader: why.
        workers: the DataLoader's.
    """

    config: Config
    recipe: str | None
    source: ImageSource
    window: int
    round_images: int
    stream: ReadSide
    loader: ReadSide | None
    no_loader: str | None
    workers: int
    waiting: Waiting

    @property
    def ratios(self) -> list[float]:
        """How many times faster the stream was, by round."""
        if self.loader is None:
            return []
        return [a / b for a, b in zip(self.stream.speeds, self.loader.speeds, strict=True)]


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
        sides, images = _read_in_turns(config, source, 0 if why else workers, rounds, seconds, say)
        waiting = _wait_of_learner(config, source, teacher, rounds, seconds, say)
    stream, loader = [*sides, None][:2]
    assert stream is not None
    window = min(config.data.shuffle_window, source.num_images)
    return DataBench(config, recipe, source, window, images, stream, loader, why, workers, waiting)


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
) -> tuple[list[ReadSide], int]:
    """Rounds of the stream, and of a DataLoader of so many workers where that is not 0; and the images of each."""
    window = min(config.data.shuffle_window, source.num_images)
    with _readers(config, source, workers, say) as readers:
        speed = min(_speed(reader, config, window, seconds) for reader in readers)
        images = round_images(speed * seconds, source.num_images, window)
        before = min(images, source.num_images)
        turns: list[list[Turn]] = [[] for _ in readers]
        for number in range(rounds):
            for reader, of_side in zip(readers, turns, strict=True):
                # Another order each time: not the pictures that the last round left in the disk's cache.
                of_side.append(_turn(reader, config.seed + 1 + number, before, images))
            speeds = " against ".join(f"{of_side[-1].images_per_second:,.0f}" for of_side in turns)
            say(f"reading, round {number + 1} of {rounds}: {speeds} images/s")
    return [ReadSide(of_side) for of_side in turns], images


@contextmanager
def _readers(config: Config, source: ImageSource, workers: int, say: Say) -> Iterator[list[Any]]:
    """An actor for each side: the stream as the fake-score learner has it, the DataLoader where the files are."""
    resources, timeout = config.resources.fake_score, config.failure.placement_timeout_s
    place = RoleResources(num_cpus=resources.num_cpus)  # it computes nothing
    readers: list[Any] = [ray.remote(StreamReader).options(num_cpus=place.num_cpus).remote(config, source)]
    if workers:
        loader = ray.remote(LoaderReader).options(num_cpus=0, scheduling_strategy=on_this_node())
        readers.append(loader.remote(config, source, workers))
    try:
        there = [reader.name.remote() for reader in readers]
        wait_for_room(
            lambda seconds: len(ray.wait(there, num_returns=len(there), timeout=seconds)[0]) == len(there),
            "reading",
            [place],
            timeout,
            say,
        )
        wait_for_reading(timeout, say)
        yield readers
    finally:
        for reader in readers:
            ray.kill(reader)


def _speed(reader: Any, config: Config, window: int, seconds: float) -> float:
    """Images a second of a side, starting counted; starts all processes that it needs before."""
    get(reader.open.remote(config.seed))
    get(reader.close.remote())
    images, took = get(reader.open.remote(config.seed))
    until = took + seconds
    while took < until:
        taken = get(reader.take.remote(window))
        images, took = images + taken.images, took + taken.seconds
    get(reader.close.remote())
    return images / took


def _turn(reader: Any, seed: int, before: int, images: int) -> Turn:
    """A round of a side. Closed in the end: what it would read ahead would cost the other side time.

    Args:
        before: images that are read and not counted: what was made ahead while the first batch was waited for must be
            used up.
    """
    first = get(reader.open.remote(seed))
    get(reader.take.remote(before))
    taken = get(reader.take.remote(images))
    get(reader.close.remote())
    return Turn(first.seconds, taken)


def round_images(wanted: float, num_images: int, window: int) -> int:
    """Images of a round: whole epochs where half of one or more is wanted, else whole windows; at least one.

    So the ends of windows, and those of epochs where they come often, cost a round what they cost a long run.
    """
    unit = num_images if wanted >= num_images / 2 else window
    return max(1, round(wanted / unit)) * unit


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
