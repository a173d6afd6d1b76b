"""Evaluation of a generator: distance of its images to real ones, accuracy of their labels, speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor, nn

from raysid.metrics.frechet import FeatureAccumulator, FeatureStatistics, frechet_distance, halves_distance

# Images per pass through the classifier; bounds the memory of its activations for any batch size of the caller.
FEATURE_CHUNK = 256

# From (first sample index, count) to images (count, C, H, W), float in [-1, 1] or uint8, and labels (count,) or
# None.
Generate = Callable[[int, int], tuple[Tensor, Tensor | None]]


class FeatureClassifier(Protocol):
    """A classifier that the evaluator can use, such as `DigitsClassifier`."""

    def features_and_logits(self, images: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return features (B, D) and logits (B, K) of float images (B, C, H, W) in [-1, 1]."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the weights, at least one; images are moved to their device."""


class Judge(Protocol):
    """Looks at the images of an evaluation for figures of its own, such as `raysid.metrics.agreement`'s."""

    def add(self, start: int, images: Tensor, predictions: Tensor, usable: Tensor) -> None:
        """Look at samples `start` to `start + B`, in order.

        Args:
            images: (B, C, H, W), float in [-1, 1] and beyond, on any device.
            predictions: the classes that the classifier reads (B,), on the CPU.
            usable: False for images that are not finite (B,), on the CPU.
        """

    def figures(self) -> dict[str, float]:
        """Return the figures of all images so far."""


class EvaluationFigures(TypedDict):
    """The figures of `Evaluator.evaluate`."""

    frechet_distance: float
    label_accuracy: float | None
    ms_per_image: float
    num_samples: int


class ReferenceFigures(TypedDict):
    """The figures of `Evaluator.reference_figures`, with which to compare the others."""

    halves_distance: float
    num_real: int
    label_accuracy_real: float | None


