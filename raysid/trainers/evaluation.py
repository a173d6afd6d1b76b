"""Measure generators and teachers: the same figures in training, in the final table, and by `raysid evaluate`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import cycle
from typing import Any

import numpy as np
import torch
from torch import Tensor
from upath import UPath

from raysid.config import Config, PretrainConfig
from raysid.config.method import NoiseSteps
from raysid.data import Block, ImageSource, Piece, open_source, to_unit
from raysid.data.scikit_learn import DigitsSource
from raysid.data.source import good_images
from raysid.errors import RunFailed, UserError
from raysid.generator import FOLDERS, Generator, Which, load_generator
from raysid.method.draws import Draws
from raysid.method.noise import DDPMNoise, EDMNoise
from raysid.method.sampling import ddim, heun
from raysid.metrics.classifier import load_digits_classifier
from raysid.metrics.evaluate import Evaluator
from raysid.networks import build_denoiser
from raysid.networks.denoiser import Network
from raysid.networks.files import NetworkCard, load_network
from raysid.roles.conditions import one_hot

BATCH = 500
GRID_ROWS = 10
GRID_COLUMNS = 8
PROMPT_COLUMNS = 4
GRID_REAL = 1024  # first images of the source among which the grid's real ones are chosen

MakeImages = Callable[[Tensor, Tensor | None], Tensor]
"""Makes images (B, C, H, W) from noise of that shape and class indices (B,) or None."""


@dataclass(frozen=True)
class Grids:
    """Generated images at a fixed z, one row per class, and as many real ones if any: (N, C, H, W) in [-1, 1].

    Attributes:
        prompts: the prompt of each generated image, for a generator that takes text.
    """

    generated: np.ndarray
    real: np.ndarray | None
    columns: int = GRID_COLUMNS
    prompts: tuple[str, ...] | None = None


def measures(source: str | None) -> bool:
    """Return True if generated images can be compared with the real ones of a source: only for digits.

    Args:
        source: the source's name; the source itself is not opened.
    """
    return source == DigitsSource.name


def measure(make: MakeImages, card: NetworkCard, source: str, num_samples: int, seed: int) -> dict[str, Any]:
    """Return the Fréchet distance to all real images of `source`, the label accuracy and the milliseconds per image.

    The noise of sample i is a function of (seed, i) and its label is i modulo the number of classes, so that two
    networks measured with the same seed are measured on the same noise.
    """

    def generate(start: int, count: int) -> tuple[Tensor, Tensor | None]:
        z, labels = _noise_and_labels(card, seed, start, count)
        return make(z, labels), labels

    return dict(evaluator(source).evaluate(generate, num_samples, BATCH, card.network.label_dim))


def _noise_and_labels(card: NetworkCard, seed: int, start: int, count: int) -> tuple[Tensor, Tensor | None]:
    """Return z of samples `start` to `start + count`, and their class indices if there are classes."""
    classes = card.network.label_dim
    z = Draws(seed, 0, start, count).normal("evaluation/z", card.network.sample_shape)
    return z, torch.arange(start, start + count) % classes if classes else None


@cache
def evaluator(source: str) -> Evaluator:
    """Return the evaluator of a source; the features of its real images are computed once per process."""
    images, labels = real_images(source)
    return Evaluator(images, load_digits_classifier(), labels)


def real_images(source: str) -> tuple[Tensor, Tensor]:
    """Return all real images of a source, (N, C, H, W) in [-1, 1], and their labels (N,)."""
    opened = open_source(source)
    pixels, labels = _join_blocks(opened.blocks())
    return torch.from_numpy(to_unit(pixels, opened.pixel_max)), torch.from_numpy(labels)


def _join_blocks(blocks: Iterable[Block]) -> tuple[np.ndarray, np.ndarray]:
    """Return the stored pixels (N, C, H, W) and the labels (N,) of some blocks."""
    images, labels = zip(*((block["image"], block["label"]) for block in blocks), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def evaluate_folder(
    folder: str,
    source: ImageSource | None,
    num_samples: int,
    seed: int,
    threads: int | None = None,
    factory: str | None = None,
    prompts: Sequence[str] = (),
) -> tuple[dict[str, Any] | None, Grids]:
    """Measure the generator in `folder`, if its images can be compared, and draw its grid. Runs in any process.

    Args:
        prompts: those of the grid, for a generator that takes text.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    generator = Generator.from_pretrained(folder, factory)
    figures = None
    if source is not None and measures(source.name):
        figures = measure(generator, generator.card, source.name, num_samples, seed)
    if generator.takes_text:
        return figures, draw_prompts(generator, prompts)
    return figures, draw_grids(generator, source)


