"""The figures of a network's samples: the same samples for every network, compared with the real images."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raysid.data import open_source, to_unit
from raysid.data.captions import evaluation_captions
from raysid.data.scikit_learn import DigitsSource
from raysid.generator import Generator
from raysid.method.draws import Draws
from raysid.method.noise import DDPMNoise, EDMNoise
from raysid.method.sampling import ddim, heun
from raysid.metrics.agreement import CaptionAgreement
from raysid.metrics.classifier import DigitsClassifier, load_digits_classifier
from raysid.metrics.evaluate import Evaluator, Judge
from raysid.networks import build_denoiser
from raysid.networks.denoiser import AnySettings, Network
from raysid.networks.files import NetworkCard
from raysid.networks.text import TextEncoder
from raysid.roles.conditions import one_hot
from raysid.trainers.grids import join_blocks

BATCH = 500
HELD_OUT_SAMPLES = 1797  # a caption of each digit

MakeImages = Callable[[Tensor, Tensor | None], Tensor]
"""Makes images (B, C, H, W) from noise of that shape and class indices (B,), embeddings (B, tokens, width) or None."""
Encode = Callable[[Sequence[str]], Tensor]
"""Turns prompts (B,) into embeddings (B, tokens, width)."""


def measures(source: str | None) -> bool:
    """Return True if generated images can be compared with the real ones of a source: only for digits.

    Args:
        source: the source's name; the source itself is not opened.
    """
    return source == DigitsSource.name


def measured_by(network: AnySettings, data: str | None, prompts: str | None) -> str | None:
    """Return the name of the real images with which a network's samples can be compared; None for no such images.

    Args:
        data, prompts: the names of the real images and of the prompts that its run has.
    """
    if not network.text_width:
        return data if measures(data) else None
    fits = not network.latents and network.sample_shape == DigitsClassifier.image_shape
    return prompts if fits and measures(prompts) else None


def measured_card(card: NetworkCard) -> str | None:
    """Return `measured_by` for a generator, from its card."""
    return measured_by(card.network, card.trained.get("data"), card.trained.get("prompts"))


class Samples:
    """The noise and the conditions of an evaluation's samples, each a function of the seed and the sample's index.

    So two networks that are measured with the same seed are measured on the same samples. Labels take turns. Prompts
    are captions of the real images, and encoded once.

    Args:
        encode: turns prompts into embeddings, for a network that takes text.
        held_out: use captions with words that no training has seen.

    Attributes:
        num_classes: number of classes of the labels, 0 for none.
        agreement: judges whether images agree with their captions; None without text.
    """

    def __init__(
        self,
        card: NetworkCard,
        num_samples: int,
        seed: int,
        encode: Encode | None = None,
        held_out: bool = False,
    ) -> None:
        self.shape, self.num_samples, self.seed = card.network.sample_shape, num_samples, seed
        self.num_classes = card.network.label_dim
        self.agreement: CaptionAgreement | None = None
        if not card.network.text_width:
            return
        assert encode is not None
        captions = evaluation_captions(num_samples, held_out)
        self.agreement, self.num_classes = CaptionAgreement(captions), DigitsClassifier.num_classes
        different = [*dict.fromkeys(captions)]
        parts = [encode(different[at : at + BATCH]) for at in range(0, len(different), BATCH)]
        row = {caption: number for number, caption in enumerate(different)}
        self._texts, self._rows = torch.cat(parts), torch.tensor([row[caption] for caption in captions])

    @property
    def judges(self) -> list[Judge]:
        return [] if self.agreement is None else [self.agreement]

    def noise(self, start: int, count: int) -> Tensor:
        """Return z of samples `start` to `start + count`."""
        return Draws(self.seed, 0, start, count).normal("evaluation/z", self.shape)

    def labels(self, start: int, count: int) -> Tensor | None:
        """Return their class indices, or the digits that their captions name; None if there are no classes."""
        if self.agreement is not None:
            return torch.from_numpy(self.agreement.digits[start : start + count])
        return torch.arange(start, start + count) % self.num_classes if self.num_classes else None

    def conditions(self, start: int, count: int) -> Tensor | None:
        """Return their conditions: class indices, or the embeddings of their captions."""
        if self.agreement is not None:
            return self._texts[self._rows[start : start + count]]
        return self.labels(start, count)

    def figures(self, source: str, images: Callable[[int, int], Tensor]) -> dict[str, Any]:
        """Return the figures of the images of samples `start` to `start + count`."""
        return evaluator(source).evaluate(
            lambda start, count: (images(start, count), self.labels(start, count)),
            self.num_samples,
            BATCH,
            self.num_classes,
            self.judges,
        )


def measure(
    make: MakeImages | Generator,
    card: NetworkCard,
    source: str,
    num_samples: int,
    seed: int,
    encode: Encode | None = None,
    held_out: int = 0,
) -> dict[str, Any]:
    """Return the Fréchet distance to all real images of `source` and the other figures of `Evaluator.evaluate`.

    Args:
        encode: as in `Samples`; a generator has its own.
        held_out: measure the words that no training has seen, too, on this many samples.
    """
    if isinstance(make, Generator):
        encode, make = make.encode, _one_step(make)

    def measured(count: int, unseen: bool) -> tuple[dict[str, Any], CaptionAgreement | None]:
        samples = Samples(card, count, seed, encode, unseen)

        def images(start: int, count: int) -> Tensor:
            return make(samples.noise(start, count), samples.conditions(start, count))

        return samples.figures(source, images), samples.agreement

    figures, seen = measured(num_samples, False)
    if seen is not None and held_out:
        unseen = measured(held_out, True)[1]
        assert unseen is not None
        figures |= {"held_out_right": unseen.of_attributes(), "by_word": seen.by_word() | unseen.by_word()}
    return figures


def _one_step(generator: Generator) -> MakeImages:
    def make(z: Tensor, cond: Tensor | None) -> Tensor:
        return generator(z, text=cond) if generator.takes_text else generator(z, cond)

    return make


@cache
def evaluator(source: str) -> Evaluator:
    """Return the evaluator of a source; the features of its real images are computed once per process."""
    images, labels = real_images(source)
    return Evaluator(images, load_digits_classifier(), labels)


def real_agreement(source: str) -> dict[str, float]:
    """Return the figures of the agreement of a source's real images with their own captions."""
    images = real_images(source)[0]
    judge = CaptionAgreement(evaluation_captions(len(images)))
    evaluator(source).judge(images, judge)
    return judge.figures()


