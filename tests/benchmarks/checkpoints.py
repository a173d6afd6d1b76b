"""The time that a checkpoint keeps a run from its next step, and the time and bytes of a restore, in one process.

    python -m tests.benchmarks.checkpoints [CHANNELS]

The default network's training state is 362 MB. Prints, for each checkpoint after the first, the seconds that the state
and the generator take from the run, those until the next step begins and those until the manifest is written; and for a
resumed run the seconds until its first step and how often it read the state's bytes.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from raysid.actors.local import LocalPlacement
from raysid.networks import EDMDenoiser
from raysid.networks.files import NetworkCard, save_network
from raysid.run.checkpoint import Checkpoints
from raysid.trainers.distill import distill
from tests.support.tiny_run import NETWORK, run_of, tiny_config

BATCH, STEPS, EVERY = 8, 24, 6


def main(channels: int = 96) -> None:
    spans: dict[str, list[Span]] = {name: [] for name in ("save", "export", "step", "finish")}
    opened: list[Path] = []
    sys.addaudithook(lambda event, args: _note(opened, *args) if event == "open" else None)
    for name in ("save", "export", "step"):
        _timed(LocalPlacement, name, spans[name])
    _timed(Checkpoints, "finish", spans["finish"])
    with tempfile.TemporaryDirectory() as folder:
        teacher = _teacher(Path(folder) / "teacher", channels)
        settings: dict[str, Any] = {
            "placement": "local",
            "batch_size": BATCH,
            "microbatch_size": BATCH,
            "checkpoint__every_images": EVERY * BATCH,
            "evaluation__every_images": 1_000_000,
            "evaluation__num_samples": 50,
            "tracking__log_every_images": EVERY * BATCH,
        }
        config = tiny_config(teacher, Path(folder), **settings, total_images=STEPS * BATCH)
        distill(config)
        files = sorted((run_of(config) / "checkpoints").glob(f"step-{STEPS:08d}/*.pt"))
        size = sum(file.stat().st_size for file in files)
        print(f"training state: {size / 1e6:.0f} MB in {len(files)} files")
        # The first checkpoint warms up; the last has no step after it.
        for number in range(1, STEPS // EVERY):
            save, export, finish = (spans[name][number] for name in ("save", "export", "finish"))
            last, following = spans["step"][number * EVERY - 1], spans["step"][number * EVERY]
            print(
                f"checkpoint {number}: state {save}, generator {export}; next step after "
                f"{following.begin - last.end:.2f} s, whole after {finish.end - last.end:.2f} s"
            )
        opened.clear()
        spans["step"].clear()
        longer = tiny_config(teacher, Path(folder), **settings, total_images=(STEPS + 1) * BATCH)
        began, cpu = time.perf_counter(), time.process_time()
        distill(longer)
        first = spans["step"][0]
        read = sum(file.stat().st_size for file in opened if file in files)
        print(
            f"restore: first step after {first.begin - began:.2f} s ({first.process - cpu:.2f} s of CPU), "
            f"{read / size:.2f} times the state read"
        )


@dataclass(frozen=True)
class Span:
    """One call: its begin and end, the thread's CPU seconds, and those of the process at its begin."""

    begin: float
    end: float
    cpu: float
    process: float

    def __str__(self) -> str:
        return f"{self.end - self.begin:.2f} s ({self.cpu:.2f} s of CPU)"


def _teacher(folder: Path, channels: int) -> str:
    network = EDMDenoiser(NETWORK.model_copy(update={"model_channels": channels, "channel_mult": (1, 3)}))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    figures = {"frechet_distance": 1.0, "label_accuracy": 0.5, "ms_per_image": 1.0, "num_samples": 50}
    trained = {"evaluation": figures, "sampler_steps": 2, "data": "digits"}
    save_network(folder, NetworkCard(kind="teacher", network=network.settings, trained=trained), network)
    return str(folder)


def _timed(owner: type, name: str, spans: list[Span]) -> None:
    method = getattr(owner, name)

    def timed(*arguments: Any) -> Any:
        process, cpu, begin = time.process_time(), time.thread_time(), time.perf_counter()
        try:
            return method(*arguments)
        finally:
            spans.append(Span(begin, time.perf_counter(), time.thread_time() - cpu, process))

    setattr(owner, name, timed)


def _note(opened: list[Path], path: object, mode: object, flags: object) -> None:
    if isinstance(path, str) and path.endswith(".pt") and mode in ("r", "rb"):
        opened.append(Path(path))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
