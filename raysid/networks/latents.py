"""The VAE of a pipeline: images from latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from upath import UPath

from raysid.networks.diffusers import diffusers_package
from raysid.networks.parts import VAE, chosen_variant, loading_part, local_part, part_config


class LatentDecoder:
    """Turns latents into images with the VAE of a pipeline's folder (`AutoencoderKL`).

    Args:
        folder: the pipeline's folder, or that of a teacher that was made from it.
        device: where it computes; in half precision on a GPU, unless its config says `force_upcast`.

    Raises:
        UserError: diffusers is not installed; the folder has no VAE, or one that cannot be used.
    """

    def __init__(self, folder: UPath, device: torch.device) -> None:
        config = part_config(folder, VAE)
        half = device.type == "cuda" and not config.get("force_upcast", True)
        path = local_part(folder, VAE)
        with loading_part(folder, VAE):
            self.vae: Any = diffusers_package().AutoencoderKL.from_pretrained(
                path,
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=False,  # the other way needs a further package
                variant=chosen_variant(file.name for file in path.iterdir()),
                torch_dtype=torch.float16 if half else torch.float32,
            )
        self.vae = self.vae.eval().requires_grad_(False).to(device)
        self.scale = float(self.vae.config.scaling_factor)
        self.shift = float(self.vae.config.shift_factor or 0.0)

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        """Return the images of latents (B, C, h, w): float32 (B, 3, H, W) in [-1, 1]. They are decoded one by one."""
        parameter = next(self.vae.parameters())
        scaled = (latents / self.scale + self.shift).to(parameter)
        images = [self.vae.decode(each[None], return_dict=False)[0] for each in scaled]
        return torch.cat(images).float().clamp(-1, 1)
