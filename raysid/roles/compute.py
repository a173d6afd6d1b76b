"""Apply the config's `compute` settings to a role's network, in the process where it lives."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from raysid.config import ComputeSettings
from raysid.errors import UserError
from raysid.networks import EDMDenoiser
from raysid.networks.denoiser import Network
from raysid.networks.factory import FactoryDenoiser
from raysid.roles.torch_internals import set_recompile_limit

# Three roles in one process call their networks in train and eval mode, frozen or not, with and without a graph. Each
# way is compiled separately; torch's own limit is 8, and it runs the others uncompiled.
WAYS_OF_CALLING = 64


def equip(network: Network, compute: ComputeSettings, device: str) -> None:
    """Move a network to its device and apply the settings to it, in place. Its weights keep their names.

    Raises:
        UserError: there is no compiler, or the network cannot checkpoint its activations.
    """
    set_tf32(compute.tf32)
    network.to(device)
    if compute.channels_last:
        network.memory_format = torch.channels_last
        for parameter in network.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    if compute.activation_checkpointing:
        checkpoint_activations(network)
    if compute.compile:
        check_compiler(device)
        set_recompile_limit(WAYS_OF_CALLING)
        parts: list[nn.Module] = [network.model]
        if isinstance(network, EDMDenoiser):
            parts = [network.model.enc, network.model.dec]  # SiDA calls the encoder without the decoder, too
        for part in parts:
            # No mode with CUDA graphs: several microbatches are under way at a time.
            part.compile(dynamic=False)


def set_tf32(allowed: bool) -> None:
    """Allow TF32 in float32 products of this process, or forbid it, as EDM's runs do."""
    # Not through `fp32_precision`, the newer name: up to torch 2.13 at least, its compiler fails once that is set.
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def checkpoint_activations(network: Network) -> None:
    """Keep few activations for the backward pass, and compute the others again there.

    Raises:
        UserError: the network is a module of the user's own without `enable_gradient_checkpointing`.
    """
    model: Any = network.model
    if isinstance(network, FactoryDenoiser) and not hasattr(model, "enable_gradient_checkpointing"):
        raise UserError(
            f"compute.activation_checkpointing is not for teacher.factory {network.settings.factory}: its "
            f"{type(model).__name__} has no method enable_gradient_checkpointing; give it one, as "
            "diffusers' have (torch.utils.checkpoint with use_reentrant=False), or false for it"
        )
    model.enable_gradient_checkpointing()


def check_compiler(device: str) -> None:
    """Compile a small function, since the tools that torch needs differ by device and platform.

    Raises:
        UserError: it cannot be compiled.
    """
    try:
        torch.compile(nn.functional.silu)(torch.ones(8, device=device))
    except Exception as error:  # torch's compiler raises many types
        needed = "a C++ compiler (as g++, or named by CXX)" if device == "cpu" else "Triton and a C compiler"
        reason = " ".join(str(error).partition("Set TORCHDYNAMO_VERBOSE")[0].split())[:300]
        raise UserError(
            f"compute.compile needs {needed} and Python's headers wherever a role lives, and torch.compile failed: "
            f"{reason}; install them, or give compute.compile false"
        ) from error
