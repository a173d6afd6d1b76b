"""Load the distilled generator of points and count the points that lie near a centre."""

import torch
from points import near_a_centre

import raysid

generator = raysid.load_generator("runs/points", factory="points:make")
points = generator.sample(2000, generator=torch.Generator().manual_seed(0))
print(points[:5])
print(f"{near_a_centre(points):.0%} of 2,000 points lie within three standard deviations of a centre")
