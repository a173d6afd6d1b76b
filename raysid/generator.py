"""The product: a one-step generator. It needs torch and a folder, not Ray."""

from __future__ import annotations

from typing import Literal, Self

import torch
from torch import Tensor, nn
from upath import UPath

from raysid.errors import UserError
from raysid.method.sampling import one_step_from
from raysid.networks import FactorySettings
from raysid.networks.denoiser import Network
from raysid.networks.files import CONFIG, NetworkCard, load_network, save_network
from raysid.storage import exists, location

Which = Literal["last", "best"]
FOLDERS: dict[str, str] = {"last": "generator", "best": "generator-best"}


class Generator(nn.Module):
    """A generator that makes an image, or another sample, from noise in one network evaluation.

    Attributes:
        card: its network's settings, its noise level, how it was trained.
        network: the denoiser that is evaluated once.
    """

    def __init__(self, card: NetworkCard, network: Network) -> None:
        super().__init__()
        self.card = card
        self.network = network
        self.sigma_init = card.sigma_init

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 for an unconditional generator."""
        return self.card.network.label_dim

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of a sample; (C, H, W) of images."""
        return self.card.network.sample_shape

    def forward(self, z: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Make samples from standard normal noise.

        Args:
            z: noise (B, *sample_shape).
            class_labels: class indices (B,), each in 0 to num_classes - 1; None if the generator has no classes.

        Returns:
            Samples like z. Images are in [-1, 1], clamped except in train mode; those of a user's own module are not
            clamped and have its units.

        Raises:
            ValueError: labels are missing, not integers, of another shape, or outside the classes.
        """
        cond = self._condition(class_labels, len(z))
        samples = one_step_from(self.network, self.network.noise, self.card.level, z, cond)
        unbounded = isinstance(self.card.network, FactorySettings)
        return samples if self.training or unbounded else samples.clamp(-1, 1)

    @torch.no_grad()
    def sample(
        self,
        num_images: int,
        class_labels: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw noise and make samples (num_images, *sample_shape).

        Args:
            class_labels: class indices (num_images,) or one index for all; None draws them uniformly.
            generator: source of randomness; torch's global one if None.
        """
        device = next(self.network.parameters()).device
        source = generator.device if generator is not None else device
        z = torch.randn(num_images, *self.sample_shape, generator=generator, device=source).to(device)
        if class_labels is None and self.num_classes:
            class_labels = torch.randint(self.num_classes, (num_images,), generator=generator, device=source)
        elif class_labels is not None:
            class_labels = torch.as_tensor(class_labels)
            if class_labels.ndim == 0:
                class_labels = class_labels.expand(num_images)
        return self(z, None if class_labels is None else class_labels.to(device))

    def save_pretrained(self, folder: str | UPath) -> None:
        """Write `model.safetensors` and `config.json` into `folder`."""
        save_network(folder, self.card, self.network)

    @classmethod
    def from_pretrained(cls, folder: str | UPath, factory: str | None = None) -> Self:
        """Read a folder that `save_pretrained` wrote; `factory` and errors as in `load_generator`."""
        return cls(*load_network(folder, "generator", factory)).eval()

    def _condition(self, class_labels: Tensor | None, count: int) -> Tensor | None:
        if self.num_classes == 0:
            if class_labels is not None:
                raise ValueError("this generator has no classes: call it without class_labels")
            return None
        if class_labels is None:
            raise ValueError(f"this generator needs class_labels, indices in 0 to {self.num_classes - 1}")
        if class_labels.is_floating_point():
            raise ValueError(f"class_labels must be integers, not {class_labels.dtype}")
        if class_labels.shape != (count,):
            raise ValueError(f"class_labels must have shape ({count},), not {tuple(class_labels.shape)}")
        if bool(((class_labels < 0) | (class_labels >= self.num_classes)).any()):
            raise ValueError(f"class_labels must be in 0 to {self.num_classes - 1}")
        return nn.functional.one_hot(class_labels.long(), self.num_classes).float()


def generator_folder(path: str | UPath, which: Which = "last") -> UPath:
    """Find the generator's folder at `path`, which is that folder or a run's.

    Raises:
        UserError: there is no generator.
        StorageError: the folder or the bucket cannot be read.
    """
    root = location(path)
    if exists(root / CONFIG):
        return root
    folder = root / FOLDERS[which]
    if exists(folder / CONFIG):
        return folder
    if not exists(root):
        raise UserError(f"no run and no generator at {root}")
    if which == "best" and exists(root / FOLDERS["last"] / CONFIG):
        raise UserError(f"{root} has no evaluated generator yet: give --which last")
    raise UserError(f"{root} holds no generator: give a run's folder, or a folder with {CONFIG}")


def load_generator(path: str | UPath, which: Which = "last", factory: str | None = None) -> Generator:
    """Load a generator, in eval mode, from its folder or a run's. Loading a folder never runs your code.

    Args:
        which: the generator of a run to load: the last, or the best evaluated.
        factory: the function that builds a network of your own, as `package.module:function`. It is imported and called
            only if the folder names the same one.

    Raises:
        UserError: there is no generator, it is damaged, or it needs another factory.
        StorageError: the folder or the bucket cannot be read.
    """
    return Generator.from_pretrained(generator_folder(path, which), factory)
