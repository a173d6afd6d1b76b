"""`raysid plan`: the predicted speed of a recipe on given hardware."""

from __future__ import annotations

import click

from raysid.cli.options import JSON_FILE, announce, check_writable, write_json
from raysid.cli.recipe_command import RECIPE_HELP, RecipeCommand, given_overrides
from raysid.recipes import load_recipe


@click.command(
    cls=RecipeCommand,
    kinds=["distill"],
    short_help="Predict the speed of a recipe on given hardware, and recommend a placement.",
    help="Predict the speed of a recipe on given hardware, the placements in which it fits, and recommend one. DEVICES "
    "are 8xH100-80GB or similar, or 8xNAME:TFLOPS:GB: their time is computed from counted operations and a fraction "
    "of their peak speed, and nothing is run. Without --devices, or with 4xcpu or 2xgpu, the roles' calls are measured "
    "on this machine. A recipe with teacher.network needs no file of the teacher.\n\ntheta is the generator, psi the "
    f"fake score, phi the teacher.\n\n{RECIPE_HELP}",
)
@click.argument("recipe")
@click.option("--devices", help="Accelerators of all roles, as in 8xH100-80GB. Default: this machine's.")
@click.option(
    "--teacher-devices",
    metavar="DEVICES",
    help="Other accelerators for the teacher's scorers, on separate nodes.",
)
@click.option(
    "--efficiency",
    type=click.FloatRange(0, 1, min_open=True),
    help="Fraction of the peak speed that is reached. Default, a guess: 0.6 in float32, 0.35 in TF32, 0.3 in bf16 and "
    "fp16.",
)
@click.option(
    "--network",
    type=click.FloatRange(0, min_open=True),
    default=1.25,
    show_default=True,
    help="Network bandwidth between nodes, in GB per second.",
)
@click.option(
    "--node-devices", type=click.IntRange(1), default=8, show_default=True, help="Devices per node."
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.1),
    default=10.0,
    show_default=True,
    help="Approximate duration of each measurement on this machine, in seconds.",
)
@JSON_FILE
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
    given = given_overrides(ctx)
    config = load_recipe(recipe, given, kind="distill")
    check_writable(json_file)
    announce(ctx, recipe)
    from raysid.plan.hardware import make_hardware
    from raysid.plan.placements import changed, make_plan
    from raysid.plan.report import as_json, print_plan

    hardware = make_hardware(
        config, devices, teacher_devices, efficiency, network, node_devices, seconds, report=click.echo
    )
    found = make_plan(config, hardware)
    print_plan(found, recipe, changed(recipe, given, config))
    if json_file is not None:
        write_json(json_file, as_json(found))
