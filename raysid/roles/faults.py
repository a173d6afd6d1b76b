"""Failures of the device under a role, as far as torch's exceptions show them."""

from __future__ import annotations

import re

import torch
from torch.distributed import DistBackendError

from raysid.errors import DeviceFailed, RunFailed

# cuBLAS, cuDNN and HIP fail with a plain RuntimeError.
_LIBRARY_FAULTS = re.compile(r"\b(CUDA|HIP|NCCL|cuDNN) error|\b(CUBLAS|CUDNN|CUSOLVER|CUFFT|MIOPEN)_STATUS_")
LESS_MEMORY = "lower microbatch_size or microbatches_in_flight, or give compute.activation_checkpointing true"


def is_device_fault(error: BaseException) -> bool:
    """Return True for a failure of an accelerator or of the network between accelerators.

    Such a failure (an uncorrectable memory error, a lost device, a broken NCCL connection) leaves the process's device
    unusable, and says nothing about the run: another process may do the same work. Too little memory is none.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return False
    if isinstance(error, torch.AcceleratorError | DistBackendError):
        return True
    return isinstance(error, RuntimeError) and bool(_LIBRARY_FAULTS.search(str(error)))


def role_failure(what: str, error: Exception) -> RunFailed | DeviceFailed:
    """Return the error for a role's failure; `what` names the role and the call."""
    return (DeviceFailed if is_device_fault(error) else RunFailed)(f"{what}: {describe_fault(error)}")


def describe_fault(error: BaseException) -> str:
    """Return a role's failure in one line, with what to do where that is known."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{line}; {LESS_MEMORY}" if isinstance(error, torch.OutOfMemoryError) else line
