"""The messages between the roles: small frozen records of tensors.

Between processes a tensor travels as a numpy array, which Ray puts into shared memory once and reads without a copy (a
torch tensor is copied several times). Its memory is read-only on arrival: a role must not write into a message.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
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
            object.__setattr__(self, name, _mapped(Tensor, Tensor.contiguous, value))

    def __getstate__(self) -> dict[str, Any]:
        return {name: _mapped(Tensor, _to_numpy, value) for name, value in self.__dict__.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, _mapped(np.ndarray, torch.from_numpy, value))

    def to(self, device: torch.device) -> Self:
        """Return the message with its tensors, and those of its mappings, on `device`: itself if they are there."""
        moved = {
            name: _mapped(Tensor, lambda v: v.to(device), value) for name, value in self.__dict__.items()
        }
        # `Tensor.to` returns the tensor itself if nothing is to be done.
        if all(moved[name] is value for name, value in self.__dict__.items()):
            return self
        return dataclasses.replace(self, **moved)  # type: ignore[type-var]


def _mapped(kind: type[Any], change: Callable[[Any], Any], value: Any) -> Any:
    """Return `value` changed if it is of a kind, and a mapping with its values changed; itself if nothing changes."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, Mapping):
        changed = {name: _mapped(kind, change, each) for name, each in value.items()}
        return changed if any(changed[name] is not value[name] for name in value) else value
    return value


def _to_numpy(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()


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
class Conditions(Message):
    """The conditions of a microbatch's samples, as they travel.

    Attributes:
        values: tensors (B, ...) by name, which each role turns into its network's conditions
            (`raysid.roles.conditions.network_conditions`): `labels`, class indices int64 (B,), `tokens`, token ids
            int32 (B, tokens), or `embeddings` (B, tokens, width); empty for a network without any.
    """

    values: Mapping[str, Tensor]


@dataclass(frozen=True)
class Noised(Message):
    """Noised generated images, for the two scorers: x_t (B, ...), noise level t (B,)."""

    at: Slice
    x_t: Tensor
    t: Tensor


@dataclass(frozen=True)
class Images(Message):
    """Generated images, for the fake score to learn from: x_g (B, ...)."""

    x_g: Tensor


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
