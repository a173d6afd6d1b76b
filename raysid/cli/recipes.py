"""`raysid recipes` and `raysid config`: the packaged recipes, and the settings of a recipe."""

from __future__ import annotations

import json
import shutil
import textwrap
from typing import Annotated, Any

import click

from raysid.cli.recipe_command import RECIPE_HELP, RecipeCommand, given_overrides
from raysid.formats import FORMAT
from raysid.recipes import KINDS, config_model, config_yaml, load_recipe, packaged_recipes


@click.command(
    cls=RecipeCommand,
    kinds=["distill", "pretrain", "tune"],
    short_help="Print every setting of a recipe.",
    help=f"Print every setting of a recipe, as YAML that is a recipe itself.\n\n{RECIPE_HELP}",
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


@click.command()
def recipes() -> None:
    """List the packaged recipes, by the command that runs them."""
    summaries = packaged_recipes()
    indent = " " * (max(map(len, summaries)) + 4)
    width = max(shutil.get_terminal_size().columns, len(indent) + 40)
    for kind in KINDS:
        click.echo(f"raysid {kind}")
        for name, summary in summaries.items():
            if summary.kind == kind:
                start = f"  {name}".ljust(len(indent))
                click.echo(
                    textwrap.fill(
                        summary.description,
                        width,
                        initial_indent=start,
                        subsequent_indent=indent,
                        break_on_hyphens=False,
                    )
                )


def _schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe of any kind, without `extends`."""
    from pydantic import Field, TypeAdapter

    from raysid.config import AnyConfig

    adapter: TypeAdapter[Any] = TypeAdapter(Annotated[AnyConfig, Field(discriminator="kind")])
    schema = adapter.json_schema()
    # Not a setting: `config_yaml` writes it, and reading a recipe takes it out.
    file_format = {"enum": [None, FORMAT], "default": None, "description": "Format of the file."}
    for kind in KINDS:
        schema["$defs"][config_model(kind).__name__]["properties"]["format"] = file_format
    heading = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return heading | {"title": "A raysid recipe, without `extends`"} | schema
