"""The contracts of the roles, as the controller's step calls them.

`raysid.roles.step` calls these methods and nothing else of a role. In one process they are the role classes' own
(`LabelConditions`, `TeacherScorer`, `FakeScoreLearner`, `GeneratorLearner`); on a cluster they are handles of actors,
whose calls return at once with object references. The controller therefore passes results on without looking into
them. `Ref[T]` in a signature means either; a type checker reads it as T, so that the step is checked message by
message.

Rules for all roles:

- A call's result is a pure function of its arguments, of the run's settings and of the role's weights. Every random
  draw is addressed by the `Slice`, so it does not matter which process makes the call, or when.
- Messages are read-only: a role never writes into one, since several processes may read the same memory.
- Calls on one role run one at a time, in the order in which the controller makes them. Only the order of `accumulate`
  and `step` matters to the results.
- Weights change only in `step`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, TypeVar

from raysid.roles.messages import (
    Conditions,
    Cotangent,
    Images,
    Noised,
    Prediction,
    Pull,
    Slice,
    StepReport,
    Token,
)

T = TypeVar("T")

Ref = Annotated[T, "the value, or an object reference to it"]

Reports = StepReport | list[Ref[StepReport]]
"""A learner's report of a step, or one of each of its ranks; all ranks report the same figures."""


Report = Mapping[str, Mapping[str, float]]
"""Each role's present figures, by role and name."""


Purpose = Literal["fake", "generator"]
"""The update that samples are made for: psi's in the alternating order, or theta's. One address has samples of both."""


class ConditionService(Protocol):
    """The source of conditions: class labels, or prompts. It keeps no state that a run could miss."""

    def of(self, at: Slice, purpose: Purpose, /) -> Ref[Conditions]:
        """Return the conditions of a microbatch's samples, a pure function of the address and the purpose.

        The step asks once a microbatch and passes the answer to all calls for it. psi's update drops some of them
        (`FakeScoreRole.accumulate`), not this source.
        """


class TeacherService(Protocol):
    """phi, frozen: any number of scorers, each of which may vanish and be replaced at any time.

    It keeps no state that a run could miss. A scorer may keep the graph of a `score` for the `pullback` of the same
    microbatch; without it, `pullback` computes the prediction again and returns the same numbers.
    """

    def score(self, noised: Ref[Noised], cond: Ref[Conditions], guidance_scale: float, /) -> Ref[Prediction]:
        """Predict the clean images of x_t (B, ...) at noise levels t (B,), guided by `guidance_scale`."""

    def pullback(
        self, noised: Ref[Noised], cond: Ref[Conditions], cotangent: Ref[Cotangent], guidance_scale: float, /
    ) -> Ref[Pull]:
        """Return J^T cotangent at x_t, J being the Jacobian of `score`. Exact; takes `score`'s own arguments."""


class FakeScoreRole(Protocol):
    """psi: scores generated images, and learns from them.

    `score`, `pullback` and any recomputation use psi as the last `step` left it, in eval mode, its parameters frozen:
    psi has one version per step.
    """

    def score(self, at: Slice, noised: Ref[Noised], cond: Ref[Conditions], /) -> Ref[Prediction]:
        """Predict the clean images of x_t and, with the adversarial term, the encoder's logits.

        Keeps the graph for the `pullback` of the same microbatch, which must come before the next `step`.
        """

    def pullback(self, at: Slice, noised: Ref[Noised], cotangent: Ref[Cotangent], /) -> Ref[Pull]:
        """Return J^T cotangent at x_t, through the prediction and the logits; frees the graph. Once per microbatch."""

    def accumulate(self, at: Slice, images: Ref[Images], cond: Ref[Conditions], /) -> Ref[Token]:
        """Add the gradient of one microbatch to psi's; with the adversarial term, of as many real images too.

        With guidance it drops some of the conditions; in the alternating order `images` has dropped the same.

        Never changes psi. The token proves to `step` that the microbatch is in the gradient.
        """

    def step(self, step: int, /, *tokens: Ref[Token]) -> Reports:
        """Update psi with the accumulated gradients, and clear them.

        Args:
            tokens: one of every microbatch of the step. A handle on a cluster may delay the step's last `accumulate`
                until this call, and send both as one.

        Raises (where the reports are read, on a cluster):
            RuntimeError: a microbatch is missing or doubled; psi is unchanged.
            PeerLost: another rank of this learner died.
        """


class GeneratorRole(Protocol):
    """theta: makes images and learns from the two scorers' pulls; it keeps the average of theta, the product.

    The calls for a microbatch that theta learns from come in the order `generate`, `cotangents`, `accumulate`. The
    images' graph stays in the role between them. `discard` ends a microbatch that theta does not learn from.
    """

    def images(self, at: Slice, cond: Ref[Conditions], /) -> Ref[Images]:
        """Make images for psi's update in the alternating order: in eval mode, without a graph.

        With guidance some are made without their condition: those whose condition psi does not see either.
        """

    def generate(self, at: Slice, cond: Ref[Conditions], /) -> tuple[Ref[Noised], Ref[Images]]:
        """Make images in train mode, keeping their graph.

        Returns:
            Their noised version for the two scorers, and the images for psi to learn from.
        """

    def cotangents(
        self, at: Slice, teacher: Ref[Prediction], fake: Ref[Prediction], /
    ) -> tuple[Ref[Cotangent], Ref[Cotangent]]:
        """Return the loss's gradients at the two predictions, the teacher's first.

        The fake score's holds the gradient at the logits too, once the adversarial term acts.
        """

    def accumulate(self, at: Slice, teacher: Ref[Pull], fake: Ref[Pull], /) -> Ref[Token]:
        """Add one microbatch to theta's gradient: the direct part, and a_t times the sum of the pulls.

        Frees the images' graph. Never changes theta.
        """

    def discard(self, at: Slice, /) -> object:
        """Free a microbatch that `generate` made and theta does not learn from."""

    def step(self, step: int, /, *tokens: Ref[Token]) -> Reports:
        """Update theta and its average with the accumulated gradients. As `FakeScoreRole.step`."""


Predictions = Sequence[tuple[Ref[Prediction], Ref[Prediction]]]
"""Of each microbatch the teacher's prediction and the fake score's."""


def in_order(predictions: Predictions) -> Iterable[int]:
    """Return the indices of the predictions in their order."""
    return range(len(predictions))


@dataclass(frozen=True)
class Roles:
    """The three roles of one run, and the source of their conditions.

    Attributes:
        arrivals: yields the index of each microbatch of `Predictions` once, in the order in which to continue with
            them. On a cluster it waits for predictions, and yields first what is there first.
    """

    teacher: TeacherService
    fake_score: FakeScoreRole
    generator: GeneratorRole
    conditions: ConditionService
    arrivals: Callable[[Predictions], Iterable[int]] = in_order
