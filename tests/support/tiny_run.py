"""A distillation of seconds with every part of a real one: teacher, config, what it leaves, how two compare."""

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

from raysid.actors.placement import LocalPlacement, Placement
from raysid.config import Config
from raysid.data import ImageSource, open_source
from raysid.networks import EDMDenoiser, NetworkSettings
from raysid.networks.files import NetworkCard, save_network
from raysid.recipes import config_yaml
from raysid.roles.build import RunInputs
from raysid.roles.step import take_step
from raysid.run.checkpoint import Checkpoints, read_state
from raysid.run.tracking import read_metrics
from tests.support.processes import Moment

STEPS = 20
BATCH = 32
SAMPLES = 200
CHECKPOINT_STEPS = 4  # steps between checkpoints; lines of metrics come every 2, evaluations every 8

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
    """Write an untrained teacher for the digits to `folder`, and return it as a config has it.

    Every parameter is off zero, those too that EDM's layers start at zero, so that every gradient is alive.
    It says how good it is, so that no run spends time on sampling it.
    """
    # Seeded here alone: the tests around this one keep their random numbers.
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
    """SiDA on the digits with dropout, one thread a process: 20 steps of two microbatches.

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
    """The config as a recipe of the user's own."""
    file.write_text(config_yaml(config))
    return file


def inputs_for(config: Config, checkpoint: str | None = None) -> tuple[RunInputs, ImageSource | None]:
    """What a placement of a tiny config is made from, as `distill` makes it."""
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
    """Steps `first` to `last`, all of them submitted before the first is waited for; what the learners said."""
    results = [take_step(placement.roles, config, step) for step in range(first, last)]
    figures = []
    for result in results:
        said = placement.collect(result.fake_score)
        if result.generator is not None:
            said = said | placement.collect(result.generator)
        figures.append(said)
    return figures


def local_end(config: Config, folder: Path, steps: int = STEPS) -> tuple[Weights, list[Figures]]:
    """The learners' states after a run's first steps in this process, and what they said of each."""
    threads = torch.get_num_threads()
    end = placement_end(LocalPlacement(*inputs_for(config), threads=1), config, folder, steps)
    torch.set_num_threads(threads)
    return end


def placement_end(
    placement: Placement, config: Config, folder: Path, steps: int = STEPS
) -> tuple[Weights, list[Figures]]:
    """The learners' states after a run's first steps, kept in `folder`, and what they said; ends the placement."""
    try:
        figures = take_steps(placement, config, last=steps)
        save_whole(placement, str(folder))
    finally:
        placement.close()
    return learner_states(folder), figures


def save_whole(placement: Placement, folder: str) -> None:
    """Both learners' states as they are now, written when this returns."""
    placement.save(folder)
    assert placement.saved(folder, wait=True) is not None


def learner_states(checkpoint: Path | UPath) -> Weights:
    """Every tensor and number of a checkpoint's two files, by dotted name."""
    found: Weights = {}
    for name in ("fake_score", "generator"):
        found |= leaves(name, read_state(checkpoint, name))
    return found


def end_of(run: Path) -> Weights:
    """What a finished run comes to: both learners' last states, and the two generators."""
    newest = Checkpoints(run / "checkpoints").newest()  # type: ignore[arg-type]
    assert newest is not None, f"no whole checkpoint in {run}"
    found = learner_states(Path(str(newest.path))) | {"step": newest.step}
    for folder in ("generator", "generator-best"):
        found |= leaves(folder, safetensors.torch.load_file(run / folder / "model.safetensors"))
    return found


def assert_ends_as_local(run: Path | UPath, config: Config, folder: Path, steps: int = STEPS) -> None:
    """A run's newest checkpoint is of step `steps` and holds, bit for bit, what one process comes to.

    Args:
        run: the run's folder, here or in a bucket.
        config: its settings.
        folder: takes the states of the run in this process that it is compared with.
    """
    weights, _ = local_end(config, folder, steps)
    newest = Checkpoints(UPath(run) / "checkpoints").newest()
    assert newest is not None and newest.step == steps, f"{run} ends with {newest}"
    end = learner_states(newest.path)
    assert_same({name: end[name] for name in weights}, weights)


def assert_same(ours: Weights, theirs: Weights) -> None:
    """Two ends are the same, bit for bit."""
    assert ours.keys() == theirs.keys(), f"they differ in {sorted(ours.keys() ^ theirs.keys())[:3]}"
    other = [name for name in ours if not _same(ours[name], theirs[name])]
    assert not other, f"{len(other)} of {len(ours)} differ, the first is {other[0]}"


def lines_of(run: Path, *kinds: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics of these kinds, without what depends on the clock."""
    clocks = ("time", "unix_time", "ms_per_image")
    return [
        {name: value for name, value in entry.items() if name not in clocks}
        for entry in read_metrics(run)
        if entry["kind"] in kinds
    ]


def assert_same_record(run: Path, other: Path) -> None:
    """Two runs recorded the same losses and figures, each of them once and in order."""
    for kind in ("train", "evaluation"):
        ours = lines_of(run, kind)
        steps = [entry["step"] for entry in ours]
        assert steps == sorted(set(steps)), f"{kind} lines of steps {steps}"
        assert ours == lines_of(other, kind)
    for kind in ("perf", "samples", "table"):
        steps = [entry["step"] for entry in lines_of(run, kind)]
        assert steps == [entry["step"] for entry in lines_of(other, kind)]


def step_recorded(run: Path, since: float = 0.0) -> int:
    """The last step that a run has recorded since a time (Unix); 0 when it has recorded none."""
    return max((entry["step"] for entry in read_metrics(run) if entry["unix_time"] > since), default=0)


def in_a_step(
    run: Path, chance: random.Random, first: int = 2, last: int = 16, stopped: float = 0.0
) -> Moment:
    """A random moment to kill a process of a run: in or a little after one of the steps `first` to `last`.

    Args:
        stopped: seconds for which the process stands still before it dies.
    """
    step = chance.randrange(first, last)
    delay = chance.uniform(0, 0.1)
    return Moment(f"step {step}", lambda began: step_recorded(run, began) >= step, delay, stopped)


def pid_of(actor: Any) -> int:
    """The process that an actor lives in now."""
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
