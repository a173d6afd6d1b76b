"""YAML of recipes: plain data, `1e-4` is a number, `yes` is text, and no key occurs twice."""

from __future__ import annotations

import re
from typing import Any

import yaml

# PyYAML reads YAML 1.1, in which `1e-4` is text because it has no point, and `no` and `on` are booleans (which a field
# of numbers would accept as 0 and 1). YAML 1.2 has neither, and nor has this loader.
_BOOLEAN_TAG, _FLOAT_TAG = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_BOOLEAN = re.compile(r"^(true|True|TRUE|false|False|FALSE)$")
_EXPONENT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")


class NotYAML(Exception):
    """Text that cannot be parsed; the message has the reason and, if known, the line."""


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` (no tag creates an object) that refuses duplicate keys and keys that are not text."""


class _Dumper(yaml.SafeDumper):
    """`yaml.SafeDumper` that quotes text which `_Loader` would read as a number."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if key.tag == "tag:yaml.org,2002:merge":  # `<<: *base`
            continue
        if key.tag != "tag:yaml.org,2002:str":
            raise yaml.constructor.ConstructorError(None, None, "a key is not text; quote it", key.start_mark)
        if key.value in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key.value!r} is given twice", key.start_mark
            )
        seen.add(key.value)
    loader.flatten_mapping(node)  # after the check: a key may occur here and in the mapping that `<<` merges
    # With deep, the contents are built before this returns, so that a mapping inside itself is refused.
    return dict(loader.construct_pairs(node, deep=True))


def _represent_mapping(dumper: _Dumper, data: dict[str, Any]) -> yaml.MappingNode:
    return dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=False)


_Loader.yaml_implicit_resolvers = {
    start: [(tag, form) for tag, form in resolvers if tag != _BOOLEAN_TAG]
    for start, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOLEAN_TAG, _BOOLEAN, list("tTfF"))
_Loader.add_implicit_resolver(_FLOAT_TAG, _EXPONENT, list("-+.0123456789"))
# The dumper quotes text that either version of YAML would read as another type.
_Dumper.add_implicit_resolver(_FLOAT_TAG, _EXPONENT, list("-+.0123456789"))
_Dumper.add_representer(dict, _represent_mapping)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse_yaml(text: str | bytes) -> Any:
    """Return the data of a YAML text.

    Raises:
        NotYAML: the text is not one document of plain YAML, has a key twice, or has a key that is not text.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise NotYAML(where + (error.problem or "cannot be read")) from error
    except RecursionError as error:
        raise NotYAML("nested too deeply") from error
    except Exception as error:
        # Invalid characters, dates that do not exist, `!!bool x`: PyYAML lets exceptions of any type through.
        raise NotYAML(" ".join(f"{type(error).__name__}: {error}".split())) from error


def dump_yaml(data: Any) -> str:
    """Return plain data as YAML, in its own order, with lists of numbers on one line; the inverse of `parse_yaml`."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True)
