"""`raysid bench`: the time of a step by role, for one configuration or two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from raysid.cli.options import JSON_FILE, announce, check_writable, write_json
from raysid.cli.recipe_command import RECIPE_HELP, RecipeCommand, given_overrides
from raysid.recipes import load_recipe

if TYPE_CHECKING:
    from raysid.config import Config

AGAINST = "against."
PLACEMENTS = ("local", "split", "colocated")


def other_side(recipe: str, mine: Mapping[str, Any], placement: str, theirs: Mapping[str, Any]) -> Config:
    """Return the config to compare with: the recipe with its overrides, another placement, and its overrides."""
    from raysid.config import Config
    from raysid.config.fields import config_fields

    settings: dict[str, Any] = {"placement": placement}
    if placement != "split":
        fields = config_fields(Config).values()
        settings |= {field.path: field.default for field in fields if "split_only" in field.marks}
    if placement == "local":  # as the authors' loop: new images for each update, all cores
        settings |= {"schedule": "alternating", "torch_threads": None}
    return load_recipe(recipe, {**mine, **settings, **theirs}, kind="distill")


@click.command(
    cls=RecipeCommand,
    kinds=["distill"],
    prefixes=["", AGAINST],
    short_help="Measure the time of a step by role, or compare two configurations.",
    help="Measure the time of a step by role, in rounds; with --against, of two configurations in turn. Nothing is "
    "trained, and a recipe with teacher.network is measured with random weights.\n\nThe other configuration has the "
    "same settings except those given as --against.NAME VALUE, as in `--against.torch_threads 1`; `--against local` "
    "means placement local, schedule alternating and all cores, unless given. theta is the generator, psi the fake "
    f"score, phi the teacher.\n\n{RECIPE_HELP}",
)
@click.argument("recipe")
@click.option(
    "--against", type=click.Choice(PLACEMENTS), help="Placement to compare with. Default: no comparison."
)
@click.option(
    "--rounds", type=click.IntRange(1), default=5, show_default=True, help="Rounds per configuration."
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.1),
    default=10.0,
    show_default=True,
    help="Approximate duration of a round, in seconds.",
)
@JSON_FILE
@click.option(
    "--trace",
    "trace_file",
    metavar="FILE",
    help="Write a trace of the last steps, for chrome://tracing or Perfetto.",
)
@click.pass_context
def bench(
    ctx: click.Context,
    recipe: str,
    against: str | None,
    rounds: int,
    seconds: float,
    json_file: str | None,
    trace_file: str | None,
) -> None:
    mine, theirs = given_overrides(ctx), given_overrides(ctx, AGAINST)
    if theirs and against is None:
        raise click.UsageError(f"--{AGAINST}{next(iter(theirs))} needs --against {' or '.join(PLACEMENTS)}")
    config = load_recipe(recipe, mine, kind="distill")
    other = None if against is None else other_side(recipe, mine, against, theirs)
    for file in (json_file, trace_file):
        check_writable(file)
    announce(ctx, recipe)
    from raysid.bench.compare import compare
    from raysid.bench.report import as_json, as_trace, print_comparison

    found = compare(config, other, rounds, seconds, report=click.echo)
    print_comparison(found)
    for file, content in ((json_file, as_json), (trace_file, as_trace)):
        if file is not None:
            write_json(file, content(found))
