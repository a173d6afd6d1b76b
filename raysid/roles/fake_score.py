"""The fake-score learner: psi, which follows the generator's own distribution."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from raysid.config import Config
from raysid.data import ImageStream, to_unit
from raysid.data.windows import Images as StoredImages
from raysid.method.augment import augment, draw_transforms
from raysid.method.denoiser import EncoderDenoiser
from raysid.method.draws import Draws, DrawsAt, seed_torch
from raysid.method.guidance import guided
from raysid.method.losses import denoising_loss, discriminator_loss, finite_samples
from raysid.networks.denoiser import Network
from raysid.networks.text import TextEncoder
from raysid.roles.learner import BAD_SAMPLES, Learner, where_good
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
from raysid.roles.ranks import Ranks

BAD_IMAGES = "bad_images"


class FakeScoreLearner(Learner):
    """psi: scores generated images for theta's loss, and learns from them; with SiDA it also discriminates.

    Implements `raysid.roles.protocols.FakeScoreRole`. It scores in eval mode with its parameters frozen, and trains in
    train mode, only in its own update.

    Args:
        real_images: the stream of real images, which the adversarial term needs.
        pixel_max: the stored pixel value that stands for +1 in `real_images`.
        config, network, draws, ranks, text: as `Learner`'s.
    """

    def __init__(
        self,
        config: Config,
        network: Network,
        real_images: ImageStream | None = None,
        pixel_max: int = 255,
        draws: DrawsAt | None = None,
        ranks: Ranks | None = None,
        text: TextEncoder | None = None,
    ) -> None:
        super().__init__("fake_score", config, network, draws, ranks, text)
        adversarial = config.method.adversarial
        self.clip = adversarial.clip_gradient if adversarial else None
        self.real_images = real_images
        self.pixel_max = pixel_max
        self.graphs: dict[Slice, tuple[Tensor, Tensor, Tensor | None]] = {}
        self.learning: bool | None = None  # unknown before the first call
        self.prepared: dict[Slice, StoredImages] = {}

    @busy
    def score(self, at: Slice, noised: Noised, cond: Conditions) -> Prediction:
        """Predict the clean images of x_t and, with the adversarial term, the encoder's logits; keep the graph."""
        noised = noised.to(self.device)
        self._learn(False)
        x_t = noised.x_t.detach().requires_grad_()
        x_hat, logits = guided(
            self.network,
            x_t,
            noised.t,
            self._given(cond),
            self.config.method.guidance.eval_fake,
            with_logits=self.config.method.adversarial is not None,
        )
        self.graphs[at] = (x_t, x_hat, logits)
        return Prediction(x_hat.detach(), None if logits is None else logits.detach())

    @busy
    def pullback(self, at: Slice, noised: Noised, cotangent: Cotangent) -> Pull:
        """Return J^T cotangent at x_t, through the prediction and, if the cotangent has them, through the logits."""
        cotangent = cotangent.to(self.device)
        self._learn(False)  # the mode of `score`: a network with activation checkpointing computes again
        x_t, x_hat, logits = self.graphs.pop(at)
        outputs, cotangents = [x_hat], [cotangent.x_hat]
        if cotangent.logits is not None:
            assert logits is not None
            outputs, cotangents = [x_hat, logits], [cotangent.x_hat, cotangent.logits]
        return Pull(torch.autograd.grad(outputs, x_t, cotangents)[0])

    def prepare(self, *slices: Slice) -> None:
        """Read the real images of a step's microbatches before any of it is computed.

        If they cannot be read, both learners are still at the same step, and can be saved.
        """
        assert self.real_images is not None
        size = self.config.batch_size
        self.prepared = {at: self.real_images.read(at.step * size + at.start, at.count) for at in slices}

    @busy
    def accumulate(self, at: Slice, images: Images, cond: Conditions) -> Token:
        """Add the gradient of one microbatch of generated images, and of as many real ones, to psi's.

        Loss: lambda(t) |D_psi(x_t) - x|^2, plus the discriminator's (docs/method.md, "Fake-score loss",
        "The adversarial term"). x is x_g or, with augmentation, x_g transformed, with the transform as psi's input;
        real images have separate transforms. Images with a NaN are left out of the loss.
        """
        images = images.to(self.device)
        draws = self.draws(at.step, at.start, at.count)
        good = finite_samples(images.x_g)
        x_g = where_good(good, images.x_g)
        # The overlapped order's images were made with all conditions, so psi's unconditional branch learns the
        # marginal. The alternating order's were made without those that are dropped here.
        given = self._drop_conditions(self._given(cond), draws)
        x, augment_labels = self._augmented(x_g, draws, "fake/augment")
        normal = self.noise.fake_score_draw == "normal"
        draw = draws.normal("fake/sigma_normal") if normal else draws.uniform("fake/t_uniform")
        t = self.noise.fake_score_level(draw).to(self.device)
        eps = draws.normal("fake/noise", x.shape[1:]).to(self.device)
        weight = self.noise.loss_weight(t)

        self._learn(True)
        seed_torch(draws.dropout_seed("fake/dropout"), self.device)
        x_hat, logits = guided(
            self.network,
            self.noise.add_noise(x, t, eps),
            t,
            given,
            self.config.method.guidance.train_fake,
            with_logits=self.config.method.adversarial is not None,
            augment_labels=augment_labels,
        )
        each = where_good(good, denoising_loss(x_hat, x, weight))
        counted = good & each.detach().isfinite()
        loss = each.sum()
        terms = {"fake_score": where_good(counted, each).sum(), BAD_SAMPLES: (~counted).sum()}
        adversarial = self.config.method.adversarial
        if adversarial is not None:
            assert logits is not None and isinstance(self.network, EncoderDenoiser)
            real, real_cond = self._real(at)
            real, real_augment = self._augmented(real, draws, "fake/augment_real")
            real_x_t = self.noise.add_noise(real, t, eps)
            real_logits = self.network.encode(real_x_t, t, real_cond, augment_labels=real_augment)
            fake_logits = torch.where(good[:, None, None, None], logits, torch.nan)
            discriminator = discriminator_loss(real_logits, fake_logits, weight, adversarial.group_size)
            loss = loss + adversarial.discriminator_weight * discriminator.sum()
            terms["discriminator"] = discriminator.sum()
        values = torch.stack([value.detach().float() for value in terms.values()]).tolist()
        (loss / self.config.batch_size).backward()
        return Token(at, dict(zip(terms, values, strict=True)))

    def report(self) -> dict[str, float]:
        """Return figures since the start: busy seconds, seconds of waiting for real images, bad images skipped."""
        waited = self.real_images.wait_seconds if self.real_images else 0.0
        bad = {BAD_IMAGES: float(len(self.real_images.faults))} if self.real_images else {}
        return super().report() | {"data_wait_seconds": waited} | bad

    def images_until(self, step: int) -> float:
        """Return the stream's position up to which images can be read without waiting, from the images of `step` on."""
        return self.real_images.loaded_until(step * self.config.batch_size) if self.real_images else math.inf

    def bad_images(self) -> dict[int, str]:
        """Return the real images skipped so far: name and fault of each, by its index in the source."""
        return dict(self.real_images.faults) if self.real_images else {}

    def _update(self, step: int, tokens: tuple[Token, ...]) -> StepReport:
        report = super()._update(step, tokens)
        return dataclasses.replace(report, images_until=self.images_until(step + 1))

    def _learn(self, learning: bool) -> None:
        """Put psi in train mode with gradients, or in eval mode, frozen."""
        if self.learning is learning:
            return  # a walk over all modules takes a millisecond
        self.learning = learning
        self.network.train(learning)
        for parameter in self.optimizer.parameters:
            parameter.requires_grad_(learning)

    def _augmented(self, images: Tensor, draws: Draws, purpose: str) -> tuple[Tensor, Tensor | None]:
        """Augment images; returns them with their augmentation labels, or unchanged with None without augmentation."""
        if not self.config.fake_score.augment:
            return images, None
        return augment(images, draw_transforms(draws, purpose, self.config.fake_score.augment))

    def _real(self, at: Slice) -> tuple[Tensor, Tensor | None]:
        """Read a microbatch's real images, each with its own label, at the step's position in the stream."""
        assert self.real_images is not None
        if at not in self.prepared:
            self.prepare(at)
        pixels, labels = self.prepared.pop(at)
        cond = Conditions({"labels": torch.from_numpy(labels)})
        real = torch.from_numpy(to_unit(pixels, self.pixel_max)).to(self.device)
        return real, self._given(cond)


def merge_rank_reports(reports: list[dict[str, float]]) -> dict[str, float]:
    """Merge the `report` of each rank of a learner: the largest figures, since a step waits for all; bad images add."""
    return {
        name: (sum if name == BAD_IMAGES else max)(report[name] for report in reports) for name in reports[0]
    }