class EvaluationFailed(RunFailed):
    """An evaluation failed. The learners are not affected."""


class PendingEvaluation:
    """An evaluation of a run's last generator: a Ray task, or for `placement: local` a call by `result`.

    It reads the generator's folder, which must not change until the evaluation is done.

    Args:
        run: the run's folder.
        step: steps taken by that generator.
        source: the real images, if the config names any.
        prompts: those of the grid, for a generator that takes text.
    """

    def __init__(
        self,
        config: Config,
        run: UPath,
        step: int,
        source: ImageSource | None,
        prompts: Sequence[str] = (),
    ) -> None:
        self.step = step
        settings = config.evaluation
        arguments = (str(run / FOLDERS["last"]), source, settings.num_samples, settings.seed)
        given: dict[str, Any] = {"factory": config.teacher.factory, "prompts": tuple(prompts)}
        self._evaluate = partial(evaluate_folder, *arguments, **given)
        self._task: Any = None
        if config.placement != "local":
            import ray
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

            # Outside this process's placement group: that of a search's trial has bundles only for its learners.
            outside = PlacementGroupSchedulingStrategy(placement_group=None)  # type: ignore[arg-type]
            task = ray.remote(evaluate_folder).options(num_cpus=0.25, scheduling_strategy=outside)
            self._task = task.remote(*arguments, threads=1, **given)

    def done(self) -> bool:
        """Return True once the evaluation has ended or failed, or if `result` runs it in this process."""
        if self._task is None:
            return True
        from raysid.actors.results import is_ready

        return is_ready(self._task)

    def result(self) -> tuple[dict[str, Any] | None, Grids]:
        """Wait for the evaluation; return its figures, None for images that cannot be compared, and its grids.

        Raises:
            EvaluationFailed: it failed.
        """
        try:
            if self._task is None:
                return self._evaluate()
            from raysid.actors.results import get

            return get(self._task)
        except (UserError, RunFailed) as error:
            raise EvaluationFailed(
                f"the evaluation of step {self.step:,} failed: {error}; run the same command to resume"
            ) from error


def draw_grids(generator: Generator, source: ImageSource | None) -> Grids:
    """Generate a grid of images at a fixed z, and choose real images with the same labels."""
    classes = generator.num_classes
    count = GRID_ROWS * GRID_COLUMNS
    labels = torch.arange(count) // GRID_COLUMNS % classes if classes else None
    with torch.no_grad():
        images = generator(Draws(0, 0, 0, count).normal("grid/z", generator.sample_shape), labels)
    if source is None:
        return Grids(images.numpy(), None)
    pixels, stored = _first_images(source, GRID_REAL)
    if not len(stored):
        return Grids(images.numpy(), None)
    real_labels = torch.from_numpy(stored)
    chosen = torch.arange(count) % len(real_labels) if labels is None else _with_labels(real_labels, labels)
    return Grids(images.numpy(), to_unit(pixels[chosen.numpy()], source.pixel_max))


def draw_prompts(generator: Generator, prompts: Sequence[str]) -> Grids:
    """Generate a grid of images at a fixed z, one for each prompt."""
    count = len(prompts)
    z = Draws(0, 0, 0, count).normal("grid/z", generator.sample_shape)
    with torch.no_grad():
        images = generator.decode(generator(z, text=generator.encode(prompts)))
    return Grids(images.numpy(), None, min(PROMPT_COLUMNS, count), tuple(prompts))


