"""Trains the weights of the digits classifier: `python -m tests.support.train_digits_classifier --out FILE`.

It runs once, and its output is shipped. Evaluation figures are in units of these features, so new weights would not
be comparable with earlier figures. The same torch build on the same kind of processor gives the
same weights bit for bit; only the order of the metadata in the file's header varies.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from raysid.metrics.classifier import DigitsClassifier

SPLIT_SEED = 0
TRAIN_SEED = 0
HELD_OUT_FRACTION = 0.2
EPOCHS = 30
BATCH = 64
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-2
MAX_SHIFT = 0.6  # pixels, along each axis
NOISE = 0.05  # standard deviation of added noise, in units of the range [-1, 1]


class DigitsSplit(NamedTuple):
    """scikit-learn's 1,797 digits, stratified; images (N, 1, 8, 8) in [-1, 1], labels (N,) int64."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def digits_split(seed: int = SPLIT_SEED) -> DigitsSplit:
    """Split the digits as for the shipped weights: 80% of every class for training, 20% for testing."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]

    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 8 - 1  # 0..16 to [-1, 1]
    labels = torch.from_numpy(digits.target).long()
    train, test = train_test_split(
        range(len(labels)), test_size=HELD_OUT_FRACTION, stratify=digits.target, random_state=seed
    )
    return DigitsSplit(images[train], labels[train], images[test], labels[test])


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift every image by a fraction of a pixel and add light noise; (B, 1, 8, 8) in and out."""
    count, _, _, width = images.shape
    shift = (torch.rand(count, 2, generator=generator) * 2 - 1) * MAX_SHIFT * 2 / width
    transform = torch.eye(2, 3).repeat(count, 1, 1)
    transform[:, :, 2] = shift
    grid = F.affine_grid(transform, list(images.shape), align_corners=False)
    # grid_sample fills with 0, the background is -1.
    moved = F.grid_sample(images + 1, grid, align_corners=False) - 1
    return moved + NOISE * torch.randn(images.shape, generator=generator)


def accuracy(classifier: DigitsClassifier, images: Tensor, labels: Tensor) -> float:
    """Fraction of the images that the classifier labels correctly."""
    with torch.no_grad():
        return (classifier(images).argmax(1) == labels).double().mean().item()


def train(split: DigitsSplit, seed: int = TRAIN_SEED) -> DigitsClassifier:
    """Train a classifier on the training part; the test part is not used."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    classifier = DigitsClassifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    batches_per_epoch = len(split.train_labels) // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * batches_per_epoch)
    for _ in range(EPOCHS):
        order = torch.randperm(len(split.train_labels), generator=generator)
        for batch in order[: batches_per_epoch * BATCH].split(BATCH):
            logits = classifier(augment(split.train_images[batch], generator))
            loss = F.cross_entropy(logits, split.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return classifier.eval()


def main() -> None:
    """Train, print the held-out accuracy, and write the weights with their metadata."""
    parser = argparse.ArgumentParser(description="Train the digits classifier of the evaluation figures.")
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    out = parser.parse_args().out

    torch.set_num_threads(1)  # the order of additions, and so the weights, depend on the thread count
    torch.use_deterministic_algorithms(True)
    split = digits_split()
    classifier = train(split)
    held_out = accuracy(classifier, split.test_images, split.test_labels)
    on_train = accuracy(classifier, split.train_images, split.train_labels)
    print(f"held-out accuracy {held_out:.4f} on {len(split.test_labels)} images; train {on_train:.4f}")
    save_file(
        {name: tensor.contiguous() for name, tensor in classifier.state_dict().items()},
        out,
        metadata={
            "script": "tests.support.train_digits_classifier",
            "held_out_accuracy": f"{held_out:.4f}",
            "held_out_images": str(len(split.test_labels)),
            "held_out_fraction": str(HELD_OUT_FRACTION),
            "split_seed": str(SPLIT_SEED),
            "train_seed": str(TRAIN_SEED),
            "torch": torch.__version__,
        },
    )


if __name__ == "__main__":
    main()
