"""A scorer's node is lost after its answer is there and before anyone has fetched it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SIZE = float(1 << 18)


@pytest.mark.slow
def test_an_answer_that_is_lost_with_its_node_is_made_again() -> None:
    """A score, then the pullback of the scorer that repeated it: another one makes each again, and nothing fails."""
    output = subprocess.run(
        [sys.executable, "-m", "tests.actors.lost_node"], capture_output=True, text=True, timeout=300
    )
    assert output.returncode == 0, output.stderr[-3000:]
    [line] = [line for line in output.stdout.splitlines() if line.startswith("{")]  # beside Ray's messages
    found = json.loads(line)
    holder = found["score"][1]  # scorer 0 was the first to answer, and is lost; then its successor is
    assert holder in (1.0, 2.0)
    assert found == {"score": [2 * SIZE, holder, 1.0], "pullback": [4 * SIZE, 3.0 - holder, 1.0]}
