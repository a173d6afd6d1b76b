"""Prompts by position: texts in files of several formats, read and ordered as real images are.

    source.py      the interface of a source of prompts, and what a row of it holds
    opening.py     opens the source that a config names
    text.py, jsonl.py, parquet.py, webdataset.py, digits.py     sources, one format each
    lines.py       for text.py and jsonl.py: files of lines, in shards that are read alone
    stream.py      prompts by position; the choice of a column
    check.py       the figures of `raysid data check`

The prompt at a position is a pure function of the seed, the epoch and the set, as that of real images
(`raysid.data.order`): a prompt that cannot be used is replaced by the next good one of its window, and one that is left
out by one that is drawn among them.

    source = open_prompts(PromptSettings(source="prompts.txt"))
    with PromptStream(source, settings, seed=0, batch_size=64) as stream:
        stream.read(start=0, count=64)  # list of str
"""

from raysid.data.prompts.opening import open_prompts
from raysid.data.prompts.source import PromptSource
from raysid.data.prompts.stream import PromptStream

__all__ = ["PromptSource", "PromptStream", "open_prompts"]