def _first_images(source: ImageSource, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels and labels of the good images among the first `count` of a source."""
    pieces = []
    for shard, size in enumerate(source.shard_sizes.tolist()):
        if count > 0:
            pieces.append(Piece(shard, 0, min(size, count)))
        count -= size
    return _join_blocks(map(good_images, source.blocks(pieces)))


def _with_labels(real_labels: Tensor, wanted: Tensor) -> Tensor:
    """Return indices of real images with the labels `wanted`, repeating an image only if its class is used up.

    For a class without images, images of any class are taken: a grid has no holes.
    """
    every = range(len(real_labels))
    images = {
        label: cycle(torch.nonzero(real_labels == label).flatten().tolist() or every)
        for label in wanted.unique().tolist()
    }
    return torch.tensor([next(images[label]) for label in wanted.tolist()])


def teacher_sampler(network: Network, steps: int) -> MakeImages:
    """Return the teacher's sampler: Heun's with `steps` steps for EDM's noise, DDIM for DDPM's."""
    network.eval()
    noise = network.noise

    def make(z: Tensor, labels: Tensor | None) -> Tensor:
        cond = None if labels is None else one_hot(labels, network.settings.label_dim)
        if isinstance(noise, DDPMNoise):
            return ddim(network, noise, z, cond, steps)
        assert isinstance(noise, EDMNoise)
        return heun(network, z, cond, steps, noise.sigma_min, noise.sigma_max)

    return make


def measure_on_cluster(
    card: NetworkCard, weights: dict[str, Tensor], source: str, config: PretrainConfig, seed: int = 2
) -> dict[str, Any]:
    """Measure a teacher as `measure` does, with its images sampled by parallel Ray tasks."""
    import ray

    network = ray.put({name: value.numpy() for name, value in weights.items()})
    task = ray.remote(_sample_chunk).options(num_cpus=config.worker_resources.num_cpus)
    total = config.evaluation_samples
    made = ray.get(
        [
            task.remote(card, network, config.sampler_steps, seed, start, min(BATCH, total - start))
            for start in range(0, total, BATCH)
        ]
    )
    images = torch.from_numpy(np.concatenate([chunk for chunk, _ in made]))

    def generate(start: int, count: int) -> tuple[Tensor, Tensor | None]:
        return images[start : start + count], _noise_and_labels(card, seed, start, count)[1]

    figures = dict(evaluator(source).evaluate(generate, total, BATCH, card.network.label_dim))
    return figures | {"ms_per_image": 1000 * sum(seconds for _, seconds in made) / total}


def _sample_chunk(
    card: NetworkCard, weights: dict[str, np.ndarray], steps: int, seed: int, start: int, count: int
) -> tuple[np.ndarray, float]:
    """Return the teacher's images of samples `start` to `start + count`, and the CPU seconds they took."""
    torch.set_num_threads(1)
    network = build_denoiser(card.network)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    z, labels = _noise_and_labels(card, seed, start, count)
    began = time.thread_time()
    images = teacher_sampler(network, steps)(z, labels)
    return images.numpy(), time.thread_time() - began


def generator_before(
    teacher: str,
    sigma_init: float,
    start: str | None = None,
    factory: str | None = None,
    noise_steps: NoiseSteps | None = None,
) -> Generator:
    """Return the generator before a distillation: the teacher's network, run once at `sigma_init` (or tau).

    Args:
        start: folder of a generator to start from instead.
        factory: as in `load_network`.
        noise_steps: the run's `method.noise_steps`.
    """
    if start is not None:
        return Generator.from_pretrained(start, factory)
    card, network = load_network(teacher, "teacher", factory)
    network.use_steps(noise_steps)
    return Generator(NetworkCard.for_generator(network, sigma_init, card.trained), network).eval()


def evaluate_generator_path(
    path: str, which: Which, num_samples: int, seed: int, factory: str | None = None
) -> dict[str, Any]:
    """Measure the generator of a run, or that in a generator's folder, for `raysid evaluate`.

    Args:
        which, factory: as in `load_generator`.

    Raises:
        UserError: there is no generator, or its images cannot be compared with its source's.
    """
    generator = load_generator(path, which, factory)
    source = generator.card.trained.get("data")
    if source is None:
        raise UserError(
            f"{UPath(path)} does not name the real images it was made for: its config.json has no data"
        )
    if not measures(str(source)):
        raise UserError(
            f"{UPath(path)} was made for {source}, and these are images that raysid cannot evaluate: make some in "
            "Python, by raysid.load_generator(...).sample(...), and measure those"
        )
    real = open_source(str(source)).image_shape
    if generator.sample_shape != real:
        raise UserError(
            f"{UPath(path)} makes images of shape {generator.sample_shape}, but the images of {source}, which its "
            f"config.json names, have {real}"
        )
    figures = measure(generator, generator.card, source, num_samples, seed)
    return figures | {"halves_distance": evaluator(source).reference_figures()["halves_distance"]}
