"""`raysid submit`: run the other commands as jobs of a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import chain
from typing import Any

import click

from raysid.cli.options import (
    EVALUATION_SEED,
    FACTORY,
    FRESH_RUN,
    FRESH_SEARCH,
    NUM_SAMPLES,
    OUT,
    RESUME_FROM,
    RUN_HELP,
    WHICH,
)
from raysid.cli.recipe_command import RECIPE_HELP, RecipeCommand, given_overrides
from raysid.cluster.connect import DEFAULT_DASHBOARD
from raysid.errors import RunFailed

_address = click.option(
    "--address",
    metavar="URL",
    help="URL of the cluster's dashboard. Default: RAY_API_SERVER_ADDRESS, or the dashboard on this machine, "
    f"{DEFAULT_DASHBOARD}.",
)
_no_follow = click.option(
    "--no-follow",
    is_flag=True,
    help="Submit the job, print Ray's commands that follow or stop it, and return.",
)
_SUBMIT_HELP = "The job brings this installation's raysid and the recipe. Ctrl-C leaves it running."


@click.group()
def submit() -> None:
    """Run a command as a job of a Ray cluster, and follow its log.

    `raysid submit distill RECIPE --address http://...` does on the cluster what `raysid distill RECIPE` does
    here. The cluster needs raysid's libraries; the package itself and the recipe travel with the job. Ray's own
    `ray job` follows, lists and stops jobs: submit prints the commands.
    """


def _submit_recipe(kind: str, short_help: str, *own: Callable[..., Any]) -> None:
    """Add the `submit` command for recipes of a kind, with the options of the command that it submits."""

    @submit.command(
        kind,
        cls=RecipeCommand,
        kinds=[kind],
        short_help=short_help,
        help=f"{short_help} {_SUBMIT_HELP}\n\n{RECIPE_HELP}",
    )
    @click.argument("recipe")
    @_address
    @_no_follow
    @click.pass_context
    def command(
        ctx: click.Context, recipe: str, address: str | None, no_follow: bool, **options: Any
    ) -> None:
        from raysid.cluster.submit import check_absolute, job_files

        files = job_files(recipe, given_overrides(ctx), kind)
        arguments = [kind, "recipe.yaml"]
        for name, value in options.items():
            option = f"--{name.replace('_', '-')}"
            if value is True:
                arguments.append(option)
            elif value:
                check_absolute(option, value)  # those with a value are all paths
                arguments += [option, value]
        _run(address, arguments, files, no_follow)

    for option in own:
        option(command)


_submit_recipe("pretrain", "Train a teacher on a cluster.", OUT)
_submit_recipe(
    "distill", "Distil a teacher on a cluster; run the same command to resume.", FRESH_RUN, RESUME_FROM
)
_submit_recipe("tune", "Search settings on a cluster; run the same command to finish it.", FRESH_SEARCH)


@submit.command(
    short_help="Measure a generator on a cluster.",
    help=f"Measure a generator on a cluster. {_SUBMIT_HELP.replace(' and the recipe', '')}\n\n{RUN_HELP}",
)
@click.argument("run")
@WHICH
@NUM_SAMPLES
@EVALUATION_SEED
@FACTORY
@_address
@_no_follow
def evaluate(
    run: str,
    which: str,
    num_samples: int,
    seed: int,
    factory: str | None,
    address: str | None,
    no_follow: bool,
) -> None:
    from raysid.cluster.submit import check_absolute

    check_absolute("RUN", run)
    options = {"--which": which, "--num-samples": str(num_samples), "--seed": str(seed)}
    if factory is not None:
        options["--factory"] = factory
    _run(address, ["evaluate", run, *chain.from_iterable(options.items())], {}, no_follow)


def _run(address: str | None, command: list[str], files: dict[str, bytes], no_follow: bool) -> None:
    """Submit a command; print its log until it ends, and end as it does."""
    from raysid.cluster.submit import JobServer

    server = JobServer(address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_DASHBOARD)
    job = server.submit(command, files)
    click.echo(f"job {job} at {server.address}")
    for purpose, line in server.ray_commands(job).items():
        click.echo(f"  {purpose:7} {line}")
    if no_follow:
        return
    try:
        status = server.follow(job)
    except KeyboardInterrupt:
        click.echo(f"\njob {job} is still running: the commands above follow and stop it", err=True)
        return
    click.echo(f"job {job}: {status.lower()}")
    if status == "FAILED":
        raise RunFailed(f"job {job} failed; its log says why")
