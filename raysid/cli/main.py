"""The `raysid` command: the group of all commands, and the process's entry point."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version

import click

from raysid.cli.bench import bench
from raysid.cli.data import data
from raysid.cli.errors import Commands
from raysid.cli.networks import export, import_network
from raysid.cli.plan import plan
from raysid.cli.recipes import config, recipes
from raysid.cli.runs import evaluate, sample, watch
from raysid.cli.submit import submit
from raysid.cli.train import distill, pretrain, quickstart, tune


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "ray"))
        click.echo(f"raysid {version('raysid')} ({libraries}, Python {platform.python_version()})")
        ctx.exit()


@click.group(
    cls=Commands,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 110,
        # Settings are written with underscores, options of commands with dashes: all take both.
        "token_normalize_func": lambda token: token.replace("_", "-"),
    },
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the versions of raysid, torch, Ray and Python, and exit.",
)
def cli() -> None:
    """Distil diffusion models into one-step generators, on Ray.

    `raysid quickstart` does all of it on a small scale. `raysid COMMAND --help` explains a command.
    """


for _command in (pretrain, distill, quickstart, tune, evaluate, sample, watch, config, recipes):
    cli.add_command(_command)
for _command in (bench, plan, data, submit, import_network, export):
    cli.add_command(_command)


def main() -> None:
    """Run the `raysid` command and exit."""
    try:
        cli(prog_name="raysid")
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                # A full disk under a log: Python would flush again at exit, and print a traceback.
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
