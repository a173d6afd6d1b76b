"""Fields of the `.json` members of a tar: the one that holds a sample's label, and their names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from raysid.data.labels import names_listed
from raysid.errors import UserError
from raysid.storage.plain_json import parse_json

DEEPEST = 8  # mappings in mappings that are searched


class Field(NamedTuple):
    """A field, nested ones as in `meta.label`, and its value."""

    name: str
    value: Any


def read_fields(text: bytes) -> dict[str, Any]:
    """Read a `.json` member; return no fields if it is damaged or no mapping."""
    try:
        fields = parse_json(text)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def label_field(fields: Mapping[str, Any], name: str) -> Field | None:
    """Return the field of this name: of the outermost mapping, a path such as `meta.label`, or a nested one.

    Args:
        fields: the fields of a `.json` member.

    Raises:
        UserError: several nested fields have the name, or its value is a mapping.
    """
    if name in fields:
        found = [Field(name, fields[name])]
    else:
        found = [field for field in nested(fields) if field.name == name]
        found = found or [field for field in nested(fields) if field.name.endswith(f".{name}")]
    if len(found) > 1:
        raise UserError(
            f"several fields {name} ({names_listed([field.name for field in found])}): give data.label_column"
        )
    if found and isinstance(found[0].value, Mapping):
        inner = [f"{found[0].name}.{key}" for key in found[0].value]
        raise UserError(
            f"a mapping in the field {found[0].name}: give data.label_column, one of {names_listed(inner)}"
        )
    return found[0] if found else None


def nested(fields: Mapping[str, Any], prefix: str = "", depth: int = DEEPEST) -> Iterator[Field]:
    """Iterate over the fields of a mapping, each followed by those in it."""
    for key, value in fields.items():
        name = f"{prefix}{key}"
        yield Field(name, value)
        if isinstance(value, Mapping) and depth > 1:
            yield from nested(value, f"{name}.", depth - 1)
