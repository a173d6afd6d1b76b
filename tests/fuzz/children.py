"""Reading mutated inputs in child processes, in which a crash, a hang or too much memory is a finding."""

from __future__ import annotations

import faulthandler
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raysid.errors import RaysidError
from tests.fuzz.mutate import mutated
from tests.fuzz.readers import READERS, Reader, suffix

MAX_SECONDS, MAX_MEMORY = 10.0, 1 << 30
HARD_MEMORY = (
    4 << 30
)  # of address space above what a child begins with; then the child fails, not the machine
EXECUTES = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "pickle.find_class",
    "socket.connect",
)


@dataclass
class Results:
    """Inputs read; those accepted and refused; and the findings, by the path of the input."""

    inputs: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    findings: dict[Path, str] = field(default_factory=dict)


def make_input(name: str, reader: Reader, samples: Sequence[bytes], seed: int, number: int) -> bytes:
    """Return one of the endless inputs of a reader, always the same for its seed and number."""
    source = random.Random(f"{name} {seed} {number}")
    content = mutated(source, samples, reader.tokens)
    if reader.repaired is not None and source.random() < 0.5:
        content = reader.repaired(content)
    return content


def prepare(name: str, samples: Sequence[bytes]) -> None:
    """Read a valid input in this process: modules that the reader imports late are not imported in each child."""
    _outcome(name, samples[0], [])


def read_inputs(
    name: str, samples: Sequence[bytes], seed: int, numbers: range, results: Results, kept: Path
) -> None:
    """Read some inputs in child processes, one after another in each until it dies.

    Args:
        kept: the folder that gets the inputs of findings.
    """
    start = numbers.start
    while start < numbers.stop:
        ours, theirs = os.pipe()
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            os.close(ours)
            _child(name, samples, seed, range(start, numbers.stop), theirs)
        os.close(theirs)
        with os.fdopen(ours, "rb") as answers:
            lines = answers.read().decode("utf-8", "replace").splitlines()
        status = os.waitpid(child, 0)[1]
        last, why = start, ""
        for line in lines:
            number, _, outcome = line.partition(" ")
            last, why = int(number), outcome
            if outcome == "begin":
                continue
            results.inputs += 1
            results.counts[outcome.partition(":")[0]] += 1
            if outcome.startswith("finding"):
                _keep(results, name, samples, seed, last, outcome, kept)
        if why == "begin":  # the child died there
            results.inputs += 1
            results.counts["finding"] += 1
            cause = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {status}"
            _keep(results, name, samples, seed, last, f"finding: the process ended by {cause}", kept)
        start = last + 1


def _keep(
    results: Results, name: str, samples: Sequence[bytes], seed: int, number: int, outcome: str, kept: Path
) -> None:
    kept.mkdir(parents=True, exist_ok=True)
    path = kept / f"{name}-{seed}-{number}{suffix(name)}"
    path.write_bytes(make_input(name, READERS[name], samples, seed, number))
    results.findings[path] = outcome


def _child(name: str, samples: Sequence[bytes], seed: int, numbers: range, pipe: int) -> None:
    """Read inputs and write their outcomes to a pipe; never returns."""
    executed: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EXECUTES:
            executed.append(f"{event} {arguments[:1]}")

    try:
        faulthandler.disable()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the last words of C++
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + HARD_MEMORY,) * 2)
        sys.addaudithook(watch)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, whatever it does
        for number in numbers:
            os.write(pipe, f"{number} begin\n".encode())
            outcome = _outcome(name, make_input(name, READERS[name], samples, seed, number), executed)
            os.write(pipe, f"{number} {outcome}\n".encode("utf-8", "replace"))
            if outcome.startswith("finding"):
                break  # the next child begins with less memory
    finally:
        os._exit(0)


def _outcome(name: str, content: bytes, executed: list[str]) -> str:
    """Read an input: "accepted", "refused" or "finding: ..."."""
    folder = Path(tempfile.mkdtemp(prefix="raysid-fuzz-"))
    path = folder / f"input{suffix(name)}"
    path.write_bytes(content)
    start = time.process_time()
    signal.setitimer(signal.ITIMER_REAL, 6 * MAX_SECONDS)  # of a machine with other work
    outcome = "accepted"
    try:
        READERS[name].read(path)
    except RaysidError:
        outcome = "refused"
    except BaseException as error:
        text = " ".join(str(error).split())[:200]
        outcome = f"finding: {type(error).__name__}: {text}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.chdir("/")
        shutil.rmtree(folder, ignore_errors=True)
    seconds = time.process_time() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if seconds > MAX_SECONDS:
        outcome = f"finding: {seconds:.0f} s"
    elif memory > MAX_MEMORY:
        outcome = f"finding: {memory >> 20:,} MB"
    elif executed:
        outcome = f"finding: executed {', '.join(executed[:3])}"
    return outcome
