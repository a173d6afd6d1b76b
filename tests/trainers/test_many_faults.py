"""Twenty faults at random moments of the quickstart's distillation: it ends as an undisturbed one, bit for bit.

Drivers, learners and scorers are killed; the disk fills up, or the bucket's quota is used up. The bucket fails a
fifth of its requests and breaks some connections, the whole time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
from upath import UPath

from raysid.config import Config
from raysid.recipes import load_recipe
from raysid.run.checkpoint import Checkpoints
from raysid.storage import read_whole
from tests.support.bucket_server import (
    BUCKET,
    FATES,
    Connection,
    bucket_environment,
    bucket_server,
    in_bucket,
)
from tests.support.processes import Command, Process, find, kill, no_orphans, wait_until
from tests.support.small_disk import Disk
from tests.support.tiny_run import Weights, assert_same, learner_states, leaves, write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

FAULTS = {"driver": 6, "FakeScoreActor": 4, "GeneratorActor": 4, "TeacherActor": 4, "no room": 2}
EVERY_IMAGES = 8_000  # between checkpoints; after most of them there is a fault
DISK = 100 << 20
QUOTA = (403, "The project's storage quota has been exceeded.")


@dataclass
class Place:
    """The storage of a disturbed run.

    Attributes:
        storage: its address in the recipe.
        run: the run's folder, through a connection that never fails.
        fill, free: take all its room, and give it back; `fill` may be called again.
        full: how a run says that there is no room.
    """

    storage: str
    run: UPath
    fill: Callable[[], None]
    free: Callable[[], None]
    full: str


@contextmanager
def small_disk(disk: Disk) -> Iterator[Place]:
    disk.resize(DISK)
    yield Place(str(disk.folder), UPath(disk.folder / "run"), disk.fill, disk.free, "the disk is full")


@contextmanager
def bad_bucket(seed: int) -> Iterator[Place]:
    with bucket_server() as server, pytest.MonkeyPatch.context() as patch:
        connection = Connection(server, bad=True, seed=seed)
        for name, value in bucket_environment(connection.address).items():
            patch.setenv(name, value)

        def refuse(refusal: tuple[int, str] | None = QUOTA) -> None:
            connection.refusal = refusal

        storage = f"gs://{BUCKET}/faults"
        run = in_bucket(server, f"{storage}/run")
        yield Place(storage, run, refuse, lambda: refuse(None), QUOTA[1])
        assert connection.met.keys() == FATES.keys()
        connection.close()


@dataclass
class Sessions:
    """The commands of one run: after the end of one, the next resumes it."""

    recipe: Path
    logs: Path
    number: int = 0
    left: list[Process] = field(default_factory=list)
    command: Command = field(init=False)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.number += 1
        self.command = Command("distill", self.recipe, log=self.logs / f"session-{self.number}.log")

    def assert_running(self) -> None:
        assert self.command.process.poll() is None, self.command.output[-3000:]

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        def come() -> bool:
            self.assert_running()
            return condition()

        wait_until(come, 240, what)


def strike(fault: str, sessions: Sessions, place: Place, chance: random.Random) -> None:
    """Let a fault happen, and have the run go on: by itself, or by the same command where the driver has ended."""
    if fault == "driver":
        sessions.left += sessions.command.kill()
        sessions.begin()
    elif fault == "no room":
        end = time.monotonic() + 240
        while sessions.command.process.poll() is None:
            place.fill()  # again: the run removes old checkpoints
            assert time.monotonic() < end, f"it runs on without room:\n{sessions.command.output[-3000:]}"
            time.sleep(0.2)
        place.free()
        assert sessions.command.process.returncode == 1, sessions.command.output[-3000:]
        [line] = [line for line in sessions.command.output.splitlines() if line.startswith("raysid: ")]
        assert place.full in line
        sessions.begin()
    else:
        title = f"ray::{fault}"
        sessions.wait_until(lambda: bool(find(title, sessions.command.pid)), title)
        kill(chance.choice(find(title, sessions.command.pid)))


def results(run: UPath) -> Weights:
    """The states of the newest checkpoint, and both generators."""
    newest = Checkpoints(run / "checkpoints").newest()
    assert newest is not None
    found = learner_states(newest.path) | {"step": newest.step}
    for folder in ("generator", "generator-best"):
        weights = read_whole(run / folder / "model.safetensors")
        found |= leaves(folder, safetensors.torch.load(weights))
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Weights]:
    """The settings of the quickstart's distillation, with its teacher's folder, and its results in one process."""
    storage = tmp_path_factory.mktemp("undisturbed")
    overrides = {
        "storage": str(storage),
        "run.name": "run",
        "placement": "local",
        "torch_threads": 1,  # as with `split`: the number decides the last digits
        "checkpoint.every_images": EVERY_IMAGES,
    }
    config = load_recipe("quickstart-digits-sida", overrides, kind="distill")
    command = Command("distill", write_recipe(config, storage / "run.yaml"), log=storage / "log.txt")
    assert command.wait(1800) == 0, command.output[-3000:]
    [teacher] = [path for path in (storage / "teachers").iterdir() if path.is_dir()]
    given = config.teacher.model_copy(update={"recipe": None, "path": str(teacher), "num_replicas": 2})
    settings = config.model_copy(update={"placement": "split", "teacher": given})
    return settings, results(UPath(storage / "run"))


@pytest.mark.parametrize("kind", ["disk", "bucket"])
def test_twenty_faults_change_nothing(
    kind: str, undisturbed: tuple[Config, Weights], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seed = {"disk": 1, "bucket": 2}[kind]
    chance = random.Random(seed)
    settings, expected = undisturbed
    with small_disk(request.getfixturevalue("disk")) if kind == "disk" else bad_bucket(seed) as place:
        config = settings.model_copy(update={"storage": place.storage})
        checkpoints = Checkpoints(place.run / "checkpoints")

        def saved(images: int) -> bool:
            newest = checkpoints.newest_step()
            return newest is not None and newest * config.batch_size >= images

        faults = [fault for fault, times in FAULTS.items() for _ in range(times)]
        chance.shuffle(faults)
        intervals = sorted(chance.sample(range(config.total_images // EVERY_IMAGES - 1), len(faults)))
        sessions = Sessions(write_recipe(config, tmp_path / "run.yaml"), tmp_path)
        try:
            for fault, interval in zip(faults, intervals, strict=True):
                images = interval * EVERY_IMAGES
                sessions.wait_until(partial(saved, images), f"a checkpoint of {images} images")
                time.sleep(chance.uniform(0, 3))
                strike(fault, sessions, place, chance)
            assert sessions.command.wait(600) == 0, sessions.command.output[-3000:]
            assert_same(results(place.run), expected)
        finally:
            no_orphans(sessions.left + sessions.command.kill())
