"""Settings of hardware: reserved resources, workers, numerical options."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from raysid.config.settings import COMMON, FIXED, Positive, Settings


class ComputeSettings(Settings):
    """Options that trade memory for speed, or speed for exactness."""

    tf32: Annotated[bool, FIXED] = Field(
        False,
        description="Round the inputs of float32 matrix products and convolutions to TF32 on NVIDIA GPUs, which is "
        "faster; no effect on a CPU.",
    )
    channels_last: bool = Field(
        False, description="Store images and the weights of convolutions in the channels-last memory format."
    )
    compile: bool = Field(
        False,
        description="Run the networks through torch.compile. The first steps take minutes, a C++ compiler is needed "
        "(on a GPU Triton and a C compiler), and dropout draws other masks.",
    )
    activation_checkpointing: bool = Field(
        False,
        description="Keep only the inputs of a network's blocks and recompute the rest in the backward pass: less "
        "memory, about 1.4 times the time, the same results.",
    )
    fused_optimizer: bool = Field(
        True, description="Update all weights in one fused pass of Adam; `false`: operation by operation."
    )
    foreach_ema: bool = Field(
        True, description="Update the average of all weights in one call; `false`: in one call for each."
    )


class RoleResources(Settings):
    num_cpus: float = Field(
        0.25, gt=0, description="CPUs reserved from Ray; `torch_threads` sets the threads."
    )
    num_gpus: float = Field(
        0.0, ge=0, description="GPUs reserved from Ray; above 0 the role computes on CUDA."
    )
    resources: dict[str, float] = Field({}, description="Custom Ray resources to reserve, by name.")
    label_selector: dict[str, str] = Field({}, description="Labels that the Ray node must have, by key.")

    @property
    def device(self) -> str:
        """The torch device type of the role."""
        return "cuda" if self.num_gpus > 0 else "cpu"


class ResourceSettings(Settings):
    teacher: RoleResources = RoleResources()
    fake_score: RoleResources = RoleResources()
    generator: RoleResources = RoleResources()
    worker: RoleResources = RoleResources()


class ColocatedSettings(Settings):
    """Workers of `placement: colocated`, under Ray Train; names as in its ScalingConfig."""

    num_workers: Annotated[Positive, COMMON] = Field(
        1,
        description="Workers of `placement: colocated`. Each holds all three networks and computes a share of every "
        "batch.",
    )
    min_workers: Positive | None = Field(
        None,
        description="Smallest number of workers to train with: a run starts, and resumes after a loss, with as many "
        "as the cluster has room for, and grows to `num_workers`. Default: a fixed number.",
    )
    elastic_resize_monitor_interval_s: float = Field(
        60.0, ge=0, description="Interval in seconds at which Ray Train checks for capacity."
    )

    def problems(self) -> Iterator[str]:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            yield f"min_workers {self.min_workers} is more than num_workers {self.num_workers}"