class Evaluator:
    """Compares generated images with a fixed set of real ones, in a classifier's features.

    It computes the features of the real set once. It does not change the classifier's mode: put it in eval mode.

    Args:
        real_images: (N, C, H, W), N at least 4, float in [-1, 1] or uint8 (0 to 255).
        classifier: the source of features and logits, on any device.
        real_labels: integers (N,), only for `reference_figures`.

    Raises:
        ValueError: images that are not (N, C, H, W), not finite, out of range, or too few; labels that do not match
            them.
    """

    def __init__(
        self, real_images: Tensor, classifier: FeatureClassifier, real_labels: Tensor | None = None
    ) -> None:
        if real_images.ndim != 4 or len(real_images) < 4:
            shape = tuple(real_images.shape)
            raise ValueError(f"real images must be (N, C, H, W) with N >= 4, got shape {shape}")
        images = _as_float(real_images)
        # Also false for NaN. A wrong scale, such as 0..255 as float, would otherwise go unnoticed.
        if not (images.abs() <= 1 + 1e-3).all():
            raise ValueError("real images must be finite and in [-1, 1], or uint8")
        if real_labels is not None and real_labels.shape != real_images.shape[:1]:
            count, shape = len(real_images), tuple(real_labels.shape)
            raise ValueError(f"{count} real images need labels ({count},), got shape {shape}")
        self._classifier = classifier
        self._real_features, predictions = self._features_and_predictions(images)
        self._real_statistics = FeatureStatistics.from_features(self._real_features)
        self._real_accuracy = (
            None if real_labels is None else (predictions == real_labels.cpu()).double().mean().item()
        )

    def evaluate(
        self,
        generate: Generate,
        num_samples: int,
        batch_size: int,
        num_classes: int | None = None,
        judges: Sequence[Judge] = (),
    ) -> dict[str, Any]:
        """Generate `num_samples` images and compute their figures.

        Images are clamped to [-1, 1] first, as when they are saved as pictures. `generate` runs without gradients, once
        more than needed: its first batch is a warm-up whose images are dropped.

        Args:
            generate: (first sample index, count) to (images, labels); called in order from index 0.
            num_samples: number of images, at least 2. Compare Fréchet distances at equal numbers.
            batch_size: the largest count for `generate`.
            num_classes: labels are in 0..num_classes-1; None or 0 ignores labels.
            judges: add figures of their own.

        Returns:
            The figures of `EvaluationFigures`, and those of the judges.

            frechet_distance: to the real images; inf if an image or its features are not finite, so that a diverged run
                still has a figure.
            label_accuracy: fraction of labelled images that the classifier assigns to their label, with images that are
                not finite counted as wrong; None without labels.
            ms_per_image: wall time of `generate`, in milliseconds, without the warm-up.
            num_samples: the number of images.

        Raises:
            ValueError: a number out of range; images or labels of a wrong count, shape or range.
        """
        if num_samples < 2 or batch_size < 1:
            raise ValueError(f"need num_samples >= 2 and batch_size >= 1, got {num_samples} and {batch_size}")
        accumulator = FeatureAccumulator()
        seconds = 0.0
        finite = True
        correct = labelled = 0

        _timed(generate, 0, min(batch_size, num_samples))
        for start in range(0, num_samples, batch_size):
            count = min(batch_size, num_samples - start)
            images, labels, elapsed = _timed(generate, start, count)
            seconds += elapsed
            features, predictions = self._features_and_predictions(_as_float(images))
            usable = features.isfinite().all(1)
            if usable.all():
                accumulator.add(features)
            else:
                finite = False
            if labels is not None and num_classes:
                labels = _checked_labels(labels, count, num_classes)
                correct += int(((predictions == labels) & usable).sum())
                labelled += count
            for judge in judges:
                judge.add(start, _as_float(images), predictions, usable)

        distance = float("inf")
        if finite:
            distance = frechet_distance(accumulator.statistics(), self._real_statistics)
        figures: EvaluationFigures = {
            "frechet_distance": distance,
            "label_accuracy": correct / labelled if labelled else None,
            "ms_per_image": 1000 * seconds / num_samples,
            "num_samples": num_samples,
        }
        return dict(figures) | {name: value for judge in judges for name, value in judge.figures().items()}

    def judge(self, images: Tensor, judge: Judge) -> None:
        """Show a judge images that were not generated, (N, C, H, W), as `evaluate` shows it generated ones."""
        features, predictions = self._features_and_predictions(_as_float(images))
        judge.add(0, _as_float(images), predictions, features.isfinite().all(1))

    def reference_figures(self, seed: int = 0) -> ReferenceFigures:
        """Return the figures of the real set itself.

        Returns:
            halves_distance: Fréchet distance between two random halves of the real set, split by `seed`: the effect
                of the sample size. (A generator compared with the whole set, with many samples, can be below it.)
            num_real: size of the real set.
            label_accuracy_real: fraction of the real images that the classifier labels correctly; None without
                labels. Not a held-out figure if the classifier was trained on some of them.
        """
        return {
            "halves_distance": halves_distance(self._real_features, seed),
            "num_real": len(self._real_features),
            "label_accuracy_real": self._real_accuracy,
        }

    @torch.no_grad()
    def _features_and_predictions(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (N, D), NaN for an image that is not finite, and predicted classes (N,), on the CPU."""
        device = next(iter(self._classifier.parameters())).device
        features, predictions = [], []
        for chunk in images.split(FEATURE_CHUNK):
            chunk = chunk.to(device)
            chunk_features, logits = self._classifier.features_and_logits(chunk.clamp(-1, 1))
            # Checked before the clamp, which would make an infinite pixel an ordinary one.
            broken = ~chunk.flatten(1).isfinite().all(1)
            features.append(chunk_features.masked_fill(broken[:, None], float("nan")).cpu())
            predictions.append(logits.argmax(1).cpu())
        return torch.cat(features), torch.cat(predictions)


@torch.no_grad()
def _timed(generate: Generate, start: int, count: int) -> tuple[Tensor, Tensor | None, float]:
    """Call `generate` once; also return the wall time until its images are ready, in seconds."""
    began = time.perf_counter()
    images, labels = generate(start, count)
    if images.device.type != "cpu":
        torch.accelerator.synchronize(images.device)  # the call returns before the device has finished
    elapsed = time.perf_counter() - began
    if len(images) != count:
        raise ValueError(f"generate({start}, {count}) returned {len(images)} images")
    return images, labels, elapsed


def _as_float(images: Tensor) -> Tensor:
    """Convert uint8 to float in [-1, 1], and float of any precision to float32."""
    if images.dtype == torch.uint8:
        return images.float() / 127.5 - 1
    if not images.is_floating_point():
        raise ValueError(f"images must be float in [-1, 1] or uint8, got {images.dtype}")
    return images.float()


def _checked_labels(labels: Tensor, count: int, num_classes: int) -> Tensor:
    if labels.shape != (count,) or labels.is_floating_point():
        raise ValueError(f"labels must be integers ({count},), got {labels.dtype} {tuple(labels.shape)}")
    labels = labels.cpu()
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels must be in 0..{num_classes - 1}, got {labels.min()}..{labels.max()}")
    return labels
