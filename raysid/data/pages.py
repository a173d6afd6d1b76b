"""The pages of Parquet files, read without a danger to this process.

Damage in a page can abort pyarrow, and with it the process: processes of their own read pages
(`raysid.data.page_reader`), and return batches of rows. One reads a file at a time; it is kept for the next file.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol, Self

import pyarrow as pa
import pyarrow.parquet as pq

from raysid.data import page_reader
from raysid.data.page_reader import (
    BATCH,
    DATA,
    END,
    ERROR,
    FAILED,
    GROUPS,
    NEXT,
    OPEN,
    RANGE,
    READ,
    receive,
    send,
)
from raysid.data.parquet_check import TAIL
from raysid.errors import UserError, printable

PROGRAM = page_reader.__file__
MOST_AHEAD = 1 << 28  # bytes of a column that are held

# How a process ends for damage; another signal is from outside, such as from the system when memory runs out.
_DAMAGE = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
TRIES = 2  # of a process that is ended from outside


class DeadlyPages(Exception):
    """Pages that end the process that reads them. The text is one line without the file's name."""


class Bytes(Protocol):
    """A file open for reading, such as `raysid.storage.OpenFile`."""

    def read(self, size: int = -1) -> bytes: ...
    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int: ...


class Ahead:
    """A file whose bytes of one column are read at once, so that reading the column's pages waits for no storage.

    Args:
        footer: its footer.
        column: the name of a column without fields.
    """

    def __init__(self, file: Bytes, footer: pq.FileMetaData, column: str) -> None:
        self._file = file
        self._place, self._size = 0, file.seek(0, os.SEEK_END)
        self._parts: list[tuple[int, bytes]] = []  # each from its place on
        ranges = [(max(0, self._size - TAIL), TAIL)]
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            chunks = [group.column(place) for place in range(group.num_columns)]
            for chunk in chunks:
                if chunk.path_in_schema == column:
                    begin = chunk.dictionary_page_offset if chunk.has_dictionary_page else None
                    ranges.append((begin or chunk.data_page_offset, chunk.total_compressed_size))
        if sum(size for _, size in ranges) <= MOST_AHEAD:
            for begin, size in ranges:
                if 0 <= begin < self._size and size > 0:
                    file.seek(begin)
                    self._parts.append((begin, file.read(size)))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        return self._place

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else self._place + size
        for begin, content in self._parts:
            if begin <= self._place and end <= begin + len(content):
                return content[self._place - begin : end - begin]
        self._file.seek(self._place)
        return self._file.read(size)


