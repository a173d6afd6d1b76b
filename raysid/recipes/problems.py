"""What is wrong with a recipe, in one line: what, where, what to do."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from raysid.config.fields import config_fields

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def describe(
    error: ValidationError,
    model: type[BaseModel],
    recipe: str,
    sources: Sequence[tuple[str | None, Mapping[str, Any]]],
) -> str:
    """The first problem of a config in one line, and how many more there are.

    Args:
        error: what validating against `model` raised.
        recipe: what to call the recipe as a whole.
        sources: (name, mapping) of every file that has a say, the strongest first; a name of None stands for
            values given by hand, which need no name beside their own.
    """
    # A misspelt key shows twice, as unknown and as a missing one: the unknown one tells more.
    problems = sorted(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
    path = _place(problems[0])
    if problems[0]["type"] == "missing" or not path:
        source: str | None = recipe
    else:
        source = next((name for name, values in sources if _says(values, problems[0]["loc"])), recipe)
    line = _describe(problems[0], path, model)
    more = len({tuple(_place(problem)) for problem in problems}) - 1
    if more:
        line += f" (and {more} more problem{'s' if more > 1 else ''})"
    line = f"{source}: {line}" if source else line
    # Keys are shown as they are, and YAML lets them hold line breaks and a terminal's control sequences.
    return "".join(character if character.isprintable() else " " for character in line)


def _place(problem: ErrorDetails) -> list[str]:
    """Where a problem is, whichever of several forms that a value may have was tried there."""
    return [str(part) for part in problem["loc"] if part not in ("str", "list[str]")]


def closest(name: str, known: Iterable[str]) -> list[str]:
    """The known names that look like a misspelling of this one, the likeliest first."""
    return difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)


def show(value: Any) -> str:
    """A value of a recipe as YAML would have it, cut to a few words whatever it holds."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return reprlib.repr(value)


def _describe(problem: ErrorDetails, path: list[str], model: type[BaseModel]) -> str:
    name = ".".join(path)
    fields = config_fields(model)
    match problem["type"]:
        case "extra_forbidden":
            return _unknown_key(path, model)
        case "missing" if name in fields:
            meaning = fields[name].description.rstrip(".")
            return f"{name} is missing; give it a value" + (f" ({meaning})" if meaning else "")
        case "value_error":
            words = problem["msg"].removeprefix("Value error, ")
            return f"{name}: {words}" if name else words
    # Inside a list or a mapping the value shown is the element's, the words are those of the whole.
    upwards = (".".join(path[:length]) for length in range(len(path), 0, -1))
    known = next((one for one in upwards if one in fields), None)
    value = "missing" if problem["type"] == "missing" else show(problem["input"])
    allowed = fields[known].allowed if known else problem["msg"]
    if problem["type"] == "finite_number":
        allowed = f"a finite {allowed}"
    whole = f" in {known}" if known and known != name else ""
    unquoted = problem["type"] == "string_type" and isinstance(problem["input"], int | float)
    hint = "; quote it" if unquoted else ""
    return f"{name or 'the recipe'} is {value}; allowed{whole}: {allowed}{hint}"


def _unknown_key(path: list[str], model: type[BaseModel]) -> str:
    fields = config_fields(model)
    section = ".".join(path[:-1])
    keys = {key: field for field in fields for start, _, key in [field.rpartition(".")] if start == section}
    name = ".".join(path)
    likely = [keys[key] for key in closest(path[-1], keys)]
    if not likely:  # perhaps a key of another section, or one given without its section
        near = closest(path[-1], {field.rpartition(".")[2] for field in fields})[:1]
        likely = [field for field in fields if field.rpartition(".")[2] in near]
    line = f"unknown key {name}"
    if likely:
        return f"{line}; did you mean {' or '.join(likely[:3])}?"
    return f"{line}; the keys {f'of {section}' if section else 'here'} are {', '.join(keys)}"


def _says(values: Any, path: Iterable[str | int]) -> bool:
    """Whether a mapping has something at the path, or a value that is no mapping on the way there."""
    for part in path:
        if not isinstance(values, Mapping):
            return values is not None
        if part not in values:
            return False
        values = values[part]
    return True
