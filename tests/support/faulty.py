"""A user's own teacher whose accelerator fails once in a chosen role, by the exception that torch raises for it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import raysid
from tests.support import points

# One fixed path: the processes of a test session's Ray cluster started before the test, so no environment reaches them.
FAULTS = Path(tempfile.gettempdir()) / "raysid-tests-device-faults"
TEXT = "CUDA error: uncorrectable ECC error encountered"


class FaultyPoints(points.Points):
    """Points. A file in `FAULTS` named like this process's role makes its accelerator fail once, and disappears."""

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        for fault in FAULTS.glob("*"):
            if fault.name.encode() in Path("/proc/self/cmdline").read_bytes():
                fault.unlink()
                raise torch.AcceleratorError(TEXT)
        return super().forward(x_t, t, cond)


def make() -> tuple[nn.Module, raysid.NoiseProcess]:
    torch.manual_seed(5)  # every run's teacher is the same
    return FaultyPoints(points.EDM), points.EDM
