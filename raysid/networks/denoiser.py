"""The one interface through which every network is used, and the networks there are."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from raysid.networks.diffusers import DiffusersDenoiser
from raysid.networks.edm import EDMDenoiser
from raysid.networks.factory import FactoryDenoiser

Network = EDMDenoiser | DiffusersDenoiser | FactoryDenoiser


class Denoiser(Protocol):
    """x_hat = D(x_t, t, c): the prediction of the clean sample, whatever the network predicts inside."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None, /) -> Tensor:
        """x_hat, like x_t, for noised samples (B, *sample_shape), noise levels (B,), conditions (B, ...) or None."""
