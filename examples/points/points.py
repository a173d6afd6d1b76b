"""A teacher of one's own: points in the plane, around four centres.

Train the teacher, then distil it:

    python points.py
    raysid distill points.yaml

`make` is the factory that `points.yaml` names. raysid calls it in every role and for every generator that it loads.
"""

from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

import raysid

WEIGHTS = Path(__file__).with_name("points.pt")
CENTRES = torch.tensor([[1.5, 1.5], [1.5, -1.5], [-1.5, 1.5], [-1.5, -1.5]])
SPREAD = 0.2  # standard deviation around a centre
SIGMA_DATA = 1.5  # standard deviation of all points
NOISE = raysid.EDMNoise(sigma_data=SIGMA_DATA, log_sigma_mean=-0.5)


class Points(nn.Module):
    """A denoiser of points: EDM's preconditioning around four linear layers."""

    sample_shape = (2,)

    def __init__(self):
        super().__init__()
        widths = [3, 64, 64, 64]
        layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(64, 2))

    def forward(self, x_t, t, cond):
        """Predict the clean points (B, 2) from noised points (B, 2), noise levels (B,) and no condition."""
        sigma = t[:, None]
        scale = (sigma**2 + SIGMA_DATA**2).sqrt()
        output = self.layers(torch.cat([x_t / scale, sigma.log() / 4], dim=1))
        return (SIGMA_DATA / scale) ** 2 * x_t + SIGMA_DATA * sigma / scale * output


def make():
    """Return the trained module and the noise process that it was trained with."""
    model = Points()
    model.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return model, NOISE


def draw(count):
    """Draw points (count, 2) from the data."""
    return CENTRES[torch.randint(4, (count,))] + SPREAD * torch.randn(count, 2)


def near_a_centre(points):
    """The share of points (N, 2) within three standard deviations of a centre."""
    return (torch.cdist(points, CENTRES).min(1).values < 3 * SPREAD).float().mean().item()


def train(steps=1000):
    """Train the teacher by EDM's loss and save its weights."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # faster for so small a network
    model = Points()
    adam = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(steps):
        x = draw(512)
        t = NOISE.fake_score_level(torch.randn(512))
        x_hat = model(NOISE.add_noise(x, t, torch.randn(512, 2)), t, None)
        (NOISE.loss_weight(t)[:, None] * (x_hat - x) ** 2).mean().backward()
        adam.step()
        adam.zero_grad()
    torch.save(model.state_dict(), WEIGHTS)
    print(WEIGHTS)


if __name__ == "__main__":
    train()
