"""EDM's preconditioning around a U-Net: the denoiser of arXiv 2206.00364, equation 7 and Table 1."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from raysid.config.networks import NetworkSettings
from raysid.method.noise import EDMNoise
from raysid.networks.denoiser import Network
from raysid.networks.unets import DhariwalUNet, SongUNet


class EDMDenoiser(Network):
    """A denoiser D(x_t, sigma, c) = c_skip x_t + c_out F(c_in x_t, c_noise, c), where F is one of EDM's U-Nets.

    The U-Net is `model`, so the state dict has EDM's own keys (`model.enc.8x8_conv.weight`, …). It computes in the
    precision of its weights. With `precision`, or within autocast, its layers run in half precision, while the
    embedding of noise level and labels, the preconditioning and the results stay in float32.

    In train mode, with `label_dropout` in the settings, every call zeroes each sample's whole label with
    that probability.
    """

    settings: NetworkSettings

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        self.settings = settings
        self.noise = EDMNoise(sigma_data=settings.sigma_data)
        self.model: SongUNet | DhariwalUNet = (
            SongUNet(settings) if settings.model_type == "SongUNet" else DhariwalUNet(settings)
        )

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """Predict the clean image, like x_t but in float32 at least.

        Args:
            x_t: noisy images (B, C, H, W): clean image plus t times standard normal noise.
            t: noise level sigma (B,), above 0, in the images' units.
            cond: one-hot labels (B, label_dim), floating; None is the unconditional prediction, the same
                as all zeros. Ignored by a network without labels.
            augment_labels: (B, augment_dim), floating; None is "not augmented", the same as all zeros.

        Raises:
            ValueError: `cond` has another shape than (B, label_dim).
        """
        return self._decode(*self._encode(x_t, t, cond, augment_labels))

    def predict(
        self, x_t: Tensor, t: Tensor, cond: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """Return the clean image, which is the network's own prediction; arguments as in `forward`."""
        return self(x_t, t, cond, augment_labels=augment_labels)

    def predict_with_logits(
        self, x_t: Tensor, t: Tensor, cond: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the clean image and the logits of `encode`, from one pass; arguments as in `forward`."""
        encoded = self._encode(x_t, t, cond, augment_labels)
        return self._decode(*encoded), self._logits(encoded[-1])

    def encode(
        self, x_t: Tensor, t: Tensor, cond: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """Return the discriminator's logits from the encoder only (SiDA, arXiv 2410.14919); arguments as in `forward`.

        They are the encoder's last feature map, averaged over channels: (B, 1, h, w).
        """
        return self._logits(self._encode(x_t, t, cond, augment_labels)[-1])

    def _encode(
        self, x_t: Tensor, t: Tensor, cond: Tensor | None, augment_labels: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Return x_t and sigma (B, 1, 1, 1) in float32 at least, the conditioning vector, the encoder's maps."""
        dtype = torch.promote_types(x_t.dtype, torch.float32)
        x_t = x_t.to(dtype)
        sigma = t.to(dtype).reshape(-1, 1, 1, 1)
        c_in = (sigma.square() + self.settings.sigma_data**2).rsqrt()
        device = x_t.device.type
        # The embedding is cheap, and half precision would blur neighbouring noise levels in it.
        outer = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if outer else nullcontext():
            augment = None if augment_labels is None else augment_labels.to(dtype)
            emb = self.model.embed(sigma.flatten().log() / 4, self._labels(cond, x_t), augment)
        with self.lowered(x_t.device):
            maps = self.model.enc(self.laid_out(c_in * x_t), emb)
        return x_t, sigma, emb, maps

    def _decode(self, x_t: Tensor, sigma: Tensor, emb: Tensor, maps: list[Tensor]) -> Tensor:
        """Return the clean image of an encoded input."""
        with self.lowered(x_t.device):
            output = self.model.decode(maps, emb)
        variance = self.settings.sigma_data**2
        c_skip = variance / (sigma.square() + variance)
        c_out = sigma * self.settings.sigma_data * (sigma.square() + variance).rsqrt()
        return torch.addcmul(c_skip * x_t, c_out, output.to(x_t.dtype))

    def _labels(self, cond: Tensor | None, x_t: Tensor) -> Tensor | None:
        """Return the labels (B, label_dim) after label dropout; None for a network without labels."""
        if not self.settings.label_dim:
            return None
        shape = (x_t.shape[0], self.settings.label_dim)
        if cond is None:
            return x_t.new_zeros(shape)
        if cond.shape != shape:
            raise ValueError(f"cond must have shape {shape}, not {tuple(cond.shape)}")
        cond = cond.to(x_t.dtype)
        if self.training and self.settings.label_dropout:
            kept = torch.rand(shape[0], 1, device=cond.device) >= self.settings.label_dropout
            cond = cond * kept
        return cond

    @staticmethod
    def _logits(maps: list[Tensor]) -> Tensor:
        return maps[-1].mean(dim=1, keepdim=True, dtype=torch.promote_types(maps[-1].dtype, torch.float32))
