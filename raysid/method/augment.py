"""EDM's non-leaking augmentation: random transforms of the images, and the labels that describe them to the network.

A network that gets the transform as a condition learns the distribution of the transformed images only under that
condition. Under the zero label, with which it scores and generates, it learns the images as they are. So augmentation
prevents overfitting and does not show in generated images.

In order: flips, isotropic scaling, rotation, scaling along an axis, translation. Flips are exact. The others form one
affine map about the centre of the image: the image is extended by reflection, upsampled by 2 with the sym6 wavelet's
lowpass filter, sampled bilinearly and downsampled with the same filter, which prevents aliasing. An image that is not
resampled keeps its pixel values bit for bit.

Sources: EDM = arXiv 2206.00364, appendix F.2 (transforms, labels); arXiv 2006.06676, appendix B (resampling).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from raysid.method.draws import Draws

LABEL_DIM = 9
SCALE_OCTAVES = 0.2  # standard deviation of log2 of both scalings
TRANSLATION = 0.125  # standard deviation of the translation, as a fraction of the image's size

# Lowpass filter of the least asymmetric wavelet with six vanishing moments (Daubechies, Ten Lectures on Wavelets, table
# 6.3), of unit norm. It is nearly symmetric about the tap CENTRE, so the even samples of an upsampled image lie on its
# pixels and the odd ones half-way between them.
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
CENTRE = 5


@dataclass(frozen=True)
class Transforms:
    """The transforms of a batch of B images: float32 tensors (B,), all 0 for an image that stays as it is.

    x points right and y down; angles are in radians, counter-clockwise on screen.

    Attributes:
        xflip, yflip: 1 to mirror the image left to right, or top to bottom.
        n_scale: isotropic scaling by 2^(0.2 n_scale).
        rotation: angle in [-pi, pi).
        n_aniso: scaling by 2^(0.2 n_aniso) along an axis, and by its inverse across it.
        aniso_axis: angle of that axis from x, in [-pi, pi).
        n_tx, n_ty: translation by 0.125 n_tx of the width and 0.125 n_ty of the height.
    """

    xflip: Tensor
    yflip: Tensor
    n_scale: Tensor
    rotation: Tensor
    n_aniso: Tensor
    aniso_axis: Tensor
    n_tx: Tensor
    n_ty: Tensor

    @property
    def labels(self) -> Tensor:
        """The network's augmentation labels (B, 9); zeros for an image that stays as it is."""
        return torch.stack(
            [
                self.xflip,
                self.yflip,
                self.n_scale,
                self.rotation.cos() - 1,
                self.rotation.sin(),
                self.n_aniso * self.aniso_axis.cos(),
                self.n_aniso * self.aniso_axis.sin(),
                self.n_tx,
                self.n_ty,
            ],
            dim=1,
        )

    @property
    def moved(self) -> Tensor:
        """Indices of the images that need resampling, because more than flips applies to them."""
        resampling = [self.n_scale, self.rotation, self.n_aniso, self.n_tx, self.n_ty]
        return torch.stack(resampling).any(0).nonzero()[:, 0]


def draw_transforms(draws: Draws, purpose: str, probability: float) -> Transforms:
    """Draw the transforms of a slice of a batch, on the CPU.

    At any probability above 0, half of the images are mirrored left to right. Every other transform applies with the
    given probability, independently; a y-flip that applies mirrors half of its images, and the axis of the anisotropic
    scaling is rotated in half of them.

    Args:
        draws: the random numbers of the slice.
        purpose: the address of these images' draws; other images of the same step get other transforms.
        probability: p, in [0, 1]; at 0 every image stays as it is.
    """

    def angle(name: str) -> Tensor:
        return math.pi * (2 * draws.uniform(f"{purpose}/{name}") - 1)

    def half(name: str) -> Tensor:
        return draws.uniform(f"{purpose}/{name}") < 0.5

    flipped, scaled, rotated, stretched, shifted = (
        draws.uniform(f"{purpose}/acts", (5,)) < probability
    ).unbind(1)
    shift = draws.normal(f"{purpose}/translation", (2,))
    return Transforms(
        xflip=(half("xflip") & (probability > 0)).float(),
        yflip=(half("yflip") & flipped).float(),
        n_scale=torch.where(scaled, draws.normal(f"{purpose}/scale"), 0.0),
        rotation=torch.where(rotated, angle("rotation"), 0.0),
        n_aniso=torch.where(stretched, draws.normal(f"{purpose}/aniso"), 0.0),
        aniso_axis=torch.where(stretched & half("aniso_turned"), angle("aniso_axis"), 0.0),
        n_tx=torch.where(shifted, shift[:, 0], 0.0),
        n_ty=torch.where(shifted, shift[:, 1], 0.0),
    )


