"""What a network costs, counted without running it: floating-point operations and memory of each role's parts.

Counted on torch's meta device, where tensors have shapes and no numbers, so that the largest network takes seconds
on any machine. Operations are those of convolutions, linear layers and attention, a multiplication and an addition
as two; the rest of a network is small beside them, and is in the efficiency that a device reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from raysid.config.networks import Precision
from raysid.errors import UserError
from raysid.networks import EDMDenoiser, FactorySettings, build_denoiser
from raysid.networks.denoiser import Network
from raysid.networks.files import AnySettings

BATCH = 2  # counted on so many images, for there is little that does not grow with them


@dataclass(frozen=True)
class GraphBytes:
    """What a pass keeps for its backward pass, in one precision, bytes an image.

    Attributes:
        learn: of a forward pass whose weights learn, in train mode.
        pull: of one with frozen weights, for the backward pass to the input, in eval mode.
        encoder: of the encoder alone (SiDA's discriminator on real images), its weights learning; 0 without one.
    """

    learn: float
    pull: float
    encoder: float


@dataclass(frozen=True)
class NetworkCosts:
    """Of one network, an image where nothing else is said.

    Attributes:
        parameters: how many weights it has in all.
        forward: operations of a forward pass.
        pullback: of the backward pass to the input alone, as a scorer takes it.
        backward: of the backward pass to the weights, as a learner takes it.
        encoder: of a forward pass through the encoder alone, 0 without one.
        encoder_backward: of the backward pass of that to the weights.
        graphs: what is kept in float32, and in half precision (bf16 and fp16 keep as much).
        kernels: operations that a forward pass launches one after the other, whatever the images.
        image_bytes: of one image in float32.
        classes: the network's, 0 where it is unconditional.
    """

    parameters: int
    forward: float
    pullback: float
    backward: float
    encoder: float
    encoder_backward: float
    graphs: dict[bool, GraphBytes]
    kernels: int
    image_bytes: int
    classes: int

    def graph(self, precision: Precision) -> GraphBytes:
        """What passes in a precision keep."""
        return self.graphs[precision != "float32"]

    def copies(self, precision: Precision) -> int:
        """Bytes of the half-precision copies of the weights that autocast makes, which a graph holds."""
        return 0 if precision == "float32" else 2 * self.parameters


def network_costs(settings: AnySettings, factory: str | None = None) -> NetworkCosts:
    """Count a network.

    Args:
        factory: as `build_denoiser`.

    Raises:
        UserError: it cannot be built, or a module of the user's own cannot run on the meta device.
    """
    network = _on_meta(settings, factory)
    with torch.device("meta"):
        x_t = torch.empty(BATCH, *settings.sample_shape)
        t = torch.ones(BATCH, dtype=torch.long if settings.discrete_levels else None)
        cond = torch.empty(BATCH, settings.label_dim) if settings.label_dim else None

    def run(x: Tensor) -> Tensor:
        return network(x, t, cond)

    def encode(x: Tensor) -> Tensor:
        assert isinstance(network, EDMDenoiser)
        return network.encode(x, t, cond)

    try:
        forward, backward, learn = _learning(network, run, x_t)
        pullback, pull = _pulling(network, run, x_t)
        graphs = {False: GraphBytes(learn, pull, 0.0)}
        graphs[True] = GraphBytes(
            _learning(network, run, x_t, True)[2], _pulling(network, run, x_t, True)[1], 0.0
        )
        encoder = encoder_backward = 0.0
        for half in (False, True) if isinstance(network, EDMDenoiser) else ():
            encoder, encoder_backward, kept = _learning(network, encode, x_t, half)
            graphs[half] = replace(graphs[half], encoder=kept)
    except (RuntimeError, NotImplementedError) as error:
        raise UserError(
            f"the network cannot be counted on torch's meta device: {str(error).splitlines()[0]}"
        ) from None
    return NetworkCosts(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        forward=forward,
        pullback=pullback,
        backward=backward,
        encoder=encoder,
        encoder_backward=encoder_backward,
        graphs=graphs,
        kernels=_kernels(run, x_t),
        image_bytes=x_t[0].nbytes,
        classes=settings.label_dim,
    )


def _on_meta(settings: AnySettings, factory: str | None) -> Network:
    if isinstance(settings, FactorySettings):
        return build_denoiser(settings, factory).to("meta")  # it may load weights, which needs a real device
    with torch.device("meta"):
        return build_denoiser(settings)


def _learning(
    network: Network, run: Callable[[Tensor], Tensor], x_t: Tensor, half: bool = False
) -> tuple[float, float, float]:
    """Of a pass whose weights learn: operations forward and backward, bytes kept."""
    network.train().requires_grad_(True)
    forward, kept, output = _forward(network, run, x_t, half)
    return forward, _backward(output, network.parameters()), kept


def _pulling(
    network: Network, run: Callable[[Tensor], Tensor], x_t: Tensor, half: bool = False
) -> tuple[float, float]:
    """Of a pass with frozen weights: operations backward to the input, bytes kept."""
    network.eval().requires_grad_(False)
    leaf = x_t.detach().requires_grad_()
    _, kept, output = _forward(network, run, leaf, half)
    return _backward(output, [leaf]), kept


def _forward(
    network: Network, run: Callable[[Tensor], Tensor], x_t: Tensor, half: bool
) -> tuple[float, float, Tensor]:
    """Operations of a forward pass, the bytes of activations that it keeps, its output."""
    lowering = _Autocast() if half else None
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with FlopCounterMode(display=False) as counter, hooks, lowering or nullcontext():
        output = run(x_t)
    weights = [*network.parameters(), *(lowering.weights.values() if lowering else ())]
    for weight in weights:
        kept.pop(weight.untyped_storage()._cdata, None)
    graph = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return counter.get_total_flops() / BATCH, graph / BATCH, output


def _backward(output: Tensor, inputs: Iterable[Tensor]) -> float:
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(output, [*inputs], torch.ones_like(output), allow_unused=True)
    return counter.get_total_flops() / BATCH


def _kernels(run: Callable[[Tensor], Tensor], x_t: Tensor) -> int:
    with torch.no_grad(), _Launched() as launched:
        run(x_t)
    return launched.count


class _Launched(TorchDispatchMode):
    """Counts the operations that compute something."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


class _Autocast(TorchFunctionMode):
    """What autocast does on a GPU, which the meta device has not: layers in half precision, norms in float32.

    Attributes:
        weights: the copies made of parameters, which autocast makes once a pass.
    """

    _LOWERED = (
        F.conv2d,
        F.conv_transpose2d,
        F.linear,
        F.scaled_dot_product_attention,
        torch.bmm,
        torch.matmul,
    )
    _RAISED = (F.group_norm, F.layer_norm)

    def __init__(self) -> None:
        super().__init__()
        self.weights: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        dtype = torch.bfloat16 if func in self._LOWERED else torch.float32 if func in self._RAISED else None
        if dtype is not None:
            args = tuple(self._cast(value, dtype) for value in args)
            kwargs = {name: self._cast(value, dtype) for name, value in kwargs.items()}
        return func(*args, **kwargs)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not isinstance(value, torch.nn.Parameter):
            return value.to(dtype)
        if id(value) not in self.weights:
            self.weights[id(value)] = value.to(dtype)
        return self.weights[id(value)]
