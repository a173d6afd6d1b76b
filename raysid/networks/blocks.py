"""The residual block of EDM's U-Nets (arXiv 2206.00364, Appendix F).

It brings the blocks of Song et al. (arXiv 2011.13456) and Dhariwal & Nichol (arXiv 2105.05233) under one form, with
EDM's parameter names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from raysid.networks.layers import Conv2d, GroupNorm, Linear, WeightInit

# From this size on fused attention is worth the copy it needs: unfused, the scores of one ADM block at 32x32 take
# 24 MiB per image. Below it, plain products are up to twice as fast on a CPU.
_FUSED_ATTENTION_PIXELS = 1024


@dataclass(frozen=True)
class BlockStyle:
    """The settings that all residual blocks of a network share.

    Args:
        emb_channels: width of the conditioning vector.
        init, init_zero, init_attn: initialisation of most layers, of the last layer of each residual branch
            (near zero, so that a block starts as its skip connection) and of the attention's projection.
        dropout: probability in [0, 1), before the second convolution.
        num_heads: attention heads; None for one head per `channels_per_head` channels.
        skip_scale: factor on every residual sum; sqrt(1/2) preserves the variance.
        eps: added to the variance in the normalisations.
        resample_filter: taps of the resampling filter.
        resample_proj: give a resampled skip connection a 1x1 convolution even at equal widths.
        adaptive_scale: scale and shift the normalised features with the conditioning; otherwise add it before the
            normalisation.
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


class UNetBlock(nn.Module):
    """Two convolutions with conditioning and a skip connection, then optionally self-attention.

    Maps (B, in_channels, H, W) and a conditioning vector (B, emb_channels) to
    (B, out_channels, h, w), where h is H, 2H (`up`) or H/2 (`down`).

    Attributes:
        checkpointed: store only the inputs for the backward pass, which recomputes the rest exactly. The block must
            then be in the same mode (train or eval, frozen or not) as in the forward pass.

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
        # As in EDM, a block that is narrower than one head has no attention.
        heads = out_channels // style.channels_per_head if style.num_heads is None else style.num_heads
        self.num_heads = heads if attention else 0
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
        """Apply the block to `x` (B, C, H, W) with the conditioning `emb` (B, emb_channels).

        `joined` (B, in_channels - C, H, W) holds the remaining channels: in a decoder, the encoder's map.
        """
        if not (self.checkpointed and torch.is_grad_enabled()):
            return self._run(x, emb, joined)
        draws = self.training and self.dropout > 0
        return checkpoint(self._run, x, emb, joined, use_reentrant=False, preserve_rng_state=draws)

    def _run(self, x: Tensor, emb: Tensor, joined: Tensor | None) -> Tensor:
        if joined is not None:  # inside the checkpoint, which would otherwise store a copy of both
            x = torch.cat([x, joined], dim=1)
        # In-place sums below modify only fresh outputs of convolutions, which no backward pass reads.
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

        The channels of `qkv` are ordered (head, channel, q/k/v), as in EDM's checkpoints.
        """
        batch, channels, height, width = qkv.shape
        per_head, pixels = channels // 3 // self.num_heads, height * width
        if pixels >= _FUSED_ATTENTION_PIXELS:
            qkv = qkv.reshape(batch, self.num_heads, per_head, 3, pixels).permute(3, 0, 1, 4, 2)
            q, k, v = qkv.contiguous().unbind(0)  # fused kernels need contiguous vectors
            out = F.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        else:
            q, k, v = qkv.reshape(batch * self.num_heads, per_head, 3, pixels).unbind(2)
            # Scaling k before the product keeps half-precision scores in range.
            scores = torch.bmm(q.transpose(1, 2), k / math.sqrt(per_head))
            weights = scores.softmax(dim=2, dtype=torch.promote_types(scores.dtype, torch.float32))
            out = torch.bmm(v, weights.to(v.dtype).transpose(1, 2))
        return out.reshape(batch, channels // 3, height, width)
