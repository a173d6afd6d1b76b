"""A distillation that takes seconds and has every part of a real one; its settings, results and comparisons."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import safetensors.torch
import torch
from torch import Tensor
from upath import UPath

from raysid.actors.local import LocalPlacement
from raysid.actors.placement import Placement
from raysid.config import Config
from raysid.data import ImageSource, open_source
from raysid.networks import EDMDenoiser, NetworkSettings
from raysid.networks.files import NetworkCard, save_network
from raysid.recipes import config_yaml
from raysid.roles.build import RunInputs
from raysid.roles.messages import StepReport
from raysid.roles.state_files import read_state
from raysid.roles.step import take_step
from raysid.run.checkpoint import Checkpoints
from raysid.run.metrics import read_metrics
from tests.support.processes import Moment

STEPS = 20
BATCH = 32
SAMPLES = 200
CHECKPOINT_STEPS = 4  # steps between checkpoints; metrics are logged every 2 steps, evaluations run every 8
# A learner that dies in a later step may have finished its work, so that the run does not notice.
LAST_LOSS = 12

SHORT = {  # five steps, each with a checkpoint; evaluations at steps 0, 2, 4 and 5
    "placement": "local",
    "batch_size": 8,
    "microbatch_size": 8,
    "total_images": 40,
    "checkpoint__every_images": 8,
    "checkpoint__keep": 1,
    "evaluation__every_images": 16,
    "evaluation__num_samples": 50,
    "tracking__log_every_images": 8,
}

NETWORK = NetworkSettings(
    img_resolution=8,
    img_channels=1,
    label_dim=10,
    model_channels=8,
    channel_mult=(1, 2),
    num_blocks=1,
    attn_resolutions=(4,),
    dropout=0.0,
)


def tiny_teacher(folder: Path, augment_dim: int = 0) -> str:
    """Write an untrained teacher for the digits to `folder`; return the folder for `teacher.path`.

    No parameter is zero, not even those that EDM initialises to zero, so that no gradient vanishes. Its card
    holds evaluation figures, so that no run spends time on sampling it.
    """
    # A random state of its own: other tests keep their random numbers.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        network = EDMDenoiser(NETWORK.model_copy(update={"augment_dim": augment_dim}))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    figures = {"frechet_distance": 1.0, "label_accuracy": 0.5, "ms_per_image": 1.0, "num_samples": SAMPLES}
    card = NetworkCard(
        kind="teacher",
        network=network.settings,
        trained={"evaluation": figures, "sampler_steps": 2, "data": "digits"},
    )
    save_network(folder, card, network)
    return str(folder)


def tiny_config(teacher: str, storage: Path, name: str = "tiny", **changes: Any) -> Config:
    """Settings of SiDA on the digits with dropout, one thread per process: 20 steps of two microbatches.

    Args:
        changes: fields by dotted name with `__` for the dot, as in `method__alpha=1.2`.
    """
    adversarial = {"group_size": 8, "generator_start_images": 0, "adversarial_start_images": 0}
    tree: dict[str, Any] = {
        "storage": str(storage),
        "run": {"name": name},
        "teacher": {"path": teacher},
        "method": {"adversarial": adversarial},
        "total_images": STEPS * BATCH,
        "batch_size": BATCH,
        "microbatch_size": BATCH // 2,
        "generator": {"lr": 1e-3, "dropout": 0.1},
        "fake_score": {"lr": 1e-3, "dropout": 0.1},
        "ema": {"halflife_images": 200},
        "evaluation": {"every_images": 2 * CHECKPOINT_STEPS * BATCH, "num_samples": SAMPLES},
        "tracking": {"log_every_images": 2 * BATCH},
        "checkpoint": {"every_images": CHECKPOINT_STEPS * BATCH},
        "torch_threads": 1,
    }
    for name, value in changes.items():
        *sections, field = name.split("__")
        section = tree
        for part in sections:
            section = section.setdefault(part, {})
        section[field] = value
    return Config.model_validate(tree)


def run_of(config: Config) -> Path:
    """The folder of a config's run."""
    return Path(config.storage) / str(config.run.name)


def write_recipe(config: Config, file: Path) -> Path:
    """Write the config as a user's recipe file; return the file."""
    file.write_text(config_yaml(config))
    return file


def inputs_for(config: Config, checkpoint: str | None = None) -> tuple[RunInputs, ImageSource | None]:
    """The inputs of a placement, as `distill` makes them: run inputs, and the source of real images for SiDA."""
    source = open_source(config.data)
    adversarial = config.method.adversarial is not None
    inputs = RunInputs(
        config=config,
        teacher=str(config.teacher.path),
        label_frequencies=tuple(source.label_counts.tolist()) if adversarial else (1.0,) * source.num_classes,
        checkpoint=checkpoint,
    )
    return inputs, source if adversarial else None


def take_steps(placement: Placement, config: Config, first: int = 0, last: int = STEPS) -> list[Figures]:
    """Take steps `first` to `last`, all submitted before the first is collected; return the figures of each."""
    results = [take_step(placement.roles, config, step) for step in range(first, last)]
    return [figures_of(placement.collect(result.reports)) for result in results]


