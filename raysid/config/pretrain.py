"""The config of `raysid pretrain`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from raysid.config.compute import RoleResources
from raysid.config.data import DataSettings
from raysid.config.networks import NetworkSettings
from raysid.config.settings import COMMON, MAY_CHANGE, Fraction, Positive, Seed, Settings
from raysid.config.training import CheckpointSettings, EMASettings, FailureSettings, LearningRateSchedule


class PretrainConfig(Settings):
    """Train a diffusion model that can serve as a teacher (EDM, arXiv 2206.00364)."""

    kind: Literal["pretrain"] = Field("pretrain", description="Kind of the recipe.")
    storage: Annotated[str, COMMON, MAY_CHANGE] = Field(
        "./runs", description="Folder of the runs; the teacher is kept in its `teachers/`."
    )
    seed: Annotated[Seed, COMMON] = Field(
        0, description="Random seed of the weights, the noise and the order of the images."
    )
    data: DataSettings = DataSettings()
    network: NetworkSettings = Field(description="The denoiser, with EDM's setting names.")
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
    sampler_steps: int = Field(
        18, ge=2, description="Steps n of the Heun sampler, which takes 2 n - 1 network evaluations."
    )
    checkpoint: Annotated[CheckpointSettings, MAY_CHANGE] = CheckpointSettings()
    failure: Annotated[FailureSettings, MAY_CHANGE] = FailureSettings()
    num_workers: Annotated[Positive, COMMON, MAY_CHANGE] = Field(
        1, description="Data-parallel workers (Ray Train)."
    )
    worker_resources: Annotated[RoleResources, MAY_CHANGE] = RoleResources()
    torch_threads: Annotated[Positive, MAY_CHANGE] = Field(1, description="Torch threads per worker.")

    def problems(self) -> Iterator[str]:
        if self.data.source is None:
            yield "a teacher is trained on real images: give data.source"
        if self.batch_size % self.num_workers:
            yield f"batch_size {self.batch_size} does not divide among num_workers {self.num_workers}"
