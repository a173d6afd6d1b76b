"""Building blocks of EDM's U-Nets: initialised layers, resampling, embeddings, the residual block.

Parameter names are EDM's, so its checkpoints load as they are. Source: arXiv 2206.00364, Appendix F,
which brings the blocks of Song et al. (2011.13456) and Dhariwal & Nichol (2105.05233) under one form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from raysid.config.networks import normalisation_groups

# From here on, fused attention pays for the copy it needs: unfused, the scores of one ADM block at 32x32
# are 24 MiB an image. Below, plain products are up to twice as fast on a CPU.
_FUSED_ATTENTION_PIXELS = 1024


@dataclass(frozen=True)
class WeightInit:
    """How a layer's weights start: a distribution and the factors its weight and bias are scaled by."""

    mode: Literal["xavier_uniform", "kaiming_uniform", "kaiming_normal"]
    weight: float = 1.0
    bias: float = 0.0

    def fill_(self, weight: Tensor, bias: Tensor | None, fan_in: int, fan_out: int) -> None:
        """Draws `weight` and, where there is one, `bias` in place; the bias shares the weight's variance."""
        self._draw_(weight, self.weight, fan_in, fan_out)
        if bias is not None:
            self._draw_(bias, self.bias, fan_in, fan_out)

    @torch.no_grad()
    def _draw_(self, tensor: Tensor, factor: float, fan_in: int, fan_out: int) -> None:
        if factor == 0:
            tensor.zero_()
        elif self.mode == "kaiming_normal":
            tensor.normal_(0, factor / math.sqrt(fan_in))
        else:
            fan = (fan_in + fan_out) / 2 if self.mode == "xavier_uniform" else fan_in
            bound = factor * math.sqrt(3 / fan)
            tensor.uniform_(-bound, bound)


class Linear(nn.Linear):
    """A linear layer (N, in_features) -> (N, out_features) that starts from a `WeightInit`."""

    def __init__(self, in_features: int, out_features: int, init: WeightInit, bias: bool = True) -> None:
        self.init = init  # nn.Linear's constructor calls reset_parameters, which reads it
        super().__init__(in_features, out_features, bias=bias)

    def reset_parameters(self) -> None:
        """Draws new weights."""
        self.init.fill_(self.weight, self.bias, self.in_features, self.out_features)


