"""The cost of a network, counted without running it: operations and memory of each role's passes.

Counted on torch's meta device, where tensors have shapes and no values, so that the largest network takes seconds on
any machine. Operations are those of convolutions, linear layers and attention; a multiplication and an addition count
as two. The rest of a network is small beside them and is part of the efficiency that a device reaches.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from raysid.config.networks import Precision
from raysid.errors import UserError
from raysid.method.denoiser import EncoderDenoiser
from raysid.networks import FactorySettings, build_denoiser
from raysid.networks.denoiser import Network
from raysid.networks.files import AnySettings
from raysid.roles.torch_internals import TorchDispatchMode

_Inputs = tuple[Tensor, Tensor, Tensor | None]  # x_t, t and conditions
_Run = Callable[[Tensor, Tensor, Tensor | None], Tensor]
TOKENS = 77  # of a prompt, as CLIP's encoders have them
VOCABULARY = 49_408  # words of CLIP's encoders, whose embeddings are looked up
# Weights of text encoders by the width of their embeddings: those of Stable Diffusion 1.x and 2.x.
ENCODERS = {768: 123_060_480, 1024: 340_387_840}
BATCH = 2  # images of a counted pass: nearly all costs grow in proportion to them


@dataclass(frozen=True)
class GraphBytes:
    """Bytes per image that a forward pass keeps for its backward pass, in one precision.

    Attributes:
        learn: of a pass in train mode whose backward pass goes to the weights.
        pull: of a pass in eval mode whose backward pass goes to the input; the weights are frozen.
        encoder: as `learn`, of the encoder only (SiDA's discriminator on real images); 0 without one.
    """

    learn: float
    pull: float
    encoder: float


@dataclass(frozen=True)
class NetworkCosts:
    """Costs of one network; operations are per image.

    Attributes:
        parameters: number of weights.
        forward: operations of a forward pass.
        pullback: of the backward pass to the input only, as a scorer computes it.
        backward: of the backward pass to the weights, as a learner computes it.
        encoder: of a forward pass through the encoder only; 0 without one.
        encoder_backward: of the backward pass of that to the weights.
        graphs: bytes kept for the backward pass, by whether in half precision (bf16 and fp16 keep the same).
        kernels: operations that a forward pass launches one after the other, for any number of images.
        image_bytes: of one image in float32.
        conditional: whether it takes labels or text, so that it can be guided.
        text_parameters: number of weights of the text encoder, which each process of a role holds; 0 without text.
        encode: operations of encoding a prompt.
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
    conditional: bool
    text_parameters: int = 0
    encode: float = 0.0

    def graph(self, precision: Precision) -> GraphBytes:
        """Bytes that passes in a precision keep."""
        return self.graphs[precision != "float32"]

    def copies(self, precision: Precision) -> int:
        """Bytes of the half-precision copies of the weights that autocast makes, which a graph holds."""
        return 0 if precision == "float32" else 2 * self.parameters


def network_costs(settings: AnySettings, factory: str | None = None) -> NetworkCosts:
    """Count a network.

    Args:
        factory: as for `build_denoiser`.

    Raises:
        UserError: the network cannot be built, or a module of the user's own cannot run on the meta device.
    """
    network = _on_meta(settings, factory)
    inputs = _meta_inputs(settings)

    def passes(half: bool) -> tuple[_Pass, _Pass, _Pass]:
        """Return the passes of a learner, a scorer and the encoder only."""
        learn, pull = (_forward(network, network, inputs, learns, half) for learns in (True, False))
        if not isinstance(network, EncoderDenoiser):
            return learn, pull, _Pass(0.0, 0.0, 0.0)
        return learn, pull, _forward(network, network.encode, inputs, True, half)

    try:
        with _Operations():
            found = {half: passes(half) for half in (False, True)}
        with torch.no_grad(), _Operations() as launched:
            network(*inputs)
    except (RuntimeError, NotImplementedError) as error:
        raise UserError(
            f"the network cannot be counted on torch's meta device: {str(error).splitlines()[0]}"
        ) from None
    learn, pull, encoder = found[False]
    return NetworkCosts(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        forward=learn.forward,
        pullback=pull.backward,
        backward=learn.backward,
        encoder=encoder.forward,
        encoder_backward=encoder.backward,
        graphs={half: GraphBytes(*(one.graph for one in counted)) for half, counted in found.items()},
        kernels=launched.count,
        image_bytes=inputs[0][0].nbytes,
        conditional=inputs[2] is not None,
        **_text_costs(settings.text_width),
    )


def quick_costs(settings: AnySettings, factory: str | None, precision: Precision) -> NetworkCosts:
    """Count a network's memory only, by one pass of a learner in `precision`, for a check that must be quick.

    A scorer's graph is taken to be as large as a learner's; that of the encoder half as large.

    Args:
        factory: as for `build_denoiser`.
    """
    network = _on_meta(settings, factory)
    inputs = _meta_inputs(settings)
    half = precision != "float32"
    with _Operations():
        graph = _forward(network, network, inputs, True, half, count=False).graph
    found = GraphBytes(graph, graph, graph / 2)
    return NetworkCosts(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        forward=0.0,
        pullback=0.0,
        backward=0.0,
        encoder=0.0,
        encoder_backward=0.0,
        graphs={False: found, True: found},
        kernels=0,
        image_bytes=inputs[0][0].nbytes,
        conditional=inputs[2] is not None,
        **_text_costs(settings.text_width),
    )


def _text_costs(width: int) -> dict[str, Any]:
    """Return the costs of a text encoder by the width of its embeddings; of an unknown one, as 12 layers of CLIP's."""
    if not width:
        return {}
    parameters = ENCODERS.get(width, 12 * 12 * width**2 + VOCABULARY * width)
    return {"text_parameters": parameters, "encode": 2.0 * TOKENS * (parameters - VOCABULARY * width)}


def _meta_inputs(settings: AnySettings) -> _Inputs:
    with torch.device("meta"):
        x_t = torch.empty(BATCH, *settings.sample_shape)
        t = torch.ones(BATCH, dtype=torch.long if settings.discrete_levels else None)
        if width := settings.text_width:
            return x_t, t, torch.empty(BATCH, TOKENS, width)
        return x_t, t, torch.empty(BATCH, settings.label_dim) if settings.label_dim else None


def _on_meta(settings: AnySettings, factory: str | None) -> Network:
    if isinstance(settings, FactorySettings):
        return build_denoiser(settings, factory).to("meta")  # it may load weights, which needs a real device
    with torch.device("meta"):
        return build_denoiser(settings)


class _Pass(NamedTuple):
    """Operations of a pass forwards and backwards, and bytes of activations kept between them; per image."""

    forward: float
    backward: float
    graph: float


def _forward(
    network: Network, run: _Run, inputs: _Inputs, learns: bool, half: bool, count: bool = True
) -> _Pass:
    """Count a pass: in train mode with trainable weights if `learns`, else with a trainable input.

    The backward pass has the same operations in half precision: it is not counted there. Without `count` only the
    graph is looked at.
    """
    network.train(learns).requires_grad_(learns)
    x_t = inputs[0].detach().requires_grad_(not learns)
    lowering = _Autocast() if half else None
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    forwards, backwards = (FlopCounterMode(display=False) for _ in range(2))
    with forwards if count else nullcontext(), hooks, lowering or nullcontext():
        output = run(x_t, *inputs[1:])
    weights: list[Tensor] = list(network.parameters())
    for weight in [*weights, *(lowering.weights.values() if lowering else ())]:
        kept.pop(weight.untyped_storage()._cdata, None)
    graph = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    with backwards:
        if count and not half:
            sources = weights if learns else [x_t]
            torch.autograd.grad(output, sources, torch.ones_like(output), allow_unused=True)
    return _Pass(
        *(count / BATCH for count in (forwards.get_total_flops(), backwards.get_total_flops(), graph))
    )


class _Operations(TorchDispatchMode):
    """Counts the operations that compute something, and replaces group norms by empty tensors.

    torch computes the shapes of group norms in slow Python code, which would take half of the time of a count.
    """

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += not func.is_view
        aten = torch.ops.aten
        if func is aten.native_group_norm.default and args[0].dtype == torch.float32:
            x, (batch, groups) = args[0], (args[3], args[6])
            return torch.empty_like(x), x.new_empty(batch, groups), x.new_empty(batch, groups)
        if func is aten.native_group_norm_backward.default and args[1].dtype == torch.float32:
            x, channels, wanted = args[1], args[6], args[9]
            gradients = torch.empty_like(x), x.new_empty(channels), x.new_empty(channels)
            return tuple(one if asked else None for one, asked in zip(gradients, wanted, strict=True))
        return func(*args, **(kwargs or {}))


class _Autocast(TorchFunctionMode):
    """Imitates autocast on a GPU, which the meta device lacks: layers in half precision, norms in float32.

    Attributes:
        weights: copies of parameters, which autocast makes once per pass.
    """

    _LAYERS = (F.conv2d, F.conv_transpose2d, F.linear, F.scaled_dot_product_attention)
    _LOWERED = (*_LAYERS, torch.bmm, torch.matmul)
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
