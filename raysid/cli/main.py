"""The `raysid` command."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raysid.cli.bench import bench
from raysid.cli.data import data
from raysid.cli.errors import Commands
from raysid.cli.jobs import jobs, submit
from raysid.cli.networks import export, import_network
from raysid.cli.options import (
    EVALUATION_SEED,
    FACTORY,
    FRESH_RUN,
    FRESH_SEARCH,
    NUM_SAMPLES,
    OUT,
    RECIPE_HELP,
    RESUME_FROM,
    RUN_HELP,
    SEEDS,
    WHICH,
    RecipeCommand,
    given_overrides,
)
from raysid.cli.plan import plan
from raysid.cluster.connect import check_address
from raysid.errors import NotHere, UserError
from raysid.recipes import KINDS, config_model, config_yaml, load_recipe, packaged_recipes

# torch and Ray take seconds to import: only the commands that need them do so, and the others answer at once.
if TYPE_CHECKING:
    from torch import Tensor

    from raysid.generator import Generator, Which

_QUICKSTARTS = ("digits-sida", "digits-sid")


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
def cli() -> None:
    """Distil diffusion models into one-step generators, on Ray.

    `raysid quickstart` does all of it on a small scale. `raysid COMMAND --help` explains every option.
    """


def main() -> None:
    """Entry point of the `raysid` command; exits."""
    try:
        cli(prog_name="raysid")
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                # A full disk under a log: Python would try again at its end, and say so with a trace.
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _join(ctx: click.Context, param: click.Parameter, address: str | None) -> None:
    """Where Ray, and every process of the run, looks for the cluster."""
    if address is not None:
        check_address(address)
        os.environ["RAY_ADDRESS"] = address


_address = click.option(
    "--address",
    metavar="HOST:PORT",
    expose_value=False,
    callback=_join,
    help="Ray cluster to run on, from one of its nodes: HOST:PORT, or `auto` for the one that runs here. RAY_ADDRESS "
    "when not given; without either a cluster on this machine that ends with the command. From outside a "
    "cluster use `raysid submit`.",
)


@cli.command(cls=RecipeCommand, kinds=["pretrain"], help=f"Train a teacher.\n\n{RECIPE_HELP}")
@click.argument("recipe")
@OUT
@_address
@click.pass_context
def pretrain(ctx: click.Context, recipe: str, out: str | None) -> None:
    config = load_recipe(recipe, given_overrides(ctx), kind="pretrain")
    from raysid.trainers.pretrain import pretrain as train

    result = train(config, out=out)
    _print_figures("Teacher", result.metrics)
    click.echo(f"Teacher: {result.path}")


@cli.command(
    cls=RecipeCommand,
    kinds=["distill"],
    short_help="Distil a teacher into a one-step generator.",
    help="Distil a teacher into a one-step generator. The same command again resumes. In the settings theta is the "
    f"generator, psi the fake score, phi the teacher.\n\n{RECIPE_HELP}",
)
@click.argument("recipe")
@FRESH_RUN
@RESUME_FROM
@_address
@click.pass_context
def distill(ctx: click.Context, recipe: str, fresh: bool, resume_from: str | None) -> None:
    overrides = given_overrides(ctx)
    config = load_recipe(recipe, overrides, kind="distill")
    from raysid.trainers.distill import distill as train

    try:
        train(config, fresh=fresh, resume_from=resume_from)
    except NotHere as missing:
        again = ["raysid", "distill", recipe]
        files = {name: name.upper().replace(".", "_") for name in missing.settings}
        for name, value in {**overrides, **files}.items():
            again += [f"--{name}", str(value)]
        if resume_from is not None:
            again += ["--resume-from", resume_from]
        again += ["--fresh"] * fresh
        raise NotHere(
            f"{missing}\nget them, then the same command again, or with paths of your own: {shlex.join(again)}"
        ) from None


@cli.command(
    cls=RecipeCommand,
    kinds=["distill"],
    short_help="From real images to a one-step generator in minutes.",
    help="From real images to a one-step generator in minutes: a teacher on handwritten digits (kept for "
    "later runs), then its distillation, with the real images (`digits-sida`) or without (`digits-sid`). "
    "Any setting of the recipe `quickstart-NAME` is overridden by its dotted name.",
)
@click.argument("name", type=click.Choice(_QUICKSTARTS), default=_QUICKSTARTS[0])
@FRESH_RUN
@_address
@click.pass_context
def quickstart(ctx: click.Context, name: str, fresh: bool) -> None:
    config = load_recipe(f"quickstart-{name}", given_overrides(ctx), kind="distill")
    from raysid.trainers.distill import distill as train

    train(config, fresh=fresh)


@cli.command(
    cls=RecipeCommand,
    kinds=["tune"],
    short_help="Search settings of a distillation with Ray Tune.",
    help="Search settings of a distillation with Ray Tune: every trial is a run, all share one teacher service. "
    f"The same command again finishes what was left.\n\n{RECIPE_HELP}",
)
@click.argument("recipe")
@FRESH_SEARCH
@_address
@click.pass_context
def tune(ctx: click.Context, recipe: str, fresh: bool) -> None:
    config = load_recipe(recipe, given_overrides(ctx), kind="tune")
    from raysid.trainers.search.tune import run_search

    run_search(config, fresh=fresh)


for _command in (bench, plan, data, submit, jobs, import_network, export):
    cli.add_command(_command)


@cli.command(help=f"Measure a generator against the real images.\n\n{RUN_HELP}")
@click.argument("run")
@WHICH
@NUM_SAMPLES
@EVALUATION_SEED
@FACTORY
def evaluate(run: str, which: Which, num_samples: int, seed: int, factory: str | None) -> None:
    from raysid.generator import generator_folder
    from raysid.trainers.evaluation import evaluate_generator_path

    folder = generator_folder(run, which)
    _print_figures(str(folder), evaluate_generator_path(run, which, num_samples, seed, factory))


@cli.command(help=f"Draw images from a generator into a PNG.\n\n{RUN_HELP}")
@click.argument("run")
@click.option(
    "--labels", help="Classes to draw, a row each: `3`, `0-9` or `0,2,5-7`; all, mixed, when not given."
)
@click.option(
    "-n",
    "count",
    type=click.IntRange(1, 10_000),
    default=64,
    show_default=True,
    help="Images, over all rows.",
)
@click.option("--seed", type=SEEDS, default=0, show_default=True, help="Seed of the noise.")
@WHICH
@FACTORY
@click.option("--out", required=True, metavar="PNG", help="The picture to write; replaced if it exists.")
def sample(
    run: str, labels: str | None, count: int, seed: int, which: Which, factory: str | None, out: str
) -> None:
    classes = None if labels is None else _parse_labels(labels)
    _check_writable(Path(out))
    from raysid.generator import load_generator
    from raysid.run.image_grid import is_picture

    generator = load_generator(run, which, factory)
    if not is_picture(generator.sample_shape):
        raise UserError(
            f"{run} makes samples of shape {generator.sample_shape}, which are no pictures (1 or 3, height, width): "
            "draw them in Python, with raysid.load_generator"
        )
    images, columns = _draw(generator, classes, count, seed)
    from raysid.run.image_grid import save_grid

    try:
        save_grid(images, out, columns)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from error
    click.echo(out)


@cli.command()
@click.argument("run")
@click.option("-f", "--follow", is_flag=True, help="Go on, every two seconds, until the run is finished.")
def watch(run: str, follow: bool) -> None:
    """Show what a run is doing, in one screen.

    RUN is a run's folder, as in `runs/digits-sida`.
    """
    from raysid.run.watch import WATCH_SECONDS, state_of

    while True:
        state = state_of(run)
        if follow:
            click.clear()
        click.echo(state.text)
        if not follow or state.finished:
            return
        time.sleep(WATCH_SECONDS)


@cli.command(
    cls=RecipeCommand,
    kinds=["distill", "pretrain", "tune"],
    short_help="Print every setting of a recipe.",
    help=f"Print every setting of a recipe, as a YAML that can be used as one.\n\n{RECIPE_HELP}",
)
@click.argument("recipe", required=False)
@click.option("--schema", is_flag=True, help="Print the JSON Schema of all recipes instead; takes no RECIPE.")
@click.pass_context
def config(ctx: click.Context, recipe: str | None, schema: bool) -> None:
    if schema:
        if recipe is not None or given_overrides(ctx):
            raise click.UsageError("--schema prints the schema of all recipes: leave out RECIPE and settings")
        click.echo(json.dumps(_schema(), indent=2))
    elif recipe is None:
        raise click.UsageError("give a RECIPE, or --schema")
    else:
        click.echo(config_yaml(load_recipe(recipe, given_overrides(ctx))), nl=False)


@cli.command()
def recipes() -> None:
    """List the packaged recipes.

    Each with the command that runs it and what it is.
    """
    summaries = packaged_recipes()
    width = max(map(len, summaries))
    for name, summary in summaries.items():
        click.echo(f"{name:{width}}  raysid {summary.kind:8}  {summary.description}")


def _schema() -> dict[str, Any]:
    """JSON Schema of a resolved recipe of any kind."""
    from functools import reduce
    from operator import or_
    from typing import Annotated

    from pydantic import Field, TypeAdapter

    models: Any = reduce(or_, map(config_model, KINDS))
    adapter: TypeAdapter[Any] = TypeAdapter(Annotated[models, Field(discriminator="kind")])
    heading = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A raysid recipe, without `extends`",
    }
    return heading | adapter.json_schema()


def _parse_labels(text: str) -> list[int]:
    """`0,2,5-7` to its classes, in order, each once."""
    classes: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise UserError(f"--labels {text!r} is not a list of classes; write 3, 0-9 or 0,2,5-7")
        classes |= dict.fromkeys(range(first, last + 1))
    return list(classes)


def _draw(generator: Generator, classes: list[int] | None, count: int, seed: int) -> tuple[Tensor, int]:
    """Images (N, C, H, W) in the order of a grid, and its columns; with classes, a row for each."""
    import torch

    from raysid.run.image_grid import BACKGROUND

    source = torch.Generator().manual_seed(seed)
    if classes is None:
        return generator.sample(count, generator=source), math.ceil(math.sqrt(count))
    if generator.num_classes == 0:
        raise UserError("the generator has no classes; leave out --labels")
    outside = next((label for label in classes if label >= generator.num_classes), None)
    if outside is not None:
        raise UserError(f"label {outside} is outside the classes, which are 0 to {generator.num_classes - 1}")
    rows, columns = len(classes), math.ceil(count / len(classes))
    labels = torch.tensor(classes).repeat(columns)[:count]
    images = generator.sample(count, labels, generator=source)
    # The labels take turns: image i is in row i % rows; where they do not come out even, cells stay empty.
    grid = torch.full((rows * columns, *images.shape[1:]), BACKGROUND)
    index = torch.arange(count)
    grid[index % rows * columns + index // rows] = images
    return grid, columns


def _check_writable(path: Path) -> None:
    """Refuse a picture's path that cannot be written, before any work is done."""
    folder = path.parent
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; give a file's name in it")
    if not folder.is_dir():
        raise UserError(f"--out {path}: there is no folder {folder}; make it first")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise UserError(f"--out {path} cannot be written: permission denied")


def _print_figures(title: str, figures: dict[str, Any]) -> None:
    """A table of an evaluation's figures."""
    from raysid.run.progress import print_table

    rows = [[_FIGURES.get(name, name.replace("_", " ")), _figure(name, figures[name])] for name in figures]
    print_table(title, ["figure", "value"], rows)


_FIGURES = {
    "frechet_distance": "Fréchet distance to the real images",
    "halves_distance": "the same between two halves of the real images",
    "ms_per_image": "milliseconds per image",
    "num_samples": "images made",
}


def _figure(name: str, value: Any) -> Any:
    return f"{value:.1%}" if name == "label_accuracy" and value is not None else value
