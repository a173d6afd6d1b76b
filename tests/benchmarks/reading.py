"""The speed of reading real images: 20,000 colour PNGs of 64x64 from each file format, in one process.

    python -m tests.benchmarks.reading

Prints the seconds that opening takes (listing, reading labels) and the stream's images a second.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from raysid.data import ImageStream, open_source
from tests.support.picture_files import encoded, write_folder, write_parquet, write_tars, write_zip

COUNT, DIFFERENT, BATCH = 20_000, 200, 100


def main() -> None:
    rough = np.random.default_rng(0).integers(0, 256, (DIFFERENT, 8, 8, 3), dtype=np.uint8)
    some = [
        encoded(np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BICUBIC)))
        for image in rough
    ]
    pictures = sorted((f"{i % 10}/{i:05d}", some[i % DIFFERENT], i % 10) for i in range(COUNT))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        sources = {
            "folder": write_folder(root / "folder", pictures),
            "zip": write_zip(root / "images.zip", pictures),
            "parquet": write_parquet(root / "images.parquet", pictures, group=256),
            "tar": write_tars(root / "tars", pictures, 1000),
        }
        for kind, path in sources.items():
            began = time.perf_counter()
            source = open_source(path)
            opened = time.perf_counter()
            with ImageStream(source.blocks, source.shard_sizes, seed=0, window=4000) as stream:
                for start in range(0, COUNT, BATCH):
                    stream.read(start, BATCH)
            rate = COUNT / (time.perf_counter() - opened)
            print(f"{kind:8} opened in {opened - began:.2f} s, {rate:,.0f} images/s")


if __name__ == "__main__":
    main()
