"""Text files with a prompt on each line."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from raysid.config.prompts import PromptSettings
from raysid.data.files import Found
from raysid.data.prompts.lines import LineFiles
from raysid.data.prompts.source import PromptSource, text_block
from raysid.data.source import Block, Piece
from raysid.errors import UserError


class TextSource(PromptSource):
    """The lines of text files, in the order of the files' paths. Empty lines are left out.

    Raises:
        UserError: there are no lines, or columns are named.
    """

    def __init__(self, found: Found, settings: PromptSettings) -> None:
        if settings.columns or settings.min:
            raise UserError(f"prompts.source {found.name} is text, which has no columns: give none")
        self.name = found.name
        self.columns = {"line": 1.0}
        self.files = LineFiles(found.name, [file.path for file in found.files])

    @property
    def shard_sizes(self) -> NDArray[np.int64]:
        return self.files.sizes

    def read(self, piece: Piece) -> Iterator[Block]:
        lines, names = self.files.lines(piece)
        texts: list[str] = []
        faults: dict[int, str] = {}
        for number, line in enumerate(lines):
            try:
                texts.append(line.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                faults[number] = f"{names[number]} is not UTF-8 ({error.reason})"
                texts.append("")
        kept = [bool(text.strip()) or number in faults for number, text in enumerate(texts)]
        yield text_block([[text] for text in texts], names, kept, faults)
