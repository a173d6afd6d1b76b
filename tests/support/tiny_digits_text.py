"""A teacher that makes digits from captions, with random weights, as raysid keeps it; seconds suffice to distil it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from upath import UPath

from raysid.config.networks import DiffusersSettings
from raysid.networks import build_denoiser
from raysid.networks.files import NetworkCard, save_network
from raysid.networks.text_folders import find_text_encoder
from tests.support.tiny_text import SCHEDULER, TOKENS, tiny_encoder, tiny_unet


def tiny_text_teacher(folder: Path, **trained: Any) -> str:
    """Write the teacher, its text encoder and its tokenizer to a folder; return it for `teacher.path`."""
    with torch.random.fork_rng(devices=[]):
        encoder = tiny_encoder(folder.with_name(f"{folder.name}-encoder"))
        find_text_encoder(str(encoder)).keep(UPath(folder), TOKENS)
        torch.manual_seed(0)
        settings = DiffusersSettings.model_validate(
            {"unet_class": "UNet2DConditionModel", "unet": tiny_unet(), "scheduler": SCHEDULER}
        )
        network = build_denoiser(settings)
    card = NetworkCard(kind="teacher", network=settings, trained={"sampler_steps": 2, **trained})
    save_network(folder, card, network)
    return str(folder)
