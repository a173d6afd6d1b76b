"""Make many images with a one-step generator, in parallel, with Ray Data.

    python batch_inference.py runs/digits-sida images/ --count 10000            # a PNG for each image
    python batch_inference.py runs/digits-sida images/ --count 10000 --parquet  # Parquet files

Each actor loads the generator once and makes batch after batch. An image depends on its number and the seed alone (to
rounding), however many actors there are and however they share the work.
"""

import argparse
from pathlib import Path

import numpy as np
import ray
import torch
from PIL import Image

import raysid


class Sampler:
    """An actor that makes the images of the numbers that it is given."""

    def __init__(self, run, which, seed):
        self.generator = raysid.load_generator(run, which=which)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.generator.to(self.device)
        self.seed = seed

    def __call__(self, batch):
        """Add `image`, uint8 (B, H, W, C), and `label` to a batch of numbers `id` (B,)."""
        numbers = batch["id"].tolist()
        draws = [torch.Generator().manual_seed(self.seed * 2**32 + number) for number in numbers]
        z = torch.stack([torch.randn(self.generator.sample_shape, generator=draw) for draw in draws])
        classes = self.generator.num_classes
        labels = torch.tensor([number % classes for number in numbers]) if classes else None
        with torch.no_grad():
            images = self.generator(
                z.to(self.device), None if labels is None else labels.to(self.device)
            ).cpu()
        pixels = (images * 127.5 + 128).clip(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        batch["image"] = pixels.numpy()
        batch["label"] = np.zeros(len(numbers), dtype=np.int64) if labels is None else labels.numpy()
        return batch


def write_pictures(batch, folder):
    """Write a batch's images as PNGs, in a folder for each class."""
    for number, label, pixels in zip(batch["id"], batch["label"], batch["image"], strict=True):
        path = Path(folder) / str(label) / f"{number:08}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(path)
    return {"id": batch["id"]}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run", help="folder of a run or of a generator; a path that all nodes see, or a bucket"
    )
    parser.add_argument("out", help="folder to write to")
    parser.add_argument("--count", type=int, default=1000, help="images to make")
    parser.add_argument("--actors", type=int, default=2, help="processes that make images")
    parser.add_argument("--gpus", type=float, default=0.0, help="GPUs of each process")
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--which", choices=["last", "best"], default="last")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parquet", action="store_true", help="write Parquet files instead of PNGs")
    given = parser.parse_args()

    run = given.run if "://" in given.run else str(Path(given.run).resolve())
    out = given.out if "://" in given.out else str(Path(given.out).resolve())
    images = ray.data.range(given.count).map_batches(
        Sampler,
        fn_constructor_args=(run, given.which, given.seed),
        compute=ray.data.ActorPoolStrategy(size=given.actors),
        batch_size=given.batch_size,
        num_cpus=0.25,
        num_gpus=given.gpus,
    )
    if given.parquet:
        images.write_parquet(out)
    else:
        written = images.map_batches(write_pictures, fn_kwargs={"folder": out}, num_cpus=0.25)
        assert written.materialize().count() == given.count
    print(f"{given.count:,} images: {out}")


if __name__ == "__main__":
    main()
