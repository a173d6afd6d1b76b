"""The generator learner: theta, and its moving average, which is the product."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raysid.config import Config
from raysid.method.diagnostics import batch_spread, clamped_share, relative_error
from raysid.method.draws import DrawsAt, seed_torch
from raysid.method.losses import finite_samples, generator_loss
from raysid.method.noise import per_sample
from raysid.method.sampling import one_step_from
from raysid.method.schedules import adversary_acts, ema_beta
from raysid.networks.denoiser import Network
from raysid.networks.files import NetworkCard
from raysid.networks.text import TextEncoder
from raysid.roles.learner import (
    BAD_SAMPLES,
    RECOMPUTED,
    Learner,
    check_finite,
    move_average,
    where_good,
)
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
from raysid.roles.profile import busy
from raysid.roles.protocols import Purpose
from raysid.roles.ranks import Ranks
from raysid.roles.state_files import copied_state

TEACHER_ERROR, SPREAD = "generator/teacher_relative_error", "generator/image_spread"
CLAMPED = "generator/clamped_logits"


@dataclass
class _Pending:
    """A microbatch between `generate` and `accumulate`.

    Attributes:
        x_g: generated images with their graph.
        scales: a_t and s_t, the noise process's scales of x_g and of the noise in x_t.
        good: True for samples without a NaN or infinity so far.
        direct: the direct part of the loss's gradient at x_g, once `cotangents` has it.
        sums: the microbatch's terms of the step's sums.
    """

    x_g: Tensor
    scales: tuple[Tensor, Tensor]
    good: Tensor
    direct: Tensor | None = None
    sums: dict[str, float] | None = None


class GeneratorLearner(Learner):
    """theta: makes images, turns the scorers' predictions into cotangents and their pulls into its gradient.

    Implements `raysid.roles.protocols.GeneratorRole`.

    Args:
        config, network, draws, ranks, text: as `Learner`'s. Each rank holds the average, too.
    """

    def __init__(
        self,
        config: Config,
        network: Network,
        draws: DrawsAt | None = None,
        ranks: Ranks | None = None,
        text: TextEncoder | None = None,
    ) -> None:
        super().__init__("generator", config, network.train().requires_grad_(True), draws, ranks, text)
        self.ema = copy.deepcopy(network).eval().requires_grad_(False)
        self.parts = {"network": network, "ema": self.ema, "optimizer": self.optimizer}
        self.weights: list[Tensor] = list(self.network.parameters())
        self.averages: list[Tensor] = list(self.ema.parameters())
        self.clip = config.generator.clip_gradient
        self.level = self.noise.start_level(config.method.sigma_init)
        self.tmax = config.method.tmax or self.noise.default_tmax
        self.pending: dict[Slice, _Pending] = {}

    @busy
    def images(self, at: Slice, cond: Conditions) -> Images:
        """Make images for psi's update in the alternating order: eval mode, no graph, some conditions dropped."""
        self._train(False)
        draws = self.draws(at.step, at.start, at.count)
        given = self._drop_conditions(self._given(cond), draws)
        with torch.no_grad():
            return Images(self._make(at, "fake", given))

    @busy
    def generate(self, at: Slice, cond: Conditions) -> tuple[Noised, Images]:
        """Make images in train mode, keep their graph for `accumulate`, and noise them for the scorers."""
        self._train(True)
        x_g = self._make(at, "generator", self._given(cond))
        good = finite_samples(x_g)
        draws = self.draws(at.step, at.start, at.count)
        uniform = draws.uniform("generator/t_uniform")
        t = self.noise.generator_level(uniform, self.tmax).to(self.device)
        eps = draws.normal("generator/noise", x_g.shape[1:]).to(self.device)
        x_t = self.noise.add_noise(x_g.detach(), t, eps)
        self.pending[at] = _Pending(x_g, self.noise.scales(t), good)
        return Noised(at, x_t, t), Images(x_g.detach())

    @busy
    def cotangents(self, at: Slice, teacher: Prediction, fake: Prediction) -> tuple[Cotangent, Cotangent]:
        """Return the loss's gradients at the two predictions and the logits, from which the pullbacks start.

        The direct part of the gradient, at x_g itself, stays in this role.
        """
        teacher, fake = teacher.to(self.device), fake.to(self.device)
        entry, method = self.pending[at], self.config.method
        logits = fake.logits if adversary_acts(method.adversarial, at.step * self.config.batch_size) else None
        leaves = [
            leaf.detach().requires_grad_()
            for leaf in (entry.x_g, teacher.x_hat, fake.x_hat, logits)
            if leaf is not None
        ]
        x_g, x_teacher, x_fake = leaves[:3]
        loss, sid, adversarial = generator_loss(
            x_g,
            x_teacher,
            x_fake,
            method.alpha,
            method.sid_weight,
            logits=leaves[3] if logits is not None else None,
            adversarial_scale=method.adversarial.generator_weight if method.adversarial else 0.0,
            group_size=method.adversarial.group_size if method.adversarial else 1,
        )
        gradients = torch.autograd.grad(loss / self.config.batch_size, leaves)
        entry.good &= finite_samples(x_g, x_teacher, x_fake)
        error = where_good(entry.good, relative_error(x_teacher, x_g, entry.scales))
        terms = {"generator": loss.detach(), "sid": sid, TEACHER_ERROR: error.sum()}
        if self.config.microbatch > 1:
            spread = batch_spread(where_good(entry.good, x_g)) if at.count > 1 else torch.zeros_like(sid)
            terms[SPREAD] = at.count * spread
        entry.direct, cotangent_teacher, cotangent_fake = (where_good(entry.good, g) for g in gradients[:3])
        cotangent_logits = None
        if logits is not None:
            terms |= {"adversarial": adversarial, CLAMPED: clamped_share(logits).sum()}
            cotangent_logits = gradients[3].nan_to_num(nan=0.0)
        values = torch.stack([*terms.values()]).tolist()  # at once: each transfer waits for the device
        entry.sums = dict(zip(terms, values, strict=True)) | {RECOMPUTED: teacher.recomputed}
        return Cotangent(cotangent_teacher), Cotangent(cotangent_fake, cotangent_logits)

    @busy
    def accumulate(self, at: Slice, teacher: Pull, fake: Pull) -> Token:
        """Add one microbatch to theta's gradient: the direct part plus a_t times the sum of the pulls."""
        teacher, fake = teacher.to(self.device), fake.to(self.device)
        entry = self.pending.pop(at)
        assert entry.direct is not None and entry.sums is not None
        gradient = entry.direct + per_sample(entry.scales[0], entry.x_g) * (teacher.x_t + fake.x_t)
        # A pull can be bad although the predictions were good: the backward pass itself may overflow.
        good = entry.good & finite_samples(gradient)
        entry.sums[BAD_SAMPLES] = at.count - float(good.sum())
        self._train(True)  # the mode of `generate`: a network with activation checkpointing computes again
        entry.x_g.backward(where_good(good, gradient))
        entry.sums[RECOMPUTED] += teacher.recomputed
        return Token(at, entry.sums)

    def discard(self, at: Slice) -> None:
        """Free a microbatch that theta does not learn from: in an opening step or a start-up phase."""
        del self.pending[at]

    def product(self, trained: dict[str, Any]) -> tuple[NetworkCard, dict[str, Tensor]]:
        """Return the averaged generator's card, with `trained` in it, and a copy of its weights in host memory.

        Raises:
            Diverged: its weights are NaN or infinite.
        """
        check_finite("averaged generator", self.averages)
        parts = None if self.text is None else self.text.folder
        card = NetworkCard.for_generator(self.network, self.config.method.sigma_init, trained, parts)
        return card, copied_state(self.ema.state_dict())

    def _update(self, step: int, tokens: tuple[Token, ...]) -> StepReport:
        report = super()._update(step, tokens)
        beta = ema_beta(self.config.ema, step * self.config.batch_size, self.config.batch_size)
        move_average(self.averages, self.weights, beta, self.config.compute.foreach_ema)
        return report

    def _train(self, training: bool) -> None:
        if self.network.training is not training:  # a walk over all modules takes a millisecond
            self.network.train(training)

    def _make(self, at: Slice, purpose: Purpose, cond: Tensor | None) -> Tensor:
        """Make x_g from the draws of `purpose`, with a graph if gradients are enabled."""
        draws = self.draws(at.step, at.start, at.count)
        z = draws.normal(f"{purpose}/z", self.network.settings.sample_shape).to(self.device)
        seed_torch(draws.dropout_seed(f"{purpose}/dropout"), self.device)
        x_g = one_step_from(self.network, self.noise, self.level, z, cond)
        good = finite_samples(x_g)
        if not good.all():
            # NaN activations of one sample would make the weights' gradient NaN for all. Run again with that sample's
            # noise set to zero: its image stays marked bad, and its cotangents and pulls are zero.
            seed_torch(draws.dropout_seed(f"{purpose}/dropout"), self.device)
            x_g = one_step_from(self.network, self.noise, self.level, where_good(good, z), cond)
            x_g = torch.where(per_sample(good, x_g).bool(), x_g, torch.nan)
        return x_g
