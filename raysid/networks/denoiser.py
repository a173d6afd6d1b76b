"""The base of all networks: a module with its noise process, precision and memory layout."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from raysid.config.method import NoiseSteps
from raysid.config.networks import DiffusersSettings, FactorySettings, NetworkSettings, Precision
from raysid.method.noise import NoiseProcess

AnySettings = NetworkSettings | DiffusersSettings | FactorySettings
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Network(nn.Module):
    """A denoiser around `model`, with the methods of `raysid.method.denoiser.Denoiser`.

    Unless a subclass overrides them, predictions are clean samples and conditions are labels.

    Attributes:
        settings: the settings from which it was built.
        noise: the noise process that it was trained with.
        precision: the precision of the model's layers, by torch's autocast; weights are float32.
        memory_format: the memory layout of the images in the model.
    """

    model: nn.Module
    settings: AnySettings
    noise: NoiseProcess

    def __init__(self) -> None:
        super().__init__()
        self.precision: Precision = "float32"
        self.memory_format = torch.contiguous_format

    def predict(
        self, x_t: Tensor, t: Tensor, cond: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """Predict in the network's own space, as `Denoiser.predict`."""
        raise NotImplementedError

    def clean(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return `prediction`, which is the clean sample already."""
        return prediction

    def unconditional(self, cond: Tensor) -> Tensor:
        """Return all-zero labels, like `cond`."""
        return torch.zeros_like(cond)

    def use_steps(self, steps: NoiseSteps | None) -> None:
        """Set the steps of a discrete noise process that a run gives; other networks have a process of their own."""

    def lowered(self, device: torch.device) -> AbstractContextManager[object]:
        """Return a context in which layers run in `precision`; float32 leaves the surrounding context as it is."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(device.type, _DTYPES[self.precision])

    def laid_out(self, images: Tensor) -> Tensor:
        """Return images (B, C, H, W) in `memory_format`, and samples of another shape unchanged."""
        return images.contiguous(memory_format=self.memory_format) if images.ndim == 4 else images