def augment(images: Tensor, transforms: Transforms) -> tuple[Tensor, Tensor]:
    """Transform images, and return the labels that describe the transforms.

    Args:
        images: (B, C, H, W) in [-1, 1], on any device. Beyond one reflection of the image a transform reads 0,
            mid-grey.
        transforms: of B images, on the CPU.

    Returns:
        (augmented images like `images`, labels (B, 9) on the same device).
    """
    xflip, yflip = (
        flip.bool().to(images.device)[:, None, None, None] for flip in (transforms.xflip, transforms.yflip)
    )
    augmented = torch.where(xflip, images.flip(3), images)
    augmented = torch.where(yflip, augmented.flip(2), augmented)
    moved = transforms.moved
    if len(moved):
        height, width = images.shape[2:]
        maps = _sampling_maps(transforms, height, width)[moved].to(images)
        index = moved.to(images.device)
        augmented = augmented.index_copy(0, index, _resampled(augmented[index], maps))
    return augmented, transforms.labels.to(images)


def _resampled(images: Tensor, maps: Tensor) -> Tensor:
    """Resample images (B, C, H, W) with the affine maps (B, 2, 3) of `_sampling_maps`."""
    (up_y, down_y), (up_x, down_x) = (
        [matrix.to(images) for matrix in _resampling(size)] for size in images.shape[2:]
    )
    fine = up_y @ images @ up_x.T
    shape = (*images.shape[:2], down_y.shape[1], down_x.shape[1])
    grid = torch.nn.functional.affine_grid(maps, list(shape), align_corners=True)
    moved = torch.nn.functional.grid_sample(fine, grid, align_corners=True)
    return down_y @ moved @ down_x.T


def _sampling_maps(transforms: Transforms, height: int, width: int) -> Tensor:
    """Return affine maps (B, 2, 3), float64, from samples of the transformed image to positions in the upsampled one.

    Positions are those of `affine_grid`: from -1 at the first sample of an axis to 1 at the last.
    """
    scale, stretch = (
        torch.exp2(SCALE_OCTAVES * n.double()) for n in (transforms.n_scale, transforms.n_aniso)
    )
    rotation, axis = transforms.rotation.double(), transforms.aniso_axis.double()
    size = torch.tensor([width, height], dtype=torch.float64)
    shift = TRANSLATION * size * torch.stack([transforms.n_tx, transforms.n_ty], dim=1)
    # From a transformed pixel back to its source, both relative to the centre of the image: back (pixel - shift).
    squeeze = torch.diag_embed(torch.stack([1 / stretch, stretch], dim=1))
    back = _turn(-rotation) @ _turn(axis) @ squeeze @ _turn(-axis) / scale[:, None, None]
    # Samples are half a pixel apart. In both images the middle sample lies a quarter of a pixel right of and below the
    # centre of the image, and the last sample this far from the middle one:
    fine, moved = (2 * (3 * size - 2) - 1) / 4, (2 * size + 9) / 4
    offset = (back @ (0.25 - shift)[:, :, None])[:, :, 0] - 0.25
    return torch.cat([back * moved, offset[:, :, None]], dim=2) / fine[:, None]


def _turn(angle: Tensor) -> Tensor:
    """Return counter-clockwise rotations on screen, with y pointing down: (B,) -> (B, 2, 2)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, sin], dim=1), torch.stack([-sin, cos], dim=1)], dim=1)


@cache
def _resampling(size: int) -> tuple[Tensor, Tensor]:
    """Return the matrices that resample one axis of `size` pixels. Images are small, and matrices need no padding.

    Returns:
        (from the pixels to the samples of the image extended by a reflection on either side, (2 (3 size - 2), size);
        from the samples of the transformed image, with the 10 that the filter needs beyond its edges, to its pixels,
        (size, 2 size + 10)), float64.
    """
    source = torch.arange(1 - size, 2 * size - 1).abs()
    source = torch.where(source < size, source, 2 * (size - 1) - source)
    continued = 2 * _filter(len(source))[CENTRE:][: 2 * len(source)]
    upsample = torch.zeros(len(continued), size, dtype=torch.float64).index_add_(1, source, continued)
    return upsample, _filter(size).T


def _filter(size: int) -> Tensor:
    """Return the filter's weights between samples and pixels, (2 size + 10, size); pixel 0 is on sample CENTRE.

    The weights of a pixel, a column, sum to 1; those of an inner sample to 1/2.
    """
    taps = torch.tensor(SYM6, dtype=torch.float64)
    taps = torch.nn.functional.pad(taps / taps.sum(), (0, 2 * size - 2))
    return torch.stack([taps.roll(2 * pixel) for pixel in range(size)], dim=1)
