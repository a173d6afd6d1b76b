"""Start processes, find them by title, kill them without warning, and wait for their end."""

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

from tests.support.forked_workers import SOCKET, ForkedCommand, parents

POLL_SECONDS = 0.005
ORPHANS_SECONDS = 45  # Ray may be starting a worker, which takes long on a busy machine
RAYS_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
LISTING_SECONDS = 0.05  # between listings of all processes, each of which starts a process (ps)


@dataclass(frozen=True)
class Process:
    """A process as `ps` shows it; a Ray actor's title is `ray::Class` or `ray::Class.method`."""

    pid: int
    parent: int
    title: str


def running() -> list[Process]:
    """All running processes of this machine; zombies are not running."""
    columns = ("pid=", "ppid=", "stat=", "command=")
    options = [option for column in columns for option in ("-o", column)]
    shown = subprocess.run(["ps", "-A", "-ww", *options], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=3) for line in shown.splitlines()]
    forks = parents()
    return [
        Process(pid := int(row[0]), forks.get(pid, int(row[1])), row[-1])
        for row in rows
        if not row[2].startswith("Z")
    ]


def descendants(root: int) -> list[Process]:
    """The running processes below `root`, at any depth."""
    everything = running()
    family, found = {root}, True
    while found:
        found = {p.pid for p in everything if p.parent in family} - family
        family |= found
    return [p for p in everything if p.pid in family - {root}]


def find(title: str, root: int | None = None) -> list[int]:
    """The pids of the processes below `root` (default: this process) whose title starts with `title`."""
    return [p.pid for p in descendants(root or os.getpid()) if p.title.startswith(title)]


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until a condition holds; fail the test after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(LISTING_SECONDS)


def still_running(processes: Iterable[Process]) -> list[Process]:
    """The processes that have not ended, with their present titles."""
    pids = {process.pid for process in processes}
    return [process for process in running() if process.pid in pids]


def kill(pid: int) -> None:
    """End a process with SIGKILL, stopped or not, as a lost machine would; return once it has ended."""
    with suppress(ProcessLookupError):  # it has ended already
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid not in {process.pid for process in running()}, 30, f"the end of process {pid}")


def no_orphans(started: list[Process]) -> None:
    """Processes of a killed driver end by themselves soon, Ray's two idle agents after a minute."""
    end = time.monotonic() + ORPHANS_SECONDS
    while orphans := [process for process in still_running(started) if process.title not in RAYS_AGENTS]:
        assert time.monotonic() < end, f"left by a killed driver after {ORPHANS_SECONDS} s: {orphans}"
        time.sleep(0.1)
    for process in still_running(started):
        kill(process.pid)  # an agent: it waits 60 s to report to a GCS that is gone


def free_port() -> int:
    """A free port of the loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    """True if a process listens on this port of the loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class Killings:
    """The names of the moments at which `killing` has killed a process, in order."""

    done: list[str] = field(default_factory=list)


@contextmanager
def killing(title: str, *moments: Moment, root: int | None = None, which: int = 0) -> Iterator[Killings]:
    """Kill the process with this title once at each moment, in order, from a thread.

    A process that does not exist at its moment is killed as soon as it exists.

    Args:
        root: the processes below this pid are searched; this process by default.
        which: index among the pids of several processes with this title.
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
    """A moment to kill a process: `delay` seconds after a condition first holds.

    Attributes:
        come: the condition, given the Unix time at which watching began; files from before then do not count.
        stopped: seconds for which the process is stopped before it is killed, so that it receives calls that
            it never answers.
    """

    name: str
    come: Callable[[float], bool]
    delay: float = 0.0
    stopped: float = 0.0


class Command:
    """A `raysid` command in its own process, with its own Ray cluster if it needs one.

    Args:
        arguments: the command line after `raysid`.
        log: file for everything it prints.
    """

    def __init__(self, *arguments: str | Path, log: Path) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        environment |= {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", "PYTHONUNBUFFERED": "1"}
        # Libraries of Hugging Face read their variables once, at their import, which is before the fork.
        forks = SOCKET in environment and not any(name.startswith("HF_") for name in environment)
        given = [*map(str, arguments)]
        self.log, self.began = log, time.time()
        self.process: subprocess.Popen[bytes] | ForkedCommand
        with open(log, "wb") as output:
            if forks:
                self.process = ForkedCommand(given, output.fileno(), environment)
            else:
                command = [sys.executable, "-m", "raysid", *given]
                self.process = subprocess.Popen(
                    command, stdout=output, stderr=subprocess.STDOUT, env=environment
                )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        """Everything it has printed so far."""
        return self.log.read_text()

    def wait(self, seconds: float = 240) -> int:
        """Wait for its end and return the exit code. After `seconds` kill it and fail the test."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"not done after {seconds} s:\n{self.output}") from None

    def wait_for(self, text: str, seconds: float = 120) -> None:
        """Wait until it has printed a text."""
        wait_until(lambda: text in self.output or self.process.poll() is not None, seconds, text)
        assert text in self.output, self.output

    def kill_when(self, moment: Moment, seconds: float = 120) -> list[Process]:
        """Send SIGKILL at a moment; return the processes below it that were running then."""
        self.wait_for_moment(moment, seconds)
        return self.kill()

    def wait_for_moment(self, moment: Moment, seconds: float = 120) -> None:
        """Wait for a moment; fail the test if the command ends before it."""
        end = time.monotonic() + seconds
        while not moment.come(self.began):
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise AssertionError(f"ended, or timed out, before {moment.name}:\n{self.output}")
            time.sleep(POLL_SECONDS / 5)
        time.sleep(moment.delay)

    def kill(self) -> list[Process]:
        """Send SIGKILL; return the processes below it that were running then."""
        if self.process.poll() is not None:
            return []
        self.process.send_signal(signal.SIGSTOP)  # it starts nothing more while its descendants are listed
        started = descendants(self.pid)
        self.process.kill()
        self.process.wait()
        return started


def errors_of(module: str, *arguments: str | Path, seconds: float = 580) -> str:
    """Run a module as a program, which must succeed within `seconds`; return what it writes to its standard error."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr
