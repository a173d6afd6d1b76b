"""EDM's U-Nets: DDPM++ and NCSN++ of Song et al. (arXiv 2011.13456), ADM of Dhariwal & Nichol (arXiv 2105.05233).

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


class Encoder(nn.ModuleDict):
    """The encoder: (B, img_channels, H, W) -> every feature map, finest first, for the decoder to use.

    With `encoder_type="skip"` each coarser level also gets the downsampled image, with `"residual"` the
    downsampled and convolved features of the level above.
    """

    def __init__(self, settings: NetworkSettings, style: BlockStyle) -> None:
        super().__init__()
        self.sizes = [settings.img_resolution >> level for level in range(len(settings.channel_mult))]
        self.num_blocks = settings.num_blocks
        self.encoder_type = settings.encoder_type
        self.map_channels: list[int] = []
        """Channels of the feature maps, in the order of the output."""

        taps = settings.resample_filter
        widths = [settings.model_channels * mult for mult in settings.channel_mult]
        channels = widths[0] if settings.model_type == "DhariwalUNet" else settings.model_channels
        aux_channels = settings.img_channels
        for size, width in zip(self.sizes, widths, strict=True):
            level = f"{size}x{size}"
            if size == settings.img_resolution:
                self[f"{level}_conv"] = Conv2d(settings.img_channels, channels, 3, style.init)
            else:
                self[f"{level}_down"] = UNetBlock(channels, channels, style, down=True)
                if self.encoder_type == "skip":
                    self[f"{level}_aux_down"] = Conv2d(
                        aux_channels, aux_channels, 0, down=True, resample_filter=taps
                    )
                    self[f"{level}_aux_skip"] = Conv2d(aux_channels, channels, 1, style.init)
                elif self.encoder_type == "residual":
                    self[f"{level}_aux_residual"] = Conv2d(
                        aux_channels,
                        channels,
                        3,
                        style.init,
                        down=True,
                        resample_filter=taps,
                        fused_resample=True,
                    )
                    aux_channels = channels
            self.map_channels.append(channels)
            attention = size in settings.attn_resolutions
            for block in range(self.num_blocks):
                self[f"{level}_block{block}"] = UNetBlock(channels, width, style, attention=attention)
                channels = width
                self.map_channels.append(channels)

    def forward(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """Encode `x` (B, img_channels, H, W) under `emb` (B, emb_channels); the last map is the deepest."""
        maps: list[Tensor] = []
        aux = x
        for size in self.sizes:
            level = f"{size}x{size}"
            if not maps:
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


class Decoder(nn.ModuleDict):
    """The decoder: the encoder's feature maps -> the image (B, img_channels, H, W); ADM's ends in (B, channels, H, W).

    With `decoder_type="skip"` every level adds its own image to the upsampled image of the level below.

    Attributes:
        channels: of its last features.
    """

    def __init__(self, settings: NetworkSettings, style: BlockStyle, map_channels: list[int]) -> None:
        super().__init__()
        self.sizes = [settings.img_resolution >> level for level in range(len(settings.channel_mult))][::-1]
        self.num_blocks = settings.num_blocks + 1
        self.decoder_type = settings.decoder_type
        self.adm = settings.model_type == "DhariwalUNet"

        remaining = list(map_channels)
        channels, image_channels = remaining[-1], settings.img_channels
        for size, mult in zip(self.sizes, reversed(settings.channel_mult), strict=True):
            level = f"{size}x{size}"
            if size == self.sizes[0]:
                self[f"{level}_in0"] = UNetBlock(channels, channels, style, attention=True)
                self[f"{level}_in1"] = UNetBlock(channels, channels, style)
            else:
                self[f"{level}_up"] = UNetBlock(channels, channels, style, up=True)
            for block in range(self.num_blocks):
                attention = size in settings.attn_resolutions and (self.adm or block == self.num_blocks - 1)
                width = settings.model_channels * mult
                self[f"{level}_block{block}"] = UNetBlock(
                    channels + remaining.pop(), width, style, attention=attention
                )
                channels = width
            if self._makes_image(size):
                if size != self.sizes[0] and self.decoder_type == "skip":
                    self[f"{level}_aux_up"] = Conv2d(
                        image_channels, image_channels, 0, up=True, resample_filter=settings.resample_filter
                    )
                self[f"{level}_aux_norm"] = GroupNorm(channels, eps=style.eps)
                self[f"{level}_aux_conv"] = Conv2d(channels, image_channels, 3, style.init_zero)
        self.channels = channels

    def _makes_image(self, size: int) -> bool:
        return not self.adm and (self.decoder_type == "skip" or size == self.sizes[-1])

    def forward(self, maps: list[Tensor], emb: Tensor) -> Tensor:
        """Decode the encoder's `maps`, deepest last, under `emb` (B, emb_channels)."""
        remaining = list(maps)
        x = remaining[-1]
        image: Tensor | None = None
        for size in self.sizes:
            level = f"{size}x{size}"
            if size == self.sizes[0]:
                x = self[f"{level}_in1"](self[f"{level}_in0"](x, emb), emb)
            else:
                x = self[f"{level}_up"](x, emb)
            for block in range(self.num_blocks):
                x = self[f"{level}_block{block}"](x, emb, remaining.pop())
            if self._makes_image(size):
                here = self[f"{level}_aux_conv"](F.silu(self[f"{level}_aux_norm"](x)))
                image = here if image is None else here + self[f"{level}_aux_up"](image)
        return x if image is None else image


