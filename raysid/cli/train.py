"""`raysid pretrain`, `distill`, `quickstart` and `tune`: the commands that train."""

from __future__ import annotations

import shlex

import click

from raysid.cli.options import ADDRESS, FRESH_RUN, FRESH_SEARCH, OUT, RESUME_FROM, announce
from raysid.cli.recipe_command import RECIPE_HELP, RecipeCommand, given_overrides
from raysid.cli.runs import print_figures
from raysid.errors import NotHere
from raysid.recipes import load_recipe

# The commands import torch and Ray when they run: the others must not wait for that.

_QUICKSTARTS = {  # the recipe of each
    "digits-sida": "quickstart-digits-sida",
    "digits-sid": "quickstart-digits-sid",
    "text": "quickstart-digits-text",
}


@click.command(cls=RecipeCommand, kinds=["pretrain"], help=f"Train a teacher.\n\n{RECIPE_HELP}")
@click.argument("recipe")
@OUT
@ADDRESS
@click.pass_context
def pretrain(ctx: click.Context, recipe: str, out: str | None) -> None:
    config = load_recipe(recipe, given_overrides(ctx), kind="pretrain")
    announce(ctx, recipe)
    from raysid.trainers.pretrain import pretrain as train

    result = train(config, out=out)
    if result.metrics:
        print_figures("Teacher", result.metrics)
    elif result.loss is not None:  # raysid cannot evaluate such images
        click.echo(f"Loss: {result.loss:.4g} per {'pixel' if config.diffusers else 'image'} in the last step")
    click.echo(f"Teacher: {result.path}")
    click.echo(f"Distil it: raysid distill RECIPE --teacher.path {shlex.quote(result.path)}")


@click.command(
    cls=RecipeCommand,
    kinds=["distill"],
    short_help="Distil a teacher into a one-step generator.",
    help="Distil a teacher into a one-step generator. Run the same command to resume. In the settings theta is the "
    f"generator, psi the fake score, phi the teacher.\n\n{RECIPE_HELP}",
)
@click.argument("recipe")
@FRESH_RUN
@RESUME_FROM
@ADDRESS
@click.pass_context
def distill(ctx: click.Context, recipe: str, fresh: bool, resume_from: str | None) -> None:
    overrides = given_overrides(ctx)
    config = load_recipe(recipe, overrides, kind="distill")
    announce(ctx, recipe)
    from raysid.distillation import distill as train

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
            f"{missing}\nget them, then run the same command, or give paths of your own: {shlex.join(again)}"
        ) from None


@click.command(
    cls=RecipeCommand,
    kinds=["distill"],
    short_help="From real images to a one-step generator in minutes.",
    help="From real images to a one-step generator in minutes: train a teacher on handwritten digits (kept for later "
    "runs), then distil it, with the real images (`digits-sida`), without (`digits-sid`), or from captions to digits "
    "(`text`). Options override the settings of the recipe `quickstart-digits-...` by dotted name.",
)
@click.argument("name", type=click.Choice([*_QUICKSTARTS]), default="digits-sida")
@FRESH_RUN
@ADDRESS
@click.pass_context
def quickstart(ctx: click.Context, name: str, fresh: bool) -> None:
    config = load_recipe(_QUICKSTARTS[name], given_overrides(ctx), kind="distill")
    announce(ctx, name)
    from raysid.distillation import distill as train

    train(config, fresh=fresh)


@click.command(
    cls=RecipeCommand,
    kinds=["tune"],
    short_help="Search settings of a distillation with Ray Tune.",
    help="Search settings of a distillation with Ray Tune: every trial is a run, and all share one teacher service. "
    f"Run the same command to resume.\n\n{RECIPE_HELP}",
)
@click.argument("recipe")
@FRESH_SEARCH
@ADDRESS
@click.pass_context
def tune(ctx: click.Context, recipe: str, fresh: bool) -> None:
    config = load_recipe(recipe, given_overrides(ctx), kind="tune")
    announce(ctx, recipe)
    from raysid.trainers.search.tune import run_search

    run_search(config, fresh=fresh)
