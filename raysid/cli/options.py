"""Command-line options that commands share, above all every setting of a recipe under its dotted name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raysid.errors import UserError

if TYPE_CHECKING:
    from raysid.config.fields import ConfigField

RECIPE_HELP = """RECIPE is a packaged recipe's name (`raysid recipes` lists them) or the path of a YAML file.
Any of its settings is overridden by its dotted name, as in `--seed 1`. Values are YAML: numbers,
`null`, `[1, 2]`, `'{name: 1}'`. Defaults below are those of a recipe that says nothing; `raysid config
RECIPE` prints what a recipe comes to."""
RUN_HELP = "RUN is a run's folder, as in `runs/digits-sida`, or a generator's."

OUT = click.option(
    "--out", metavar="PATH", help="Folder for the teacher; one in `<storage>/teachers/` when not given."
)
RESUME_FROM = click.option(
    "--resume-from",
    metavar="PATH",
    help="Begin a new run from a checkpoint's folder, or from another run's newest.",
)
FRESH_RUN, FRESH_SEARCH = (
    click.option("--fresh", is_flag=True, help=f"Start over: delete the {what}'s folder first.")
    for what in ("run", "search")
)
WHICH = click.option(
    "--which",
    type=click.Choice(["last", "best"]),
    default="last",
    show_default=True,
    help="Of a run's generators: the last EMA, or the best evaluated one.",
)

FACTORY = click.option(
    "--factory",
    metavar="MODULE:FUNCTION",
    help="For a generator that a function of your own built: imports and calls it, where the folder says this one.",
)

SEEDS = click.IntRange(0, 2**63 - 1)  # the largest that torch takes
NUM_SAMPLES = click.option(
    "--num-samples",
    type=click.IntRange(min=2),
    default=10_000,
    show_default=True,
    help="Images to make; figures of different numbers do not compare.",
)
EVALUATION_SEED = click.option("--seed", type=SEEDS, default=2, show_default=True, help="Seed of the images.")

_OVERRIDES = "raysid.overrides"
_WHOLE_RUN = "Settings of the whole run"


class FieldOption(click.Option):
    """One field of a config as `--dotted.name VALUE`; what is given is kept for `given_overrides`.

    The text is not looked at here: `load_recipe` reads it, and reports what is wrong with it.
    """

    def __init__(self, field: ConfigField, only_for: str | None, prefix: str = "") -> None:
        self.field = field
        self.prefix = prefix
        # click parses values by name, which must be an identifier and unlike all others.
        name = "setting__" + f"{prefix}{field.path}".replace(".", "__")
        super().__init__(
            [name, f"--{prefix}{field.path}"],
            expose_value=False,
            callback=_keep,
            metavar=_metavar(field),
            help=_help(field, only_for),
            hidden=bool(prefix),
        )

    @property
    def section(self) -> str:
        """Where `--help` shows it: under the config's top-level section."""
        top, dot, _ = self.field.path.partition(".")
        return f"Settings of `{top}`" if dot else _WHOLE_RUN


class RecipeCommand(click.Command):
    """A command that takes every field of a recipe's config as an option.

    Args:
        kinds: kinds of recipes it takes; with several, it takes the fields of all of them.
        prefixes: of the options, each of which makes a set of its own; help shows those without one.
    """

    def __init__(
        self, *args: Any, kinds: Sequence[str], prefixes: Sequence[str] = ("",), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.kinds = kinds
        self.prefixes = prefixes

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's own parameters, then one option for each field."""
        return [*super().get_params(ctx), *self._field_options]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command's own options first, then a list for each section of the config."""
        own = [param for param in super().get_params(ctx) if isinstance(param, click.Option)]
        with formatter.section("Options"):
            formatter.write_dl([record for option in own if (record := option.get_help_record(ctx))])
        sections: dict[str, list[tuple[str, str]]] = {_WHOLE_RUN: []}
        for option in self._field_options:
            record = option.get_help_record(ctx)
            if record:
                sections.setdefault(option.section, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)

    # Made when first needed: the config's import is not paid for by commands that take no recipe.
    @cached_property
    def _field_options(self) -> list[FieldOption]:
        from raysid.config.fields import config_fields
        from raysid.recipes import config_model

        fields = {kind: config_fields(config_model(kind)) for kind in self.kinds}
        options: dict[str, list[FieldOption]] = {}
        for kind, of_kind in fields.items():
            for path, field in of_kind.items():
                # A section that cannot be null is only its fields; the kind is the recipe's own to say.
                if path in options or path == "kind" or (field.is_section and not field.nullable):
                    continue
                only_for = None if all(path in other for other in fields.values()) else kind
                options[path] = [FieldOption(field, only_for, prefix) for prefix in self.prefixes]
        return [option for of_path in options.values() for option in of_path]


def given_overrides(ctx: click.Context, prefix: str = "") -> dict[str, str]:
    """The fields given on the command line, with a prefix, as text by dotted name, in the order given."""
    return ctx.meta.get(_OVERRIDES + prefix, {})


def _keep(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        assert isinstance(param, FieldOption)
        ctx.meta.setdefault(_OVERRIDES + param.prefix, {})[param.field.path] = value


def _metavar(field: ConfigField) -> str:
    if field.is_section:
        return "MAPPING"
    first = field.allowed.partition(" ")[0].rstrip(",")
    return first.upper() if first in ("integer", "number", "text", "list", "mapping") else "CHOICE"


def _help(field: ConfigField, only_for: str | None) -> str:
    if field.required:
        default = "set by the recipe"
    elif isinstance(field.default, str):
        default = f"default: {field.default}"
    else:
        default = f"default: {json.dumps(field.default)}"
    limits = f"[{field.allowed}; {default}]"
    kind = f"(Only for {only_for}.)" if only_for else ""
    return " ".join(part for part in (field.description, kind, limits) if part)


def check_writable(file: str | None) -> None:
    """Refuse a file to write to, before anything is measured for it, in a folder that is not there."""
    if file is not None and not Path(file).absolute().parent.is_dir():
        raise UserError(f"{file} cannot be written: there is no folder {Path(file).parent}")


def write_json(file: str, content: Any) -> None:
    """Write and name a file of what was found."""
    Path(file).write_text(json.dumps(content, indent=2) + "\n")
    click.echo(file)
