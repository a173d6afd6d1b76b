"""DDPM++ and NCSN++: the U-Nets of Song et al. (arXiv 2011.13456) in EDM's configuration.

Source: arXiv 2206.00364, Appendix F. Encoder and decoder are dictionaries of blocks whose keys are
EDM's parameter names: `8x8_conv`, `8x8_block0`, `4x4_down`, …
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raysid.config.networks import NetworkSettings
from raysid.networks.blocks import BlockStyle, UNetBlock
from raysid.networks.layers import (
    Conv2d,
    FourierEmbedding,
    GroupNorm,
    Linear,
    PositionalEmbedding,
    WeightInit,
)

_INIT = WeightInit("xavier_uniform")
_INIT_ZERO = WeightInit("xavier_uniform", weight=1e-5)
_INIT_ATTN = WeightInit("xavier_uniform", weight=math.sqrt(0.2))


def level_names(settings: NetworkSettings) -> list[str]:
    """Prefix of the block names of each level, finest first: `["32x32", "16x16", …]`."""
    sizes = [settings.img_resolution >> level for level in range(len(settings.channel_mult))]
    return [f"{size}x{size}" for size in sizes]


class SongEncoder(nn.ModuleDict):
    """The encoder: (B, img_channels, H, W) -> every feature map, finest first, for the decoder to use.

    With `encoder_type="skip"` each coarser level also gets the downsampled image, with `"residual"` the
    downsampled and convolved features of the level above.
    """

    def __init__(self, settings: NetworkSettings, style: BlockStyle) -> None:
        super().__init__()
        self.levels = level_names(settings)
        self.num_blocks = settings.num_blocks
        self.encoder_type = settings.encoder_type
        self.map_channels: list[int] = []
        """Channels of the feature maps, in the order of the output."""

        base, taps = settings.model_channels, settings.resample_filter
        channels, aux_channels = base, settings.img_channels
        for index, (level, mult) in enumerate(zip(self.levels, settings.channel_mult, strict=True)):
            if index == 0:
                self[f"{level}_conv"] = Conv2d(settings.img_channels, channels, 3, _INIT)
            else:
                self[f"{level}_down"] = UNetBlock(channels, channels, style, down=True)
                if self.encoder_type == "skip":
                    self[f"{level}_aux_down"] = Conv2d(
                        aux_channels, aux_channels, 0, down=True, resample_filter=taps
                    )
                    self[f"{level}_aux_skip"] = Conv2d(aux_channels, channels, 1, _INIT)
                elif self.encoder_type == "residual":
                    self[f"{level}_aux_residual"] = Conv2d(
                        aux_channels, channels, 3, _INIT, down=True, resample_filter=taps, fused_resample=True
                    )
                    aux_channels = channels
            self.map_channels.append(channels)
            attention = settings.img_resolution >> index in settings.attn_resolutions
            for block in range(self.num_blocks):
                self[f"{level}_block{block}"] = UNetBlock(channels, base * mult, style, attention=attention)
                channels = base * mult
                self.map_channels.append(channels)

    def forward(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """Encode `x` (B, img_channels, H, W) under `emb` (B, emb_channels); the last map is the deepest."""
        maps: list[Tensor] = []
        aux = x
        for index, level in enumerate(self.levels):
            if index == 0:
                x = self[f"{level}_conv"](x)
            else:
                x = self[f"{level}_down"](x, emb)
                if self.encoder_type == "skip":
                    aux = self[f"{level}_aux_down"](aux)
                    x = x + self[f"{level}_aux_skip"](aux)
                elif self.encoder_type == "residual":
                    x = aux = (x + self[f"{level}_aux_residual"](aux)) * math.sqrt(0.5)
            maps.append(x)
            for block in range(self.num_blocks):
                x = self[f"{level}_block{block}"](x, emb)
                maps.append(x)
        return maps


class SongDecoder(nn.ModuleDict):
    """The decoder: the encoder's feature maps -> (B, img_channels, H, W).

    With `decoder_type="skip"` every level adds its own image to the upsampled image of the level below.
    """

    def __init__(self, settings: NetworkSettings, style: BlockStyle, map_channels: list[int]) -> None:
        super().__init__()
        self.levels = level_names(settings)[::-1]
        self.num_blocks = settings.num_blocks + 1
        self.decoder_type = settings.decoder_type

        remaining = list(map_channels)
        channels = remaining[-1]
        for index, level in enumerate(self.levels):
            depth = len(self.levels) - 1 - index
            width = settings.model_channels * settings.channel_mult[depth]
            if index == 0:
                self[f"{level}_in0"] = UNetBlock(channels, channels, style, attention=True)
                self[f"{level}_in1"] = UNetBlock(channels, channels, style)
            else:
                self[f"{level}_up"] = UNetBlock(channels, channels, style, up=True)
            has_attention = settings.img_resolution >> depth in settings.attn_resolutions
            for block in range(self.num_blocks):
                attention = has_attention and block == self.num_blocks - 1
                self[f"{level}_block{block}"] = UNetBlock(
                    channels + remaining.pop(), width, style, attention=attention
                )
                channels = width
            if self._makes_image(index):
                if index > 0 and self.decoder_type == "skip":
                    self[f"{level}_aux_up"] = Conv2d(
                        settings.img_channels,
                        settings.img_channels,
                        0,
                        up=True,
                        resample_filter=settings.resample_filter,
                    )
                self[f"{level}_aux_norm"] = GroupNorm(channels, eps=1e-6)
                self[f"{level}_aux_conv"] = Conv2d(channels, settings.img_channels, 3, _INIT_ZERO)

    def _makes_image(self, index: int) -> bool:
        return self.decoder_type == "skip" or index == len(self.levels) - 1

    def forward(self, maps: list[Tensor], emb: Tensor) -> Tensor:
        """Decode the encoder's `maps`, deepest last, under `emb` (B, emb_channels)."""
        remaining = list(maps)
        x = remaining[-1]
        image: Tensor | None = None
        for index, level in enumerate(self.levels):
            if index == 0:
                x = self[f"{level}_in1"](self[f"{level}_in0"](x, emb), emb)
            else:
                x = self[f"{level}_up"](x, emb)
            for block in range(self.num_blocks):
                x = self[f"{level}_block{block}"](x, emb, remaining.pop())
            if self._makes_image(index):
                here = self[f"{level}_aux_conv"](F.silu(self[f"{level}_aux_norm"](x)))
                image = here if image is None else here + self[f"{level}_aux_up"](image)
        assert image is not None
        return image


