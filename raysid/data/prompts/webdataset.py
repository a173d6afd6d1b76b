"""Tar files of WebDataset with prompts as members, such as `0001.txt`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysid.config.prompts import PromptSettings
from raysid.data.files import Found, damaged_file
from raysid.data.listing import in_threads, is_hidden
from raysid.data.prompts.source import PromptSource, reading_prompts, text_block
from raysid.data.source import Block, Piece, Texts, even_shards
from raysid.data.tar_headers import FORM, tar_members
from raysid.errors import UserError, printable
from raysid.storage import open_file

PER_SHARD = 4096
LONGEST = 1 << 20  # bytes of a prompt
TXT = "txt"


class _Member(NamedTuple):
    name: str
    offset: int
    size: int


class TarPrompts(PromptSource):
    """The `.txt` members of tar files, or those of the kind that `prompts.column` names, in the files' order.

    Opening it reads the headers of all files; a prompt is read at its offset.

    Raises:
        UserError: a file is not a tar, there are no such members, or several columns or scores are named.
    """

    def __init__(self, found: Found, settings: PromptSettings) -> None:
        self.name = found.name
        if len(settings.columns) > 1 or settings.min:
            raise UserError(
                f"prompts.source {found.name} is of tar files, whose prompts are one kind of member: give one "
                "prompts.column, such as txt, and no prompts.min"
            )
        kind = next(iter(settings.columns), TXT)
        self.columns = {kind: 1.0}
        paths = [file.path for file in found.files]
        with reading_prompts(found.name):
            listed = list(in_threads(partial(_members, kind), paths))
        if not any(listed):
            raise UserError(
                f"prompts.source {found.name} holds no .{kind} members: give prompts.column, the ending of the "
                "prompts' names"
            )
        self.paths = Texts(paths)
        self.file = np.repeat(np.arange(len(paths)), [len(members) for members in listed])
        members = [member for each in listed for member in each]
        self.names = Texts(member.name for member in members)
        self.offsets = np.array([member.offset for member in members], np.int64)
        self.sizes = np.array([member.size for member in members], np.int64)

    @property
    def shard_sizes(self) -> NDArray[np.int64]:
        return even_shards(len(self.names), PER_SHARD)

    def read(self, piece: Piece) -> Iterator[Block]:
        start = piece.shard * PER_SHARD
        texts: list[list[object]] = []
        names: list[str] = []
        faults: dict[int, str] = {}
        with reading_prompts(self.name):
            entries = range(start + piece.first, start + piece.last)
            for number, group in groupby(entries, lambda entry: int(self.file[entry])):
                with open_file(self.paths[number]) as file:
                    for entry in group:
                        name = printable(f"{self.names[entry]} in {self.paths[number]}")
                        size = int(self.sizes[entry])
                        content = b""
                        if size <= LONGEST:
                            file.seek(int(self.offsets[entry]))
                            content = file.read(size)
                        else:
                            faults[len(texts)] = (
                                f"{name} has {size:,} bytes: prompts have at most {LONGEST:,}"
                            )
                        try:
                            texts.append([" ".join(content.decode("utf-8-sig").split())])
                        except UnicodeDecodeError as error:
                            faults[len(texts)] = f"{name} is not UTF-8 ({error.reason})"
                            texts.append([""])
                        names.append(name)
        yield text_block(texts, names, faults=faults)


def _members(kind: str, path: str) -> list[_Member]:
    """List the members of a kind in a tar."""
    found = []
    with damaged_file(path, FORM):
        for member, _ in tar_members(path):
            base = member.name.rpartition("/")[2]
            hidden = is_hidden(tuple(member.name.split("/")))
            plain = member.isfile() and not member.issparse() and member.size >= 0
            if plain and not hidden and base.lower().endswith(f".{kind.lower().removeprefix('.')}"):
                found.append(_Member(member.name, member.offset_data, member.size))
    return found
