"""The config of `raysid tune`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from raysid.config.settings import COMMON, Positive, Seed, Settings
from raysid.config.training import RunSettings

BETTER: dict[str, Literal["min", "max"]] = {"frechet_distance": "min", "label_accuracy": "max"}
"""The direction of every figure that a search can compare."""


class SearchDimension(Settings):
    """The values that a search tries for one setting, or for several settings that share them."""

    fields: list[str] = Field(
        min_length=1,
        description="Settings by dotted name; several take the same value (SiD-LSG ties its scales).",
    )
    grid: list[float] | None = Field(None, min_length=1, description="Every one of these values.")
    choice: list[float] | None = Field(None, min_length=1, description="One of these values, at random.")
    uniform: tuple[float, float] | None = Field(
        None, description="A value between these two, drawn uniformly."
    )
    log_uniform: tuple[float, float] | None = Field(
        None, description="A value between these two, drawn log-uniformly."
    )

    def problems(self) -> Iterator[str]:
        ways = ("grid", "choice", "uniform", "log_uniform")
        given = [way for way in ways if getattr(self, way) is not None]
        if len(given) != 1:
            yield f"give one of {', '.join(ways)} for {', '.join(self.fields)}"
        for way in given:
            low, high = (getattr(self, way)[0], getattr(self, way)[-1])
            if way.endswith("uniform") and not low < high:
                yield f"{way} of {self.fields[0]} is from {low:g} to {high:g}; the second must be larger"
        if self.log_uniform and self.log_uniform[0] <= 0:
            yield f"log_uniform of {self.fields[0]} must begin above 0"


class SearchScheduler(Settings):
    """Early stopping of trials: ASHA (arXiv 1810.05934) continues the best at each rung."""

    name: Literal["asha", "none"] = Field(
        "asha", description="`asha`, or `none`: every trial runs to its end."
    )
    grace_images: Positive = Field(
        64_000, description="Images before a trial may be stopped early: the first rung."
    )
    reduction_factor: float = Field(
        3.0,
        gt=1,
        description="The best 1 in this many trials continue at each rung; each rung is this many times as long as the "
        "last.",
    )


class TuneConfig(Settings):
    """Search settings of a distillation with Ray Tune; all trials share one teacher service."""

    kind: Literal["tune"] = Field("tune", description="Kind of the recipe.")
    storage: Annotated[str, COMMON] = Field(
        "./runs", description="Folder of the searches' folders and `teachers/`."
    )
    run: RunSettings = RunSettings()
    seed: Annotated[Seed, COMMON] = Field(
        0, description="Random seed of the values tried; trials use the seed of their recipe."
    )
    recipe: Annotated[str, COMMON] = Field(description="Recipe (kind distill) that every trial runs.")
    settings: dict[str, Any] = Field(
        {}, description="Settings of that recipe for all trials, by dotted name."
    )
    space: list[SearchDimension] = Field(min_length=1, description="Settings and the values to try.")
    num_samples: Annotated[Positive, COMMON] = Field(
        1, description="Number of random draws; each is combined with the whole grid."
    )
    metric: Annotated[Literal["frechet_distance", "label_accuracy"], COMMON] = Field(
        "frechet_distance", description="Evaluated figure by which trials are compared."
    )
    scheduler: SearchScheduler = SearchScheduler()
    max_concurrent_trials: Annotated[Positive, COMMON] = Field(
        2, description="Largest number of concurrent trials; fewer run if the cluster has no room."
    )
    diverged_above: float = Field(
        1.5,
        gt=1,
        description="Ratio of a trial's distance to the distance before training above which it has diverged.",
    )

    @property
    def mode(self) -> Literal["min", "max"]:
        """`min` if a small metric is better, `max` if a large one is."""
        return BETTER[self.metric]
