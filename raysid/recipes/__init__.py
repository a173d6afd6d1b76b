"""Recipes: YAML files that fill a config, those of the package and the user's own.

A recipe's `kind` names the config it fills (`pretrain`, `distill` or `tune`). `extends: NAME_OR_PATH` builds on another
recipe: the keys given override the base's, section by section, and `null` replaces a section. Paths of other recipes
are relative to the recipe's own folder.

    files.py       finding, reading and merging a recipe's files; yaml_form.py: the YAML that they may hold
    migrations.py  names of settings in earlier releases
    problems.py    a config's errors in one line each
    *.yaml         the packaged recipes: a file added here is listed by its name
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from raysid.errors import UserError
from raysid.formats import FORMAT
from raysid.recipes.files import make_recipes_absolute, merge, packaged_recipes, read_sources
from raysid.recipes.yaml_form import NotYAML, dump_yaml, parse_yaml

if TYPE_CHECKING:
    from pydantic import BaseModel

    # Importing pydantic takes a second, which listing the recipes does not need.
    from raysid.config import (
        AnyConfig,
        Config,
        DataConfig,
        DataSettings,
        PretrainConfig,
        PromptConfig,
        PromptSettings,
        TuneConfig,
    )

__all__ = ["KINDS", "config_model", "config_yaml", "load_recipe", "override", "packaged_recipes", "validated"]

Model = TypeVar("Model", bound="BaseModel")
RowConfig = TypeVar("RowConfig", "DataConfig", "PromptConfig")
Overrides = Mapping[str, Any] | None

KINDS = ("pretrain", "distill", "tune")
"""Kinds of recipes; the command of the same name runs them."""


def config_model(kind: str) -> type[AnyConfig]:
    """Return the config class of a kind in `KINDS`; raise KeyError for another."""
    from raysid.config import Config, PretrainConfig, TuneConfig

    models: dict[str, type[AnyConfig]] = {"pretrain": PretrainConfig, "distill": Config, "tune": TuneConfig}
    return models[kind]


@overload
def load_recipe(recipe: str, overrides: Overrides = None, *, kind: Literal["pretrain"]) -> PretrainConfig: ...
@overload
def load_recipe(recipe: str, overrides: Overrides = None, *, kind: Literal["distill"]) -> Config: ...
@overload
def load_recipe(recipe: str, overrides: Overrides = None, *, kind: Literal["tune"]) -> TuneConfig: ...
@overload
def load_recipe(recipe: str, overrides: Overrides = None, kind: str | None = None) -> AnyConfig: ...
def load_recipe(recipe: str, overrides: Overrides = None, kind: str | None = None) -> AnyConfig:
    """Return the config of a recipe.

    Args:
        recipe: name of a packaged recipe, or path (or gs:// or s3:// URL) of a YAML file.
        overrides: values by dotted name (`method.alpha`) that override the recipe's, applied in order. Text is
            parsed as YAML (`1e-4`, `null`, `[1, 2]`), except for text fields, which take it literally (but for
            `null` if they may be null). A value inside a section that is null creates the section.
        kind: required kind (`pretrain`, `distill` or `tune`); None accepts any.

    Returns:
        The config. `run.name` of a distillation or a search is by default the recipe's name.

    Raises:
        InvalidConfig: unknown keys or values that are not allowed; one line for each problem.
        UserError: no such recipe; a file that cannot be read; a recipe of another kind.
    """
    sources = read_sources(recipe, Path.cwd())
    merged: dict[str, Any] = {}
    for source in reversed(sources):
        merge(merged, source.values)
    name = sources[0].name
    found = _kind(merged.get("kind"), name)
    if kind is not None and found != kind:
        raise UserError(
            f"{name} is a recipe for `raysid {found}`, not for `raysid {kind}`; packaged for that: "
            + ", ".join(each for each, summary in packaged_recipes().items() if summary.kind == kind)
        )
    model = config_model(found)
    given: dict[str, Any] = {}
    for path, text in (overrides or {}).items():
        value = _parsed(path, text, model)
        _set(given, path, value)
        _set(merged, path, value)
    make_recipes_absolute(merged, Path.cwd())  # those in overrides; those in files are absolute already
    if found != "pretrain":
        _name_run(merged, sources[0].path.stem)
    named = [(None, given), *((source.name, source.values) for source in sources)]
    return validated(model, merged, name, named)


def data_settings(overrides: Mapping[str, Any]) -> DataSettings:
    """Return the settings of real images without a recipe: the defaults with overrides, as in `load_recipe`.

    Raises:
        InvalidConfig: a setting is unknown or a value is not allowed.
    """
    from raysid.config import DataConfig

    return _without_recipe(DataConfig, overrides, "data").data


def prompt_settings(overrides: Mapping[str, Any]) -> PromptSettings:
    """Return the settings of prompts without a recipe, as `data_settings` those of real images."""
    from raysid.config import PromptConfig

    return _without_recipe(PromptConfig, overrides, "prompts").prompts


def _without_recipe(model: type[RowConfig], overrides: Mapping[str, Any], name: str) -> RowConfig:
    """Return the config of overrides alone, as in `load_recipe`; `name` is for messages."""
    given: dict[str, Any] = {}
    for path, value in overrides.items():
        _set(given, path, _parsed(path, value, model))
    return validated(model, given, name, [(None, given)])


def override(config: Config, values: Mapping[str, Any]) -> Config:
    """Return a config with other values, given by dotted name; text is not parsed.

    Raises:
        pydantic.ValidationError: a value is not allowed.
    """
    merged = config.model_dump(mode="json")
    for path, value in values.items():
        _set(merged, path, value)
    return type(config).model_validate(merged)


def config_yaml(config: AnyConfig) -> str:
    """Return every setting of a config as YAML, and its format; `load_recipe` on a file of it returns an equal config.

    A `run.name` of None would become the file's name; a config from `load_recipe` always has one.
    """
    return dump_yaml({"format": FORMAT} | config.model_dump(mode="json"))


def validated(
    model: type[Model],
    values: dict[str, Any],
    name: str,
    sources: Sequence[tuple[str | None, Mapping[str, Any]]] = (),
) -> Model:
    """Return the config of `values`. Raises InvalidConfig with a line for each problem.

    Args:
        name: the recipe or file, for messages.
        sources: as in `raysid.recipes.problems.describe`.
    """
    from pydantic import ValidationError

    from raysid.recipes.problems import describe

    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise describe(error, model, values, name, sources) from None


def _kind(kind: Any, name: str) -> str:
    if kind in KINDS:
        return kind
    found = "no `kind`" if kind is None else f"the unknown kind {kind!r}"
    raise UserError(f"{name} has {found}; add " + " or ".join(f"`kind: {known}`" for known in KINDS))


def _set(values: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted name, creating sections."""
    for part in reversed(path.split(".")):
        value = {part: value}
    merge(values, value)


def _parsed(path: str, text: Any, model: type[AnyConfig | DataConfig | PromptConfig]) -> Any:
    """Return the value of an override, which may be given as text."""
    if not isinstance(text, str):
        return text
    from raysid.config.fields import config_fields
    from raysid.recipes.problems import abbreviated

    field = config_fields(model).get(path)
    if field is not None and field.is_text:
        if field.nullable and text == "null":
            return None
        forms = {"[": "list", "{": "mapping"}
        if not (text[:1] in forms and forms[text[0]] in field.allowed):
            return text
    try:
        return parse_yaml(text)
    except NotYAML as error:
        raise UserError(f"{path} is {abbreviated(text)}, which is not a YAML value: {error}") from error


def _name_run(values: dict[str, Any], name: str) -> None:
    """Set the default name of the run, the recipe's."""
    if values.get("run") is None:
        values["run"] = {}
    run = values["run"]
    if isinstance(run, dict) and run.get("name") is None:
        # A file's name may have characters that a run's may not.
        run["name"] = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("-._") or "run"