class GroupNorm(nn.GroupNorm):
    """Group normalisation in `normalisation_groups`.

    Raises:
        ValueError: the channels do not divide into the groups.
    """

    def __init__(self, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__(normalisation_groups(num_channels), num_channels, eps=eps)


class Conv2d(nn.Module):
    """A convolution with "same" padding, optionally behind 2x up- or downsampling.

    Maps (B, in_channels, H, W) to (B, out_channels, h, w), where h is H, 2H (`up`) or H/2 (`down`).

    Args:
        kernel: width of the convolution, odd; 0 resamples only, and `out_channels` must equal `in_channels`.
        up, down: resample by 2; at most one of them.
        resample_filter: taps of the separable filter, an even number, normalised here.
        fused_resample: with `down`, convolve before filtering. The interior is the same by
            linearity, but the image is padded once instead of twice, so the border differs.
        init: needed where `kernel` is not 0.
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
        taps = torch.tensor(resample_filter, dtype=torch.float32)
        self.register_buffer(
            "resample_filter",
            torch.outer(taps, taps)[None, None] / taps.sum().square() if up or down else None,
        )
        # Two equal taps are exactly averaging or repeating 2x2 pixels, which have faster kernels.
        self.box_filter = len(resample_filter) == 2 and resample_filter[0] == resample_filter[1]

    resample_filter: Tensor | None

    def reset_parameters(self) -> None:
        """Draws new weights."""
        if self.weight is not None:
            if self.init is None:
                raise ValueError("a convolution with a kernel needs an initialisation")
            area = self.kernel**2
            self.init.fill_(self.weight, self.bias, self.in_channels * area, self.out_channels * area)

    def forward(self, x: Tensor) -> Tensor:
        """Resamples and convolves `x`."""
        if self.weight is None:
            return self._resample(x)
        if self.down and self.fused_resample:
            return self._convolve_then_filter(x)
        if self.up and self.box_filter and self.kernel == 1:
            # A pointwise map commutes with repeating pixels and costs a quarter on the small side.
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
            # Three of four pixels under the filter are the inserted zeros: 4 keeps the mean.
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

    `endpoint` says whether the lowest frequency is 1/10000 exactly (DDPM++) or one step above it (ADM).
    """

    def __init__(self, num_channels: int, endpoint: bool = False) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.endpoint = endpoint

    def forward(self, x: Tensor) -> Tensor:
        """Embeds `x`, cosines first."""
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
        """Embeds `x`, cosines first."""
        angles = torch.outer(x, (2 * math.pi * self.freqs).to(x.dtype))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


@dataclass(frozen=True)
class BlockStyle:
    """What all residual blocks of one network share.

    Args:
        emb_channels: width of the conditioning vector.
        init, init_zero, init_attn: initialisation of most layers, of each residual branch's last layer
            (near zero, so that a block starts as its skip connection) and of the attention's projection.
        dropout: probability in [0, 1), in front of the second convolution.
        num_heads: attention heads; None for one head per `channels_per_head` channels.
        skip_scale: factor on every residual sum; sqrt(1/2) keeps the variance.
        eps: added to the variance in the normalisations.
        resample_filter: taps of the resampling filter.
        resample_proj: whether a resampled skip connection has a 1x1 convolution even at equal widths.
        adaptive_scale: whether the conditioning scales and shifts the normalised features, or is added
            before the normalisation.
    """

    emb_channels: int
    init: WeightInit
    init_zero: WeightInit
    init_attn: WeightInit
    dropout: float = 0.0
    num_heads: int | None = None
    channels_per_head: int = 64
    skip_scale: float = 1.0
    eps: float = 1e-5
    resample_filter: tuple[float, ...] = (1, 1)
    resample_proj: bool = False
    adaptive_scale: bool = True

    def heads(self, channels: int) -> int:
        """Attention heads of a block of this width; 0 where it is narrower than one head (as in EDM)."""
        return channels // self.channels_per_head if self.num_heads is None else self.num_heads


class UNetBlock(nn.Module):
    """Two convolutions with conditioning and a skip connection, then optionally self-attention.

    Maps (B, in_channels, H, W) and a conditioning vector (B, emb_channels) to
    (B, out_channels, h, w), where h is H, 2H (`up`) or H/2 (`down`).

    Attributes:
        checkpointed: keep the inputs alone for the backward pass, which computes the rest again, exactly. The block
            must then be in the mode (train or eval, frozen or not) in which it was called.

    Raises:
        ValueError: the channels do not divide into attention heads or normalisation groups.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style: BlockStyle,
        *,
        up: bool = False,
        down: bool = False,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.checkpointed = False
        self.num_heads = style.heads(out_channels) if attention else 0
        self.dropout = style.dropout
        self.skip_scale = style.skip_scale
        self.adaptive_scale = style.adaptive_scale
        taps = style.resample_filter

        self.norm0 = GroupNorm(in_channels, eps=style.eps)
        self.conv0 = Conv2d(in_channels, out_channels, 3, style.init, up=up, down=down, resample_filter=taps)
        self.affine = Linear(style.emb_channels, out_channels * (1 + style.adaptive_scale), style.init)
        self.norm1 = GroupNorm(out_channels, eps=style.eps)
        self.conv1 = Conv2d(out_channels, out_channels, 3, style.init_zero)
        self.skip: Conv2d | None = None
        if out_channels != in_channels or up or down:
            kernel = 1 if style.resample_proj or out_channels != in_channels else 0
            self.skip = Conv2d(
                in_channels, out_channels, kernel, style.init, up=up, down=down, resample_filter=taps
            )
        if self.num_heads:
            if out_channels % self.num_heads:
                raise ValueError(
                    f"{out_channels} channels do not divide into {self.num_heads} attention heads"
                )
            self.norm2 = GroupNorm(out_channels, eps=style.eps)
            self.qkv = Conv2d(out_channels, 3 * out_channels, 1, style.init_attn)
            self.proj = Conv2d(out_channels, out_channels, 1, style.init_zero)

    def forward(self, x: Tensor, emb: Tensor, joined: Tensor | None = None) -> Tensor:
        """Applies the block to `x` (B, C, H, W) under the conditioning `emb` (B, emb_channels).

        `joined` (B, in_channels - C, H, W) stands for the rest of the channels: in a decoder the encoder's map.
        """
        if not (self.checkpointed and torch.is_grad_enabled()):
            return self._run(x, emb, joined)
        draws = self.training and self.dropout > 0
        return checkpoint(self._run, x, emb, joined, use_reentrant=False, preserve_rng_state=draws)

    def _run(self, x: Tensor, emb: Tensor, joined: Tensor | None) -> Tensor:
        if joined is not None:  # here, so that a checkpointed block does not keep a copy of both
            x = torch.cat([x, joined], dim=1)
        # In-place sums below touch only fresh outputs of convolutions, which no backward pass reads.
        h = self.conv0(F.silu(self.norm0(x)))
        condition = self.affine(emb)[:, :, None, None]
        if self.adaptive_scale:
            scale, shift = condition.chunk(2, dim=1)
            h = F.silu(torch.addcmul(shift, self.norm1(h), scale + 1))
        else:
            h = F.silu(self.norm1(h.add_(condition)))
        h = self.conv1(F.dropout(h, self.dropout, self.training))
        x = self._scaled_sum(h, x if self.skip is None else self.skip(x))
        if self.num_heads:
            x = self._scaled_sum(self.proj(self._attend(self.qkv(self.norm2(x)))), x)
        return x

    def _scaled_sum(self, branch: Tensor, x: Tensor) -> Tensor:
        branch = branch.add_(x)
        return branch if self.skip_scale == 1 else branch.mul_(self.skip_scale)

    def _attend(self, qkv: Tensor) -> Tensor:
        """Self-attention over pixels: (B, 3C, H, W) -> (B, C, H, W).

        The channels of `qkv` run over (head, channel, q/k/v), as EDM's checkpoints have them.
        """
        batch, channels, height, width = qkv.shape
        per_head, pixels = channels // 3 // self.num_heads, height * width
        if pixels >= _FUSED_ATTENTION_PIXELS:
            qkv = qkv.reshape(batch, self.num_heads, per_head, 3, pixels).permute(3, 0, 1, 4, 2)
            q, k, v = qkv.contiguous().unbind(0)  # fused kernels take no strides within a vector
            out = F.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        else:
            q, k, v = qkv.reshape(batch * self.num_heads, per_head, 3, pixels).unbind(2)
            # Scaling k before the product keeps half-precision scores in range.
            scores = torch.bmm(q.transpose(1, 2), k / math.sqrt(per_head))
            weights = scores.softmax(dim=2, dtype=torch.promote_types(scores.dtype, torch.float32))
            out = torch.bmm(v, weights.to(v.dtype).transpose(1, 2))
        return out.reshape(batch, channels // 3, height, width)
