"""Guided prediction and condition dropping (SiD-LSG, arXiv 2406.01561).

Guidance at scale k predicts uncond + k (cond - uncond), in the space the network predicts in: the clean
sample for EDM's denoisers and modules of one's own, epsilon or v for those of diffusers. No condition is an
all-zero label, or the empty prompt's embeddings.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raysid.method.noise import per_sample
from raysid.networks.denoiser import Network
from raysid.networks.diffusers import DiffusersDenoiser
from raysid.networks.factory import FactoryDenoiser


def guided(
    network: Network,
    x_t: Tensor,
    t: Tensor,
    cond: Tensor | None,
    scale: float,
    with_logits: bool = False,
    augment_labels: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Predict the clean image with guidance.

    Args:
        x_t: noised samples (B, ...); t: noise levels (B,); cond: one-hot labels (B, label_dim), text
            embeddings (B, tokens, width), or None.
        scale: guidance scale k; at 1, or without conditions, the network runs once.
        with_logits: also return the conditional pass's encoder logits (B, 1, h, w).
        augment_labels: how the images were transformed, (B, augment_dim), for both passes; None: they were not.

    Returns:
        (x_hat like x_t, logits or None).

    Raises:
        ValueError: logits or augmentation labels with another network than EDM's, which has neither.
    """
    if isinstance(network, DiffusersDenoiser | FactoryDenoiser) and (
        with_logits or augment_labels is not None
    ):
        raise ValueError("this network has no encoder logits and takes no augmentation labels: EDM's do")
    if isinstance(network, DiffusersDenoiser):
        return network.clean(guided_prediction(network, x_t, t, cond, scale), x_t, t), None
    labels: dict[str, Any] = {} if augment_labels is None else {"augment_labels": augment_labels}
    logits = None
    if with_logits:
        x_hat, logits = network(x_t, t, cond, **labels, return_logits=True)
    else:
        x_hat = network(x_t, t, cond, **labels)
    if scale == 1.0 or cond is None:
        return x_hat, logits
    unconditional = network(x_t, t, torch.zeros_like(cond), **labels)
    return unconditional + scale * (x_hat - unconditional), logits


def guided_prediction(
    network: DiffusersDenoiser, x_t: Tensor, t: Tensor, cond: Tensor | None, scale: float
) -> Tensor:
    """The guided prediction of epsilon or v, like x_t; arguments as `guided` has them."""
    prediction = network.predict(x_t, t, cond)
    if scale == 1.0 or cond is None:
        return prediction
    unconditional = network.predict(x_t, t, network.unconditional(cond))
    return unconditional + scale * (prediction - unconditional)


def drop_conditions(
    cond: Tensor, uniform: Tensor, probability: float, unconditional: Tensor | None = None
) -> Tensor:
    """Take the conditions (B, ...) from the samples whose `uniform` number (B,) is under `probability`.

    `unconditional` (like cond, or broadcast to it) takes their place; zeros when None.
    """
    dropped = per_sample(uniform < probability, cond).bool()
    return torch.where(dropped, 0.0 if unconditional is None else unconditional, cond)
