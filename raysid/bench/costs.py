"""What a network costs, counted without running it: floating-point operations and memory of each role's parts.

Counted on torch's meta device, where tensors have shapes and no numbers, so that the largest network takes seconds
on any machine. Operations are those of convolutions, linear layers and attention, a multiplication and an addition
as two; the rest of a network is small beside them, and is in the efficiency that a device reaches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from raysid.networks import EDMDenoiser, build_denoiser
from raysid.networks.denoiser import Network
from raysid.networks.files import AnySettings

BATCH = 2  # counted on so many images, for there is little that does not grow with them


@dataclass(frozen=True)
class NetworkCosts:
    """Of one network, an image where nothing else is said.

    Attributes:
        parameters: how many weights it has in all.
        forward: operations of a forward pass.
        pullback: of the backward pass to the input alone, as a scorer takes it.
        backward: of the backward pass to the weights, as a learner takes it.
        encoder: of a forward pass through the encoder alone (SiDA's discriminator on real images), 0 without one.
        encoder_backward: of the backward pass of that to the weights.
        graph_bytes: what a forward pass keeps for its backward pass, in float32.
    """

    parameters: int
    forward: float
    pullback: float
    backward: float
    encoder: float
    encoder_backward: float
    graph_bytes: float


def network_costs(settings: AnySettings) -> NetworkCosts:
    """Count a network.

    Raises:
        UserError: it cannot be built.
    """
    with torch.device("meta"):
        network = build_denoiser(settings)
        x_t = torch.empty(BATCH, *settings.sample_shape)
        t = torch.ones(BATCH, dtype=torch.long if network.noise.fake_score_draw == "uniform" else None)
        cond = torch.empty(BATCH, settings.label_dim) if settings.label_dim else None
    network.train()
    forward, graph, (pull, learn) = _count(network, lambda x: network(x, t, cond), x_t)
    encoder = encoder_learn = 0.0
    if isinstance(network, EDMDenoiser):
        encoder, _, (_, encoder_learn) = _count(network, lambda x: network.encode(x, t, cond), x_t)
    return NetworkCosts(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        forward=forward,
        pullback=pull,
        backward=learn,
        encoder=encoder,
        encoder_backward=encoder_learn,
        graph_bytes=graph,
    )


def _count(
    network: Network, run: Callable[[Tensor], Tensor], x_t: Tensor
) -> tuple[float, float, tuple[float, float]]:
    """Operations of a forward pass, the bytes that it keeps, and operations backward: to the input, to the weights."""
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    network.requires_grad_(True)
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, _same):
        output = run(x_t)
    forward = counter.get_total_flops()
    learn = _backward(output, [*network.parameters()])
    network.requires_grad_(False)
    leaf = x_t.detach().requires_grad_()
    pull = _backward(run(leaf), [leaf])
    return forward / BATCH, sum(kept.values()) / BATCH, (pull / BATCH, learn / BATCH)


def _backward(output: Tensor, inputs: list[Any]) -> float:
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(output, inputs, torch.ones_like(output), allow_unused=True)
    return counter.get_total_flops()


def _same(tensor: Tensor) -> Tensor:
    return tensor
