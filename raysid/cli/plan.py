"""`raysid plan`: what a recipe would do on some hardware, before there is any."""

from __future__ import annotations

import click

from raysid.cli.options import RECIPE_HELP, RecipeCommand, check_writable, given_overrides, write_json
from raysid.recipes import load_recipe


@click.command(
    cls=RecipeCommand,
    kinds=["distill"],
    short_help="Predict how fast a recipe runs on some hardware, and where it fits.",
    help="Predict how fast a recipe runs on some hardware, in which placements it fits, and which to take. DEVICES are "
    "8xH100-80GB or the like, or 8xNAME:TFLOPS:GB: their time is counted operations over a stated share of their "
    "speed, and nothing is run. Without --devices, or with 4xcpu or 2xgpu, the roles' calls are measured on this "
    "machine. Where the recipe says the teacher's network no file of it is needed.\n\ntheta is the generator, psi the "
    f"fake score, phi the teacher.\n\n{RECIPE_HELP}",
)
@click.argument("recipe")
@click.option(
    "--devices", help="Accelerators for all roles, as in 8xH100-80GB; this machine's when not given."
)
@click.option(
    "--teacher-devices", metavar="DEVICES", help="Others for the teacher's scorers, on nodes of their own."
)
@click.option(
    "--efficiency",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the data sheet's speed that is reached. [default, guessed: 0.6 in float32, 0.35 in TF32, 0.3 in "
    "bf16 and fp16]",
)
@click.option(
    "--network",
    type=click.FloatRange(0, min_open=True),
    default=1.25,
    show_default=True,
    help="GB a second between nodes.",
)
@click.option(
    "--node-devices", type=click.IntRange(1), default=8, show_default=True, help="Devices of a node."
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.1),
    default=10.0,
    show_default=True,
    help="About how long each of the measurements on this machine takes.",
)
@click.option("--json", "json_file", metavar="FILE", help="Write what was found as JSON.")
@click.pass_context
def plan(
    ctx: click.Context,
    recipe: str,
    devices: str | None,
    teacher_devices: str | None,
    efficiency: float | None,
    network: float,
    node_devices: int,
    seconds: float,
    json_file: str | None,
) -> None:
    config = load_recipe(recipe, given_overrides(ctx), kind="distill")
    check_writable(json_file)
    from raysid.plan.make import make_hardware
    from raysid.plan.placements import make_plan
    from raysid.plan.show import as_json, show

    hardware = make_hardware(
        config, devices, teacher_devices, efficiency, network, node_devices, seconds, say=click.echo
    )
    found = make_plan(config, hardware)
    show(found, recipe)
    if json_file is not None:
        write_json(json_file, as_json(found))
