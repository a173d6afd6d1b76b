"""Settings of a training loop: learning rate, averages, checkpoints, evaluations, failures."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raysid.config.settings import COMMON, MAY_CHANGE, SPLIT_ONLY, Count, Fraction, Positive, Seed, Settings


class RunSettings(Settings):
    name: Annotated[str | None, COMMON] = Field(
        None,
        description="Name of the run's folder under `storage`. Default: the recipe's name.",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
    )


class LearningRateSchedule(Settings):
    warmup_images: Count = Field(0, description="Images over which the rate rises linearly from 0.")
    decay: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Shape of the decay from the end of the warm-up to the end of the run."
    )
    final_fraction: Fraction = Field(
        0.1, description="Rate at the end of the run, as a fraction of the full rate; unused by `constant`."
    )


class EMASettings(Settings):
    halflife_images: Positive = Field(
        500_000, description="Half-life of the exponential moving average of the weights, in images."
    )
    rampup_ratio: float = Field(
        0.05,
        ge=0,
        description="Upper bound of the half-life, as a fraction of the images seen so far; 0: no bound.",
    )


class CheckpointSettings(Settings):
    every_images: Positive = Field(500_000, description="Images between two checkpoints.")
    keep: Positive = Field(2, description="Number of newest checkpoints to keep.")


class RunCheckpointSettings(CheckpointSettings):
    keep_best: bool = Field(
        True,
        description="Also keep the checkpoint whose generator had the smallest evaluated distance, for "
        "`--resume-from`.",
    )


class EvaluationSettings(Settings):
    every_images: Positive = Field(500_000, description="Images between two evaluations of the EMA.")
    num_samples: Positive = Field(10_000, description="Images generated for an evaluation.")
    seed: Seed = Field(
        1, description="Seed of the evaluations during training; the final table uses another."
    )


class TrackingSettings(Settings):
    log_every_images: Positive = Field(10_000, description="Images between two lines of metrics.jsonl.")


class FailureSettings(Settings):
    max_failures: Count = Field(3, description="Times a run restores itself after the loss of a learner.")
    placement_timeout_s: float = Field(
        600.0,
        gt=0,
        description="Seconds to wait for resources on the cluster; a new node takes minutes to start.",
    )


class RunFailureSettings(FailureSettings):
    max_bad_steps: Positive | None = Field(
        10,
        description="Steps in a row in which every sample is NaN or infinite, after which the run ends; null: never.",
    )
    hang_timeout_s: float | None = Field(
        None,
        gt=0,
        description="Seconds without an answer after which a role's process counts as lost. Default: half an hour, or "
        "50 times the longest wait of the run if that is more.",
    )


class LearnerSettings(Settings):
    lr: float = Field(1e-5, gt=0, description="Adam's learning rate.")
    betas: tuple[Fraction, Fraction] = Field((0.0, 0.999), description="Adam's betas.")
    eps: float = Field(1e-8, gt=0, description="Adam's epsilon.")
    dropout: Fraction | None = Field(
        None,
        description="Dropout probability in training. Default: the teacher's. Not for `teacher.factory`.",
    )
    num_workers: Annotated[Positive, COMMON, MAY_CHANGE, SPLIT_ONLY] = Field(
        1,
        description="Data-parallel workers of this learner (`split`). Each holds the whole network and computes an "
        "equal share of a step's microbatches.",
    )


class GeneratorSettings(LearnerSettings):
    path: str | None = Field(
        None,
        description="Finished generator that initialises theta and its average (SiD²A): the folder of a run or of a "
        "generator, or a .pkl published by SiD's authors (a path, gs://..., s3://... or https://...).",
    )
    clip_gradient: float | None = Field(
        None,
        gt=0,
        description="Bound of the absolute value of each element of theta's gradients, as SiD-LSG's fp16 runs have it "
        "(1). Default: no bound.",
    )


class FakeScoreSettings(LearnerSettings):
    augment: Fraction = Field(
        0.0,
        description="Probability of each of EDM's augmentations in psi's update (x-flips: 1/2 if above 0). CIFAR-10 "
        "0.12, FFHQ 0.15. Above 0 the teacher needs augment_dim 9.",
    )
