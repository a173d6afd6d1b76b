"""`raysid import` and `raysid export`: networks from and for elsewhere."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import click

from raysid.cli.options import FACTORY, WHICH

if TYPE_CHECKING:
    from raysid.generator import Which


@click.command("import")
@click.argument("file")
@click.argument("out")
@click.option(
    "--as",
    "kind",
    type=click.Choice(["teacher", "generator"]),
    default="teacher",
    show_default=True,
    help="What the network is: EDM's are teachers, those of SiD and SiDA generators.",
)
@click.option(
    "--sigma-init",
    type=float,
    help="Noise level at which a generator runs, above 0; 2.5, as SiD's do, when not given.",
)
def import_network(
    file: str, out: str, kind: Literal["teacher", "generator"], sigma_init: float | None
) -> None:
    """Make a network's folder of a .pkl that EDM, SiD or SiDA published.

    FILE is a path, gs://..., s3://... or https://... (fetched into ~/.cache/raysid, or RAYSID_CACHE). Its settings
    and its weights are read and nothing in it is executed. OUT is the folder to write: model.safetensors and
    config.json.
    """
    if sigma_init is not None and kind == "teacher":
        raise click.UsageError("--sigma-init is a generator's: add --as generator")
    if sigma_init is not None and not (math.isfinite(sigma_init) and sigma_init > 0):
        raise click.UsageError(f"--sigma-init is {sigma_init}; allowed: number above 0")
    from raysid.networks.export import check_free
    from raysid.networks.files import save_network
    from raysid.networks.published import SIGMA_INIT, read_published
    from raysid.storage import storage_folder
    from raysid.storage.download import file_name, local_copy

    folder = storage_folder(out)
    check_free(folder)
    published = read_published(local_copy(file), file)
    if kind == "generator" and sigma_init is None:
        sigma_init = SIGMA_INIT
    save_network(folder, published.card(file_name(file), kind, sigma_init), published.network())
    click.echo(f"{kind.capitalize()}: {folder}")


@click.command()
@click.argument("run")
@click.option(
    "--to",
    "form",
    type=click.Choice(["safetensors", "torch"]),
    required=True,
    help="safetensors: a folder of model.safetensors and config.json. torch: a file of a plain state dict for "
    "torch.load(PATH, weights_only=True), and its settings beside it, under the same name with .json.",
)
@click.option("--out", required=True, metavar="PATH", help="What to write; it must not be there yet.")
@WHICH
@FACTORY
def export(
    run: str, form: Literal["safetensors", "torch"], out: str, which: Which, factory: str | None
) -> None:
    """Write a run's generator for use elsewhere.

    RUN is a run's folder, as in `runs/digits-sida`, or the folder of a generator or a teacher.
    """
    from raysid.generator import generator_folder
    from raysid.networks.export import export_network
    from raysid.storage import storage_folder

    folder = generator_folder(run, which)
    for path in export_network(folder, form, storage_folder(out), factory):
        click.echo(path)
