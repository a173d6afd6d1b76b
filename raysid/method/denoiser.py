"""The protocol through which the method uses a network.

Every network predicts the clean sample, x_hat = D(x_t, t, c). Guidance mixes predictions in the network's own space
(the clean sample for EDM's networks, epsilon or v for those of diffusers), so a denoiser also gives that prediction
and maps it to the clean sample. Nothing in `raysid.method` asks what kind of network it has.
"""

from __future__ import annotations

from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor

from raysid.method.noise import NoiseProcess

Cond = TypeVar("Cond")
"""A network's conditions for B samples: a tensor (B, ...), such as one-hot labels, or a mapping of such tensors."""


class Denoiser(Protocol[Cond]):
    """A network that predicts the clean sample x_hat from x_t = a_t x + s_t eps.

    In all methods `x_t` is noised samples (B, ...), `t` noise levels (B,) in the measure of `noise`, and `cond` the
    conditions of the B samples; None is the unconditional prediction.
    """

    @property
    def noise(self) -> NoiseProcess:
        """The noise process that the network was trained with."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None, /) -> Tensor:
        """Predict the clean sample: x_hat like x_t, in float32 at least."""

    def predict(
        self, x_t: Tensor, t: Tensor, cond: Cond | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """Predict in the network's own space, like x_t: `clean(predict(x_t, t, cond), x_t, t)` is x_hat.

        Args:
            augment_labels: the transforms of the images (B, augment_dim), see `raysid.method.augment`; None for none.

        Raises:
            ValueError: augmentation labels, for a network that takes none.
        """

    def clean(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Map a prediction in the network's own space to the clean sample; affine in the prediction."""

    def unconditional(self, cond: Cond) -> Cond:
        """Return conditions of the shape of `cond` under which the network predicts unconditionally.

        Raises:
            ValueError: the network has no unconditional prediction, or none of this shape.
        """


@runtime_checkable
class EncoderDenoiser(Denoiser[Cond], Protocol[Cond]):
    """A denoiser whose encoder serves as SiDA's discriminator (arXiv 2410.14919)."""

    def predict_with_logits(
        self, x_t: Tensor, t: Tensor, cond: Cond | None = None, augment_labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the prediction of `predict` and the logits of `encode`, from one pass."""

    def encode(
        self, x_t: Tensor, t: Tensor, cond: Cond | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """Return the discriminator's logits (B, 1, h, w), from the encoder only."""
