"""The configuration: one tree of typed settings for each kind of recipe.

A recipe is a YAML file whose `kind` says which tree it fills: `pretrain` a teacher, `distill` it into a
one-step generator, or `tune` settings of that. Unknown keys are refused, every field carries its
description and range, and lengths are counted in images, as the papers count them.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from raysid.config.networks import FactoryName, NetworkSettings, Precision

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Base of all settings: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class RunSettings(Settings):
    name: str | None = Field(
        None,
        description="Name of the run's folder under `storage`; the recipe's name when not given.",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
    )


class DataSettings(Settings):
    source: str | list[str] | None = Field(
        "digits",
        description="Real images: `digits` or `patches` (in scikit-learn), or files: a folder, a .zip as EDM's "
        "dataset_tool.py writes it, .parquet, .tar (WebDataset); a path, gs://... or s3://..., a glob or a list of "
        "them; `null`: none, for SiD.",
    )
    format: Literal["folder", "zip", "parquet", "webdataset"] | None = Field(
        None, description="What the files of `source` are; by their names when not given."
    )
    origin: str | None = Field(
        None, description="Where to get the images of `source`; told where they are missing."
    )
    image_column: str | None = Field(
        None,
        description="Column of Parquet files with the pictures (bytes, or a struct with `bytes`); when not given the "
        "only one that can be.",
    )
    label_column: str = Field(
        "label",
        description="Where the class stands: a column of Parquet files or of their folders (`name=value`), a field of "
        "a tar's .json.",
    )
    resolution: Positive | None = Field(
        None,
        description="Pixels to which pictures of another size are cropped and resized; when not given all must have "
        "one size.",
    )
    crop: Literal["center", "none"] = Field(
        "center",
        description="Before resizing: `center` cuts to a square, as EDM's center-crop; `none` stretches.",
    )
    filter: Literal["lanczos", "box", "bicubic"] = Field(
        "lanczos", description="Filter of the resizing; EDM's tool has lanczos."
    )
    channels: Literal[1, 3] | None = Field(
        None,
        description="1: grey, 3: RGB; when not given RGB, or grey where the first pictures all are.",
    )
    xflip: bool = Field(False, description="Mirror half of the real images, others in each epoch.")
    max_bad_fraction: Fraction = Field(
        0.01,
        description="Part of the images that may be unreadable or without label; each is skipped and named in "
        "metrics.jsonl, and past this the run stops.",
    )
    shuffle_window: Positive = Field(
        16_384,
        description="Images shuffled at a time; about twice as many are held, a byte for each channel of each pixel. A "
        "smaller set is read once and kept.",
    )
    lanes: Positive = Field(
        16,
        description="Parts of a batch, each shuffled by itself, so that a worker reads its own images alone: at least "
        "as many as a step has microbatches. Fewer where `shuffle_window` holds fewer shards (row groups, or 1,024 "
        "files each).",
    )

    @property
    def source_name(self) -> str | None:
        """What the images are called in messages and records."""
        return ", ".join(self.source) if isinstance(self.source, list) else self.source


class DataConfig(Settings):
    """Real images by themselves, as `raysid data` looks at them."""

    data: DataSettings = DataSettings()


class LearningRateSchedule(Settings):
    warmup_images: Count = Field(0, description="Images over which the rate rises linearly from 0.")
    decay: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="How the rate falls from the end of the warm-up to the end of the run."
    )
    final_fraction: Fraction = Field(
        0.1,
        description="The rate at the end of the run, as a fraction of the full rate (not for `constant`).",
    )


class EMASettings(Settings):
    halflife_images: Positive = Field(500_000, description="Half-life of the weights' average, in images.")
    rampup_ratio: float = Field(
        0.05, ge=0, description="The half-life is at most this times the images seen so far; 0: no ramp."
    )


class CheckpointSettings(Settings):
    every_images: Positive = Field(500_000, description="Images between checkpoints.")
    keep: Positive = Field(2, description="Newest checkpoints kept; older ones are removed.")


class RunCheckpointSettings(CheckpointSettings):
    keep_best: bool = Field(
        True,
        description="Also keep, beside the newest, the checkpoint whose generator had the smallest evaluated distance: "
        "what `--resume-from` needs to go on from there.",
    )


class FailureSettings(Settings):
    max_failures: Count = Field(3, description="Times a run restores itself after losing a learner.")
    placement_timeout_s: float = Field(
        600.0, gt=0, description="Seconds to wait for places on the cluster; a new node takes minutes."
    )


class RoleResources(Settings):
    num_cpus: float = Field(
        0.25, gt=0, description="CPUs reserved from Ray (threads are set by `torch_threads`)."
    )
    num_gpus: float = Field(0.0, ge=0, description="GPUs reserved from Ray; above 0 the role runs on cuda.")
    resources: dict[str, float] = Field({}, description="Custom Ray resources reserved, by name.")
    label_selector: dict[str, str] = Field({}, description="Labels a Ray node must have, by key.")

    @property
    def device(self) -> str:
        """Where the role computes, as torch names it."""
        return "cuda" if self.num_gpus > 0 else "cpu"


class PretrainConfig(Settings):
    """Train a diffusion model that can serve as a teacher (EDM, arXiv 2206.00364)."""

    kind: Literal["pretrain"] = Field("pretrain", description="What this recipe is for.")
    storage: str = Field("./runs", description="Folder of runs; the teacher is kept in its `teachers/`.")
    seed: Seed = Field(0, description="Seed of weights, noise, order of images.")
    data: DataSettings = DataSettings()
    network: NetworkSettings = Field(description="The denoiser, under EDM's own setting names.")
    total_images: Positive = Field(description="Length of training, in images.")
    batch_size: Positive = Field(256, description="Images a step, over all workers.")
    lr: float = Field(1e-3, gt=0, description="Adam's learning rate.")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.999), description="Adam's betas.")
    eps: float = Field(1e-8, gt=0, description="Adam's epsilon.")
    lr_schedule: LearningRateSchedule = LearningRateSchedule()
    ema: EMASettings = EMASettings()
    evaluation_samples: Positive = Field(10_000, description="Images made to measure the finished teacher.")
    sampler_steps: int = Field(18, ge=2, description="Heun steps of the sampler: 2 n - 1 evaluations.")
    checkpoint: CheckpointSettings = CheckpointSettings()
    failure: FailureSettings = FailureSettings()
    num_workers: Positive = Field(1, description="Data-parallel workers (Ray Train).")
    worker_resources: RoleResources = RoleResources()
    torch_threads: Positive = Field(1, description="Torch threads of each worker.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.data.source is None:
            raise ValueError("a teacher is trained on real images: give data.source")
        if self.batch_size % self.num_workers:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide among num_workers {self.num_workers}"
            )
        return self


class ComputeSettings(Settings):
    """How the roles compute, for speed or memory; docs/compute.md says what was measured."""

    tf32: bool = Field(
        False,
        description="Matrix products and convolutions in float32 round their inputs to TF32 on NVIDIA GPUs, which is "
        "faster; without effect on a CPU.",
    )
    channels_last: bool = Field(
        False, description="Images and convolutions' weights lie in memory with the channels last."
    )
    compile: bool = Field(
        False,
        description="Networks run through torch.compile: the first steps take minutes, and a C++ compiler is needed "
        "(on a GPU Triton and a C compiler); dropout draws other masks.",
    )
    activation_checkpointing: bool = Field(
        False,
        description="A network's blocks keep their inputs alone and compute the rest again in the backward pass: less "
        "memory, about 1.4 times the time, the same results.",
    )
    fused_optimizer: bool = Field(
        True, description="Adam updates all weights in one fused pass; `false`: operation by operation."
    )
    foreach_ema: bool = Field(
        True, description="The average of all weights is updated in one call; `false`: in one for each."
    )


class TeacherCompute(Settings):
    """What of `compute` is otherwise for the teacher's scorers."""

    channels_last: bool | None = Field(
        None, description="As `compute.channels_last`, which it is when not given."
    )
    compile: bool | None = Field(None, description="As `compute.compile`, which it is when not given.")
    activation_checkpointing: bool | None = Field(
        None, description="As `compute.activation_checkpointing`, which it is when not given."
    )


