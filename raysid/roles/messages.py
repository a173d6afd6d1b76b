"""The messages between the roles: small frozen records of tensors.

Between processes a tensor travels as a numpy array, which Ray puts into shared memory once and reads without a copy (a
torch tensor is copied several times). Its memory is read-only on arrival: a role must not write into a message.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

# torch warns that it cannot protect read-only memory; no role writes into a message.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


class Message:
    """Base of the messages: pickles its tensors as numpy arrays, which travel out of band.

    Tensors are contiguous, inside one process too, because the order of summation depends on it.
    """

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                object.__setattr__(self, name, value.contiguous())

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value.detach().cpu().numpy() if isinstance(value, Tensor) else value
            for name, value in self.__dict__.items()
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            arrived = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            object.__setattr__(self, name, arrived)

    def to(self, device: torch.device) -> Self:
        """Return the message with its tensors on `device`: itself if they are there already."""
        tensors = {k: v for k, v in self.__dict__.items() if isinstance(v, Tensor) and v.device != device}
        moved = {name: value.to(device) for name, value in tensors.items()}
        return dataclasses.replace(self, **moved) if moved else self  # type: ignore[type-var]


@dataclass(frozen=True)
class Slice:
    """The address of a microbatch: samples `start` to `start + count` of the batch of `step`."""

    step: int
    start: int
    count: int

    @property
    def index(self) -> int:
        """The microbatch's number in its step, whose microbatches all have one size."""
        return self.start // self.count

    def __str__(self) -> str:
        return f"step {self.step}, samples {self.start} to {self.start + self.count}"


@dataclass(frozen=True)
class Noised(Message):
    """Noised generated images, for the two scorers: x_t (B, ...), noise level t (B,), cond (B, label_dim) or None."""

    at: Slice
    x_t: Tensor
    t: Tensor
    cond: Tensor | None


@dataclass(frozen=True)
class Images(Message):
    """Generated images, for the fake score to learn from: x_g (B, ...), cond (B, label_dim) or None."""

    x_g: Tensor
    cond: Tensor | None


@dataclass(frozen=True)
class Prediction(Message):
    """A scorer's prediction of the clean images: x_hat (B, ...). The fake score adds its encoder's logits (B, 1, h, w).

    `recomputed` is 1 if the work of a lost scorer was done again.
    """

    x_hat: Tensor
    logits: Tensor | None = None
    recomputed: int = 0


@dataclass(frozen=True)
class Cotangent(Message):
    """The gradient of theta's loss at a scorer's outputs, from which its pullback starts: x_hat (B, ...), logits."""

    x_hat: Tensor
    logits: Tensor | None = None


@dataclass(frozen=True)
class Pull(Message):
    """A scorer's vector-Jacobian product: the loss's gradient at x_t (B, ...) through that scorer.

    `recomputed` is 1 if the graph of the `score` was lost and the prediction was computed again.
    """

    x_t: Tensor
    recomputed: int = 0


@dataclass(frozen=True)
class Token:
    """Proof that one microbatch is in a learner's gradients, with its terms of a step's sums: losses, counts."""

    at: Slice
    sums: dict[str, float]


@dataclass(frozen=True)
class StepReport:
    """A learner's report of a step, or that of several learners or ranks.

    Attributes:
        figures: losses per image (`loss/sid`), learning rate and norm of the gradient (`generator/lr`), by tag.
        recomputes: scorings and pullbacks that were computed again because a scorer or its graph was lost.
        images_until: position in the stream of real images up to which they are loaded; infinite where none are used.
    """

    figures: dict[str, float]
    recomputes: float = 0.0
    images_until: float = math.inf


def merge_step_reports(reports: Iterable[StepReport]) -> StepReport:
    """Merge the reports of a step. Ranks of a learner report the same figures; the least loaded stream counts."""
    figures: dict[str, float] = {}
    recomputes, images_until = 0.0, math.inf
    for report in reports:
        figures |= report.figures
        recomputes = max(recomputes, report.recomputes)
        images_until = min(images_until, report.images_until)
    return StepReport(figures, recomputes, images_until)


def check_tokens(step: int, batch_size: int, tokens: tuple[Token, ...]) -> dict[str, float]:
    """Check that every microbatch of a step arrived exactly once, and return the totals of its tokens.

    Ray runs a later call on an actor even if an earlier one failed, so a learner's step must check by itself.

    Raises:
        RuntimeError: a microbatch is missing or doubled.
    """
    covered = sorted((token.at.start, token.at.count) for token in tokens if token.at.step == step)
    ends = [start + count for start, count in covered]
    # Each microbatch begins at the end of the one before, the first at 0; the last ends the batch.
    if [0, *ends] != [*(start for start, _ in covered), batch_size] or len(covered) != len(tokens):
        raise RuntimeError(
            f"step {step} has microbatches {covered} of a batch of {batch_size} images: one was lost"
        )
    totals: dict[str, float] = {}
    for token in tokens:
        for name, value in token.sums.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals
