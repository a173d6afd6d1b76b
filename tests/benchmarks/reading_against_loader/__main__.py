"""Measure reading: `python -m tests.benchmarks.reading_against_loader PATH [RECIPE]`."""

from __future__ import annotations

import click

from raysid.cli.options import check_writable, write_json
from raysid.cli.recipe_command import RecipeCommand, given_overrides
from tests.benchmarks.reading_against_loader.measure import measure_reading
from tests.benchmarks.reading_against_loader.report import as_json, print_reading


@click.command(
    cls=RecipeCommand,
    kinds=["distill"],
    help="Measure reading the images of PATH (as `data.source`): the stream against a torch DataLoader, then the "
    "fake-score learner's wait for the stream in a run of RECIPE; by default the quickstart's, with a network for "
    "these images. Settings of a recipe are given by dotted name.",
)
@click.argument("path")
@click.argument("recipe", required=False)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Rounds of each side.")
@click.option(
    "--seconds", type=click.FloatRange(0.1), default=10.0, show_default=True, help="Length of a round, about."
)
@click.option("--json", "json_file", metavar="FILE", help="Write the results to a JSON file.")
@click.pass_context
def main(
    ctx: click.Context, path: str, recipe: str | None, rounds: int, seconds: float, json_file: str | None
) -> None:
    check_writable(json_file)
    overrides = given_overrides(ctx) | {"data.source": path}
    found = measure_reading(recipe, overrides, rounds, seconds, report=click.echo)
    print_reading(found)
    if json_file is not None:
        write_json(json_file, as_json(found))


if __name__ == "__main__":
    main()
