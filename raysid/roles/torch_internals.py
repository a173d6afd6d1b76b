"""PyTorch's undocumented names that raysid uses, each with its purpose. Check every one when PyTorch is upgraded.

Written against PyTorch 2.11.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode

# TorchDispatchMode sees every operation of a forward or backward pass, to count it. Tensors that `torch.load` makes
# under FakeTensorMode have shapes and no content, which it does not read. Watch: a documented home of each.


def lerp_all(averages: list[Tensor], weights: list[Tensor], weight: float) -> None:
    """Move all averages towards the weights with a few kernels instead of one per tensor. Watch: a documented name."""
    torch._foreach_lerp_(averages, weights, weight)


def set_recompile_limit(limit: int) -> None:
    """Set how many ways of calling a module are compiled. Watch: `torch.compiler` may get this setting."""
    torch._dynamo.config.recompile_limit = limit


def gloo_group(store: Any, rank: int, size: int, host: str, timeout: timedelta) -> Any:
    """Create a process group over gloo that listens at address `host`.

    `init_process_group` would let gloo choose the address to which the host's name resolves, which may be the loopback,
    and would make the group this process's only default. Watch: the options' names; the stub has others.
    """
    gloo: Any = torch.distributed.ProcessGroupGloo
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname=host)]
    options._timeout = timeout
    return gloo(store, rank, size, options)


def nccl_group(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    """Create a process group over NCCL, beside the default group. Watch: the options' names."""
    options = torch.distributed.ProcessGroupNCCL.Options()
    options._timeout = timeout
    return torch.distributed.ProcessGroupNCCL(store, rank, size, options)
