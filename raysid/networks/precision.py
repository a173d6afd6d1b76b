"""What a network computes in: float32, or half precision by autocast, its weights staying float32; and how its
images lie in memory."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from raysid.config.networks import Precision

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def lowered(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The region in which a network's layers run in `precision`; for float32 as it is around it."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, _DTYPES[precision])


def laid_out(images: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Images (B, C, H, W) as `memory_format` says; samples of another shape as they are."""
    return images.contiguous(memory_format=memory_format) if images.ndim == 4 else images
