"""From a folder of images to a one-step generator, in Python.

    python own_images.py            # a minute or two on two cores

The images are scikit-learn's 8x8 digits, written as PNG files in a folder for each class. With images of your own,
leave out `write_images`, name your folder, and give the network their size, channels and classes.
"""

from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_digits

import raysid

TEACHER = """
kind: pretrain
data: {source: photos}
network:                    # a small DDPM++; its size, channels and classes are those of the images
  img_resolution: 8
  img_channels: 1
  label_dim: 10
  model_channels: 16
  channel_mult: [1, 2]
  num_blocks: 1
  attn_resolutions: [4]
  dropout: 0.0
total_images: 25600         # 100 steps: enough to see that it works, not to be good
lr: 2.0e-3
ema: {halflife_images: 5000}
"""

MINE = """
kind: distill
teacher: {recipe: teacher.yaml}
data: {source: photos}
method:
  adversarial: {generator_weight: 0.05, generator_start_images: 0, adversarial_start_images: 0}
total_images: 12800         # 100 steps
batch_size: 128
generator: {lr: 6.0e-4}
fake_score: {lr: 1.0e-3}
ema: {halflife_images: 3000}
"""


def write_images(folder):
    """Write the digits as PNG files, in a folder for each class."""
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = Path(folder) / f"class-{label}" / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).round().astype("uint8")).save(path)


def main():
    write_images("photos")
    Path("teacher.yaml").write_text(TEACHER)
    Path("mine.yaml").write_text(MINE)
    result = raysid.distill(raysid.load_recipe("mine.yaml"))  # trains the teacher first
    generator = raysid.load_generator(result.path)
    labels = torch.arange(10).repeat(8)
    images = generator.sample(80, labels, generator=torch.Generator().manual_seed(0))
    pixels = ((images + 1) * 127.5).round().to(torch.uint8)
    rows = pixels.reshape(8, 10, 8, 8).permute(0, 2, 1, 3).reshape(64, 80)
    Image.fromarray(rows.numpy()).resize((640, 512), Image.NEAREST).save("generated.png")
    print("generated.png: 80 images, a column for each class")


if __name__ == "__main__":
    main()