def figures_of(report: StepReport) -> Figures:
    """A step's figures and recomputes, without `images_until`, which depends on how fast images are read."""
    return report.figures | {"teacher_recomputes": report.recomputes}


def local_end(config: Config, folder: Path, steps: int = STEPS) -> tuple[Weights, list[Figures]]:
    """The learners' states after a run's first steps in this process, and their figures of each step."""
    threads = torch.get_num_threads()
    end = placement_end(LocalPlacement(*inputs_for(config), threads=1), config, folder, steps)
    torch.set_num_threads(threads)
    return end


def placement_end(
    placement: Placement, config: Config, folder: Path, steps: int = STEPS
) -> tuple[Weights, list[Figures]]:
    """The learners' states after a run's first steps, saved to `folder`, and their figures; closes the placement."""
    try:
        figures = take_steps(placement, config, last=steps)
        save_whole(placement, str(folder))
    finally:
        placement.close()
    return learner_states(folder), figures


def save_whole(placement: Placement, folder: str) -> None:
    """Save both learners' present states and wait until they are written."""
    assert len(placement.save(folder).result()) == 2


def learner_states(checkpoint: Path | UPath) -> Weights:
    """Every tensor and number of a checkpoint's two files, by dotted name."""
    found: Weights = {}
    for name in ("fake_score", "generator"):
        found |= leaves(name, read_state(checkpoint, name))
    return found


def end_of(run: Path) -> Weights:
    """The results of a finished run: both learners' last states, and the two generators."""
    newest = Checkpoints(run / "checkpoints").newest()  # type: ignore[arg-type]
    assert newest is not None, f"no whole checkpoint in {run}"
    found = learner_states(Path(str(newest.path))) | {"step": newest.step}
    for folder in ("generator", "generator-best"):
        found |= leaves(folder, safetensors.torch.load_file(run / folder / "model.safetensors"))
    return found


def assert_ends_as_local(run: Path | UPath, config: Config, folder: Path, steps: int = STEPS) -> None:
    """A run's newest checkpoint is of step `steps` and equals, bit for bit, that of the same run in one process.

    Args:
        run: the run's folder, here or in a bucket.
        config: its settings.
        folder: for the states of the run in this process.
    """
    weights, _ = local_end(config, folder, steps)
    newest = Checkpoints(UPath(run) / "checkpoints").newest()
    assert newest is not None and newest.step == steps, f"{run} ends with {newest}"
    end = learner_states(newest.path)
    assert_same({name: end[name] for name in weights}, weights)


def assert_same(ours: Weights, theirs: Weights) -> None:
    """Two sets of tensors and numbers are the same, bit for bit."""
    assert ours.keys() == theirs.keys(), f"they differ in {sorted(ours.keys() ^ theirs.keys())[:3]}"
    other = [name for name in ours if not _same(ours[name], theirs[name])]
    assert not other, f"{len(other)} of {len(ours)} differ, the first is {other[0]}"


def lines_of(run: Path, *kinds: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics of these kinds, without the fields that depend on the clock."""
    clocks = ("time", "unix_time", "ms_per_image")
    return [
        {name: value for name, value in entry.items() if name not in clocks}
        for entry in read_metrics(run)
        if entry["kind"] in kinds
    ]


def assert_same_record(run: Path, other: Path) -> None:
    """Two runs recorded the same losses and figures, each once and in order."""
    for kind in ("train", "evaluation"):
        ours = lines_of(run, kind)
        steps = [entry["step"] for entry in ours]
        assert steps == sorted(set(steps)), f"{kind} lines of steps {steps}"
        assert ours == lines_of(other, kind)
    for kind in ("perf", "samples", "table"):
        steps = [entry["step"] for entry in lines_of(run, kind)]
        assert steps == [entry["step"] for entry in lines_of(other, kind)]


def step_recorded(run: Path, since: float = 0.0) -> int:
    """The last step that a run has recorded since a Unix time; 0 if none."""
    return max((entry["step"] for entry in read_metrics(run) if entry["unix_time"] > since), default=0)


def in_a_step(
    run: Path, chance: random.Random, first: int = 2, last: int = 16, stopped: float = 0.0
) -> Moment:
    """A random moment to kill a process of a run: during or shortly after one of the steps `first` to `last`.

    Args:
        stopped: seconds for which the process is stopped before it is killed.
    """
    step = chance.randrange(first, last)
    delay = chance.uniform(0, 0.1)
    return Moment(f"step {step}", lambda began: step_recorded(run, began) >= step, delay, stopped)


def pid_of(actor: Any) -> int:
    """The pid of an actor's process."""
    return int(ray.get(actor.__ray_call__.remote(lambda role: os.getpid()), timeout=60))


Weights = dict[str, Any]
Figures = dict[str, float]


def leaves(prefix: str, tree: Any) -> Weights:
    """Every tensor and number of a tree, by dotted name."""
    if isinstance(tree, Mapping):
        return {k: v for name, part in tree.items() for k, v in leaves(f"{prefix}.{name}", part).items()}
    if isinstance(tree, list | tuple):
        return leaves(prefix, dict(enumerate(tree)))
    return {prefix: tree}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)
