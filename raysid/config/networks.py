"""Settings of networks: EDM's U-Nets, U-Nets of diffusers, and modules that a user's function builds.

The settings of EDM's U-Nets have the names of EDM's constructors and checkpoints (arXiv 2206.00364, table 1:
preconditioning, appendix F: network configurations).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, TypeGuard

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
)

from raysid.config.settings import Settings

Precision = Literal["float32", "bf16", "fp16"]

MAX_STEPS = 100_000
# Far above every published network, and small enough that a network of that size is described within seconds.
MAX_BLOCKS = 300
MAX_LEVELS = 20
MAX_CLASSES = 1_000_000
MAX_NUMBERS = 2**28  # in a sample: 1 GiB in float32
EDM_TMAX, DDPM_TMAX = 800, 980
"""The default `method.tmax` of EDM's noise process, and of a discrete one with Stable Diffusion's betas."""

# Only SongUNet (DDPM++ and NCSN++) has these; ADM has one fixed choice for each.
_SONG_ONLY = ("embedding_type", "encoder_type", "decoder_type", "channel_mult_noise", "resample_filter")


class NetworkSettings(Settings):
    """Architecture and preconditioning of one EDM denoiser.

    DDPM++ is `SongUNet` with its defaults. NCSN++ is `SongUNet` with `embedding_type="fourier"`,
    `encoder_type="residual"`, `channel_mult_noise=2` and `resample_filter=[1, 3, 3, 1]`. ADM is
    `DhariwalUNet`, which has none of `embedding_type`, `encoder_type`, `decoder_type`,
    `channel_mult_noise`, `resample_filter`: setting one of them to anything but its default is an error.

    Lists are stored as tuples, so that settings are immutable and hashable.

    Raises:
        pydantic.ValidationError: a name is unknown, a value is out of range, the resolution cannot be
            halved once per level, or ADM is given a setting it does not have.
    """

    # Defaults are not validated: that would turn (1, 1) into (1.0, 1.0), and change the hash of every teacher.
    model_config = ConfigDict(validate_default=False, protected_namespaces=())

    discrete_levels: ClassVar[bool] = False
    text_width: ClassVar[int] = 0
    latents: ClassVar[bool] = False
    default_tmax: ClassVar[int] = EDM_TMAX

    img_resolution: PositiveInt = Field(
        le=MAX_NUMBERS,
        description="Height and width of the images in pixels; divisible by 2 for every level after the first.",
    )
    img_channels: PositiveInt = Field(
        le=MAX_NUMBERS, description="Colour (or latent) channels of the images."
    )
    label_dim: int = Field(0, ge=0, le=MAX_CLASSES, description="Number of classes; 0: unconditional.")
    model_type: Literal["SongUNet", "DhariwalUNet"] = Field(
        "SongUNet", description="U-Net family: SongUNet for DDPM++ and NCSN++, DhariwalUNet for ADM."
    )
    embedding_type: Literal["positional", "fourier"] = Field(
        "positional", description="Noise-level embedding: positional for DDPM++, fourier for NCSN++."
    )
    encoder_type: Literal["standard", "skip", "residual"] = Field(
        "standard",
        description="Downsampled input in the encoder's lower levels: standard (none) for DDPM++, residual for NCSN++.",
    )
    decoder_type: Literal["standard", "skip"] = Field(
        "standard", description="Output: standard, formed at full resolution, or skip, a sum over all levels."
    )
    channel_mult_noise: PositiveInt = Field(
        1,
        description="Width of the noise-level embedding, in units of model_channels: 1 for DDPM++, 2 for NCSN++.",
    )
    resample_filter: Annotated[tuple[float, ...], Field(min_length=2, max_length=100)] = Field(
        (1, 1),
        description="Taps of the separable resampling filter, an even number with a sum other than 0; they are "
        "normalised. [1, 1] for DDPM++, [1, 3, 3, 1] for NCSN++.",
    )
    model_channels: PositiveInt = Field(
        128, description="Base number of channels, which channel_mult multiplies.", ge=4
    )
    channel_mult: Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=MAX_LEVELS)] = Field(
        (1, 2, 2, 2), description="Channels of every level, in units of model_channels, finest level first."
    )
    channel_mult_emb: PositiveInt = Field(
        4, description="Width of the conditioning vector, in units of model_channels."
    )
    num_blocks: PositiveInt = Field(
        4, description="Residual blocks per level of the encoder; the decoder has one more."
    )
    attn_resolutions: Annotated[tuple[PositiveInt, ...], Field(max_length=100)] = Field(
        (16,), description="Resolutions, in pixels, at which blocks have self-attention; may be empty."
    )
    dropout: float = Field(
        0.10, ge=0, lt=1, description="Dropout probability of the activations inside blocks, in training."
    )
    label_dropout: float = Field(
        0.0, ge=0, le=1, description="Probability of dropping a sample's label, in training."
    )
    augment_dim: int = Field(
        0, ge=0, description="Width of the augmentation label: 9 with EDM's augmentations, 0 without."
    )
    sigma_data: PositiveFloat = Field(
        0.5, description="Standard deviation of the data, for pixels in [-1, 1]."
    )
    sigma_min: float = Field(
        0.0, ge=0, description="Lowest supported noise level (sigma), for pixels in [-1, 1]."
    )
    sigma_max: PositiveFloat | None = Field(
        None, description="Highest supported noise level (sigma), for pixels in [-1, 1]. Default: unbounded."
    )

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(C, H, W) of the images."""
        return self.img_channels, self.img_resolution, self.img_resolution

    def problems(self) -> Iterator[str]:
        yield from _size_problems(self.sample_shape, self.num_blocks * len(self.channel_mult))
        halvings = len(self.channel_mult) - 1
        if self.img_resolution % 2**halvings:
            yield (
                f"img_resolution {self.img_resolution} cannot be halved {halvings} times, which the "
                f"{halvings + 1} levels of channel_mult need"
            )
        if len(self.resample_filter) % 2 or sum(self.resample_filter) == 0:
            yield "resample_filter must have an even number of taps and a sum other than 0"
        if self.sigma_max is not None and self.sigma_max < self.sigma_min:
            yield f"sigma_max {self.sigma_max} is below sigma_min {self.sigma_min}"
        if self.model_type == "DhariwalUNet":
            # Compare with the defaults, not with the names given: a dumped model must load again.
            fields = type(self).model_fields
            foreign = [name for name in _SONG_ONLY if getattr(self, name) != fields[name].default]
            if foreign:
                yield f"DhariwalUNet has no setting {', '.join(foreign)}"
        for channels in sorted(self._normalised_channels()):
            if channels % (groups := normalisation_groups(channels)):
                yield (
                    f"model_channels {self.model_channels} with channel_mult {list(self.channel_mult)} makes layers of "
                    f"{channels} channels, which do not divide into the {groups} groups of their normalisation; "
                    "multiples of 32 do"
                )
                break  # the others have the same cause

    def _normalised_channels(self) -> set[int]:
        """Return the channels of all normalised feature maps; a decoder block concatenates an encoder's to its own."""
        widths = [self.model_channels * mult for mult in self.channel_mult]
        blocks = min(self.num_blocks, 2)  # further blocks equal the second
        channels = self.model_channels if self.model_type == "SongUNet" else widths[0]
        found: set[int] = set()
        maps: list[int] = []
        for width in widths:
            maps += [channels] + [width] * blocks
            found |= {channels, width}
            channels = width
        channels = maps[-1]
        for width in reversed(widths):
            for _ in range(blocks + 1):
                found.add(channels + maps.pop())
                channels = width
        return found


