"""The folder of the reference numbers, and the cases in it.

The folder is `tests/reference/`, or the one named by the environment variable `RAYSID_REFERENCE_DIR`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def reference_folder() -> Path:
    """The folder of the reference files."""
    named = os.environ.get("RAYSID_REFERENCE_DIR")
    return Path(named) if named else Path(__file__).parents[1] / "reference"


def reference_cases(prefix: str, index: str = "cases.json") -> list[tuple[str, dict[str, Any]]]:
    """Names and settings of the cases in `index` whose names start with `prefix`, in the file's order.

    Raises:
        ValueError: there is no such case; a test over an empty list would pass without checking anything.
    """
    cases = json.loads((reference_folder() / index).read_text())
    found = [(name, settings) for name, settings in cases.items() if name.startswith(prefix)]
    if not found:
        raise ValueError(f"no case {prefix}* in {reference_folder() / index}")
    return found
