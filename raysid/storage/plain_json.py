"""JSON from outside: parsed only if the result fits the memory."""

from __future__ import annotations

import json
from typing import Any

MAX_MEMORY = 768 << 20  # bytes of a text and of what it becomes; the labels of ImageNet's EDM zip take 380 MB
# Bytes of Python's objects for each of these signs, at most: `[],` becomes 64, `{"a":1},` 250.
_WEIGHTS = {"{": 232, "[": 96, ",": 72, ":": 152}


def parse_json(content: bytes | str) -> Any:
    """Return the data of a JSON text.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or would take more than `MAX_MEMORY`.
    """
    text = content if isinstance(content, str) else content.decode(json.detect_encoding(content))
    # One letter beyond Latin makes all letters of its string four bytes long, and json copies strings as it reads.
    wide = "\\u" in text or not text.isascii()
    memory = 7 * len(text) if wide else 2 * len(text)
    memory += sum(weight * text.count(sign) for sign, weight in _WEIGHTS.items())
    if memory > MAX_MEMORY:
        raise ValueError(
            f"{len(text):,} characters of JSON would take {memory >> 20:,} MB of memory: more than {MAX_MEMORY >> 20}"
        )
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
