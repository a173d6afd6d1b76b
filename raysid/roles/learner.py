"""The base of both learners, and their parts: the optimizer of a network, the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from raysid.config import Config, LearnerSettings
from raysid.errors import Diverged
from raysid.method.draws import Draws, DrawsAt
from raysid.method.guidance import drop_conditions
from raysid.method.noise import NoiseProcess
from raysid.method.schedules import learning_rate
from raysid.networks.denoiser import Network
from raysid.networks.text import TextEncoder
from raysid.roles.conditions import network_conditions
from raysid.roles.messages import Conditions, StepReport, Token, check_tokens
from raysid.roles.profile import Stopwatch
from raysid.roles.ranks import Ranks
from raysid.roles.state_files import copied_state
from raysid.roles.step import all_microbatches
from raysid.roles.torch_internals import lerp_all

# Entries of a token's sums that are counts. All others are figures, with their learner's name, or losses, without.
RECOMPUTED, BAD_SAMPLES = "teacher_recomputes", "bad_samples"
BAD_GRADIENTS = "nonfinite_gradients"
AFTER_DIVERGENCE = "lower the learning rate or method.alpha, or give precision fp32"


class Optimizer:
    """Adam over a network's parameters, with cleaned gradients.

    NaN becomes 0 and infinities +-1e5, as in the authors' runs; then the gradients may be clipped by value. Several
    ranks sum their gradients first, so that all of them make the same update.
    """

    def __init__(
        self, network: nn.Module, settings: LearnerSettings, config: Config, ranks: Ranks | None = None
    ) -> None:
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.adam = torch.optim.Adam(
            self.parameters,
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            # None, not False: torch then chooses the fastest implementation that is not fused.
            fused=config.compute.fused_optimizer or None,
        )
        self.settings = settings
        self.config = config
        self.ranks = ranks

    def step(self, images: int, clip: float | None = None) -> dict[str, float]:
        """Apply the accumulated gradients of the step that begins after `images`, and clear them.

        Args:
            clip: largest absolute value of a gradient's element; None does not clip.

        Returns:
            Learning rate; norm of the gradient before it is cleaned and clipped, which is NaN or infinite for one
            that is not finite; number of its elements that are not.

        Raises:
            PeerLost: another rank is lost; nothing was applied.
        """
        if self.ranks is not None:
            self._sum_over(self.ranks)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm, bad = float(torch.nn.utils.get_total_norm(gradients)), 0
        if not math.isfinite(norm):
            bad = int(sum((~gradient.isfinite()).sum() for gradient in gradients))
            for gradient in gradients:
                torch.nan_to_num_(gradient, nan=0.0, posinf=1e5, neginf=-1e5)
        if clip is not None:
            torch.nn.utils.clip_grad_value_(self.parameters, clip)
        rate = learning_rate(self.settings.lr, self.config.lr_schedule, images, self.config.total_images)
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return {"lr": rate, "gradient_norm": norm, BAD_GRADIENTS: float(bad)}

    def _sum_over(self, ranks: Ranks) -> None:
        """Sum the ranks' gradients; a missing one counts as zero, and stays missing if all ranks miss it."""
        counts = [float(p.grad is not None) for p in self.parameters]
        alive = torch.tensor(counts, device=self.parameters[0].device)
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        ranks.all_reduce([alive, *(p.grad for p in self.parameters if p.grad is not None)])
        for parameter, count in zip(self.parameters, alive.tolist(), strict=True):
            if count == 0:
                parameter.grad = None  # as in one process, Adam keeps no state of it

    def state_dict(self) -> dict[str, Any]:
        return self.adam.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state; the implementation of Adam (fused, foreach) stays this one's."""
        kept = [{name: group[name] for name in ("fused", "foreach")} for group in self.adam.param_groups]
        groups = [saved | own for saved, own in zip(state["param_groups"], kept, strict=True)]
        self.adam.load_state_dict(state | {"param_groups": groups})
        for parameter, moments in self.adam.state.items():
            for name, value in moments.items():
                # The fused update walks through memory: the moments need the weights' layout.
                if value.shape == parameter.shape and value.stride() != parameter.stride():
                    moments[name] = torch.empty_like(parameter).copy_(value)


