"""A text encoder with random weights and a U-Net with text, small enough for tests of seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel, BertTokenizer

from raysid.data.captions import digit_captions

WIDTH, TOKENS = 16, 12
SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def tiny_encoder(folder: Path, width: int = WIDTH) -> Path:
    """Write an encoder that knows the words of the digits' captions, as transformers saves it in one folder."""
    folder.mkdir(parents=True)
    known = {word for captions in digit_captions() for caption in captions for word in caption.split()}
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(known)]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer.from_pretrained(folder, model_max_length=64)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=width, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


def tiny_unet(**changes: Any) -> dict[str, Any]:
    """The settings of a U-Net with text for the digits, in diffusers' names."""
    return {
        "sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1,
        "block_out_channels": [8, 8], "norm_num_groups": 4, "attention_head_dim": 2,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "encoder_hid_dim": WIDTH, "encoder_hid_dim_type": "text_proj", "cross_attention_dim": 8,
    } | changes  # fmt: skip


def tiny_unet_without_text(**changes: Any) -> dict[str, Any]:
    """The settings of a UNet2DModel for the digits."""
    return {
        "sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1,
        "block_out_channels": [8, 8], "norm_num_groups": 4, "attention_head_dim": 4,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    } | changes  # fmt: skip
