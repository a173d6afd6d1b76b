"""The footers of Parquet files, read without a danger to this process."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Sequence

import pyarrow.parquet as pq

from raysid.data import parquet_check
from raysid.data.files import damaged_file
from raysid.data.listing import in_threads
from raysid.data.parquet_check import LENGTH, TAIL, read_footer
from raysid.errors import UserError, printable
from raysid.storage import open_file

FORM = "Parquet"
MAGIC = b"PAR1"  # begins and ends a file; the footer and its length lie before the last one
MAX_FOOTER = 1 << 28
MAX_SECONDS = 600.0  # for all footers; ten thousand files take one


def read_footers(paths: Sequence[str]) -> list[pq.FileMetaData]:
    """Read the footers of files, several at a time.

    Raises:
        UserError: one is damaged; the message names its file.
    """
    contents = list(in_threads(_content, paths))
    for path in _deadly(paths, contents):
        raise UserError(
            f"{printable(path)} cannot be read as {FORM}: its footer is damaged, and kills a process that reads it "
            "(write the file again, or leave it out)"
        )
    footers = []
    for path, content in zip(paths, contents, strict=True):
        with damaged_file(path, FORM):
            footers.append(read_footer(content))
    return footers


def _content(path: str) -> bytes:
    """Read a file's footer; return a file that consists of it only."""
    with open_file(path) as file, damaged_file(path, FORM):
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL))
        tail = file.read(TAIL)
        if len(tail) < 3 * len(MAGIC) or not tail.endswith(MAGIC):
            raise ValueError("it does not end as such a file does")
        (length,) = struct.unpack("<I", tail[-8:-4])
        if length > min(size - 12, MAX_FOOTER):
            raise ValueError(f"its footer claims {length:,} bytes")
        if length > len(tail) - 8:
            file.seek(size - 8 - length)
            tail = file.read(length + 8)
        return MAGIC + tail[-8 - length :]


def _deadly(paths: Sequence[str], contents: Sequence[bytes]) -> Sequence[str]:
    """Read footers in a process of its own; return the path of the first that kills it, or nothing."""
    try:
        done = subprocess.run(
            # The modules beside the program have names of other packages, hence -P.
            [sys.executable, "-P", parquet_check.__file__],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            input=b"".join(part for content in contents for part in (len(content).to_bytes(LENGTH), content)),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # C++'s last words
            timeout=MAX_SECONDS,
        )
        survived, killed = len(done.stdout), done.returncode < 0
    except subprocess.TimeoutExpired as error:
        survived, killed = len(error.stdout or b""), True
    return paths[survived : survived + killed]
