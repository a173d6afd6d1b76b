"""Commands that take every setting of a recipe as an option, under its dotted name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from raysid.config.fields import ConfigField

RECIPE_HELP = """RECIPE is the name of a packaged recipe or the path of a YAML file. Options override its settings by
dotted name, as in `--seed 1`. Values are YAML: numbers, `null`, `[1, 2]`, `'{name: 1}'`. The defaults below are those
of a recipe without the setting; `raysid config RECIPE` prints the values of a recipe."""

_COMMON, _TOP_LEVEL = "Common settings", "Top-level settings"
_OVERRIDES, _HELP_ALL = "raysid.overrides", "raysid.help_all"


class FieldOption(click.Option):
    """A field of a config as `--dotted.name VALUE`; the values given are kept for `given_overrides`.

    The text is not parsed here: `load_recipe` does, and reports its problems.

    Args:
        kinds: kinds of recipes that have the field, if the command takes others, too.
    """

    def __init__(self, field: ConfigField, kinds: Sequence[str] = (), prefix: str = "") -> None:
        self.field = field
        self.kinds = kinds
        self.prefix = prefix
        # click parses values by name, which must be a unique identifier.
        name = "setting__" + f"{prefix}{field.path}".replace(".", "__")
        super().__init__(
            [name, f"--{prefix}{field.path}"],
            expose_value=False,
            callback=_keep,
            metavar=_metavar(field),
            help=_help(field),
            hidden=bool(prefix),
        )

    @property
    def section(self) -> str:
        """Title in the help: the common settings, or those of a top-level section of the config."""
        top, dot, _ = self.field.path.partition(".")
        title = f"Settings of `{top}`" if dot else _TOP_LEVEL
        if "common" in self.field.marks:
            title = _COMMON
        return f"{title} ({', '.join(self.kinds)})" if self.kinds else title


class RecipeCommand(click.Command):
    """A command that takes every field of a recipe's config as an option.

    `--help` lists the common fields, `--help-all` every field by section.

    Args:
        kinds: kinds of recipes it takes; with several, it has the fields of all of them.
        prefixes: prefixes of the options, each of which is a separate set; only those without one are in the help.
    """

    def __init__(
        self, *args: Any, kinds: Sequence[str], prefixes: Sequence[str] = ("",), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.kinds = kinds
        self.prefixes = prefixes
        self.params.append(
            click.Option(
                ["--help-all"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_print_full_help,
                help="Show every setting and exit.",
            )
        )

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the command's own parameters, then an option for each field."""
        return [*super().get_params(ctx), *self._field_options]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; an unknown option is refused with the names it may be meant for."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            from raysid.recipes.problems import suggestions

            options = {
                name.lstrip("-").replace("-", "_"): name
                for param in self.get_params(ctx)
                for name in param.opts
                if not (isinstance(param, click.Option) and param.hidden)
            }
            given = error.option_name.lstrip("-").replace("-", "_")
            likely = [options[name] for name in suggestions(given, options)]
            hint = f"; did you mean {' or '.join(likely)}?" if likely else ""
            raise click.UsageError(f"No such option: {error.option_name}{hint}", ctx) from None

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the description and, for a command that takes one kind of recipe, the packaged ones."""
        super().format_help_text(ctx, formatter)
        if len(self.kinds) == 1 and any(param.name == "recipe" for param in self.params):
            from raysid.recipes import packaged_recipes

            names = [name for name, summary in packaged_recipes().items() if summary.kind == self.kinds[0]]
            listed = ", ".join(names) if len(names) < 5 else f"{len(names)}, which `raysid recipes` lists"
            formatter.write_paragraph()
            with formatter.indentation():
                formatter.write_text(f"Packaged recipes for this command: {listed}.")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, the common settings and, for `--help-all`, the others by section."""
        own = [param for param in super().get_params(ctx) if isinstance(param, click.Option)]
        _write(ctx, formatter, "Options", own)
        sections: dict[str, list[FieldOption]] = {}
        for option in self._field_options:
            if not option.hidden:
                sections.setdefault(option.section, []).append(option)
        common = [title for title in sections if title.startswith(_COMMON)]
        others = [title for title in sections if title not in common]
        others.sort(key=lambda title: not title.startswith(_TOP_LEVEL))
        full = _HELP_ALL in ctx.meta
        for title in common + others if full else common:
            _write(ctx, formatter, title, sections[title])
        if not full:
            formatter.write_paragraph()
            more = sum(len(sections[title]) for title in others)
            formatter.write_text(f"{more} more settings: {ctx.command_path} --help-all")

    # Built when first needed: commands that take no recipe need not import the config.
    @cached_property
    def _field_options(self) -> list[FieldOption]:
        from raysid.config.fields import config_fields
        from raysid.recipes import config_model

        fields = {kind: config_fields(config_model(kind)) for kind in self.kinds}
        options: dict[str, list[FieldOption]] = {}
        for own in fields.values():
            for path, field in own.items():
                # A section that cannot be null is no more than its fields; only a recipe sets the kind.
                if path in options or path == "kind" or (field.is_section and not field.nullable):
                    continue
                kinds = [kind for kind in self.kinds if path in fields[kind]]
                shared = () if len(kinds) == len(self.kinds) else kinds
                options[path] = [FieldOption(field, shared, prefix) for prefix in self.prefixes]
        return [option for same_path in options.values() for option in same_path]


def given_overrides(ctx: click.Context, prefix: str = "") -> dict[str, str]:
    """Return the fields given on the command line with a prefix, as text by dotted name, in order."""
    return ctx.meta.get(_OVERRIDES + prefix, {})


def _keep(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        assert isinstance(param, FieldOption)
        ctx.meta.setdefault(_OVERRIDES + param.prefix, {})[param.field.path] = value


def _print_full_help(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        ctx.meta[_HELP_ALL] = True
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()


def _write(
    ctx: click.Context, formatter: click.HelpFormatter, title: str, options: Iterable[click.Option]
) -> None:
    records = [record for option in options if (record := option.get_help_record(ctx))]
    with formatter.section(title):
        formatter.write_dl(records)


def _metavar(field: ConfigField) -> str:
    if field.is_section:
        return "MAPPING"
    first = field.allowed.partition(" ")[0].rstrip(",")
    return first.upper() if first in ("integer", "number", "text", "list", "mapping") else "CHOICE"


def _help(field: ConfigField) -> str:
    limits = field.allowed
    if field.required:
        limits += "; set by the recipe"
    elif "Default:" not in field.description:
        default = field.default if isinstance(field.default, str) else json.dumps(field.default)
        limits += f"; default: {default}"
    return f"{field.description} [{limits}]".lstrip()
