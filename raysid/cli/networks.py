"""`raysid import` and `raysid export`: networks in the formats of other programs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import click

from raysid.cli.options import FACTORY, WHICH

if TYPE_CHECKING:
    from raysid.generator import Which


@click.command("import", short_help="Convert a published .pkl to a network's folder.")
@click.argument("file")
@click.argument("out")
@click.option(
    "--as",
    "kind",
    type=click.Choice(["teacher", "generator"]),
    default="teacher",
    show_default=True,
    help="Role of the network: EDM published teachers, SiD and SiDA published generators.",
)
@click.option(
    "--sigma-init",
    type=float,
    help="Noise level (sigma) at the generator's input, above 0. Default: 2.5, as for SiD's.",
)
def import_network(
    file: str, out: str, kind: Literal["teacher", "generator"], sigma_init: float | None
) -> None:
    """Convert a .pkl published by EDM, SiD or SiDA to a network's folder.

    FILE is a path, gs://..., s3://... or https://... (downloaded to ~/.cache/raysid, or RAYSID_CACHE). Its settings
    and weights are read; nothing in it is executed. OUT is the folder for model.safetensors and config.json.
    """
    if sigma_init is not None and kind == "teacher":
        raise click.UsageError("--sigma-init is for generators: add --as generator")
    if sigma_init is not None and not (math.isfinite(sigma_init) and sigma_init > 0):
        raise click.UsageError(f"--sigma-init is {sigma_init}; allowed: number above 0")
    from raysid.networks.files import check_free, save_network
    from raysid.networks.published import SIGMA_INIT, read_published
    from raysid.storage import storage_folder
    from raysid.storage.download import file_name, read_copy

    folder = storage_folder(out)
    check_free(folder)
    published = read_copy(file, lambda copy: read_published(copy, file))
    if kind == "generator" and sigma_init is None:
        sigma_init = SIGMA_INIT
    save_network(folder, published.card(file_name(file), kind, sigma_init), published.network())
    click.echo(f"{kind.capitalize()}: {folder}")


@click.command()
@click.argument("run")
@click.option(
    "--to",
    "form",
    type=click.Choice(["safetensors", "torch", "diffusers"]),
    required=True,
    help="safetensors: a folder of model.safetensors and config.json. torch: a state dict for torch.load(PATH, "
    "weights_only=True), with its settings beside it in a .json of the same name. diffusers: a pipeline's folder, "
    "which stock diffusers runs in one step.",
)
@click.option("--half", is_flag=True, help="With --to diffusers: weights in half precision, variant fp16.")
@click.option("--out", required=True, metavar="PATH", help="File or folder to write; it must not exist.")
@WHICH
@FACTORY
def export(
    run: str,
    form: Literal["safetensors", "torch", "diffusers"],
    half: bool,
    out: str,
    which: Which,
    factory: str | None,
) -> None:
    """Export the generator of a run for other programs.

    RUN is the folder of a run, as in `runs/digits-sida`, of a generator, or of a teacher.
    """
    if half and form != "diffusers":
        raise click.UsageError("--half is for --to diffusers")
    from raysid.generator import generator_folder
    from raysid.networks.files import export_network
    from raysid.storage import storage_folder

    folder = generator_folder(run, which)
    if form == "diffusers":
        from raysid.networks.pipeline_export import export_pipeline

        exported = export_pipeline(folder, storage_folder(out), half)
        click.echo(exported.folder)
        if not exported.pipeline:
            click.echo("It has unet/ and scheduler/: no stock pipeline of diffusers fits this generator.")
        return
    for path in export_network(folder, form, storage_folder(out), factory):
        click.echo(path)
