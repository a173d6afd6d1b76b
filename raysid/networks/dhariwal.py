"""ADM: the U-Net of Dhariwal & Nichol (arXiv 2105.05233) in EDM's configuration.

Source: arXiv 2206.00364, Appendix F. Encoder and decoder are dictionaries of blocks whose keys are
EDM's parameter names: `64x64_conv`, `64x64_block0`, `32x32_down`, …
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from raysid.config.networks import NetworkSettings
from raysid.networks.blocks import BlockStyle, UNetBlock
from raysid.networks.layers import Conv2d, GroupNorm, Linear, PositionalEmbedding, WeightInit

_INIT = WeightInit("kaiming_uniform", weight=math.sqrt(1 / 3), bias=math.sqrt(1 / 3))
_INIT_ZERO = WeightInit("kaiming_uniform", weight=0.0)


class DhariwalEncoder(nn.ModuleDict):
    """The encoder: (B, img_channels, H, W) -> every feature map, finest first, for the decoder to use."""

    def forward(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """Encode `x` (B, img_channels, H, W) under `emb` (B, emb_channels); the last map is the deepest."""
        maps: list[Tensor] = []
        for name, block in self.items():
            x = block(x) if name.endswith("_conv") else block(x, emb)
            maps.append(x)
        return maps


class DhariwalDecoder(nn.ModuleDict):
    """The decoder: the encoder's feature maps -> (B, channels, H, W), the input of `out_norm` and `out_conv`."""

    def forward(self, maps: list[Tensor], emb: Tensor) -> Tensor:
        """Decode the encoder's `maps`, deepest last, under `emb` (B, emb_channels)."""
        remaining = list(maps)
        x = remaining[-1]
        for name, block in self.items():
            x = block(x, emb, remaining.pop()) if "_block" in name else block(x, emb)
        return x


class DhariwalUNet(nn.Module):
    """ADM, in three stages: `embed`, `encode`, `decode`."""

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        base = settings.model_channels
        emb_channels = base * settings.channel_mult_emb
        style = BlockStyle(
            emb_channels=emb_channels,
            init=_INIT,
            init_zero=_INIT_ZERO,
            init_attn=_INIT,
            dropout=settings.dropout,
        )
        self.map_noise = PositionalEmbedding(base)
        self.map_augment = (
            Linear(settings.augment_dim, base, _INIT_ZERO, bias=False) if settings.augment_dim else None
        )
        self.map_layer0 = Linear(base, emb_channels, _INIT)
        self.map_layer1 = Linear(emb_channels, emb_channels, _INIT)
        self.map_label: Linear | None = None
        if settings.label_dim:
            # A one-hot label selects one column; this scale gives that column unit variance.
            init = WeightInit("kaiming_normal", weight=math.sqrt(settings.label_dim))
            self.map_label = Linear(settings.label_dim, emb_channels, init, bias=False)

        sizes = [settings.img_resolution >> level for level in range(len(settings.channel_mult))]
        map_channels = self._build_encoder(settings, sizes, style)
        channels = self._build_decoder(settings, sizes, style, map_channels)
        self.out_norm = GroupNorm(channels)
        self.out_conv = Conv2d(channels, settings.img_channels, 3, _INIT_ZERO)

    def _build_encoder(self, settings: NetworkSettings, sizes: list[int], style: BlockStyle) -> list[int]:
        """Fill `enc`; return the channels of its feature maps, in the order of its output."""
        self.enc = DhariwalEncoder()
        channels = settings.model_channels * settings.channel_mult[0]
        map_channels: list[int] = []
        for index, size in enumerate(sizes):
            width = settings.model_channels * settings.channel_mult[index]
            if index == 0:
                self.enc[f"{size}x{size}_conv"] = Conv2d(settings.img_channels, channels, 3, _INIT)
            else:
                self.enc[f"{size}x{size}_down"] = UNetBlock(channels, channels, style, down=True)
            map_channels.append(channels)
            for block in range(settings.num_blocks):
                self.enc[f"{size}x{size}_block{block}"] = UNetBlock(
                    channels, width, style, attention=size in settings.attn_resolutions
                )
                channels = width
                map_channels.append(channels)
        return map_channels

    def _build_decoder(
        self, settings: NetworkSettings, sizes: list[int], style: BlockStyle, map_channels: list[int]
    ) -> int:
        """Fill `dec` for feature maps of these channels; return the channels of its output."""
        self.dec = DhariwalDecoder()
        remaining = list(map_channels)
        channels = remaining[-1]
        for index, size in reversed(list(enumerate(sizes))):
            width = settings.model_channels * settings.channel_mult[index]
            if index == len(sizes) - 1:
                self.dec[f"{size}x{size}_in0"] = UNetBlock(channels, channels, style, attention=True)
                self.dec[f"{size}x{size}_in1"] = UNetBlock(channels, channels, style)
            else:
                self.dec[f"{size}x{size}_up"] = UNetBlock(channels, channels, style, up=True)
            for block in range(settings.num_blocks + 1):
                self.dec[f"{size}x{size}_block{block}"] = UNetBlock(
                    channels + remaining.pop(), width, style, attention=size in settings.attn_resolutions
                )
                channels = width
        return channels

    def embed(self, noise: Tensor, labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """The conditioning vector (B, emb_channels) of the noise level (B,) and the labels.

        `labels` (B, label_dim) is required by a network with labels and ignored by others;
        `augment_labels` (B, augment_dim) may be None, for images that are not augmented.
        """
        emb = self.map_noise(noise)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None:
            assert labels is not None
            emb = emb + self.map_label(labels)
        return F.silu(emb)

    def encode(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """All feature maps of the encoder, the deepest last, from `x` (B, img_channels, H, W)."""
        return self.enc(x, emb)

    def decode(self, maps: list[Tensor], emb: Tensor) -> Tensor:
        """The network's output (B, img_channels, H, W) from the encoder's feature maps."""
        return self.out_conv(F.silu(self.out_norm(self.dec(maps, emb))))