class PageFile:
    """A Parquet file whose pages another process reads.

    Args:
        path: its name, for errors.
        file: gives its bytes; what it raises is raised from `batches`.
    """

    def __init__(self, path: str, file: Bytes) -> None:
        self._path, self._file = path, file
        self._pool = _pool()
        self._process: _Process | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            self._pool.give_back(self._process)
        self._process = None

    def batches(self, groups: Sequence[int], columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """Read some columns of some row groups, in batches of at most `rows` rows.

        Raises:
            DeadlyPages: their damage ends the process that reads them.
            ValueError: they are damaged otherwise; with pyarrow's text.
            UserError: that process was ended from outside, repeatedly.
        """
        asked = {"groups": list(groups), "columns": list(columns), "rows": rows}
        given, ended, begun = 0, 0, False
        while True:
            try:
                if self._process is None:
                    self._process, begun = self._pool.lend(), False
                    self._process.tell(OPEN, self._file.seek(0, os.SEEK_END).to_bytes(8))
                if not begun:
                    self._process.tell(GROUPS, json.dumps(asked | {"skip": given}).encode())
                    begun = True
                kind, content = self._process.ask(self._file)
            except (EOFError, BrokenPipeError):
                cause = self._end()
                if cause in _DAMAGE:
                    raise DeadlyPages(self._deadly(groups, cause)) from None
                ended += 1
                if ended == TRIES:
                    raise UserError(self._ended(groups, cause)) from None
                continue
            except BaseException:
                # In the middle of a message, unless the file raised: what the process answers next is not known.
                if self._process is not None and not self._process.idle:
                    self._end()
                raise
            if kind == END:
                return
            if kind == ERROR:
                raise ValueError(content.decode())
            assert kind == BATCH
            yield pa.ipc.open_stream(content).read_next_batch()
            given += 1

    def _end(self) -> int:
        assert self._process is not None
        cause = self._process.end()
        self.__exit__()
        return cause

    def _deadly(self, groups: Sequence[int], cause: int) -> str:
        return (
            f"{_named(groups)} damaged, and kills a process that reads it ({signal.Signals(cause).name}): write the "
            "file again, or leave it out"
        )

    def _ended(self, groups: Sequence[int], cause: int) -> str:
        how = signal.Signals(cause).name if cause > 0 else f"exit code {-cause}"
        return (
            f"{printable(self._path)} cannot be read: the process that reads its pages was ended ({how}) while "
            f"{_named(groups)} read: if memory runs out, write smaller row groups or run fewer processes"
        )


def _named(groups: Sequence[int]) -> str:
    return f"row group {groups[0]} is" if len(groups) == 1 else f"one of its {len(groups):,} row groups is"


def _start() -> Any:
    return subprocess.Popen(
        # The modules beside the program have names of other packages, hence -P.
        [sys.executable, "-P", PROGRAM],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # C++'s last words
        start_new_session=True,  # a Ctrl-C is for this process, which may still read
    )


class _Process:
    """A process that reads pages.

    Attributes:
        idle: it waits for a message, and has sent nothing that is not read.
        ended: it was ended here.
    """

    def __init__(self) -> None:
        self.idle, self.ended = True, False
        self._running = _start()

    def tell(self, kind: bytes, content: bytes) -> None:
        """Send a message that has no answer."""
        self.idle = False
        send(self._running.stdin, kind, content)
        self.idle = True

    def ask(self, file: Bytes) -> tuple[bytes, bytes]:
        """Ask for the next batch, and give the bytes that the process needs for it; return its answer.

        Raises:
            EOFError: the process is gone. So does BrokenPipeError.
            Exception: of `file`; the process is idle.
        """
        self.idle = False
        send(self._running.stdin, NEXT)
        failed: Exception | None = None
        while (answer := receive(self._running.stdout))[0] == READ:
            offset, size = RANGE.unpack(answer[1])
            try:
                file.seek(offset)
                content = file.read(size)
            except Exception as error:
                failed = error
                send(self._running.stdin, FAILED)
            else:
                send(self._running.stdin, DATA, content)
        self.idle = True
        if failed is not None:
            raise failed
        return answer

    def end(self) -> int:
        """End the process if it runs; return the signal that ended it, or minus its exit code."""
        self.ended = True
        for stream in (self._running.stdin, self._running.stdout):
            with suppress(OSError):  # unsent bytes
                stream.close()
        try:
            code = self._running.wait(1)
        except subprocess.TimeoutExpired:
            self._running.kill()
            code = self._running.wait()
        return int(-code)


class _Pool:
    """The processes that read pages for this one: one for each file that is being read, else one for the next."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._lock = threading.Lock()
        self._free: list[_Process] = []
        # Not their readers' alone: the garbage collector would close the pipes of a reader's process before the reader.
        self._lent: set[_Process] = set()

    def lend(self) -> _Process:
        with self._lock:
            process = self._free.pop() if self._free else None
        process = process or _Process()
        with self._lock:
            self._lent.add(process)
        return process

    def give_back(self, process: _Process) -> None:
        """Take back a process that was lent, and end those that are too many."""
        with self._lock:
            self._lent.remove(process)
            if not process.ended:
                self._free.append(process)
            surplus = [] if self._lent else self._free[1:]
            self._free = self._free[: len(self._free) - len(surplus)]
        for one in surplus:
            one.end()

    def close(self) -> None:
        if self.owner == os.getpid():
            for process in self._free:
                process.end()
            self._free = []


_made: _Pool | None = None
_making = threading.Lock()


def _pool() -> _Pool:
    global _made
    with _making:
        if _made is None or _made.owner != os.getpid():  # a fork's pipes are its parent's
            _made = _Pool()
            atexit.register(_made.close)
        return _made