class SongUNet(nn.Module):
    """DDPM++ or NCSN++, in three stages: `embed`, `encode`, `decode`."""

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        noise_channels = settings.model_channels * settings.channel_mult_noise
        emb_channels = settings.model_channels * settings.channel_mult_emb
        style = BlockStyle(
            emb_channels=emb_channels,
            init=_INIT,
            init_zero=_INIT_ZERO,
            init_attn=_INIT_ATTN,
            dropout=settings.dropout,
            num_heads=1,
            skip_scale=math.sqrt(0.5),
            eps=1e-6,
            resample_filter=settings.resample_filter,
            resample_proj=True,
            adaptive_scale=False,
        )
        self.map_noise: nn.Module = (
            PositionalEmbedding(noise_channels, endpoint=True)
            if settings.embedding_type == "positional"
            else FourierEmbedding(noise_channels)
        )
        self.map_label = Linear(settings.label_dim, noise_channels, _INIT) if settings.label_dim else None
        self.map_augment = (
            Linear(settings.augment_dim, noise_channels, _INIT, bias=False) if settings.augment_dim else None
        )
        self.map_layer0 = Linear(noise_channels, emb_channels, _INIT)
        self.map_layer1 = Linear(emb_channels, emb_channels, _INIT)
        self.enc = SongEncoder(settings, style)
        self.dec = SongDecoder(settings, style, self.enc.map_channels)

    def embed(self, noise: Tensor, labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """The conditioning vector (B, emb_channels) of the noise level (B,) and the labels.

        `labels` (B, label_dim) is required by a network with labels and ignored by others;
        `augment_labels` (B, augment_dim) may be None, for images that are not augmented.
        """
        cos, sin = self.map_noise(noise).chunk(2, dim=1)
        emb = torch.cat([sin, cos], dim=1)  # the order of Song et al.
        if self.map_label is not None:
            assert labels is not None
            # One-hot labels times sqrt(label_dim) have unit variance over their entries.
            emb = emb + self.map_label(labels * math.sqrt(self.map_label.in_features))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def encode(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """All feature maps of the encoder, the deepest last, from `x` (B, img_channels, H, W)."""
        return self.enc(x, emb)

    def decode(self, maps: list[Tensor], emb: Tensor) -> Tensor:
        """The network's output (B, img_channels, H, W) from the encoder's feature maps."""
        return self.dec(maps, emb)
