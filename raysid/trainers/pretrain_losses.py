"""The losses of a teacher's training, one for each kind of network."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from raysid.method.draws import Draws, seed_torch
from raysid.method.losses import denoising_loss
from raysid.method.noise import EDMNoise, per_sample
from raysid.networks import EDMDenoiser
from raysid.networks.denoiser import Network
from raysid.networks.diffusers import DiffusersDenoiser


class TrainingLoss(Protocol):
    """The loss of one kind of network."""

    @property
    def predictor(self) -> nn.Module:
        """The module to train, which may be wrapped before it is called."""

    def __call__(self, predictor: nn.Module, x: Tensor, cond: Tensor | None, draws: Draws) -> Tensor:
        """Return the mean loss of a slice of a batch.

        Args:
            predictor: `self.predictor`, wrapped or not.
            x: real images (n, C, H, W) in [-1, 1].
            cond: their conditions, as the network takes them.
            draws: the random numbers of the slice.
        """


def training_loss(network: Network, condition_drop: float) -> TrainingLoss:
    """Return the loss of a network; `condition_drop` as in `DDPMLoss`."""
    if isinstance(network, EDMDenoiser):
        return EDMLoss(network)
    assert isinstance(network, DiffusersDenoiser)
    return DDPMLoss(network, condition_drop)


class EDMLoss:
    """EDM's denoising loss at log-normal sigmas (arXiv 2206.00364, table 1), a sum over the pixels of an image."""

    def __init__(self, network: EDMDenoiser) -> None:
        self.predictor = network
        self.noise = EDMNoise(sigma_data=network.settings.sigma_data)

    def __call__(self, predictor: nn.Module, x: Tensor, cond: Tensor | None, draws: Draws) -> Tensor:
        sigma = self.noise.fake_score_level(draws.normal("sigma_normal")).to(x.device)
        eps = draws.normal("noise", x.shape[1:]).to(x.device)
        seed_torch(draws.dropout_seed("dropout"), x.device)
        x_hat = predictor(self.noise.add_noise(x, sigma, eps), sigma, cond)
        return denoising_loss(x_hat, x, self.noise.loss_weight(sigma)).mean()


class DDPMLoss:
    """The mean squared error of epsilon (arXiv 2006.11239, equation 14) or of v (arXiv 2202.00512, appendix D).

    Steps are drawn uniformly from all of the noise process. Some images are without their condition.

    Args:
        condition_drop: the probability of that.
    """

    def __init__(self, network: DiffusersDenoiser, condition_drop: float) -> None:
        self.network = network
        self.predictor = _Predictor(network)
        self.condition_drop = condition_drop

    def __call__(self, predictor: nn.Module, x: Tensor, cond: Tensor | None, draws: Draws) -> Tensor:
        noise = self.network.noise
        steps = (draws.uniform("step") * len(noise.alphas_cumprod)).long().to(x.device)
        eps = draws.normal("noise", x.shape[1:]).to(x.device)
        if cond is not None and self.condition_drop:
            dropped = (draws.uniform("condition_drop") < self.condition_drop).to(x.device)
            cond = torch.where(per_sample(dropped, cond).bool(), self.network.unconditional(cond), cond)
        seed_torch(draws.dropout_seed("dropout"), x.device)
        prediction = predictor(noise.add_noise(x, steps, eps), steps, cond)
        target = eps
        if self.network.prediction_type == "v_prediction":
            a_t, s_t = noise.scales(steps)
            target = per_sample(a_t, x) * eps - per_sample(s_t, x) * x
        return (prediction - target).square().mean()


class _Predictor(nn.Module):
    """A network's prediction in its own space as a module's forward pass, through which DDP sees it."""

    def __init__(self, network: DiffusersDenoiser) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        return self.network.predict(x_t, t, cond)
