"""Command-line options that several commands share, and the files they write."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from raysid.cluster.connect import check_address
from raysid.errors import UserError

RUN_HELP = "RUN is the folder of a run, as in `runs/digits-sida`, or of a generator."

JSON_FILE = click.option("--json", "json_file", metavar="FILE", help="Write the results to a JSON file.")
OUT = click.option(
    "--out", metavar="PATH", help="Folder for the teacher. Default: a folder in `<storage>/teachers/`."
)
RESUME_FROM = click.option(
    "--resume-from",
    metavar="PATH",
    help="Start a new run from the folder of a checkpoint, or from the newest checkpoint of another run.",
)
FRESH_RUN, FRESH_SEARCH = (
    click.option("--fresh", is_flag=True, help=f"Start over: delete the {kind}'s folder first.")
    for kind in ("run", "search")
)
WHICH = click.option(
    "--which",
    type=click.Choice(["last", "best"]),
    default="last",
    show_default=True,
    help="Generator of a run: the last EMA, or the EMA with the best evaluation.",
)
FACTORY = click.option(
    "--factory",
    metavar="MODULE:FUNCTION",
    help="Your function that built the generator's network, called only if the folder names the same function.",
)
SEEDS = click.IntRange(0, 2**63 - 1)  # up to the largest of torch
NUM_SAMPLES = click.option(
    "--num-samples",
    type=click.IntRange(min=2),
    default=10_000,
    show_default=True,
    help="Images to generate; only figures of equal numbers compare.",
)
EVALUATION_SEED = click.option(
    "--seed", type=SEEDS, default=2, show_default=True, help="Random seed of the images."
)


def _set_address(ctx: click.Context, param: click.Parameter, address: str | None) -> None:
    """Set the address at which Ray, in every process of the run, looks for the cluster."""
    if address is not None:
        check_address(address)
        os.environ["RAY_ADDRESS"] = address


ADDRESS = click.option(
    "--address",
    metavar="HOST:PORT",
    expose_value=False,
    callback=_set_address,
    help="Ray cluster to run on, from one of its nodes: HOST:PORT, or `auto` for the cluster on this machine. Default: "
    "RAY_ADDRESS, or a cluster on this machine that ends with the command. From outside a cluster use `raysid submit`.",
)


def announce(ctx: click.Context, subject: str) -> None:
    """Print a first line, for the seconds that importing torch and Ray takes."""
    if "torch" not in sys.modules:
        click.echo(f"{ctx.command_path} {subject}: loading torch and Ray", err=True)


def check_writable(file: str | None) -> None:
    """Refuse a file in a folder that does not exist, before anything is measured for it."""
    if file is not None and not Path(file).absolute().parent.is_dir():
        raise UserError(f"{file} cannot be written: there is no folder {Path(file).parent}")


def write_json(file: str, content: Any) -> None:
    """Write results to a file and print its name."""
    Path(file).write_text(json.dumps(content, indent=2) + "\n")
    click.echo(file)