class UNet(nn.Module):
    """A U-Net in three stages: `embed`, then the encoder `enc`, whose maps `decode` takes."""

    enc: Encoder
    dec: Decoder

    def embed(self, noise: Tensor, labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """The conditioning vector (B, emb_channels) of the noise level (B,) and the labels.

        `labels` (B, label_dim) is required by a network with labels and ignored by others;
        `augment_labels` (B, augment_dim) may be None, for images that are not augmented.
        """
        raise NotImplementedError

    def enable_gradient_checkpointing(self) -> None:
        """Store only the inputs of every block for the backward pass, as diffusers' method of this name does."""
        for module in self.modules():
            if isinstance(module, UNetBlock):
                module.checkpointed = True

    def decode(self, maps: list[Tensor], emb: Tensor) -> Tensor:
        """The network's output (B, img_channels, H, W) from the encoder's feature maps."""
        return self.dec(maps, emb)


class SongUNet(UNet):
    """DDPM++ or NCSN++."""

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        noise_channels = settings.model_channels * settings.channel_mult_noise
        emb_channels = settings.model_channels * settings.channel_mult_emb
        init = WeightInit("xavier_uniform")
        style = BlockStyle(
            emb_channels=emb_channels,
            init=init,
            init_zero=WeightInit("xavier_uniform", weight=1e-5),
            init_attn=WeightInit("xavier_uniform", weight=math.sqrt(0.2)),
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
        self.map_label = Linear(settings.label_dim, noise_channels, init) if settings.label_dim else None
        self.map_augment = (
            Linear(settings.augment_dim, noise_channels, init, bias=False) if settings.augment_dim else None
        )
        self.map_layer0 = Linear(noise_channels, emb_channels, init)
        self.map_layer1 = Linear(emb_channels, emb_channels, init)
        self.enc = Encoder(settings, style)
        self.dec = Decoder(settings, style, self.enc.map_channels)

    def embed(self, noise: Tensor, labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        cos, sin = self.map_noise(noise).chunk(2, dim=1)
        emb = torch.cat([sin, cos], dim=1)  # the order of Song et al.
        if self.map_label is not None:
            assert labels is not None
            # One-hot labels times sqrt(label_dim) have unit variance over their entries.
            emb = emb + self.map_label(labels * math.sqrt(self.map_label.in_features))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))


class DhariwalUNet(UNet):
    """ADM."""

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        base = settings.model_channels
        emb_channels = base * settings.channel_mult_emb
        init = WeightInit("kaiming_uniform", weight=math.sqrt(1 / 3), bias=math.sqrt(1 / 3))
        init_zero = WeightInit("kaiming_uniform", weight=0.0)
        style = BlockStyle(emb_channels, init, init_zero, init_attn=init, dropout=settings.dropout)
        self.map_noise = PositionalEmbedding(base)
        self.map_augment = (
            Linear(settings.augment_dim, base, init_zero, bias=False) if settings.augment_dim else None
        )
        self.map_layer0 = Linear(base, emb_channels, init)
        self.map_layer1 = Linear(emb_channels, emb_channels, init)
        self.map_label: Linear | None = None
        if settings.label_dim:
            # A one-hot label selects one column; this scale gives that column unit variance.
            init_label = WeightInit("kaiming_normal", weight=math.sqrt(settings.label_dim))
            self.map_label = Linear(settings.label_dim, emb_channels, init_label, bias=False)
        self.enc = Encoder(settings, style)
        self.dec = Decoder(settings, style, self.enc.map_channels)
        self.out_norm = GroupNorm(self.dec.channels)
        self.out_conv = Conv2d(self.dec.channels, settings.img_channels, 3, init_zero)

    def embed(self, noise: Tensor, labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        emb = self.map_noise(noise)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None:
            assert labels is not None
            emb = emb + self.map_label(labels)
        return F.silu(emb)

    def decode(self, maps: list[Tensor], emb: Tensor) -> Tensor:
        return self.out_conv(F.silu(self.out_norm(self.dec(maps, emb))))
