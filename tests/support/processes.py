"""Processes that a test starts, finds by their titles, kills without warning, and sees the end of."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

POLL_SECONDS = 0.005
LISTING_SECONDS = 0.05  # between looks at all processes, each of which is a process itself


@dataclass(frozen=True)
class Process:
    """A process as `ps` shows it; a Ray actor's title is `ray::Class` or `ray::Class.method`."""

    pid: int
    parent: int
    title: str


def running() -> list[Process]:
    """All processes of this machine that have not ended (a zombie has)."""
    columns = ("pid=", "ppid=", "stat=", "command=")
    options = [option for column in columns for option in ("-o", column)]
    shown = subprocess.run(["ps", "-A", "-ww", *options], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=3) for line in shown.splitlines()]
    return [Process(int(row[0]), int(row[1]), row[-1]) for row in rows if not row[2].startswith("Z")]


def descendants(root: int) -> list[Process]:
    """The running processes that `root` started, and those that these started."""
    everything = running()
    family, found = {root}, True
    while found:
        found = {p.pid for p in everything if p.parent in family} - family
        family |= found
    return [p for p in everything if p.pid in family - {root}]


def find(title: str, root: int | None = None) -> list[int]:
    """The pids of the processes under `root` (this process when not given) whose title starts so."""
    return [p.pid for p in descendants(root or os.getpid()) if p.title.startswith(title)]


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for a condition; fail the test when it does not come about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(LISTING_SECONDS)


def still_running(processes: Iterable[Process]) -> list[Process]:
    """Those of `processes` that have not ended, by the titles that they have now."""
    pids = {process.pid for process in processes}
    return [process for process in running() if process.pid in pids]


def kill(pid: int) -> None:
    """End a process as a lost machine would: at once, stopped or not, and return when it has ended."""
    with suppress(ProcessLookupError):  # it ended by itself
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid not in {process.pid for process in running()}, 30, f"the end of process {pid}")


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    """Whether somebody listens on a port of the loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class Killings:
    """What `killing` did: the moments whose kill has happened, in order."""

    done: list[str] = field(default_factory=list)


@contextmanager
def killing(title: str, *moments: Moment, root: int | None = None, which: int = 0) -> Iterator[Killings]:
    """Kill the process with this title once at each moment, one after the other, from a thread of its own.

    A process that is not there at its moment is killed as soon as it is.

    Args:
        which: of several with this title, as an index of their pids.
    """
    killings, stopping, began = Killings(), threading.Event(), time.time()

    def watch() -> None:
        for moment in moments:
            while not moment.come(began):
                if stopping.wait(POLL_SECONDS):
                    return
            time.sleep(moment.delay)
            while len(pids := find(title, root)) <= which:
                if stopping.wait(POLL_SECONDS):
                    return
            if moment.stopped:
                os.kill(pids[which], signal.SIGSTOP)
                time.sleep(moment.stopped)
            kill(pids[which])
            killings.done.append(moment.name)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield killings
    finally:
        stopping.set()
        thread.join()


@dataclass(frozen=True)
class Moment:
    """When to kill: so many seconds after a condition first holds.

    Attributes:
        stopped: seconds for which the process stands still before it dies, so that it takes calls which it
            does not answer.
        come: whether it holds, given the time (Unix) at which the watching began: what was there before then
            is no sign of it.
    """

    name: str
    come: Callable[[float], bool]
    delay: float = 0.0
    stopped: float = 0.0


class Command:
    """A `raysid` command in a process of its own, with a Ray cluster of its own where it needs one.

    Args:
        arguments: what stands behind `raysid`.
        log: file that takes all that it prints.
    """

    def __init__(self, *arguments: str | Path, log: Path) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        self.log, self.began = log, time.time()
        with open(log, "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "raysid", *map(str, arguments)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment
                | {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", "PYTHONUNBUFFERED": "1"},
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        """All that it has printed so far."""
        return self.log.read_text()

    def wait(self, seconds: float = 240) -> int:
        """Its exit code, once it has ended. It and what it started are killed when it does not end in time."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"not done after {seconds} s:\n{self.output}") from None

    def wait_for(self, text: str, seconds: float = 120) -> None:
        """Until it has printed a text."""
        wait_until(lambda: text in self.output or self.process.poll() is not None, seconds, text)
        assert text in self.output, self.output

    def kill_when(self, moment: Moment, seconds: float = 120) -> list[Process]:
        """`kill -9` at a moment; what the command had started by then."""
        self.wait_for_moment(moment, seconds)
        return self.kill()

    def wait_for_moment(self, moment: Moment, seconds: float = 120) -> None:
        """Until a moment has come."""
        end = time.monotonic() + seconds
        while not moment.come(self.began):
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise AssertionError(f"ended, or stood still, before {moment.name}:\n{self.output}")
            time.sleep(POLL_SECONDS / 5)
        time.sleep(moment.delay)

    def kill(self) -> list[Process]:
        """`kill -9`; what the command had started by then."""
        if self.process.poll() is not None:
            return []
        self.process.send_signal(signal.SIGSTOP)  # it does nothing more while its descendants are listed
        started = descendants(self.pid)
        self.process.kill()
        self.process.wait()
        return started
