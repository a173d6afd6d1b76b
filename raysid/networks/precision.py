"""The precision of a network's computation, and the memory layout of its images.

Weights are float32; half precision is torch's autocast.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from raysid.config.networks import Precision

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def lowered(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """A context in which a network's layers run in `precision`; float32 leaves the surrounding context as it is."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, _DTYPES[precision])


def laid_out(images: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Images (B, C, H, W) in `memory_format`; samples of another shape unchanged."""
    return images.contiguous(memory_format=memory_format) if images.ndim == 4 else images
