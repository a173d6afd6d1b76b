"""A scorer's node is lost after its answer is there and before anyone has fetched it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SIZE = float(1 << 18)


@pytest.mark.slow
def test_an_answer_that_is_lost_with_its_node_is_made_again() -> None:
    """The score of scorer 0 and the pullback of scorer 1: the next one repeats each, and nothing else fails."""
    output = subprocess.run(
        [sys.executable, "-m", "tests.actors.lost_node"], capture_output=True, text=True, timeout=300
    )
    assert output.returncode == 0, output.stderr[-3000:]
    found = json.loads(output.stdout.splitlines()[-1])
    assert found == {"score": [2 * SIZE, 1.0, 1.0], "pullback": [4 * SIZE, 2.0, 1.0], "lost": 2}
