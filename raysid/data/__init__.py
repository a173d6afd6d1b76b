"""Real images: where they come from, and the order in which a run sees them.

`source.py` says what a source is (shards of uint8 images with labels) and `opening.py` opens the one that a config
names. `digits.py` and `patches.py` need no download; `folder.py`, `edm_zip.py`, `parquet.py` and `webdataset.py` read
files, which `files.py` finds and `pictures.py` decodes; `shards.py` reads any source through Ray Data.
`stream.py` turns a source into an endless shuffled stream whose every image has an address (`order.py`), so that ranks
take slices of it and a checkpoint stores one number; `reader.py` holds the `windows.py` of it that are needed now, and
`faults.py` counts the images that cannot be used:

    source = open_source("digits")
    stream = ImageStream(source.blocks, source.shard_sizes, seed=0, window=50_000)      # in-process
    stream = ImageStream(ray_blocks(source), source.shard_sizes, seed=0, window=50_000)  # Ray Data
    images, labels = stream.read(start=cursor, count=128)
    x = to_unit(images, source.pixel_max)  # float32 in [-1, 1]

Importing this package imports neither Ray nor scikit-learn.
"""

from raysid.data.opening import open_source
from raysid.data.source import Block, ImageSource, Piece, to_unit
from raysid.data.stream import ImageStream, ray_blocks

__all__ = ["Block", "ImageSource", "ImageStream", "Piece", "open_source", "ray_blocks", "to_unit"]
