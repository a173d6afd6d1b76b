"""Layers of EDM's U-Nets: initialised layers, resampling convolutions, embeddings.

Parameter names are EDM's, so its checkpoints load unchanged. Source: arXiv 2206.00364, Appendix F.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raysid.config.networks import normalisation_groups


@dataclass(frozen=True)
class WeightInit:
    """Initialisation of a layer: a distribution, and the factors that scale its weight and bias."""

    mode: Literal["xavier_uniform", "kaiming_uniform", "kaiming_normal"]
    weight: float = 1.0
    bias: float = 0.0

    def fill_(self, weight: Tensor, bias: Tensor | None, fan_in: int, fan_out: int) -> None:
        """Draw `weight` and, if there is one, `bias` in place; the bias has the variance of the weight."""
        self._draw_(weight, self.weight, fan_in, fan_out)
        if bias is not None:
            self._draw_(bias, self.bias, fan_in, fan_out)

    @torch.no_grad()
    def _draw_(self, tensor: Tensor, factor: float, fan_in: int, fan_out: int) -> None:
        if tensor.is_meta:
            return  # It has no values; torch's meta kernel of normal_ imports its compiler, which takes seconds.
        if factor == 0:
            tensor.zero_()
        elif self.mode == "kaiming_normal":
            tensor.normal_(0, factor / math.sqrt(fan_in))
        else:
            fan = (fan_in + fan_out) / 2 if self.mode == "xavier_uniform" else fan_in
            bound = factor * math.sqrt(3 / fan)
            tensor.uniform_(-bound, bound)


class Linear(nn.Linear):
    """A linear layer (N, in_features) -> (N, out_features), initialised by a `WeightInit`."""

    def __init__(self, in_features: int, out_features: int, init: WeightInit, bias: bool = True) -> None:
        self.init = init  # before the constructor of nn.Linear, which calls reset_parameters
        super().__init__(in_features, out_features, bias=bias)

    def reset_parameters(self) -> None:
        """Draw new weights."""
        self.init.fill_(self.weight, self.bias, self.in_features, self.out_features)


class GroupNorm(nn.GroupNorm):
    """Group normalisation in `normalisation_groups`.

    Raises:
        ValueError: the channels do not divide into the groups.
    """

    def __init__(self, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__(normalisation_groups(num_channels), num_channels, eps=eps)


class Conv2d(nn.Module):
    """A convolution with "same" padding, optionally after 2x up- or downsampling.

    Maps (B, in_channels, H, W) to (B, out_channels, h, w), where h is H, 2H (`up`) or H/2 (`down`).

    Args:
        kernel: width of the convolution, odd; 0 only resamples and needs `out_channels` equal to `in_channels`.
        up, down: resample by 2; at most one of them.
        resample_filter: taps of the separable filter, an even number, normalised here.
        fused_resample: with `down`, convolve before filtering. By linearity the interior is the same; the
            image is padded once instead of twice, so the border differs.
        init: required unless `kernel` is 0.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        init: WeightInit | None = None,
        *,
        up: bool = False,
        down: bool = False,
        resample_filter: Sequence[float] = (1, 1),
        fused_resample: bool = False,
    ) -> None:
        if up and down:
            raise ValueError("a convolution cannot resample both up and down")
        if kernel == 0 and in_channels != out_channels:
            raise ValueError("resampling without a convolution keeps the number of channels")
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel = kernel
        self.up = up
        self.down = down
        self.fused_resample = fused_resample
        self.init = init
        self.weight: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if kernel:
            self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))
            self.bias = nn.Parameter(torch.empty(out_channels))
            self.reset_parameters()
        # Computed on the CPU: arithmetic on the meta device imports torch's compiler, which takes seconds.
        taps = torch.tensor(resample_filter, dtype=torch.float32, device="cpu")
        taps = torch.outer(taps, taps)[None, None] / taps.sum().square()
        self.register_buffer("resample_filter", taps.to(torch.get_default_device()) if up or down else None)
        # Two equal taps average or repeat 2x2 pixels exactly, which has faster kernels.
        self.box_filter = len(resample_filter) == 2 and resample_filter[0] == resample_filter[1]

    resample_filter: Tensor | None

    def reset_parameters(self) -> None:
        """Draw new weights."""
        if self.weight is not None:
            if self.init is None:
                raise ValueError("a convolution with a kernel needs an initialisation")
            area = self.kernel**2
            self.init.fill_(self.weight, self.bias, self.in_channels * area, self.out_channels * area)

    def forward(self, x: Tensor) -> Tensor:
        """Resample and convolve `x`."""
        if self.weight is None:
            return self._resample(x)
        if self.down and self.fused_resample:
            return self._convolve_then_filter(x)
        if self.up and self.box_filter and self.kernel == 1:
            # A pointwise map commutes with repeating pixels and costs a quarter at the lower resolution.
            return self._resample(F.conv2d(x, self.weight, self.bias))
        return F.conv2d(self._resample(x), self.weight, self.bias, padding=self.kernel // 2)

    def _resample(self, x: Tensor) -> Tensor:
        if self.resample_filter is None:
            return x
        if self.box_filter:
            return F.interpolate(x, scale_factor=2.0) if self.up else F.avg_pool2d(x, 2)
        taps = self.resample_filter.to(x.dtype).expand(x.shape[1], -1, -1, -1)
        padding = (taps.shape[-1] - 1) // 2
        if self.up:
            # Three of four pixels under the filter are inserted zeros; a factor of 4 preserves the mean.
            return F.conv_transpose2d(x, taps * 4, stride=2, padding=padding, groups=x.shape[1])
        return F.conv2d(x, taps, stride=2, padding=padding, groups=x.shape[1])

    def _convolve_then_filter(self, x: Tensor) -> Tensor:
        assert self.weight is not None and self.resample_filter is not None
        taps = self.resample_filter.to(x.dtype).expand(self.out_channels, -1, -1, -1)
        padding = self.kernel // 2 + (taps.shape[-1] - 1) // 2
        x = F.conv2d(x, self.weight, self.bias, padding=padding)
        return F.conv2d(x, taps.to(x.dtype), stride=2, groups=self.out_channels)


class PositionalEmbedding(nn.Module):
    """Cosines and sines of (N,) numbers at log-spaced frequencies from 1 to 1/10000: (N, num_channels).

    With `endpoint` the lowest frequency is 1/10000 exactly (DDPM++), without it one step above (ADM).
    """

    def __init__(self, num_channels: int, endpoint: bool = False) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.endpoint = endpoint

    def forward(self, x: Tensor) -> Tensor:
        """Embed `x`, cosines first."""
        half = self.num_channels // 2
        exponents = torch.arange(half, dtype=x.dtype, device=x.device) / (half - self.endpoint)
        angles = torch.outer(x, (1 / 10000) ** exponents)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """Cosines and sines of (N,) numbers at fixed random frequencies: (N, num_channels).

    The frequencies are drawn once, normal with standard deviation `scale`, and saved with the weights.
    """

    def __init__(self, num_channels: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(num_channels // 2) * scale)

    freqs: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Embed `x`, cosines first."""
        angles = torch.outer(x, (2 * math.pi * self.freqs).to(x.dtype))
        return torch.cat([angles.cos(), angles.sin()], dim=1)
