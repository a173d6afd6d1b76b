"""The measurement of reading: both sides read the same images; output, files and refusals."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, set_start_method
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from raysid.config import Config, DataSettings
from raysid.data import ImageSource, open_source
from raysid.data.source import good_images
from raysid.errors import UserError
from raysid.recipes import load_recipe
from tests.benchmarks.reading_against_loader.__main__ import main
from tests.benchmarks.reading_against_loader.readers import LoaderReader, Reader, StreamReader, Turn
from tests.support.picture_files import digit_pictures, write_folder, write_parquet, write_tars, write_zip

IMAGES, WINDOW, BATCH = 300, 100, 32

WRITERS: dict[str, Callable[[Path], str]] = {
    "folder": lambda root: write_folder(root / "digits", digit_pictures(IMAGES)),
    "zip": lambda root: write_zip(root / "digits.zip", digit_pictures(IMAGES)),
    "parquet": lambda root: write_parquet(root / "digits.parquet", digit_pictures(IMAGES), group=30),
    "tars": lambda root: write_tars(root, digit_pictures(IMAGES), 60),
}


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def without_ray() -> Iterator[ProcessPoolExecutor]:
    """Allow torch to fork its workers in this process, as it usually can."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=start_as_usual) as process:
        yield process


@pytest.fixture
def images(tmp_path: Path) -> str:
    return WRITERS["zip"](tmp_path)


def start_as_usual() -> None:
    set_start_method(None, force=True)  # a spawned process would start its own


def config_of(path: str, **data: Any) -> Config:
    settings = DataSettings.model_validate({"source": path, "shuffle_window": WINDOW} | data)
    return load_recipe("quickstart-digits-sida", kind="distill").model_copy(
        update={"data": settings, "batch_size": BATCH}
    )


def epoch_of(reader: Reader) -> list[tuple[bytes, int]]:
    """Pixels and labels of the first epoch's images."""
    batches = reader.batches(seed=3)
    found: list[tuple[bytes, int]] = []
    while len(found) < IMAGES:
        images, labels = next(batches)
        found += [(pixels(image), int(label)) for image, label in zip(images, labels, strict=True)]
    batches.close()
    return found[:IMAGES]


def epoch_of_loader(config: Config, workers: int) -> list[tuple[bytes, int]]:
    return epoch_of(LoaderReader(config, open_source(config.data), workers))


def short_turn(config: Config) -> Turn:
    return LoaderReader(config, open_source(config.data), workers=1).turn(seed=0, seconds=0)


def stored(source: ImageSource) -> Counter[tuple[bytes, int]]:
    """Pixels and label of every valid image of a source."""
    return Counter(
        (image.tobytes(), int(label))
        for block in map(good_images, source.blocks())
        for image, label in zip(block["image"], block["label"], strict=True)
    )


def pixels(image: Any) -> bytes:
    return image.numpy().tobytes() if isinstance(image, torch.Tensor) else image.tobytes()


@pytest.mark.parametrize("kind", WRITERS)
def test_an_epoch_of_the_loader_has_every_image_once_with_its_label(
    kind: str, tmp_path: Path, without_ray: ProcessPoolExecutor
) -> None:
    source = open_source(path := WRITERS[kind](tmp_path))
    found = without_ray.submit(epoch_of_loader, config_of(path), 2).result()
    assert Counter(found) == stored(source)
    labels = [label for _, label in found]
    assert labels != sorted(labels), "digits lie sorted by class: they were not shuffled"


def test_an_epoch_of_the_stream_has_the_same(ray_cluster: None, images: str) -> None:
    source = open_source(images)
    assert Counter(epoch_of(StreamReader(config_of(images), source))) == stored(source)


def test_the_loader_crops_resizes_and_skips_as_the_source_does(
    tmp_path: Path, without_ray: ProcessPoolExecutor
) -> None:
    path = write_zip(tmp_path / "digits.zip", [("0/bad", b"no picture", 0), *digit_pictures(IMAGES + 1)[1:]])
    config = config_of(path, resolution=6, channels=3)
    good = stored(open_source(config.data))
    assert Counter(without_ray.submit(epoch_of_loader, config, 1).result()) == good
    assert {len(pixels) for pixels, _ in good} == {3 * 6 * 6} and good.total() == IMAGES


@pytest.mark.parametrize(("window", "images"), [(100, 100), (140, 140), (200, 300), (1000, 300)])
def test_a_round_ends_where_a_window_or_an_epoch_does(
    window: int, images: int, tmp_path: Path, without_ray: ProcessPoolExecutor
) -> None:
    """Whole windows in a short round, whole epochs in a round of at least half an epoch."""
    config = config_of(WRITERS["zip"](tmp_path), shuffle_window=window)
    turn = without_ray.submit(short_turn, config).result()
    assert images <= turn.images < images + BATCH and turn.first_batch > 0


def test_the_command(ray_cluster: None, images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a recipe, at another resolution than the quickstart's."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(
        main,
        [images, "--data.resolution", "4", "--data.shuffle_window", str(WINDOW),
         "--batch_size", str(BATCH), "--method.adversarial.group_size", str(BATCH), "--placement", "local",
         "--torch_threads", "1", "--rounds", "2", "--seconds", "0.1", "--json", "found.json"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for words in ("torch DataLoader, ", "ratio ", "waits for real images", "new windows of 100", "4x4 in 1"):
        assert words in result.output
    tree = json.loads((tmp_path / "found.json").read_text())
    for side in ("stream", "loader"):
        assert len(tree[side]["images_per_second_by_round"]) == 2
        assert min(tree[side]["images_by_round"]) >= WINDOW
        assert min(tree[side]["first_batch_seconds_by_round"]) > 0
    assert tree["ratio"] == pytest.approx(
        tree["stream"]["images_per_second"] / tree["loader"]["images_per_second"]
    )
    assert tree["image_shape"] == [1, 4, 4]
    learner = tree["learner"]
    assert 0 < learner["data_wait_share"] < 1 and learner["start_wait_seconds"] > 0
    # Whole windows: a run loads each window once.
    assert learner["steps"] * BATCH >= learner["new_windows"] * WINDOW > (learner["steps"] - 1) * BATCH
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no/such.zip"], "there is no file or folder"),
        (["digits.zip", "digits-sid"], "digits-sid is SiD, which uses no real images"),
        (["digits.zip", "quickstart-digits-sida", "--data.resolution", "16"], "(1, 16, 16)"),
        (["digits.zip", "--data.resolution", "7"], "are 7x7: give --data.resolution"),
        (["digits.zip", "--json", "no/such/found.json"], "there is no folder no/such"),
    ],
)
def test_a_request_that_cannot_be_measured_is_refused(
    arguments: list[str], words: str, images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, arguments)
    assert isinstance(result.exception, UserError) and words in str(result.exception), result.output