class Learner:
    """A network in training, on one rank of a learner.

    Args:
        name: the learner's name in the settings and figures.
        network: the denoiser, a copy of the teacher's at the start of a run.
        draws: makes the random draws; None draws from the run's seed.
        ranks: all ranks of the learner; None if there is one. Each holds all weights. Each accumulates some of the
            step's microbatches.
        text: the text encoder, for conditions that are token ids.
    """

    clip: float | None = None  # largest absolute value of a gradient's element; None does not clip

    def __init__(
        self,
        name: Literal["fake_score", "generator"],
        config: Config,
        network: Network,
        draws: DrawsAt | None,
        ranks: Ranks | None,
        text: TextEncoder | None,
    ) -> None:
        self.name = name
        self.text = text
        self.config = config
        self.network = network
        self.noise: NoiseProcess = network.noise
        settings = config.fake_score if name == "fake_score" else config.generator
        self.optimizer = Optimizer(network, settings, config, ranks)
        self.draws = draws or partial(Draws, config.seed)
        self.stopwatch = Stopwatch()
        self.parts: dict[str, nn.Module | Optimizer] = {"network": network, "optimizer": self.optimizer}

    def step(self, step: int, *tokens: Token) -> StepReport:
        """Update the network with all ranks' gradients.

        Args:
            tokens: one of every microbatch of the step, or only of this rank's if the ranks exchange them.

        Raises:
            RuntimeError: a microbatch is missing or doubled; the network is unchanged.
            PeerLost: another rank is lost.
        """
        ranks = self.optimizer.ranks
        gathered = self._exchange(ranks, step, tokens) if ranks and ranks.exchange_tokens else tokens
        return self.stopwatch.time("step", self.device, lambda: self._update(step, gathered))

    def state(self) -> dict[str, Any]:
        """Return a copy of this learner's part of a checkpoint, in host memory.

        Raises:
            Diverged: weights are NaN or infinite.
        """
        for part in self.parts.values():
            if isinstance(part, nn.Module):
                check_finite(self.name.replace("_", " "), part.parameters())
        return {name: copied_state(part.state_dict()) for name, part in self.parts.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])

    def report(self) -> dict[str, float]:
        """Return figures since this learner started: busy seconds."""
        return {"busy_seconds": self.stopwatch.seconds}

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _update(self, step: int, tokens: tuple[Token, ...]) -> StepReport:
        size = self.config.batch_size
        sums = check_tokens(step, size, tokens)
        recomputes = sums.pop(RECOMPUTED, 0.0)
        figures = self.optimizer.step(step * size, self.clip)
        bad = sums.pop(BAD_SAMPLES, 0.0)
        # Means of the samples that were not left out; of none they are NaN, since 0 would read as a good loss.
        divisor = size - bad or math.nan
        means = {name if "/" in name else f"loss/{name}": total / divisor for name, total in sums.items()}
        rates = {f"{self.name}/{name}": value for name, value in (figures | {BAD_SAMPLES: bad}).items()}
        return StepReport(means | rates, recomputes=recomputes)

    def _exchange(self, ranks: Ranks, step: int, tokens: tuple[Token, ...]) -> tuple[Token, ...]:
        """Return the tokens of the step's microbatches that any rank has accumulated."""
        cut = all_microbatches(self.config, step, ranks.size)
        names = sorted({name for token in tokens for name in token.sums})  # the same on all ranks
        table = torch.zeros(len(cut), 1 + len(names), dtype=torch.float64, device=self.device)
        for token in tokens:
            sums = [token.sums[name] for name in names]
            table[cut.index(token.at)] = torch.tensor([1.0, *sums], dtype=torch.float64)
        ranks.all_reduce([table])
        return tuple(
            Token(at, dict(zip(names, sums, strict=True)))
            for at, (present, *sums) in zip(cut, table.tolist(), strict=True)
            if present
        )

    def _given(self, cond: Conditions) -> Tensor | None:
        """Return the network's conditions."""
        return network_conditions(cond, self.network, self.device, self.text)

    def _drop_conditions(self, cond: Tensor | None, draws: Draws) -> Tensor | None:
        """Drop the conditions of some of psi's images, with guidance's probability.

        Both learners drop those of the same samples: the draw depends on the address alone.
        """
        guidance = self.config.method.guidance
        if cond is None or not guidance.drops_conditions:
            return cond
        drops = draws.uniform("fake/condition_drop").to(cond.device)
        return drop_conditions(cond, drops, guidance.condition_drop, self.network.unconditional(cond))


def check_finite(name: str, weights: Iterable[Tensor]) -> None:
    """Check a network before it is written. Raises Diverged if a weight is NaN or infinite."""
    weights = list(weights)
    if torch.stack([weight.sum() for weight in weights]).isfinite().all():  # one transfer from the device
        return  # a sum takes a tenth of the time on a CPU; one of finite weights may overflow
    if not torch.stack([weight.isfinite().all() for weight in weights]).all():
        raise Diverged(f"the {name}'s weights are NaN or infinite: the run has diverged; {AFTER_DIVERGENCE}")


def move_average(averages: list[Tensor], weights: list[Tensor], beta: float, foreach: bool) -> None:
    """Update a moving average in place: beta times the average plus 1 - beta times the weights."""
    with torch.no_grad():
        if foreach:
            lerp_all(averages, weights, 1 - beta)
            return
        for average, weight in zip(averages, weights, strict=True):
            average.lerp_(weight, 1 - beta)


def where_good(good: Tensor, value: Tensor) -> Tensor:
    """Set the samples of `value` (B, ...) that are not `good` (B,) to zero; a product would keep NaN."""
    return torch.where(good.reshape(-1, *[1] * (value.ndim - 1)), value, 0.0)
