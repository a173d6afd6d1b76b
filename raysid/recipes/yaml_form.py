"""YAML as recipes use it: plain data, `1e-4` is a number, `yes` is text, and no key is given twice."""

from __future__ import annotations

import re
from typing import Any

import yaml

# PyYAML reads YAML 1.1, which takes `1e-4` for text because it has no point, and `no` and `on` for booleans
# (which a field of numbers would then accept as 0 and 1). YAML 1.2 does neither, and so it is here.
_BOOLEAN_TAG, _FLOAT_TAG = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_BOOLEAN = re.compile(r"^(true|True|TRUE|false|False|FALSE)$")
_EXPONENT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")


class NotYAML(Exception):
    """Text that cannot be read; the message says what is wrong and, where known, in which line."""


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` (no tag can make an object), refusing what would be misread without a word."""


class _Dumper(yaml.SafeDumper):
    """`yaml.SafeDumper`, quoting the text that `_Loader` would read as a number."""


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
    loader.flatten_mapping(node)  # only now: a key may stand here and in what `<<` brings
    # deep: the contents are built before this returns, so that a mapping inside itself is refused.
    return dict(loader.construct_pairs(node, deep=True))


def _represent_mapping(dumper: _Dumper, data: dict[str, Any]) -> yaml.MappingNode:
    return dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=False)


_Loader.yaml_implicit_resolvers = {
    start: [(tag, form) for tag, form in resolvers if tag != _BOOLEAN_TAG]
    for start, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOLEAN_TAG, _BOOLEAN, list("tTfF"))
_Loader.add_implicit_resolver(_FLOAT_TAG, _EXPONENT, list("-+.0123456789"))
# The dumper quotes what either version of YAML would take for something else than text.
_Dumper.add_implicit_resolver(_FLOAT_TAG, _EXPONENT, list("-+.0123456789"))
_Dumper.add_representer(dict, _represent_mapping)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse_yaml(text: str | bytes) -> Any:
    """The plain data that the text stands for.

    Raises:
        NotYAML: the text is not one document of plain YAML, gives a key twice or has a key that is not text.
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
        # Characters that are no text, dates that do not exist, `!!bool x`: PyYAML lets any type through.
        raise NotYAML(" ".join(f"{type(error).__name__}: {error}".split())) from error


def dump_yaml(data: Any) -> str:
    """YAML of plain data in its own order, lists of numbers on one line; `parse_yaml` reads it back."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True)
