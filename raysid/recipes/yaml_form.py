"""YAML of recipes: plain data, `1e-4` is a number, `yes` is text, and no key occurs twice."""

from __future__ import annotations

import re
from typing import Any

import yaml

# PyYAML reads YAML 1.1, in which `1e-4` is text because it has no point, `no` and `on` are booleans (which a field of
# numbers would accept as 0 and 1), `010` is 8, `2:30` is 150 and `2026-11-30` is a date. YAML 1.2 has none of these,
# and nor has this loader. Of 1.1 it keeps `1_000`.
_BOOLEAN_TAG, _FLOAT_TAG, _INTEGER_TAG, _DATE_TAG = (
    f"tag:yaml.org,2002:{name}" for name in ("bool", "float", "int", "timestamp")
)
_BOOLEAN = re.compile(r"^(true|True|TRUE|false|False|FALSE)$")
_INTEGER = re.compile(r"^([-+]?[0-9]+(_[0-9]+)*|0o[0-7]+|0x[0-9a-fA-F]+)$")
_FLOAT = re.compile(
    r"^([-+]?(\.[0-9]+|[0-9]+(_[0-9]+)*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
)


MOST_VALUES, MOST_DIGITS = 100_000, 100


class NotYAML(Exception):
    """Text that cannot be parsed; the message has the reason and, if known, the line."""


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` (no tag creates an object) that refuses duplicate keys, keys that are not text, and bombs."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _expanded_size(node, {}) > MOST_VALUES:
            problem = f"it has more than {MOST_VALUES:,} values once its aliases are expanded"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return node


def _expanded_size(node: yaml.Node, known: dict[int, int]) -> int:
    """Count the values of a node with each alias counted as what it stands for; `known`: sizes by the node's id."""
    if id(node) not in known:
        known[id(node)] = 1  # for a node inside itself, which is refused later
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        inner = (
            node.value if isinstance(node, yaml.SequenceNode) else [part for pair in pairs for part in pair]
        )
        known[id(node)] = 1 + sum(_expanded_size(part, known) for part in inner)
    return known[id(node)]


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


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(node.value)
    if len(text) > MOST_DIGITS:
        raise yaml.constructor.ConstructorError(
            None, None, f"a number of more than {MOST_DIGITS} digits", node.start_mark
        )
    return int(text, 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10)


def _represent_mapping(dumper: _Dumper, data: dict[str, Any]) -> yaml.MappingNode:
    return dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=False)


_OTHERS = (_BOOLEAN_TAG, _FLOAT_TAG, _INTEGER_TAG, _DATE_TAG)
_Loader.yaml_implicit_resolvers = {
    start: [(tag, form) for tag, form in resolvers if tag not in _OTHERS]
    for start, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOLEAN_TAG, _BOOLEAN, list("tTfF"))
_Loader.add_implicit_resolver(_INTEGER_TAG, _INTEGER, list("-+0123456789"))
_Loader.add_implicit_resolver(_FLOAT_TAG, _FLOAT, list("-+.0123456789"))
_Loader.add_constructor(_INTEGER_TAG, _integer)
# The dumper quotes text that either version of YAML would read as another type.
_Dumper.add_implicit_resolver(_INTEGER_TAG, _INTEGER, list("-+0123456789"))
_Dumper.add_implicit_resolver(_FLOAT_TAG, _FLOAT, list("-+.0123456789"))
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