class TeacherAutoscaling(Settings):
    """How the teacher service grows and shrinks during a run; names as Ray Serve has them."""

    min_replicas: Positive = Field(1, description="Fewest scorers; training starts when they are there.")
    max_replicas: Positive = Field(1, description="Most scorers.")
    upscale_delay_s: float = Field(
        10.0, gt=0, description="Seconds over which steps must wait for scoring before a scorer is added."
    )
    downscale_delay_s: float = Field(
        120.0, gt=0, description="Seconds over which a scorer must be spare before one is taken away."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas {self.max_replicas} is less than min_replicas {self.min_replicas}"
            )
        return self


class TeacherSettings(Settings):
    recipe: str | None = Field(
        None, description="Recipe (kind pretrain) that trains the teacher when the storage has none yet."
    )
    path: str | None = Field(
        None,
        description="Folder of a teacher of one's own or of diffusers, or a .pkl that EDM published (a path, gs://..., "
        "s3://... or https://...); instead of `recipe`.",
    )
    factory: FactoryName | None = Field(
        None,
        description="Function of one's own, `package.module:function`, that returns a torch module and its noise "
        "process; instead of `recipe`. With `path`: builds the network of that folder, which a factory made.",
    )
    network: NetworkSettings | None = Field(
        None, description="The network that `path` must hold, where a recipe is for one in particular."
    )
    precision: Precision | None = Field(
        None, description="What the teacher's scorers compute in; the run's `precision` when not given."
    )
    compute: TeacherCompute = TeacherCompute()
    num_replicas: Positive = Field(1, description="Scorers in the teacher service, when it does not scale.")
    autoscaling_config: TeacherAutoscaling | None = Field(
        None, description="Lets the teacher service grow and shrink during a run; instead of `num_replicas`."
    )
    graphs_kept: Count | None = Field(
        None,
        description="Scored microbatches whose graph a scorer keeps for the pullback, which takes memory; 0: "
        "recompute; when not given as many as are under way.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.recipe is None and self.path is None and self.factory is None:
            raise ValueError(
                "give teacher.path (a teacher's folder), teacher.recipe (a pretrain recipe) or teacher.factory (a "
                "function that makes one)"
            )
        return self

    @property
    def scaling(self) -> TeacherAutoscaling:
        """How many scorers there may be; minimum and maximum are one where the service does not scale."""
        fixed = TeacherAutoscaling(min_replicas=self.num_replicas, max_replicas=self.num_replicas)
        return self.autoscaling_config or fixed


class AdversarialSettings(Settings):
    generator_weight: float = Field(0.01, ge=0, description="Weight of the adversarial term for theta.")
    discriminator_weight: float = Field(1.0, ge=0, description="Weight of the discriminator's loss for psi.")
    group_size: Positive = Field(
        32, description="Images whose fakeness is averaged (the papers' batch per GPU); divides microbatches."
    )
    generator_start_images: Count = Field(
        100_000, description="The generator takes no step until more images than this; 0: from the start."
    )
    adversarial_start_images: Count = Field(
        200_000, description="The adversarial term joins theta's loss after this many images; 0: at once."
    )
    clip_gradient: float = Field(1.0, gt=0, description="psi's gradients are clipped to +- this, by value.")


class GuidanceSettings(Settings):
    """Guidance scales of SiD-LSG (arXiv 2406.01561): uncond + k (cond - uncond)."""

    train_fake: float = Field(1.0, ge=0, description="k1: scale while the fake score trains.")
    eval_fake: float = Field(1.0, ge=0, description="k2 = k3: scale of the fake score in theta's loss.")
    eval_teacher: float = Field(1.0, ge=0, description="k4: scale of the teacher in theta's loss.")
    condition_drop: Fraction = Field(
        0.1,
        description="Probability of dropping psi's condition in training, when train_fake or eval_fake is not 1.",
    )

    @property
    def drops_conditions(self) -> bool:
        """Whether psi must learn to work without its condition too."""
        return (self.train_fake, self.eval_fake) != (1.0, 1.0) and self.condition_drop > 0


class MethodSettings(Settings):
    alpha: float = Field(1.0, description="SiD's alpha; the papers use 1.0 and 1.2.")
    sigma_init: float = Field(
        2.5,
        gt=0,
        description="Noise level at which the generator is run; where levels are steps, as with diffusers' networks, "
        "it runs at the noise process's own (625).",
    )
    tmax: int | None = Field(
        None,
        gt=0,
        le=1000,
        description="Largest time, of 1000, of theta's noise levels; when not given the noise process's own: 800 of "
        "EDM's, 980 of diffusers'.",
    )
    sid_weight: float = Field(100.0, gt=0, description="Weight of the score-identity loss.")
    adversarial: AdversarialSettings | None = Field(
        None, description="SiDA's adversarial term, which needs real images; `null` is SiD, data-free."
    )
    guidance: GuidanceSettings = GuidanceSettings()


class LearnerSettings(Settings):
    lr: float = Field(1e-5, gt=0, description="Adam's learning rate.")
    betas: tuple[Fraction, Fraction] = Field((0.0, 0.999), description="Adam's betas.")
    eps: float = Field(1e-8, gt=0, description="Adam's epsilon.")
    dropout: Fraction | None = Field(
        None, description="Dropout in training; the teacher's own when not given. Not for `teacher.factory`."
    )
    num_workers: Positive = Field(
        1,
        description="Data-parallel workers of this learner (`split`): each holds all of its network, and has as many "
        "of a step's microbatches as the others.",
    )


class GeneratorSettings(LearnerSettings):
    path: str | None = Field(
        None,
        description="A finished generator to start from, for theta and its average (SiD²A): a run's folder, a "
        "generator's, or a .pkl that SiD's authors published (a path, gs://..., s3://... or https://...).",
    )


class FakeScoreSettings(LearnerSettings):
    augment: Fraction = Field(
        0.0,
        description="Probability of each transform of EDM's augmentation in psi's update (x-flips: 1/2 at any above 0; "
        "CIFAR-10 0.12, FFHQ 0.15); above 0 the teacher needs augment_dim 9.",
    )


class EvaluationSettings(Settings):
    every_images: Positive = Field(500_000, description="Images between evaluations of the EMA.")
    num_samples: Positive = Field(10_000, description="Images made for an evaluation.")
    seed: Seed = Field(1, description="Seed of the evaluations in training; the final table uses another.")


class TrackingSettings(Settings):
    log_every_images: Positive = Field(10_000, description="Images between lines of metrics.jsonl.")


class ResourceSettings(Settings):
    teacher: RoleResources = RoleResources()
    fake_score: RoleResources = RoleResources()
    generator: RoleResources = RoleResources()
    worker: RoleResources = RoleResources()


class ColocatedSettings(Settings):
    """The workers of `placement: colocated`, under Ray Train; names as its ScalingConfig has them."""

    num_workers: Positive = Field(
        1, description="Workers, each of which holds all three networks and has a share of every batch."
    )
    min_workers: Positive | None = Field(
        None,
        description="Fewest workers to train with: a run begins, and goes on after a loss, with as many as there is "
        "room for, and grows up to `num_workers`. Their number is fixed when not given.",
    )
    elastic_resize_monitor_interval_s: float = Field(
        60.0, ge=0, description="Seconds between looks for room for more workers."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers {self.min_workers} is more than num_workers {self.num_workers}")
        return self


class Config(Settings):
    """Distil a teacher into a one-step generator (SiD, arXiv 2404.04057; SiDA, arXiv 2410.14919)."""

    kind: Literal["distill"] = Field("distill", description="What this recipe is for.")
    storage: str = Field("./runs", description="Folder that holds the runs' folders and `teachers/`.")
    run: RunSettings = RunSettings()
    seed: Seed = Field(0, description="Seed of every draw of the run.")
    placement: Literal["split", "colocated", "local"] = Field(
        "split",
        description="`split`: the three roles are Ray actors; `colocated`: workers of Ray Train, each with all three; "
        "`local`: one process, no Ray.",
    )
    colocated: ColocatedSettings = ColocatedSettings()
    schedule: Literal["overlapped", "alternating"] = Field(
        "overlapped",
        description="`overlapped`: psi learns from the images theta's step made; `alternating`: from fresh ones.",
    )
    data: DataSettings = DataSettings()
    teacher: TeacherSettings
    method: MethodSettings = MethodSettings()
    total_images: Positive = Field(description="Length of the distillation, in images.")
    batch_size: Positive = Field(256, description="Images a step.")
    microbatch_size: Positive | None = Field(
        None,
        description="Images that travel and are computed together; when not given the whole batch, cut among the "
        "workers where a learner has several.",
    )
    microbatches_in_flight: Positive | None = Field(
        None,
        description="Microbatches of a step that are under way at a time, which takes memory in the learners; when not "
        "given as many as there may be scorers, but 2 or more for each worker; 1 for `local` and `colocated`.",
    )
    precision: Precision = Field(
        "float32",
        description="What the networks compute in (autocast); weights, losses and optimizers stay float32. In fp16 the "
        "authors scale no loss and take an `eps` of 1e-6.",
    )
    compute: ComputeSettings = ComputeSettings()
    generator: GeneratorSettings = GeneratorSettings()
    fake_score: FakeScoreSettings = FakeScoreSettings()
    lr_schedule: LearningRateSchedule = LearningRateSchedule()
    ema: EMASettings = EMASettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    tracking: TrackingSettings = TrackingSettings()
    checkpoint: RunCheckpointSettings = RunCheckpointSettings()
    failure: FailureSettings = FailureSettings()
    resources: ResourceSettings = ResourceSettings()
    torch_threads: Positive | None = Field(
        None,
        description="Torch threads of each process; when not given 1 for `split`, `resources.worker.num_cpus` for "
        "`colocated`, all cores for `local`.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        workers = self.learner_workers
        said = " and ".join(f"{learner}.num_workers {number}" for learner, number in workers.items())
        if self.placement == "local" and max(workers.values()) > 1:
            raise ValueError(f"placement local is one process, not {said}: give placement split")
        if self.placement == "colocated":
            self._check_colocated(said)
        if self.microbatch_size is None and self.batch_size % math.lcm(*workers.values()):
            raise ValueError(f"batch_size {self.batch_size} does not divide among {said}")
        size = self.microbatch
        if self.batch_size % size:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of microbatch_size {size}")
        count = self.batch_size // size
        if any(count % number for number in workers.values()):
            raise ValueError(
                f"batch_size {self.batch_size} in microbatches of {size} is {count} a step, which do not divide among "
                f"{said}: give another microbatch_size"
            )
        adversarial = self.method.adversarial
        if adversarial and self.data.source is None:
            raise ValueError(
                "method.adversarial needs real images: give data.source, or null for method.adversarial"
            )
        if adversarial and size % adversarial.group_size:
            cut = f" (batch_size {self.batch_size}, {said})" if max(workers.values()) > 1 else ""
            raise ValueError(
                f"a microbatch of {size} images{cut} does not divide into groups of "
                f"method.adversarial.group_size {adversarial.group_size}"
            )
        return self

    def _check_colocated(self, said: str) -> None:
        scorers = self.teacher.scaling.max_replicas
        if max(*self.learner_workers.values(), scorers) > 1:
            raise ValueError(
                f"placement colocated has all roles in each worker, not {said} and {scorers} scorers: give "
                "colocated.num_workers"
            )
        unit = self.method.adversarial.group_size if self.method.adversarial else 1
        if self.batch_size // unit < self.colocated.num_workers:
            groups = f" in groups of {unit}" if unit > 1 else ""
            raise ValueError(
                f"batch_size {self.batch_size}{groups} has no share for each of colocated.num_workers "
                f"{self.colocated.num_workers}"
            )

    def device_of(self, role: Literal["teacher", "fake_score", "generator"]) -> str:
        """Where a role computes, as torch names it."""
        own: RoleResources = getattr(self.resources, role)
        return (self.resources.worker if self.placement == "colocated" else own).device

    @property
    def learner_workers(self) -> dict[str, int]:
        """How many workers each learner has, by role."""
        return {"generator": self.generator.num_workers, "fake_score": self.fake_score.num_workers}

    @property
    def microbatch(self) -> int:
        """Images of a microbatch: when nothing is said, as many as give every worker of a learner one."""
        return self.microbatch_size or self.batch_size // math.lcm(*self.learner_workers.values())

    @property
    def in_flight(self) -> int:
        """Microbatches of a step that are under way at a time."""
        if self.microbatches_in_flight is not None:
            return self.microbatches_in_flight
        if self.placement in ("local", "colocated"):
            return 1
        # Two for each worker: one travels or is scored while the other is computed.
        return max(2 * max(self.learner_workers.values()), self.teacher.scaling.max_replicas)

    @property
    def graphs_kept(self) -> int:
        """Scored microbatches whose graph a scorer keeps for this run: one scorer may have all of them."""
        kept = self.teacher.graphs_kept
        return self.in_flight if kept is None else kept

    @property
    def teacher_compute(self) -> ComputeSettings:
        """How the teacher's scorers compute."""
        return self.compute.model_copy(update=self.teacher.compute.model_dump(exclude_none=True))

    @property
    def total_steps(self) -> int:
        """Steps of the run: the images asked for, rounded up to whole batches."""
        return -(-self.total_images // self.batch_size)


class SearchDimension(Settings):
    """What a search tries for one setting, or for several that go together."""

    fields: list[str] = Field(
        min_length=1,
        description="Settings by dotted name; several take the same value (LSG ties its scales).",
    )
    grid: list[float] | None = Field(None, min_length=1, description="Every one of these values.")
    choice: list[float] | None = Field(None, min_length=1, description="One of these values at random.")
    uniform: tuple[float, float] | None = Field(None, description="A value between these two, evenly.")
    log_uniform: tuple[float, float] | None = Field(
        None, description="A value between these two, evenly in its logarithm."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        ways = ("grid", "choice", "uniform", "log_uniform")
        given = [way for way in ways if getattr(self, way) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(ways)} for {', '.join(self.fields)}")
        bounds = self.uniform or self.log_uniform
        if bounds and not bounds[0] < bounds[1]:
            raise ValueError(
                f"{given[0]} of {self.fields[0]} goes from {bounds[0]:g} to {bounds[1]:g}: not upwards"
            )
        if self.log_uniform and self.log_uniform[0] <= 0:
            raise ValueError(f"log_uniform of {self.fields[0]} must begin above 0")
        return self


class SearchScheduler(Settings):
    """Which trials end early: ASHA (arXiv 1810.05934) keeps the best at each rung."""

    name: Literal["asha", "none"] = Field(
        "asha", description="`asha`, or `none`: every trial goes to its end."
    )
    grace_images: Positive = Field(
        64_000, description="Images before a trial may be ended early: the first rung."
    )
    reduction_factor: float = Field(
        3.0, gt=1, description="The best 1 in so many go on at each rung; rungs are as much longer."
    )


class TuneConfig(Settings):
    """Search settings of a distillation with Ray Tune; all trials share one teacher service."""

    kind: Literal["tune"] = Field("tune", description="What this recipe is for.")
    storage: str = Field("./runs", description="Folder that holds the search's folder and `teachers/`.")
    run: RunSettings = RunSettings()
    seed: Seed = Field(0, description="Seed of the values tried; the trials have that of their recipe.")
    recipe: str = Field(description="Recipe (kind distill) that every trial runs.")
    settings: dict[str, Any] = Field(
        {}, description="Settings of that recipe, by dotted name, for all trials."
    )
    space: list[SearchDimension] = Field(min_length=1, description="What is tried.")
    num_samples: Positive = Field(1, description="Random values drawn; each goes through the whole grid.")
    metric: Literal["frechet_distance", "label_accuracy"] = Field(
        "frechet_distance", description="Evaluation figure by which trials are compared."
    )
    scheduler: SearchScheduler = SearchScheduler()
    max_concurrent_trials: Positive = Field(2, description="Trials that run at a time, room permitting.")
    diverged_above: float = Field(
        1.5,
        gt=1,
        description="A trial whose distance is more than this times that before training has diverged.",
    )

    @property
    def mode(self) -> Literal["min", "max"]:
        """Whether the metric should be small or large."""
        return "min" if self.metric == "frechet_distance" else "max"


AnyConfig = PretrainConfig | Config | TuneConfig
