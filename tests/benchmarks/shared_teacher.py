"""The saving from one teacher service shared by a search's trials: `python -m tests.benchmarks.shared_teacher`.

The teacher has the size of EDM's CIFAR-10 network (DDPM++, 55.7 million parameters; untrained, since neither its
memory nor its time depends on the weights' values). Runs follow one another, as trials do, and each scores and
pulls back one microbatch: first with one scorer per run, then with one service for all. It prints the seconds from
the request for a service to the first answer, and the memory of the service's processes while all runs exist
(proportional set size: shared pages are divided among the processes that share them).
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray
import torch

from raysid.actors.fleet import RunStatus, Scorer
from raysid.actors.split import FleetActor, start_fleet
from raysid.config import Config
from raysid.networks import NetworkSettings, build_denoiser
from raysid.networks.files import NetworkCard, save_network
from raysid.recipes import load_recipe
from raysid.roles.messages import Conditions, Cotangent, Noised, Slice
from raysid.run.table import print_table

CIFAR10 = NetworkSettings(
    img_resolution=32, img_channels=3, model_channels=128, channel_mult=(2, 2, 2), num_blocks=4, dropout=0.13
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=4, help="runs at a time (default 4)")
    parser.add_argument("--microbatch", type=int, default=4, help="images scored at a time (default 4)")
    options = parser.parse_args()
    for name in ("ray", "ray._private.authentication"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ["RAY_worker_niceness"] = "0"  # as raysid starts its own cluster
    ray.init(address="local", num_cpus=options.runs, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        network = build_denoiser(CIFAR10)
        millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        save_network(folder, NetworkCard(kind="teacher", network=CIFAR10, trained={}), network)
        config = load_recipe("digits-sid", {"teacher.path": folder, "teacher.recipe": None}, kind="distill")
        batch = ray.put(a_microbatch(options.microbatch))
        alone = measure(config, options.runs, batch, own_service)
        shared = measure(config, options.runs, batch, shared_service)
    rows = [
        ["a scorer for each run", options.runs, alone.first, alone.later, alone.megabytes],
        ["one service for all", 1, shared.first, shared.later, shared.megabytes],
        [
            "ratio",
            "",
            alone.first / shared.first,
            alone.later / shared.later,
            alone.megabytes / shared.megabytes,
        ],
    ]
    columns = ["", "scorers", "first run, s", "later runs, s each", "memory, MB"]
    print_table(f"{options.runs} runs on a teacher of {millions:.1f} million parameters", columns, rows)


def a_microbatch(count: int) -> Noised:
    """Noised images of CIFAR-10's shape."""
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Noised(Slice(1, 0, count), images, torch.ones(count))


class Figures:
    """Seconds to the first answer, of the first run and the mean of later runs; memory at the end."""

    def __init__(self, seconds: list[float], megabytes: float) -> None:
        self.first = seconds[0]
        self.later = sum(seconds[1:]) / len(seconds[1:])
        self.megabytes = megabytes


Service = Callable[[Config, int, ExitStack], Callable[[str], tuple[Scorer, list[Any]]]]


def own_service(config: Config, runs: int, ends: ExitStack) -> Callable[[str], tuple[Scorer, list[Any]]]:
    """Every run starts a scorer."""

    def ask(run: str) -> tuple[Scorer, list[Any]]:
        fleet = start_fleet(str(config.teacher.path), config, threads=1)
        ends.callback(fleet.close)
        return fleet.members[0], [fleet.members[0].actor]

    return ask


def shared_service(config: Config, runs: int, ends: ExitStack) -> Callable[[str], tuple[Scorer, list[Any]]]:
    """The first run's time includes the service's start."""
    service: list[Any] = []

    def ask(run: str) -> tuple[Scorer, list[Any]]:
        if not service:
            actor: Any = ray.remote(FleetActor).options(num_cpus=0)
            service.append(actor.remote(str(config.teacher.path), config, 1, runs))
            ends.callback(ray.kill, service[0])
        scorer = ray.get(service[0].sync.remote(RunStatus(run, -1, 0.0))).scorers[0]
        return scorer, [scorer.actor, service[0]]

    return ask


def measure(config: Config, runs: int, batch: Any, service: Service) -> Figures:
    seconds, actors = [], {}
    with ExitStack() as ends:
        ask = service(config, runs, ends)
        for run in (f"run-{index}" for index in range(runs)):
            began = time.perf_counter()
            scorer, serving = ask(run)
            prediction, _ = ray.get(scorer.actor.score.remote(batch, Conditions({}), 1.0, run, False))
            seconds.append(time.perf_counter() - began)
            ray.get(
                scorer.actor.pullback.remote(
                    batch, Conditions({}), Cotangent(prediction.x_hat), 1.0, run, False
                )
            )
            actors |= {actor._actor_id: actor for actor in serving}
        megabytes = sum(ray.get([actor.__ray_call__.remote(lambda _: memory()) for actor in actors.values()]))
    return Figures(seconds, megabytes)


def memory() -> float:
    """This process's proportional set size in MB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    main()
