"""`raysid submit` and `raysid jobs`: the same commands, as jobs of a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from raysid.cluster.submit import Jobs


_address = click.option(
    "--address",
    metavar="URL",
    help="The cluster's dashboard. RAY_API_SERVER_ADDRESS when not given, else the one on this machine, "
    f"{DEFAULT_DASHBOARD}.",
)
_no_follow = click.option(
    "--no-follow", is_flag=True, help="Print the job's id and return; `raysid jobs logs` follows it later."
)
_SUBMIT_HELP = "The job takes this installation's raysid and the recipe along. Ctrl-C leaves it running."


@click.group()
def submit() -> None:
    """Run a command as a job of a Ray cluster, and follow its log.

    `raysid submit distill RECIPE --address http://...` does on the cluster what `raysid distill RECIPE` does
    here. The cluster needs raysid's libraries; the package itself and the recipe travel with the job.
    """


def _submit_recipe(kind: str, short_help: str, *own: Callable[..., Any]) -> None:
    """A `submit` command for the recipes of a kind, with the options of the command that it submits."""

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
    "distill", "Distil a teacher on a cluster; the same command again resumes.", FRESH_RUN, RESUME_FROM
)
_submit_recipe(
    "tune", "Search settings on a cluster; the same command again finishes what was left.", FRESH_SEARCH
)


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


@click.group()
def jobs() -> None:
    """List, follow and stop a cluster's jobs."""


@jobs.command("list")
@_address
def list_jobs(address: str | None) -> None:
    """List the cluster's jobs, newest first."""
    from raysid.run.progress import print_table

    rows = [[job.id, job.status, job.started, job.command] for job in _jobs(address).list()]
    print_table("Jobs", ["id", "status", "started", "command"], rows)


@jobs.command()
@click.argument("job")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends. Ctrl-C leaves it running.")
@_address
def logs(job: str, follow: bool, address: str | None) -> None:
    """Print what JOB, by its id, has printed."""
    if follow:
        _follow(_jobs(address), job)
    else:
        click.echo(_jobs(address).log(job), nl=False)


@jobs.command()
@click.argument("job")
@_address
def stop(job: str, address: str | None) -> None:
    """End JOB, by its id; a distillation writes a checkpoint first.

    Submitting the same command again goes on from there.
    """
    from raysid.cluster.submit import STOP_SECONDS

    cluster = _jobs(address)
    cluster.stop(job)
    click.echo(f"{job}: {cluster.wait(job, seconds=STOP_SECONDS + 10).lower()}")


def _jobs(address: str | None) -> Jobs:
    from raysid.cluster.submit import Jobs

    return Jobs(address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_DASHBOARD)


def _run(address: str | None, command: list[str], files: dict[str, bytes], no_follow: bool) -> None:
    cluster = _jobs(address)
    job = cluster.submit(command, files)
    click.echo(f"job {job} at {cluster.address}")
    if not no_follow:
        _follow(cluster, job)


def _follow(cluster: Jobs, job: str) -> None:
    """Print a job's log until it ends, and end as it did."""
    try:
        status = cluster.follow(job)
    except KeyboardInterrupt:
        at = f"--address {cluster.address}"
        click.echo(
            f"\njob {job} goes on: `raysid jobs logs -f {job} {at}` follows it, `raysid jobs stop {job} {at}` ends it",
            err=True,
        )
        return
    click.echo(f"job {job}: {status.lower()}")
    if status == "FAILED":
        raise RunFailed(f"job {job} failed; its log says why")
