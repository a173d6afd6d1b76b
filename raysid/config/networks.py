"""Settings of EDM's U-Nets, under the names EDM's own constructors and checkpoints use, and of other networks.

Source of the former: arXiv 2206.00364 (EDM), Table 1 (preconditioning) and Appendix F (network configurations).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

Precision = Literal["float32", "bf16", "fp16"]

# `method.tmax` where a run gives none, by the network's noise process.
EDM_TMAX, DDPM_TMAX = 800, 980

# Only SongUNet (DDPM++ and NCSN++) has these; ADM has one fixed choice for each.
_SONG_ONLY = ("embedding_type", "encoder_type", "decoder_type", "channel_mult_noise", "resample_filter")


class NetworkSettings(BaseModel):
    """Architecture and preconditioning of one EDM denoiser.

    DDPM++ is `SongUNet` as it stands. NCSN++ is `SongUNet` with `embedding_type="fourier"`,
    `encoder_type="residual"`, `channel_mult_noise=2` and `resample_filter=[1, 3, 3, 1]`. ADM is
    `DhariwalUNet`, which has none of `embedding_type`, `encoder_type`, `decoder_type`,
    `channel_mult_noise`, `resample_filter`: setting one of them to anything but its default is an error.

    Lists are stored as tuples, so that settings are immutable and hashable.

    Raises:
        pydantic.ValidationError: a name is unknown, a value is out of range, the resolution cannot be
            halved once per level, or ADM is given a setting it does not have.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    img_resolution: PositiveInt = Field(
        description="Height and width of the images in pixels, at least 1; divisible by 2 for every level "
        "after the first."
    )
    img_channels: PositiveInt = Field(description="Colour (or latent) channels of the images, at least 1.")
    label_dim: int = Field(
        default=0, ge=0, description="Number of class labels, 0 or more; 0 is unconditional."
    )
    model_type: Literal["SongUNet", "DhariwalUNet"] = Field(
        default="SongUNet", description="U-Net family: SongUNet is DDPM++ and NCSN++, DhariwalUNet is ADM."
    )
    embedding_type: Literal["positional", "fourier"] = Field(
        default="positional", description="Noise-level embedding: positional for DDPM++, fourier for NCSN++."
    )
    encoder_type: Literal["standard", "skip", "residual"] = Field(
        default="standard",
        description="How the encoder sees the downsampled input again: standard (it does not) for DDPM++, "
        "residual for NCSN++.",
    )
    decoder_type: Literal["standard", "skip"] = Field(
        default="standard",
        description="Where the output is formed: standard at full resolution, skip as a sum over all levels.",
    )
    channel_mult_noise: PositiveInt = Field(
        default=1,
        description="Width of the noise-level embedding in units of model_channels, at least 1: "
        "1 for DDPM++, 2 for NCSN++.",
    )
    resample_filter: Annotated[tuple[float, ...], Field(min_length=2)] = Field(
        default=(1, 1),
        description="Taps of the separable up- and downsampling filter, an even number of them with a sum "
        "other than 0; they are normalised. [1, 1] for DDPM++, [1, 3, 3, 1] for NCSN++.",
    )
    model_channels: PositiveInt = Field(
        default=128,
        description="Base number of channels, at least 4; levels multiply it by channel_mult.",
        ge=4,
    )
    channel_mult: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = Field(
        default=(1, 2, 2, 2),
        description="Channels of every level in units of model_channels, finest first, each at least 1.",
    )
    channel_mult_emb: PositiveInt = Field(
        default=4, description="Width of the conditioning vector in units of model_channels, at least 1."
    )
    num_blocks: PositiveInt = Field(
        default=4,
        description="Residual blocks per level in the encoder, at least 1; the decoder has one more.",
    )
    attn_resolutions: tuple[PositiveInt, ...] = Field(
        default=(16,), description="Resolutions in pixels whose blocks have self-attention; may be empty."
    )
    dropout: float = Field(
        default=0.10,
        ge=0,
        lt=1,
        description="Probability, in [0, 1), of zeroing an activation inside a block in train mode.",
    )
    label_dropout: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Probability, in [0, 1], of zeroing a sample's whole label in train mode.",
    )
    augment_dim: int = Field(
        default=0,
        ge=0,
        description="Width of the augmentation label, 0 or more (9 in EDM's pipeline); 0 is none.",
    )
    sigma_data: PositiveFloat = Field(
        default=0.5, description="Standard deviation of the data, in pixel units ([-1, 1] images), above 0."
    )
    sigma_min: float = Field(
        default=0.0, ge=0, description="Lowest noise level supported, in pixel units, at least 0."
    )
    sigma_max: PositiveFloat | None = Field(
        default=None, description="Highest noise level supported, in pixel units, above 0; null is unbounded."
    )

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(C, H, W) of the images."""
        return self.img_channels, self.img_resolution, self.img_resolution

    @property
    def discrete_levels(self) -> bool:
        """Whether noise levels are steps' numbers."""
        return False

    @property
    def default_tmax(self) -> int:
        """The `method.tmax` of a run that gives none."""
        return EDM_TMAX

    @model_validator(mode="after")
    def _settings_fit_together(self) -> NetworkSettings:
        halvings = len(self.channel_mult) - 1
        if self.img_resolution % 2**halvings:
            raise ValueError(
                f"img_resolution {self.img_resolution} cannot be halved {halvings} times, "
                f"as channel_mult with {halvings + 1} levels asks"
            )
        if len(self.resample_filter) % 2 or sum(self.resample_filter) == 0:
            raise ValueError("resample_filter must have an even number of taps and a sum other than 0")
        if self.sigma_max is not None and self.sigma_max < self.sigma_min:
            raise ValueError(f"sigma_max {self.sigma_max} is below sigma_min {self.sigma_min}")
        if self.model_type == "DhariwalUNet":
            # Compared with the defaults, not with the names given, so that a dumped model loads again.
            fields = type(self).model_fields
            foreign = [name for name in _SONG_ONLY if getattr(self, name) != fields[name].default]
            if foreign:
                raise ValueError(f"DhariwalUNet has no setting {', '.join(foreign)}")
        for channels in sorted(self._normalised_channels()):
            if channels % (groups := normalisation_groups(channels)):
                raise ValueError(
                    f"model_channels {self.model_channels} with channel_mult {list(self.channel_mult)} makes layers of "
                    f"{channels} channels, which do not divide into the {groups} groups of their normalisation; "
                    "multiples of 32 do"
                )
        return self

    def _normalised_channels(self) -> set[int]:
        """The channels of all feature maps that are normalised; a decoder's blocks have theirs beside an encoder's."""
        widths = [self.model_channels * mult for mult in self.channel_mult]
        blocks = min(self.num_blocks, 2)  # the others are as the second
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
    """Groups of a group normalisation in EDM's U-Nets: 32, or fewer where a group would have under 4 channels."""
    return max(1, min(32, channels // 4))


class ScheduleSettings(BaseModel):
    """What a network of diffusers was trained with, as its scheduler's config names it; not how to sample."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    beta_schedule: str = Field("linear", description="How the betas rise, by diffusers' name for it.")
    beta_start: PositiveFloat = Field(0.0001, description="The first beta.")
    beta_end: PositiveFloat = Field(0.02, description="The last beta.")
    trained_betas: tuple[float, ...] | None = Field(None, description="All betas, instead of these three.")
    num_train_timesteps: int = Field(1000, ge=980, le=100_000, description="Steps of the noise process.")
    rescale_betas_zero_snr: bool = Field(False, description="The last step is noise alone.")
    prediction_type: Literal["epsilon", "v_prediction"] = Field(
        "epsilon", description="What the network predicts."
    )


class DiffusersSettings(BaseModel):
    """One U-Net of diffusers with its noise process; what it has in common with EDM's goes by EDM's names.

    Raises:
        pydantic.ValidationError: a name is unknown, or the U-Net does not say for which images and classes it is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    unet: dict[str, Any] = Field(description="The settings of its UNet2DModel, by diffusers' names.")
    scheduler: ScheduleSettings
    null_class: bool = Field(False, description='The last class stands for "no class".')

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(C, H, W) of the images."""
        size = self.unet.get("sample_size")
        resolution = size if isinstance(size, int) else size[0]  # type: ignore[index]
        return self.unet.get("in_channels", 3), resolution, resolution

    @property
    def discrete_levels(self) -> bool:
        """Whether noise levels are steps' numbers."""
        return True

    @property
    def default_tmax(self) -> int:
        """The `method.tmax` of a run that gives none."""
        return DDPM_TMAX

    @property
    def label_dim(self) -> int:
        """Classes, without the one for "no class"; 0 is unconditional."""
        return (self.unet.get("num_class_embeds") or 0) - self.null_class

    @property
    def augment_dim(self) -> int:
        return 0

    @property
    def dropout(self) -> float:
        return self.unet.get("dropout", 0.0)

    @model_validator(mode="after")
    def _check(self) -> DiffusersSettings:
        size = self.unet.get("sample_size")
        height, width = size if isinstance(size, list | tuple) and len(size) == 2 else (size, size)
        if not (_is_count(height) and height == width):
            raise ValueError(f"unet.sample_size is {size!r}; allowed: the images' one height and width")
        channels = self.unet.get("in_channels", 3)
        if not _is_count(channels):
            raise ValueError(f"unet.in_channels is {channels!r}; allowed: integer above 0")
        classes = self.unet.get("num_class_embeds")
        if classes is not None and not _is_count(classes):
            raise ValueError(f"unet.num_class_embeds is {classes!r}; allowed: null, integer above 0")
        if self.null_class and (classes or 0) < 2:
            raise ValueError("null_class is for a network with classes")
        return self


def _check_name(name: str) -> str:
    module, _, function = name.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), function]):
        raise ValueError(
            f"{name!r} does not name a function; allowed: package.module:function, as in points:make"
        )
    return name


FactoryName = Annotated[str, AfterValidator(_check_name)]
"""`package.module:function`."""


class FactorySettings(BaseModel):
    """A network of the user's own: the function that makes it, and what it says of itself.

    Nothing here lets the function be called: whoever has the network built must name it, too.

    Raises:
        pydantic.ValidationError: a name is unknown, or a value is out of range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    factory: FactoryName = Field(description="The function that makes it, as `package.module:function`.")
    sample_shape: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = Field(
        description="Shape of a sample, as in [2] for points and [3, 32, 32] for images."
    )
    label_dim: int = Field(0, ge=0, description="Number of class labels, 0 or more; 0 is unconditional.")
    discrete_levels: bool = Field(False, description="Noise levels are steps' numbers, not real numbers.")
    default_tmax: int = Field(gt=0, le=1000, description="The `method.tmax` of a run that gives none.")

    @property
    def augment_dim(self) -> int:
        return 0


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
