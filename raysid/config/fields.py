"""The fields of a config by dotted name, described in words for the command line and for messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel

from raysid.config.settings import MARKS

_RANGE_WORDS = (
    ("exclusiveMinimum", "above"),
    ("minimum", "at least"),
    ("exclusiveMaximum", "below"),
    ("maximum", "at most"),
)
_TYPE_WORDS = {
    "integer": "integer",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
}


@dataclass(frozen=True)
class ConfigField:
    """One field of a config, at any depth.

    Attributes:
        path: dotted name, as in `method.alpha`.
        description: meaning of the field.
        allowed: type and range in words, as in `integer above 0`.
        default: default value as JSON has it; None for a required field, too.
        required: True if there is no default.
        is_section: True if it holds further fields.
        is_text: True if values are text, to be taken literally rather than parsed as YAML.
        nullable: True if it may be null.
        marks: the marks it carries (see `raysid.config.settings`), as in `{"common": True}`.
    """

    path: str
    description: str
    allowed: str
    default: Any
    required: bool
    is_section: bool
    is_text: bool
    nullable: bool
    marks: Mapping[str, Any]


@cache
def config_fields(model: type[BaseModel]) -> Mapping[str, ConfigField]:
    """Return every field and section of a config by dotted name, in the order of the model."""
    # The JSON schema has one form for each type, where annotations have several.
    schema = model.model_json_schema()
    return {field.path: field for field in _walk(schema, schema.get("$defs", {}), "", {})}


def _walk(
    section: dict[str, Any], definitions: dict[str, Any], prefix: str, defaults: Mapping[str, Any]
) -> Iterator[ConfigField]:
    for name, schema in section["properties"].items():
        path = prefix + name
        choices = [_resolved(choice, definitions) for choice in schema.get("anyOf", [schema])]
        value = next(choice for choice in choices if choice.get("type") != "null")
        is_section = "properties" in value
        # A section's default may hold another value than the field's own default.
        default = defaults.get(name, schema.get("default"))
        yield ConfigField(
            path=path,
            description=schema.get("description") or value.get("description", ""),
            allowed=", or ".join(_in_words(choice, definitions) for choice in choices),
            default=default,
            required=name in section.get("required", ()),
            is_section=is_section,
            is_text=value.get("type") == "string" and "enum" not in value,
            nullable=any(choice.get("type") == "null" for choice in choices),
            marks={mark: schema[mark] for mark in MARKS if mark in schema},
        )
        if is_section:
            yield from _walk(value, definitions, path + ".", default or {})


def _resolved(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in schema:
        return schema
    return definitions[schema["$ref"].removeprefix("#/$defs/")]


def _in_words(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return the type and range of a JSON schema, as in `integer above 0` or `list of 2, each: number at least 0`."""
    if "properties" in schema:
        return f"mapping of {', '.join(schema['properties'])}"
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    kind = schema.get("type")
    if kind == "object":
        named = schema.get("additionalProperties", {})
        return f"mapping of names to {_in_words(named if named is not True else {}, definitions)}"
    if kind == "array":
        items = schema.get("prefixItems") or [schema.get("items", {})]
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        length = f" of {least}" if least == most else f" of at least {least}" if least else ""
        return f"list{length}, each: {_in_words(_resolved(items[0], definitions), definitions)}"
    words = _TYPE_WORDS.get(str(kind), "value")
    bounds = dict(schema)
    if "minimum" in bounds and "exclusiveMinimum" in bounds:
        # PositiveInt with another minimum has both; the larger implies the other.
        del bounds["exclusiveMinimum" if bounds["minimum"] > bounds["exclusiveMinimum"] else "minimum"]
    limits = [f"{word} {_short(bounds[key])}" for key, word in _RANGE_WORDS if key in bounds]
    if "pattern" in schema:
        limits.append(f"that matches {schema['pattern']}")
    return " ".join([words, ", ".join(limits)]).strip()


def _short(number: float) -> str:
    """Format a bound without a trailing `.0`."""
    return str(number) if isinstance(number, int) else f"{number:g}"
