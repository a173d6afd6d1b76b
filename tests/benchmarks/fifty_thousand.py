"""Read 50,000 colour images of 32x32, as many as CIFAR-10 has: `python -m tests.benchmarks.fifty_thousand`.

Makes them, as PNGs in a zip and in a Parquet file with row groups of 1,000, and runs `reading_against_loader` on each,
then on the quickstart's digits. Each run reads two windows, which takes some minutes.

    python -m tests.benchmarks.fifty_thousand --folder /tmp/fifty --rounds 5

keeps the files, and uses those that exist.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from raysid.data.scikit_learn import PatchesSource
from tests.benchmarks.reading_against_loader.measure import measure_reading
from tests.benchmarks.reading_against_loader.report import print_reading
from tests.support.picture_files import encoded, write_parquet, write_zip

COUNT, CLASSES, ROW_GROUP = 50_000, 10, 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the files are kept; removed when not given")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each side (default 5)")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="about how long a round takes (default 10)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        for recipe, source in [
            *((None, path) for path in files(folder)),
            ("quickstart-digits-sida", "digits"),
        ]:
            print(f"\n== {source}", flush=True)
            overrides = {"data.source": source, "storage": temporary}
            found = measure_reading(recipe, overrides, options.rounds, options.seconds, report=click.echo)
            print_reading(found)


def files(folder: Path) -> list[str]:
    """The zip and the Parquet file, made where they are not there."""
    paths = [folder / "images.zip", folder / "images.parquet"]
    if not all(path.exists() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        made = pictures()
        write_zip(paths[0], made)
        write_parquet(paths[1], made, group=ROW_GROUP)
    return [str(path) for path in paths]


def pictures() -> Sequence[tuple[str, bytes, int]]:
    """Name, PNG and class of each: cuts of photographs, turned, brightened and grained, so that no two are the same."""
    draw = np.random.default_rng(0)
    source = PatchesSource()
    cuts = np.concatenate([block["image"] for block in source.blocks()]).transpose(0, 2, 3, 1)
    made = []
    for number in range(COUNT):
        image = np.rot90(cuts[draw.integers(len(cuts))], draw.integers(4)).astype(np.float32)
        # Never as bright or dark as a pixel can be: there the grain would be lost.
        image = image * draw.uniform(0.5, 0.7) + draw.uniform(20, 60, 3) + draw.normal(0, 4, image.shape)
        pixels = np.clip(image, 0, 255).astype(np.uint8)
        made.append((f"{number // 1000:05d}/img{number:08d}", encoded(pixels), int(draw.integers(CLASSES))))
    return made


if __name__ == "__main__":
    main()
