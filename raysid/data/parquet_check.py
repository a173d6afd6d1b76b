"""The process that reads the footers of Parquet files first: damage in one can abort all of pyarrow.

It runs as a program of its own, and imports only pyarrow, so that it starts in a quarter of a second.
"""

from __future__ import annotations

import io
import sys
from typing import BinaryIO

import pyarrow.parquet as pq

LENGTH = 8  # bytes before each footer that hold its length
TAIL = 1 << 16  # bytes of a file that are read first, as pyarrow does; most footers are shorter


def read_footer(content: bytes) -> pq.FileMetaData:
    """Parse a footer, and all that raysid reads of it.

    Raises:
        Exception: of pyarrow, of any class, for a damaged one. Some damage aborts the process instead.
    """
    footer = pq.read_metadata(io.BytesIO(content))
    footer.schema.to_arrow_schema()
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        for column in range(group.num_columns):
            chunk = group.column(column)
            chunk.total_uncompressed_size, chunk.has_dictionary_page, chunk.path_in_schema  # noqa: B018
    return footer


def main(source: BinaryIO, target: BinaryIO) -> None:
    """Read footers from a stream, and write a byte for each that does not abort this process."""
    while length := source.read(LENGTH):
        content = source.read(int.from_bytes(length))
        try:
            read_footer(content)
        except Exception:  # noqa: S110 - the caller reads it again, and reports it
            pass
        target.write(b".")
        target.flush()


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