def normalisation_groups(channels: int) -> int:
    """Return the groups of a group normalisation in EDM's U-Nets: 32, or fewer for at least 4 channels a group."""
    return max(1, min(32, channels // 4))


class ScheduleSettings(Settings):
    """The noise process that a network of diffusers was trained with, with the names of its scheduler's config."""

    beta_schedule: str = Field("linear", description="Name of the schedule of the betas in diffusers.")
    beta_start: PositiveFloat = Field(0.0001, description="The first beta.")
    beta_end: PositiveFloat = Field(0.02, description="The last beta.")
    trained_betas: tuple[float, ...] | None = Field(None, description="All betas, instead of a schedule.")
    num_train_timesteps: int = Field(
        1000, ge=50, le=MAX_STEPS, description="Number of steps of the noise process."
    )
    rescale_betas_zero_snr: bool = Field(False, description="The last step is pure noise.")
    prediction_type: Literal["epsilon", "v_prediction"] = Field(
        "epsilon", description="Prediction target of the network."
    )


class DiffusersSettings(Settings):
    """A U-Net of diffusers with its noise process; its properties have the names of EDM's settings.

    Raises:
        pydantic.ValidationError: a name is unknown, or the U-Net's settings lack the size of the images or the
            number of classes.
    """

    discrete_levels: ClassVar[bool] = True
    default_tmax: ClassVar[int] = DDPM_TMAX
    augment_dim: ClassVar[int] = 0

    unet_class: Literal["UNet2DModel", "UNet2DConditionModel"] = Field(
        "UNet2DModel", description="Its class in diffusers: with classes or without, or with text."
    )
    unet: dict[str, Any] = Field(description="Settings of that class, with diffusers' names.")
    scheduler: ScheduleSettings
    null_class: bool = Field(False, description='The last class means "no class".')
    latents: bool = Field(False, description="Samples are latents, which the VAE of the folder decodes.")

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(C, H, W) of the images."""
        size = self.unet.get("sample_size")
        resolution = size if isinstance(size, int) else size[0]  # type: ignore[index]
        return self.unet.get("in_channels", self._default_channels), resolution, resolution

    @property
    def label_dim(self) -> int:
        """Number of classes, without the one for "no class"; 0: unconditional."""
        return (self.unet.get("num_class_embeds") or 0) - self.null_class

    @property
    def text_width(self) -> int:
        """Width of the text embeddings that the U-Net takes; 0 for one without text."""
        if self.unet_class == "UNet2DModel":
            return 0
        return self.unet.get("encoder_hid_dim") or self.unet.get("cross_attention_dim", 1280)

    @property
    def dropout(self) -> float:
        return self.unet.get("dropout", 0.0)

    def problems(self) -> Iterator[str]:
        size = self.unet.get("sample_size")
        height, width = size if isinstance(size, list | tuple) and len(size) == 2 else (size, size)
        if not (_is_count(height) and height == width):
            yield f"unet.sample_size is {size!r}; allowed: the images' one height and width"
        channels = self.unet.get("in_channels", self._default_channels)
        if not _is_count(channels):
            yield f"unet.in_channels is {channels!r}; allowed: integer above 0"
        if _is_count(height) and _is_count(channels):
            levels, blocks = (self.unet.get(name) for name in ("block_out_channels", "layers_per_block"))
            count = len(levels) if isinstance(levels, list | tuple) else 1
            yield from _size_problems(
                (channels, height, height), count * (blocks if _is_count(blocks) else 1)
            )
        classes = self.unet.get("num_class_embeds")
        if isinstance(classes, int) and classes > MAX_CLASSES:
            yield f"unet.num_class_embeds is {_short(classes)}; allowed: at most {MAX_CLASSES:,}"
        if classes is not None and not _is_count(classes):
            yield f"unet.num_class_embeds is {classes!r}; allowed: null, integer above 0"
        elif self.null_class and (classes or 0) < 2:
            yield "null_class is for a network with classes"
        if self.unet_class == "UNet2DConditionModel" and not _is_count(self.text_width):
            width = self.unet.get("encoder_hid_dim") or self.unet.get("cross_attention_dim")
            yield f"unet.cross_attention_dim is {width!r}; allowed: the one width of the text embeddings"

    @property
    def _default_channels(self) -> int:
        """Channels of the class in diffusers, if its settings name none."""
        return 3 if self.unet_class == "UNet2DModel" else 4


def _check_name(name: str) -> str:
    module, _, function = name.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), function]):
        raise ValueError(
            f"{name!r} does not name a function; allowed: package.module:function, as in points:make"
        )
    return name


FactoryName = Annotated[str, AfterValidator(_check_name)]
"""`package.module:function`."""


class FactorySettings(Settings):
    """A module built by the user's function, as that function describes it.

    Reading these settings never calls the function: a caller that wants the network built must name it, too.

    Raises:
        pydantic.ValidationError: a name is unknown, or a value is out of range.
    """

    augment_dim: ClassVar[int] = 0
    text_width: ClassVar[int] = 0
    latents: ClassVar[bool] = False

    factory: FactoryName = Field(description="Function that builds it, as `package.module:function`.")
    sample_shape: Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=10)] = Field(
        description="Shape of a sample: [2] for points, [3, 32, 32] for images."
    )
    label_dim: int = Field(0, ge=0, le=MAX_CLASSES, description="Number of classes; 0: unconditional.")
    discrete_levels: bool = Field(False, description="Noise levels are step numbers, not real numbers.")
    default_tmax: int = Field(gt=0, le=MAX_STEPS, description="Default of `method.tmax`.")

    @field_validator("default_tmax")
    @classmethod
    def _is_a_time(cls, value: int, info: ValidationInfo) -> int:
        if value > 1000 and not info.data.get("discrete_levels"):
            raise ValueError("allowed: at most 1000, unless noise levels are step numbers")
        return value

    def problems(self) -> Iterator[str]:
        yield from _size_problems(self.sample_shape, blocks=1)


def _size_problems(sample_shape: tuple[int, ...], blocks: int) -> Iterator[str]:
    """Yield a line for a size that no network has, before anything of that size is made."""
    if math.prod(sample_shape) > MAX_NUMBERS:
        shape = " x ".join(map(_short, sample_shape))
        yield f"a sample of {shape} numbers is too large; allowed: at most {MAX_NUMBERS:,}"
    if blocks > MAX_BLOCKS:
        yield f"{_short(blocks)} blocks over all levels are too many; allowed: at most {MAX_BLOCKS:,}"


def _short(number: int) -> str:
    """Format a number of any length: Python refuses to write out one of thousands of digits."""
    return f"{number:,}" if abs(number) < 10**15 else f"about 2^{number.bit_length()}"


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
