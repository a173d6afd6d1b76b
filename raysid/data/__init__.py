"""Real images as a shuffled stream in which every image has an address, its position.

So ranks read slices of one stream, and a checkpoint stores one number. The parts, from the files to the stream:

    source.py          the interface of a source: shards of images with labels, and faults
    opening.py         opens the source that a config names
    scikit_learn.py                                          sources that come with scikit-learn
    folder.py, edm_zip.py, parquet.py, webdataset.py         sources of files: one format each
    files.py, listing.py, patterns.py, splits.py             for those: finding files
    labels.py, folder_labels.py, metadata.py, json_fields.py for those: class labels
    pictures.py, picture_source.py, picture_files.py         for those: decoding, sources of encoded pictures
    tar_headers.py, footers.py, parquet_check.py             for those: headers that may be damaged
    pages.py, page_reader.py                                 for parquet.py: pages that may be damaged
    parquet_columns.py                                       for parquet.py: columns of pictures and of labels
    order.py           the image at each position, computed without reading
    windows.py         reading windows in passes over the source; reader.py keeps those that are needed
    stream.py          images by position; ray_data.py reads a source through Ray Data
    check.py, convert.py                                     the commands `raysid data`

Terms in all modules:

    shard      images that a source stores together; a piece is a part of a shard, a block what one read returns
    index      number of an image in the source's list
    position   number of an image in the endless stream, over all ranks
    lane       a fixed part of every batch; a window is a run of images of one lane that are shuffled together
    picture    an encoded file; an image is its pixels

    source = open_source("digits")
    stream = ImageStream(source.blocks, source.shard_sizes, seed=0, window=50_000)      # in-process
    stream = ImageStream(ray_blocks(source), source.shard_sizes, seed=0, window=50_000)  # Ray Data
    images, labels = stream.read(start=cursor, count=128)
    x = to_unit(images, source.pixel_max)  # float32 in [-1, 1]

To add a format, subclass `ListedSource` or `PictureSource` and add it to `files.KINDS` and `opening.find_source`. To
stream samples other than images, such as prompts, reuse `Order`: it needs only the sizes of their shards.

Importing this package imports neither Ray nor scikit-learn.
"""

from raysid.data.opening import open_source
from raysid.data.source import Block, ImageSource, Piece, to_unit
from raysid.data.stream import ImageStream, ray_blocks

__all__ = ["Block", "ImageSource", "ImageStream", "Piece", "open_source", "ray_blocks", "to_unit"]
