"""The health of a run: warnings while there is time, and the end of a run in which no sample is good any more."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from statistics import median
from typing import Any

from raysid.config import Config
from raysid.errors import Diverged
from raysid.metrics.figures import FIGURES, finite
from raysid.roles.generator_learner import CLAMPED, SPREAD, TEACHER_ERROR
from raysid.roles.learner import AFTER_DIVERGENCE, BAD_GRADIENTS, BAD_SAMPLES
from raysid.roles.messages import StepReport

LARGEST_ALPHA = 1.5  # published runs use 0.5 to 1.2
EXPLODED = 20.0  # times the median of the last lines
LINES_FOR_MEDIAN = 5
LINES_KEPT = 1000  # a run of weeks has hundreds of thousands
WORSE_DISTANCE = 3.0  # times the best one
EARLY = 8  # evaluations, after that before training, in which a run that goes wrong from its start shows it
EARLY_STEPS = 2  # evaluations in a row that are worse than the one before
EARLY_RISE = 0.2  # of the best distance, above it
EARLY_LOSS = 0.05  # of agreement, below the best one
COLLAPSED = 0.1  # times the spread of the first line
ALL_CLAMPED = 0.99
LOSSES = ("loss/sid", "loss/fake_score")
# Times the error of a denoiser that does nothing. A trained teacher is below 1 on its own data; the first generated
# samples are not quite that.
NO_DENOISER = 3.0
ROLES = ("generator", "fake_score")


class Health:
    """Watches the figures of a run. Each kind of warning is given once until its cause has gone away.

    Args:
        entries: the lines of metrics.jsonl so far.
        warn: records a warning and shows it to the user.

    Attributes:
        bad_steps: the number of steps in a row, up to the last one, in which every sample was bad.
    """

    def __init__(
        self, config: Config, entries: Iterable[Mapping[str, Any]], warn: Callable[[int, str], None]
    ) -> None:
        self.config = config
        self._warn = warn
        self._active: set[str] = set()
        self._losses: dict[str, deque[float]] = {name: deque(maxlen=LINES_KEPT) for name in LOSSES}
        self._first_spread: float | None = None
        self._best_distance = math.inf
        self._first_evaluations: list[Mapping[str, Any]] = []
        self.bad_steps = 0
        for entry in entries:
            if entry["kind"] == "train":
                self._note_line(entry)
            elif entry["kind"] == "evaluation":
                self._note_evaluation(entry)

    def begin(self, step: int) -> None:
        """Check the settings, at the start of a run."""
        alpha = self.config.method.alpha
        if step == 0 and alpha > LARGEST_ALPHA:
            self._warn(
                0,
                f"method.alpha is {alpha:g}: published runs use 0.5 to 1.2, and larger ones tend to diverge",
            )

    def step(self, step: int, report: StepReport) -> None:
        """Look at the figures of a step; `step` counts it.

        Raises:
            Diverged: every sample of `failure.max_bad_steps` steps in a row was bad.
        """
        figures, size = report.figures, self.config.batch_size
        bad = {role: figures.get(f"{role}/{BAD_SAMPLES}", 0.0) for role in ROLES}
        self.bad_steps = self.bad_steps + 1 if max(bad.values()) >= size else 0
        for role, count in bad.items():
            title = role.replace("_", " ")
            self._check(
                f"{role}'s samples",
                count > 0,
                step,
                f"{count:,.0f} of {size:,} samples of step {step:,} are NaN or infinite and left out of the "
                f"{title}'s update",
            )
            elements = figures.get(f"{role}/{BAD_GRADIENTS}", 0.0)
            self._check(
                f"{role}'s gradient",
                elements > 0,
                step,
                f"{elements:,.0f} elements of the {title}'s gradient of step {step:,} are NaN or "
                "infinite; NaN counts as 0",
            )
        error = figures.get(TEACHER_ERROR)
        if error is not None and not self._losses["loss/sid"]:  # theta is still close to the teacher
            self._check(
                "teacher",
                error > NO_DENOISER,
                step,
                f"the teacher does not denoise: its error on noised generated samples is {error:.3g} times that of "
                "returning its input or zero. Check the range of its data (-1 to 1), its noise process and its "
                "prediction type",
            )
        limit = self.config.failure.max_bad_steps
        if limit is not None and self.bad_steps >= min(limit, self.config.total_steps):
            raise Diverged(
                f"every sample of the last {self.bad_steps} steps is NaN or infinite "
                f"(failure.max_bad_steps): the run has diverged at step {step:,}; {AFTER_DIVERGENCE}"
            )

    def line(self, step: int, means: Mapping[str, float]) -> None:
        """Look at the means of a line of metrics."""
        for name, earlier in self._losses.items():
            value = means.get(name)
            if value is None or not math.isfinite(value):
                continue
            usual = median(map(abs, earlier)) if len(earlier) >= LINES_FOR_MEDIAN else math.inf
            self._check(
                name,
                abs(value) > EXPLODED * usual > 0,
                step,
                f"{name} is {value:.3g} at step {step:,}, where {usual:.3g} was usual: the run may be diverging",
            )
        if self._first_spread and (spread := means.get(SPREAD)) is not None:
            self._check(
                SPREAD,
                spread < COLLAPSED * self._first_spread,
                step,
                f"the generated samples of step {step:,} are nearly the same: they differ by {spread:.3g} on average, "
                f"at the start by {self._first_spread:.3g}",
            )
        self._check(
            CLAMPED,
            means.get(CLAMPED, 0.0) >= ALL_CLAMPED,
            step,
            f"all logits of the discriminator are beyond the clamp at step {step:,}: the adversarial term gives the "
            "generator no gradient",
        )
        self._note_line(means)

    def evaluation(self, step: int, figures: Mapping[str, Any]) -> None:
        """Look at the figures of an evaluation."""
        distance, best = figures["frechet_distance"], self._best_distance
        self._note_evaluation(figures)
        early = self._early_alarm(step)
        self._check("early", bool(early), step, early)
        self._check(
            "distance",
            not early and math.isfinite(best) and not distance <= WORSE_DISTANCE * best,
            step,
            f"the distance is {distance:.3f} at step {step:,}, and was {best:.3f} before: the run may be diverging",
        )

    def _note_evaluation(self, figures: Mapping[str, Any]) -> None:
        self._best_distance = min(self._best_distance, figures.get("frechet_distance", math.inf))
        if len(self._first_evaluations) <= EARLY + 1:
            self._first_evaluations.append(figures)

    def _early_alarm(self, step: int) -> str:
        """Return the warning of a run whose first evaluations get worse, as those of a good run do not; else ""."""
        if len(self._first_evaluations) > EARLY + 1:
            return ""
        for name, worse in (("frechet_distance", EARLY_RISE), ("agreement", EARLY_LOSS)):
            sign = 1 if FIGURES[name].better == "min" else -1
            values = [value for each in self._first_evaluations if (value := finite(each, name)) is not None]
            steps = [sign * (after - before) > 0 for before, after in pairwise(values)]
            if len(steps) < EARLY_STEPS or not all(steps[-EARLY_STEPS:]):
                continue
            last, best = values[-1], sign * min(sign * value for value in values)
            if sign * (last - best) >= (worse * best if sign > 0 else worse):
                show = FIGURES[name].show
                return (
                    f"the {FIGURES[name].short} is {show(last)} at step {step:,}, was {show(best)} before, and has "
                    f"been getting worse for {EARLY_STEPS} evaluations: {self._causes()}"
                )
        return ""

    def _causes(self) -> str:
        """List the likely causes of a run that goes wrong from its start."""
        config = self.config
        guidance = config.method.guidance
        scales = (guidance.train_fake, guidance.eval_fake, guidance.eval_teacher)
        causes = [
            f"a learning rate that is too high (generator.lr {config.generator.lr:g}, fake_score.lr "
            f"{config.fake_score.lr:g})"
        ]
        if scales != (1.0, 1.0, 1.0):
            listed = " / ".join(f"{scale:g}" for scale in scales)
            causes.append(
                f"scales of method.guidance ({listed}) at which the teacher itself makes bad images"
            )
        causes.append("a teacher whose prediction type or scheduler is not that of its training")
        if "fp16" in (config.precision, config.teacher.precision):
            causes.append("numbers beyond the range of fp16 (bf16 has them; generator.clip_gradient 1 helps)")
        return f"likely causes this early are {', '.join(causes[:-1])} and {causes[-1]}"

    def _note_line(self, means: Mapping[str, Any]) -> None:
        for name, values in self._losses.items():
            value = means.get(name)
            if isinstance(value, float) and math.isfinite(value):
                values.append(value)
        spread = means.get(SPREAD)
        if self._first_spread is None and isinstance(spread, float) and spread > 0:
            self._first_spread = spread

    def _check(self, kind: str, wrong: bool, step: int, text: str) -> None:
        if wrong and kind not in self._active:
            self._warn(step, text)
        (self._active.add if wrong else self._active.discard)(kind)
