"""Settings of the teacher and its scorers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from raysid.config.networks import DiffusersSettings, FactoryName, NetworkSettings, Precision
from raysid.config.settings import COMMON, FIXED, SPLIT_ONLY, Count, Positive, Settings


class TeacherCompute(Settings):
    """Settings of `compute` that differ for the teacher's scorers."""

    channels_last: bool | None = Field(
        None, description="`compute.channels_last` of the scorers. Default: the run's."
    )
    compile: bool | None = Field(None, description="`compute.compile` of the scorers. Default: the run's.")
    activation_checkpointing: bool | None = Field(
        None, description="`compute.activation_checkpointing` of the scorers. Default: the run's."
    )


class TeacherAutoscaling(Settings):
    """Growth and shrinkage of the teacher service during a run; names as in Ray Serve."""

    min_replicas: Positive = Field(
        1, description="Minimum number of scorers; training starts when they are ready."
    )
    max_replicas: Positive = Field(1, description="Maximum number of scorers.")
    upscale_delay_s: float = Field(
        10.0, gt=0, description="Seconds for which steps must wait for scoring before a scorer is added."
    )
    downscale_delay_s: float = Field(
        120.0, gt=0, description="Seconds for which fewer scorers must suffice before one is removed."
    )

    def problems(self) -> Iterator[str]:
        if self.max_replicas < self.min_replicas:
            yield f"max_replicas {self.max_replicas} is less than min_replicas {self.min_replicas}"


class TeacherSettings(Settings):
    recipe: str | None = Field(
        None, description="Recipe (kind pretrain) that trains the teacher if the storage has none yet."
    )
    path: Annotated[str | None, COMMON] = Field(
        None,
        description="Teacher to distil, instead of `recipe`: a folder that raysid or diffusers wrote, a .pkl published "
        "by EDM's authors (a path, gs://..., s3://... or https://...), or a model of the Hugging Face Hub "
        "(org/name, org/name@revision).",
    )
    factory: FactoryName | None = Field(
        None,
        description="Your function that returns a torch module and its noise process, as `package.module:function`; "
        "instead of `recipe`. With `path`: the function that builds the network of that folder.",
    )
    network: NetworkSettings | None = Field(
        None, description="Network that `path` must hold, for a recipe that needs a particular one."
    )
    diffusers: DiffusersSettings | None = Field(
        None, description="The same for a U-Net of diffusers; instead of `network`."
    )
    precision: Annotated[Precision | None, FIXED] = Field(
        None, description="Precision of the teacher's scorers. Default: the run's `precision`."
    )
    compute: TeacherCompute = TeacherCompute()
    num_replicas: Annotated[Positive, COMMON, SPLIT_ONLY] = Field(
        1, description="Scorers in the teacher service (`split`), unless it scales."
    )
    autoscaling_config: Annotated[TeacherAutoscaling | None, SPLIT_ONLY] = Field(
        None, description="Lets the teacher service grow and shrink during a run; instead of `num_replicas`."
    )
    graphs_kept: Count | None = Field(
        None,
        description="Scored microbatches whose graph a scorer keeps in memory for the pullback; 0: recompute. "
        "Default: all microbatches in flight.",
    )

    def problems(self) -> Iterator[str]:
        if self.recipe is None and self.path is None and self.factory is None:
            yield (
                "give teacher.path (a teacher's folder), teacher.recipe (a pretrain recipe) or teacher.factory (a "
                "function that makes one)"
            )
        if self.network is not None and self.diffusers is not None:
            yield "give teacher.network or teacher.diffusers, not both"

    @property
    def scaling(self) -> TeacherAutoscaling:
        """Bounds of the number of scorers; both are `num_replicas` for a service that does not scale."""
        fixed = TeacherAutoscaling(min_replicas=self.num_replicas, max_replicas=self.num_replicas)
        return self.autoscaling_config or fixed
