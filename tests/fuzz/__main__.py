"""Fuzz raysid's readers; exit with 1 if there are findings."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.children import Results, prepare, read_inputs
from tests.fuzz.readers import READERS

AT_A_TIME = 100  # inputs of a reader


def fuzz(
    names: list[str], seconds: float | None, inputs: int | None, seed: int, kept: Path
) -> dict[str, Results]:
    """Read mutated inputs with each reader in turn, until the time is over or each has read its share of `inputs`."""
    end = None if seconds is None else time.monotonic() + seconds
    share = None if inputs is None else -(-inputs // len(names))
    samples = {name: READERS[name].samples() for name in names}
    for name in names:
        prepare(name, samples[name])
    results = {name: Results() for name in names}
    at_a_time = AT_A_TIME if share is None else min(AT_A_TIME, share)
    spent = dict.fromkeys(names, 0.0)
    waiting = set(names)
    while waiting:
        name = min(sorted(waiting), key=lambda name: spent[name] if share is None else 0)
        begin = results[name].inputs
        count = at_a_time if share is None else min(at_a_time, share - begin)
        start = time.monotonic()
        if end is not None:
            count = max(1, min(count, 10 if end - start < 60 else count))
        read_inputs(name, samples[name], seed, range(begin, begin + count), results[name], kept)
        spent[name] += time.monotonic() - start
        if share is not None and results[name].inputs >= share:
            waiting.remove(name)
        if end is not None and time.monotonic() >= end:
            break
    return results


def main() -> None:
    """Parse the command line, fuzz, and print a line for each reader."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "readers", nargs="*", metavar="READER", help=f"one of {', '.join(READERS)}; default: all"
    )
    parser.add_argument(
        "--seconds", type=float, help="time for all readers; default 60, unless --inputs is given"
    )
    parser.add_argument("--inputs", type=int, help="number of inputs, shared out evenly")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the inputs")
    parser.add_argument("--keep", type=Path, help="folder for the inputs of findings")
    given = parser.parse_args()
    if unknown := set(given.readers) - set(READERS):
        parser.error(f"unknown reader {', '.join(sorted(unknown))}; known: {', '.join(READERS)}")
    seconds = given.seconds if given.inputs is not None or given.seconds is not None else 60.0
    kept = given.keep or Path(tempfile.gettempdir()) / "raysid-fuzz-findings"
    results = fuzz(given.readers or list(READERS), seconds, given.inputs, given.seed, kept)
    for name, found in results.items():
        counts = found.counts
        print(
            f"{name:12} {found.inputs:8,} inputs: {counts['accepted']:,} accepted, {counts['refused']:,} refused, "
            f"{counts['finding']:,} findings"
        )
    for path, outcome in [item for found in results.values() for item in found.findings.items()]:
        print(f"{path}: {outcome}")
    total = sum(found.inputs for found in results.values())
    findings = sum(len(found.findings) for found in results.values())
    print(f"{total:,} inputs, {findings:,} findings (seed {given.seed})")
    sys.exit(findings > 0)


if __name__ == "__main__":
    main()
