"""`raysid bench`: where the time of a step goes, how two ways of computing it compare, what real images cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from raysid.cli.options import RECIPE_HELP, RecipeCommand, check_writable, given_overrides, write_json
from raysid.recipes import load_recipe

if TYPE_CHECKING:
    from raysid.config import Config

AGAINST = "against."
WAYS: dict[str, dict[str, Any]] = {
    # The way the authors' loop computes: one process, fresh images for each update, all cores.
    "local": {
        "placement": "local",
        "schedule": "alternating",
        "torch_threads": None,
        "generator.num_workers": 1,
        "fake_score.num_workers": 1,
    },
    "split": {"placement": "split"},
    "colocated": {
        "placement": "colocated",
        "generator.num_workers": 1,
        "fake_score.num_workers": 1,
        "teacher.num_replicas": 1,
    },
}


def other_side(recipe: str, mine: Mapping[str, Any], against: str, theirs: Mapping[str, Any]) -> Config:
    """The config that a recipe is compared with: its own settings, then what `against` means, then those given."""
    return load_recipe(recipe, {**mine, **WAYS[against], **theirs}, kind="distill")


@click.command(
    cls=RecipeCommand,
    kinds=["distill"],
    prefixes=["", AGAINST],
    short_help="Measure where the time of a step goes, compare, or measure reading.",
    help="Measure where the time of a step goes, in rounds; with --against of two ways in turns. Nothing is trained, "
    "and where the recipe says the teacher's network one with random weights stands in for it.\n\nThe other side has "
    "the settings of this one but for those given as --against.NAME VALUE, as in `--against.torch_threads 1`; "
    "`--against local` means placement local, schedule alternating and all cores, unless given otherwise. theta is "
    f"the generator, psi the fake score, phi the teacher.\n\n{RECIPE_HELP}",
)
@click.argument("recipe", required=False)
@click.option(
    "--data",
    metavar="PATH",
    help="Measure reading these images instead: the stream against a torch DataLoader, then the fake-score learner's "
    "wait for it in a run of RECIPE (when not given the quickstart's, its network made for the images). What "
    "`data.source` takes.",
)
@click.option(
    "--against",
    type=click.Choice([*WAYS]),
    help="Compare with another way: where the other side's roles live. Without it one way is measured alone.",
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Rounds of each side.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.1),
    default=10.0,
    show_default=True,
    help="About how long a round takes.",
)
@click.option("--json", "json_file", metavar="FILE", help="Write what was found as JSON.")
@click.option(
    "--trace",
    "trace_file",
    metavar="FILE",
    help="Write the last steps as a trace for chrome://tracing or Perfetto.",
)
@click.pass_context
def bench(
    ctx: click.Context,
    recipe: str | None,
    data: str | None,
    against: str | None,
    rounds: int,
    seconds: float,
    json_file: str | None,
    trace_file: str | None,
) -> None:
    mine, theirs = given_overrides(ctx), given_overrides(ctx, AGAINST)
    if theirs and against is None:
        raise click.UsageError(f"--{AGAINST}{next(iter(theirs))} needs --against {' or '.join(WAYS)}")
    if data is not None:
        for option, given in (("--against", against), ("--trace", trace_file)):
            if given is not None:
                raise click.UsageError(f"{option} is for steps, --data for reading images: give one of them")
        if "data.source" in mine:
            raise click.UsageError("--data and --data.source both say which images: give one of them")
        _bench_data(recipe, {**mine, "data.source": data}, rounds, seconds, json_file)
        return
    if recipe is None:
        raise click.UsageError("Missing argument 'RECIPE'; or give --data PATH.")
    config = load_recipe(recipe, mine, kind="distill")
    other = None if against is None else other_side(recipe, mine, against, theirs)
    for file in (json_file, trace_file):
        check_writable(file)
    from raysid.bench.compare import compare
    from raysid.bench.show import as_json, show, trace

    found = compare(config, other, rounds, seconds, say=click.echo)
    show(found)
    for file, content in ((json_file, as_json), (trace_file, trace)):
        if file is not None:
            write_json(file, content(found))


def _bench_data(
    recipe: str | None, overrides: dict[str, Any], rounds: int, seconds: float, json_file: str | None
) -> None:
    """`raysid bench --data`."""
    check_writable(json_file)
    from raysid.bench.reading import bench_data
    from raysid.bench.show_reading import as_json, show

    found = bench_data(recipe, overrides, rounds, seconds, say=click.echo)
    show(found)
    if json_file is not None:
        write_json(json_file, as_json(found))
