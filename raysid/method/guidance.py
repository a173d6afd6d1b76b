"""Guided prediction and condition dropping (SiD-LSG, arXiv 2406.01561).

Guidance at scale k predicts uncond + k (cond - uncond), in the network's own space. `Denoiser.unconditional` gives the
conditions of the unconditional prediction: an all-zero label, or the embeddings of the empty prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from raysid.method.denoiser import Cond, Denoiser, EncoderDenoiser
from raysid.method.noise import per_sample


def guided(
    network: Denoiser[Cond],
    x_t: Tensor,
    t: Tensor,
    cond: Cond | None,
    scale: float,
    with_logits: bool = False,
    augment_labels: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Predict the clean sample with guidance.

    Args:
        x_t: noised samples (B, ...).
        t: noise levels (B,).
        cond: conditions of the B samples, or None.
        scale: guidance scale k; at 1, or without conditions, the network runs once.
        with_logits: also return the encoder's logits of the conditional pass.
        augment_labels: the transforms of the images (B, augment_dim), for both passes; None for none.

    Returns:
        (x_hat like x_t, logits (B, 1, h, w) or None).

    Raises:
        ValueError: logits or augmentation labels, for a network that has no encoder or takes no such labels.
    """
    prediction, logits = guided_prediction(network, x_t, t, cond, scale, with_logits, augment_labels)
    return network.clean(prediction, x_t, t), logits


def guided_prediction(
    network: Denoiser[Cond],
    x_t: Tensor,
    t: Tensor,
    cond: Cond | None,
    scale: float,
    with_logits: bool = False,
    augment_labels: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Predict as `guided` does, but in the network's own space."""
    logits = None
    if with_logits:
        if not isinstance(network, EncoderDenoiser):
            raise ValueError(f"a {type(network).__name__} has no encoder logits; EDM's networks have them")
        prediction, logits = network.predict_with_logits(x_t, t, cond, augment_labels)
    else:
        prediction = network.predict(x_t, t, cond, augment_labels)
    if scale == 1.0 or cond is None:
        return prediction, logits
    unconditional = network.predict(x_t, t, network.unconditional(cond), augment_labels)
    return unconditional + scale * (prediction - unconditional), logits


def drop_conditions(cond: Cond, uniform: Tensor, probability: float, unconditional: Cond) -> Cond:
    """Replace the conditions of the samples whose `uniform` number is below `probability`.

    Args:
        cond: conditions of B samples: a tensor (B, ...) or a mapping of such tensors.
        uniform: numbers (B,) in [0, 1), on the device of `cond`.
        probability: the probability of dropping, in [0, 1].
        unconditional: their replacement, as `Denoiser.unconditional` returns it; broadcast to `cond`.
    """

    def replaced(value: Any, replacement: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: replaced(value[name], replacement[name]) for name in value}
        return torch.where(per_sample(uniform < probability, value).bool(), replacement, value)

    return replaced(cond, unconditional)