def real_images(source: str) -> tuple[Tensor, Tensor]:
    """Return all real images of a source, (N, C, H, W) in [-1, 1], and their labels (N,)."""
    opened = open_source(source)
    pixels, labels = join_blocks(opened.blocks())
    return torch.from_numpy(to_unit(pixels, opened.pixel_max)), torch.from_numpy(labels)


def teacher_sampler(network: Network, steps: int, scale: float = 1.0) -> MakeImages:
    """Return the teacher's sampler: Heun's with `steps` steps for EDM's noise, DDIM for DDPM's.

    Args:
        scale: guidance scale; other than 1, a network with text needs its `null_text`.
    """
    network.eval()
    noise = network.noise

    def make(z: Tensor, given: Tensor | None) -> Tensor:
        by_class = given is not None and not given.is_floating_point()
        cond = one_hot(given, network.settings.label_dim) if given is not None and by_class else given
        if isinstance(noise, DDPMNoise):
            return ddim(network, noise, z, cond, steps, scale)
        assert isinstance(noise, EDMNoise)
        return heun(network, z, cond, steps, noise.sigma_min, noise.sigma_max, scale)

    return make


@dataclass(frozen=True)
class TeacherSampling:
    """How a teacher is sampled for its figures: the sampler's steps, the guidance scale, the number of samples."""

    steps: int
    num_samples: int
    scale: float = 1.0
    seed: int = 2


def measure_on_cluster(
    card: NetworkCard,
    weights: dict[str, Tensor],
    source: str,
    sampling: TeacherSampling,
    num_cpus: float = 1,
    text: TextEncoder | None = None,
) -> dict[str, Any]:
    """Measure a teacher as `measure` does, with its images sampled by parallel Ray tasks.

    Args:
        num_cpus: of each task.
        text: its text encoder, if it takes text.
    """
    import ray

    total = sampling.num_samples
    samples = Samples(card, total, sampling.seed, None if text is None else text.encode)
    network = ray.put({name: value.numpy() for name, value in weights.items()})
    null_text = None if text is None else text.null_text().numpy()
    task = ray.remote(_sample_chunk).options(num_cpus=num_cpus)
    pending = []
    for start in range(0, total, BATCH):
        count = min(BATCH, total - start)
        z, cond = samples.noise(start, count).numpy(), samples.conditions(start, count)
        given = None if cond is None else cond.numpy()
        pending.append(task.remote(card, network, sampling, z, given, null_text))
    made = ray.get(pending)
    images = torch.from_numpy(np.concatenate([chunk for chunk, _ in made]))
    figures = samples.figures(source, lambda start, count: images[start : start + count])
    return figures | {"ms_per_image": 1000 * sum(seconds for _, seconds in made) / total}


def _sample_chunk(
    card: NetworkCard,
    weights: dict[str, np.ndarray],
    sampling: TeacherSampling,
    z: np.ndarray,
    cond: np.ndarray | None,
    null_text: np.ndarray | None,
) -> tuple[np.ndarray, float]:
    """Return the teacher's images of some samples, and the CPU seconds they took."""
    torch.set_num_threads(1)
    network = build_denoiser(card.network)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    if null_text is not None:
        network.null_text = torch.tensor(null_text)
    noise, given = torch.tensor(z), None if cond is None else torch.tensor(cond)
    began = time.thread_time()
    images = teacher_sampler(network, sampling.steps, sampling.scale)(noise, given)
    return images.numpy(), time.thread_time() - began
