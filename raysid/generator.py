"""The product: a one-step generator. It needs torch and a folder, not Ray."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Literal, Self

import torch
from torch import Tensor, nn
from upath import UPath

from raysid.errors import UserError
from raysid.method.sampling import one_step_from
from raysid.networks import FactorySettings
from raysid.networks.denoiser import Network
from raysid.networks.files import CONFIG, NetworkCard, load_network, save_network
from raysid.networks.latents import LatentDecoder
from raysid.networks.parts import TEXT_ENCODER
from raysid.networks.text import shared_encoder
from raysid.storage import exists, location

Which = Literal["last", "best"]
FOLDERS: dict[str, str] = {"last": "generator", "best": "generator-best"}


class Generator(nn.Module):
    """A generator that makes an image, or another sample, from noise in one network evaluation.

    Attributes:
        card: its network's settings, its noise level, how it was trained.
        network: the denoiser that is evaluated once.
        parts: folder of the text encoder, the tokenizer and the VAE, which are loaded when they are first used.
    """

    def __init__(self, card: NetworkCard, network: Network, parts: UPath | None = None) -> None:
        super().__init__()
        self.card = card
        self.network = network
        self.sigma_init = card.sigma_init
        self.parts = parts
        self._decoder: LatentDecoder | None = None

    @property
    def takes_text(self) -> bool:
        """True if samples are made from prompts."""
        return self.card.network.text_width > 0

    @property
    def makes_latents(self) -> bool:
        """True if the network's samples are latents, which the VAE decodes."""
        return self.card.network.latents

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 for an unconditional generator."""
        return self.card.network.label_dim

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of a sample; (C, H, W) of images."""
        return self.card.network.sample_shape

    def forward(self, z: Tensor, class_labels: Tensor | None = None, text: Tensor | None = None) -> Tensor:
        """Make samples from standard normal noise.

        Args:
            z: noise (B, *sample_shape).
            class_labels: class indices (B,), each in 0 to num_classes - 1; None if the generator has no classes.
            text: embeddings (B, tokens, width) as `encode` returns them; None if the generator takes no text.

        Returns:
            Samples like z. Images are in [-1, 1], clamped except in train mode; latents, and the samples of a user's
            own module, are not clamped and have their own units.

        Raises:
            ValueError: labels or text are missing, or of another shape; labels are not integers or outside the classes.
        """
        cond = self._text(text) if self.takes_text else self._condition(class_labels, len(z))
        samples = one_step_from(self.network, self.network.noise, self.card.level, z, cond)
        unbounded = self.makes_latents or isinstance(self.card.network, FactorySettings)
        return samples if self.training or unbounded else samples.clamp(-1, 1)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return the embeddings of prompts, (B, tokens, width).

        Raises:
            UserError: the text encoder is not where the card says.
            ValueError: the generator takes no text.
        """
        if not self.takes_text:
            raise ValueError("this generator takes no text: call it without prompts")
        encoder = shared_encoder(str(self._parts), next(self.network.parameters()).device)
        return encoder(encoder.tokenizer(prompts).ids)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images of latents, (B, 3, H, W) in [-1, 1]; samples that are no latents unchanged.

        Raises:
            UserError: the VAE is not where the card says.
        """
        if not self.makes_latents:
            return latents
        if self._decoder is None:
            self._decoder = LatentDecoder(self._parts, next(self.network.parameters()).device)
        return self._decoder(latents)

    @torch.no_grad()
    def sample(
        self,
        num_images: int,
        class_labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        prompts: str | Sequence[str] | None = None,
    ) -> Tensor:
        """Draw noise and make samples: (num_images, *sample_shape), or the images of latents.

        Args:
            class_labels: class indices (num_images,) or one index for all; None draws them uniformly.
            generator: source of randomness; torch's global one if None.
            prompts: a prompt for each image, or one for all; a generator that takes text needs them.
        """
        if prompts is not None or self.takes_text:
            return self._sample_prompts(num_images, prompts, generator)
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
        card, network = load_network(folder, "generator", factory)
        return cls(card, network, card.parts_folder(location(folder))).eval()

    def _sample_prompts(
        self, count: int, prompts: str | Sequence[str] | None, generator: torch.Generator | None
    ) -> Tensor:
        if prompts is None:
            raise ValueError("this generator makes images from prompts: give one, or one for each image")
        prompts = [prompts] * count if isinstance(prompts, str) else list(prompts)
        if len(prompts) != count:
            raise ValueError(f"there are {len(prompts)} prompts for {count} images")
        device = next(self.network.parameters()).device
        source = generator.device if generator is not None else device
        z = torch.randn(count, *self.sample_shape, generator=generator, device=source).to(device)
        return self.decode(self(z, text=self.encode(prompts)))

    @cached_property  # looked for once: the folder may be in a bucket
    def _parts(self) -> UPath:
        if self.parts is None or not exists(self.parts / TEXT_ENCODER):
            where = self.parts if self.parts is not None else "its folder"
            raise UserError(
                f"this generator's text encoder is not in {where}: copy the teacher's folder there, or use what "
                "`raysid export --to diffusers` writes"
            )
        return self.parts

    def _text(self, text: Tensor | None) -> Tensor:
        if text is None:
            raise ValueError(
                "this generator makes images from text: give its embeddings, as `encode` returns them"
            )
        return text  # the network checks its shape

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
