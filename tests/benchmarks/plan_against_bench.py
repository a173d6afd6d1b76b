"""`raysid plan` against `raysid bench` on this machine: `python -m tests.benchmarks.plan_against_bench`.

Two recipes, digits (0.19 M parameters, batch 128) and a DDPM++ for 32x32 images (`ddpmpp32.yaml`, batch 4), each
in three ways: three actors overlapped, one process overlapped, one process in the authors' order. A round measures
the roles' calls alone, predicts the three ways from them, and then runs them in turns. Rounds alternate the two
recipes, so that other load falls on both. It prints measured over predicted, the median over rounds, of images a
second (on an idle machine only) and of the CPU time of the roles' calls in a step, which shows whether calls cost
more when they run beside others.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from raysid.bench.compare import SideResult, compare
from raysid.config import Config
from raysid.plan.hardware import Hardware, make_hardware
from raysid.plan.predict import predict
from raysid.recipes import load_recipe
from raysid.run.table import print_table

RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "digits": ("digits-sid", {"batch_size": 128}),
    "32x32": (str(Path(__file__).with_name("ddpmpp32.yaml")), {}),
}
WAYS = {
    "split, overlapped": {"placement": "split", "schedule": "overlapped"},
    "local, overlapped": {"placement": "local", "schedule": "overlapped"},
    "local, alternating": {"placement": "local", "schedule": "alternating"},
}
NEAR = 0.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=[*RECIPES])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS])
    parser.add_argument("--rounds", type=int, default=3, help="of each recipe (default 3)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a measurement (default 10)")
    parser.add_argument("--out", default="plan_against_bench.json", help="what to write")
    options = parser.parse_args()
    os.environ["RAY_worker_niceness"] = "0"  # as raysid starts its own cluster
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as storage:
        for round_ in range(options.rounds):
            for recipe in options.recipes:
                found += one_round(recipe, options.ways, storage, options.seconds)
                said = [
                    f"{e['way']} {e['measured'] / e['predicted']:.3f} (work {e['work'] / e['predicted_work']:.3f})"
                    for e in found[-len(options.ways) :]
                ]
                print(
                    f"round {round_ + 1}, {recipe}, load {os.getloadavg()[0]:.1f}: {'; '.join(said)}",
                    flush=True,
                )
    print_rows(found)
    Path(options.out).write_text(json.dumps(found, indent=2))
    print(options.out)


def one_round(recipe: str, ways: list[str], storage: str, seconds: float) -> list[dict[str, Any]]:
    """Measure the calls, predict the three ways, then run them."""
    name, settings = RECIPES[recipe]
    base = load_recipe(name, {"storage": storage} | settings, kind="distill")
    hardware = make_hardware(base, f"{os.cpu_count()}xcpu", seconds=seconds)
    entries = []
    for name in ways:
        config = base.model_copy(update=WAYS[name])
        bench = measured(config, seconds)
        entries.append(
            {
                "recipe": recipe,
                "way": name,
                "predicted": predict(config, hardware).images_per_second,
                "measured": bench.images_per_second,
                "predicted_work": predicted_work(config, hardware),
                "work": sum(use.busy for use in bench.middle.roles.values()),
                "load": os.getloadavg()[0],
            }
        )
    return entries


def predicted_work(config: Config, hardware: Hardware) -> float:
    """CPU seconds of the roles' calls in a step."""
    seconds = hardware.parts.seconds(config, int(config.placement == "local"))
    count = config.batch_size // config.microbatch
    return sum(
        value * (1 if method == "step" else count)
        for (_, method), value in seconds.items()
        if method != "images" or config.schedule == "alternating"
    )


def measured(config: Config, seconds: float) -> SideResult:
    """A bench of three rounds."""
    threads = torch.get_num_threads()
    try:
        return compare(config, None, rounds=3, seconds=seconds / 3).this
    finally:
        torch.set_num_threads(threads)


def print_rows(found: list[dict[str, Any]]) -> None:
    """One line per recipe and way: medians over rounds."""
    rows = []
    for recipe in RECIPES:
        for way in WAYS:
            own = [entry for entry in found if (entry["recipe"], entry["way"]) == (recipe, way)]
            if not own:
                continue
            quotients = [entry["measured"] / entry["predicted"] for entry in own]
            middle = statistics.median(quotients)
            work = statistics.median(entry["work"] / entry["predicted_work"] for entry in own)
            rows.append(
                [
                    recipe,
                    way,
                    *(
                        f"{statistics.median(entry[kind] for entry in own):,.1f}"
                        for kind in ("predicted", "measured")
                    ),
                    f"{middle:.3f}",
                    f"{min(quotients):.3f} to {max(quotients):.3f}",
                    f"{work:.3f}",
                    "yes" if abs(middle - 1) <= NEAR else "no",
                ]
            )
    columns = [
        "recipe",
        "way",
        "predicted images/s",
        "measured",
        "measured / predicted",
        "rounds",
        "within 15%",
    ]
    print_table("raysid plan against raysid bench, medians over rounds", columns, rows)


if __name__ == "__main__":
    main()
