"""How a role's network computes: what `compute` in the config asks for, done to a network in its process."""

from __future__ import annotations

import torch
from torch import nn

from raysid.config import ComputeSettings
from raysid.errors import UserError
from raysid.networks import EDMDenoiser
from raysid.networks.blocks import UNetBlock
from raysid.networks.denoiser import Network
from raysid.networks.diffusers import DiffusersDenoiser

# Three roles in one process call their networks in train and eval mode, frozen or not, with and without a graph. Each
# way is compiled apart; torch's own limit is 8, beyond which it goes on uncompiled.
WAYS_OF_CALLING = 64


def equip(network: Network, compute: ComputeSettings, device: str) -> None:
    """Put a network on its device and have it compute as the settings say, in place: its weights keep their names.

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
        torch._dynamo.config.recompile_limit = WAYS_OF_CALLING
        for part in compiled_parts(network):
            # No CUDA graphs (another mode): several microbatches are under way at a time.
            part.compile(dynamic=False)


def set_tf32(allowed: bool) -> None:
    """Whether float32 products may be TF32, in the whole process. float32 as it stands otherwise, as in EDM's runs."""
    # Not by `fp32_precision`, torch's newer name: until torch 2.13 at least, its compiler fails where that was set.
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def checkpoint_activations(network: Network) -> None:
    """Have a network keep little for the backward pass, and compute the rest again there.

    Raises:
        UserError: it is a module of the user's own that has no way to be told.
    """
    if isinstance(network, EDMDenoiser):
        for module in network.modules():
            if isinstance(module, UNetBlock):
                module.checkpointed = True
        return
    if isinstance(network, DiffusersDenoiser):
        network.model.enable_gradient_checkpointing()  # type: ignore[operator]
        return
    if not hasattr(network.model, "enable_gradient_checkpointing"):
        raise UserError(
            f"compute.activation_checkpointing is not for teacher.factory {network.settings.factory}: its "
            f"{type(network.model).__name__} has no method enable_gradient_checkpointing; give it one, as "
            "diffusers' have (torch.utils.checkpoint with use_reentrant=False), or false for it"
        )
    network.model.enable_gradient_checkpointing()  # type: ignore[operator]


def compiled_parts(network: Network) -> list[nn.Module]:
    """The modules of a network that are compiled, each by itself."""
    if isinstance(network, EDMDenoiser):
        return [network.model.enc, network.model.dec]  # apart: SiDA calls the encoder alone, too
    return [network.model]


def check_compiler(device: str) -> None:
    """Compile something small, as what torch needs for that differs by device and platform.

    Raises:
        UserError: it cannot be compiled.
    """
    try:
        torch.compile(nn.functional.silu)(torch.ones(8, device=device))
    except Exception as error:
        needed = "a C++ compiler (as g++, or named by CXX)" if device == "cpu" else "Triton and a C compiler"
        reason = " ".join(str(error).partition("Set TORCHDYNAMO_VERBOSE")[0].split())[:300]
        raise UserError(
            f"compute.compile needs {needed} and Python's headers wherever a role lives, and torch.compile failed: "
            f"{reason}; install them, or give compute.compile false"
        ) from error
