"""The config of `raysid distill`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from raysid.config.compute import ColocatedSettings, ComputeSettings, ResourceSettings, RoleResources
from raysid.config.data import DataSettings
from raysid.config.method import MethodSettings
from raysid.config.networks import Precision
from raysid.config.prompts import PromptSettings
from raysid.config.settings import COMMON, MAY_CHANGE, Positive, Seed, Settings
from raysid.config.teacher import TeacherSettings
from raysid.config.training import (
    EMASettings,
    EvaluationSettings,
    FakeScoreSettings,
    GeneratorSettings,
    LearningRateSchedule,
    RunCheckpointSettings,
    RunFailureSettings,
    RunSettings,
    TrackingSettings,
)


class Config(Settings):
    """Distil a teacher into a one-step generator (SiD, arXiv 2404.04057; SiDA, arXiv 2410.14919)."""

    kind: Literal["distill"] = Field("distill", description="Kind of the recipe.")
    storage: Annotated[str, COMMON, MAY_CHANGE] = Field(
        "./runs", description="Folder of the runs' folders and `teachers/`: a path, gs://... or s3://..."
    )
    run: Annotated[RunSettings, MAY_CHANGE] = RunSettings()
    seed: Annotated[Seed, COMMON] = Field(0, description="Random seed of the run.")
    placement: Annotated[Literal["split", "colocated", "local"], COMMON, MAY_CHANGE] = Field(
        "split",
        description="`split`: each role has its own Ray actors; `colocated`: every worker of Ray Train holds all "
        "three roles; `local`: one process without Ray.",
    )
    colocated: Annotated[ColocatedSettings, MAY_CHANGE] = ColocatedSettings()
    schedule: Literal["overlapped", "alternating"] = Field(
        "overlapped",
        description="`overlapped`: psi is trained on the images of theta's step; `alternating`: on new ones.",
    )
    data: DataSettings = DataSettings()
    prompts: PromptSettings = PromptSettings()
    teacher: Annotated[TeacherSettings, MAY_CHANGE] = Field(description="Teacher to distil.")
    method: MethodSettings = MethodSettings()
    total_images: Annotated[Positive, COMMON, MAY_CHANGE] = Field(
        description="Length of the distillation, in images."
    )
    batch_size: Annotated[Positive, COMMON] = Field(256, description="Images per step.")
    microbatch_size: Annotated[Positive | None, MAY_CHANGE] = Field(
        None,
        description="Images that are sent and computed together. Default: the whole batch, divided among the workers "
        "of a learner.",
    )
    microbatches_in_flight: Annotated[Positive | None, MAY_CHANGE] = Field(
        None,
        description="Microbatches of a step that are computed concurrently, which takes memory in the learners. "
        "Default: the number of scorers, at least 2 per worker of the generator; 1 for `local` and `colocated`.",
    )
    precision: Precision = Field(
        "float32",
        description="Precision of the networks' computations (autocast); weights, losses and optimizers stay float32. "
        "With fp16 SiD's authors use no loss scaling and set `eps` to 1e-6.",
    )
    compute: Annotated[ComputeSettings, MAY_CHANGE] = ComputeSettings()
    generator: GeneratorSettings = GeneratorSettings()
    fake_score: FakeScoreSettings = FakeScoreSettings()
    lr_schedule: Annotated[LearningRateSchedule, MAY_CHANGE] = LearningRateSchedule()
    ema: EMASettings = EMASettings()
    evaluation: Annotated[EvaluationSettings, MAY_CHANGE] = EvaluationSettings()
    tracking: Annotated[TrackingSettings, MAY_CHANGE] = TrackingSettings()
    checkpoint: Annotated[RunCheckpointSettings, MAY_CHANGE] = RunCheckpointSettings()
    failure: Annotated[RunFailureSettings, MAY_CHANGE] = RunFailureSettings()
    resources: Annotated[ResourceSettings, MAY_CHANGE] = ResourceSettings()
    torch_threads: Annotated[Positive | None, MAY_CHANGE] = Field(
        None,
        description="Torch threads per process. Default: 1 for `split`, `resources.worker.num_cpus` for `colocated`, "
        "all cores for `local`.",
    )

    def problems(self) -> Iterator[str]:
        tmax, by_recipe = self.method.tmax, self.teacher.path is None and self.teacher.factory is None
        if tmax is not None and tmax > 1000 and (by_recipe or self.teacher.network is not None):
            yield f"method.tmax is {tmax}; allowed: integer above 0, at most 1000"
        workers = self.learner_workers
        named = " and ".join(f"{learner}.num_workers {number}" for learner, number in workers.items())
        if self.placement == "local" and max(workers.values()) > 1:
            yield f"placement local is one process, not {named}: give placement split"
        if self.placement == "colocated":
            yield from self._colocated_problems(named)
        adversarial = self.method.adversarial
        if adversarial and self.data.source is None:
            yield "method.adversarial needs real images: give data.source, or null for method.adversarial"
        if adversarial and self.prompts.source is not None:
            yield "method.adversarial (SiDA) takes no prompts: give prompts.source null, or method.adversarial null"
        size, batch = self.microbatch, self.batch_size
        if self.microbatch_size is None and batch % math.lcm(*workers.values()):
            yield f"batch_size {batch} does not divide among {named}"
        elif batch % size:
            yield f"batch_size {batch} is not a multiple of microbatch_size {size}"
        elif any(batch // size % number for number in workers.values()):
            yield (
                f"batch_size {batch} in microbatches of {size} is {batch // size} a step, which do not divide among "
                f"{named}: give another microbatch_size"
            )
        elif adversarial and size % adversarial.group_size:
            cut = f" (batch_size {batch}, {named})" if max(workers.values()) > 1 else ""
            yield (
                f"a microbatch of {size} images{cut} does not divide into groups of "
                f"method.adversarial.group_size {adversarial.group_size}"
            )

    def _colocated_problems(self, named: str) -> Iterator[str]:
        scorers = self.teacher.scaling.max_replicas
        if max(*self.learner_workers.values(), scorers) > 1:
            yield (
                f"placement colocated has all roles in each worker, not {named} and {scorers} scorers: give "
                "colocated.num_workers"
            )
        unit = self.method.adversarial.group_size if self.method.adversarial else 1
        if self.batch_size // unit < self.colocated.num_workers:
            groups = f" in groups of {unit}" if unit > 1 else ""
            yield (
                f"batch_size {self.batch_size}{groups} has no share for each of colocated.num_workers "
                f"{self.colocated.num_workers}"
            )

    def device_of(self, role: Literal["teacher", "fake_score", "generator"]) -> str:
        """Return the torch device type of a role."""
        own: RoleResources = getattr(self.resources, role)
        return (self.resources.worker if self.placement == "colocated" else own).device

    @property
    def learner_workers(self) -> dict[str, int]:
        """Number of workers of each learner, by role."""
        return {"generator": self.generator.num_workers, "fake_score": self.fake_score.num_workers}

    @property
    def microbatch(self) -> int:
        """Images of a microbatch: `microbatch_size`, or by default one microbatch per worker of a learner."""
        return self.microbatch_size or self.batch_size // math.lcm(*self.learner_workers.values())

    @property
    def in_flight(self) -> int:
        """Microbatches of a step that are computed concurrently."""
        if self.microbatches_in_flight is not None:
            return self.microbatches_in_flight
        if self.placement in ("local", "colocated"):
            return 1
        # Two for each of the generator's workers, which hold their graphs: one is sent or scored while the other is
        # computed. More of the fake score's workers leave the generator's memory as it is.
        return max(2 * self.generator.num_workers, self.teacher.scaling.max_replicas)

    @property
    def graphs_kept(self) -> int:
        """Scored microbatches whose graph a scorer keeps: by default all in flight, since one scorer may have all."""
        kept = self.teacher.graphs_kept
        return self.in_flight if kept is None else kept

    @property
    def teacher_compute(self) -> ComputeSettings:
        """The `compute` settings of the teacher's scorers."""
        return self.compute.model_copy(update=self.teacher.compute.model_dump(exclude_none=True))

    @property
    def total_steps(self) -> int:
        """Steps of the run: `total_images`, rounded up to whole batches."""
        return -(-self.total_images // self.batch_size)
