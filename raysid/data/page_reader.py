"""The process that reads the pages of Parquet files: damage in one can abort all of pyarrow.

It runs as a program of its own, and imports only pyarrow, so that it starts in a quarter of a second. It opens no file:
it asks the process that started it (`raysid.data.pages`) for the bytes. Storage and its errors stay there.

A message is its kind (a byte), the length of its content (8 bytes), and the content.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

OPEN, GROUPS, NEXT, DATA, FAILED = b"o", b"g", b"n", b"d", b"f"  # to this process
READ, BATCH, ERROR, END = b"r", b"b", b"e", b"z"  # from it
RANGE = struct.Struct("<QQ")  # content of READ: offset and size
BUFFER = 1 << 22  # bytes asked for at a time: a row group may be larger than the memory


def send(stream: BinaryIO, kind: bytes, *parts: bytes | memoryview) -> None:
    """Write a message. Raises OSError if the other process is gone."""
    stream.write(kind + sum(map(len, parts)).to_bytes(8))
    for part in parts:
        stream.write(part)
    stream.flush()


def receive(stream: BinaryIO) -> tuple[bytes, bytes]:
    """Read a message. Raises EOFError if the other process is gone."""
    head = stream.read(9)
    size = int.from_bytes(head[1:])
    content = stream.read(size) if len(head) == 9 else b""
    if len(head) < 9 or len(content) < size:
        raise EOFError
    return head[:1], content


class _Asked:
    """A file whose bytes are asked for from the other process, as pyarrow reads a file of Python's."""

    closed = False

    def __init__(self, size: int, source: BinaryIO, target: BinaryIO) -> None:
        self._size, self._source, self._target = size, source, target
        self._place = 0
        self._lock = threading.Lock()  # pyarrow reads columns in threads

    def read(self, size: int = -1) -> bytes:
        left = max(self._size - self._place, 0)
        wanted = left if size < 0 else min(size, left)
        with self._lock:
            send(self._target, READ, RANGE.pack(self._place, wanted))
            kind, content = receive(self._source)
        if kind == FAILED:
            raise OSError("the bytes cannot be read")
        self._place += len(content)
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def close(self) -> None:
        self.closed = True

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False


def _batches(
    file: Any, groups: list[int], columns: list[str], rows: int, skip: int
) -> Iterator[pa.RecordBatch]:
    for number, batch in enumerate(file.iter_batches(rows, groups, columns)):
        if number >= skip:
            yield batch


def _check(array: pa.Array) -> None:
    """Check offsets and indices, which the other process would follow. Raises pa.ArrowInvalid."""
    kind = array.type
    if pa.types.is_struct(kind):
        array.validate()
        for number in range(kind.num_fields):
            _check(array.field(number))
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):  # whose text need not be valid
        array.view(pa.binary() if pa.types.is_string(kind) else pa.large_binary()).validate(full=True)
    else:
        array.validate(full=True)


def _as_stream(batch: pa.RecordBatch) -> memoryview:
    for column in batch.columns:
        _check(column)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return memoryview(sink.getvalue())


def main(source: BinaryIO, target: BinaryIO) -> None:
    """Answer the other process until it ends."""
    size, file, batches = 0, None, None
    asked: dict[str, Any] = {}
    while True:
        try:
            kind, content = receive(source)
        except EOFError:
            return
        if kind == OPEN:
            size, file, batches = int.from_bytes(content), None, None
        elif kind == GROUPS:
            asked, batches = json.loads(content), None
        else:
            try:
                file = file or pq.ParquetFile(
                    _Asked(size, source, target), buffer_size=BUFFER, pre_buffer=False
                )
                batches = batches or _batches(file, **asked)
                batch = next(batches, None)
                answer = [END] if batch is None else [BATCH, _as_stream(batch)]
            except Exception as error:
                answer = [ERROR, (str(error) or type(error).__name__).encode("utf-8", "replace")]
            send(target, *answer)


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
