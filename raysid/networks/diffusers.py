"""U-Nets of diffusers as denoisers, and its schedulers as noise processes.

The package diffusers is an extra (`raysid[diffusers]`): it is imported on use, not with this module.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from raysid.config.method import NoiseSteps
from raysid.config.networks import DiffusersSettings
from raysid.errors import UserError
from raysid.method.noise import DDPMNoise
from raysid.method.predictions import PredictionType, clean_image
from raysid.networks.denoiser import Network


class DiffusersDenoiser(Network):
    """A denoiser x_hat = D(x_t, t, c) around a diffusers U-Net that predicts epsilon or v.

    The U-Net is `model`. It computes in the precision of its weights, or in half precision with `precision` or within
    autocast; everything around it is float32, or float64 if x_t is.

    Conditions are text embeddings (B, tokens, width) for a `UNet2DConditionModel`, and one-hot labels
    (B, label_dim) for a `UNet2DModel` with classes, where a row of zeros means "no class". A `UNet2DModel`
    without classes ignores them.

    Args:
        model: `UNet2DModel` or `UNet2DConditionModel`.
        noise: the process it was trained with.
        prediction_type: epsilon or v_prediction.
        null_text: the embeddings of the empty prompt, (tokens, width), or of one for each sample (B,
            tokens, width); None if no unconditional prediction is needed.
        null_class: the network's last class stands for "no class".

    Attributes:
        label_dim: number of classes, without the one for "no class"; 0 for a network without classes.
        settings: set by `build_diffusers` only.

    Raises:
        UserError: the U-Net needs inputs that a denoiser does not get, or predicts something else.
        ValueError: `null_text` or `null_class` for a network that cannot use it.
    """

    noise: DDPMNoise
    model: Any  # diffusers' classes are empty placeholders to type checkers
    null_text: Tensor | None
    settings: DiffusersSettings

    def __init__(
        self,
        model: nn.Module,
        noise: DDPMNoise,
        prediction_type: PredictionType,
        null_text: Tensor | None = None,
        null_class: bool = False,
    ) -> None:
        super().__init__()
        _check_model(model)
        self.takes_text = isinstance(model, diffusers_package().UNet2DConditionModel)
        self.model = model
        classes = 0 if self.takes_text else self.model.config.num_class_embeds or 0
        if null_text is not None and not self.takes_text:
            raise ValueError("null_text is for a network that takes text embeddings")
        if null_class and classes < 2:
            raise ValueError("null_class is for a network with classes")
        self.noise = noise
        self.prediction_type = prediction_type
        self.null_class = null_class
        self.label_dim = classes - null_class
        # Not a weight: every build of the network sets it anew, so no checkpoint has to hold it.
        self.register_buffer("null_text", null_text, persistent=False)

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Predict the clean image, like x_t; arguments and errors as in `predict`."""
        return self.clean(self.predict(x_t, t, cond), x_t, t)

    def predict(
        self, x_t: Tensor, t: Tensor, cond: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """Predict epsilon or v, like x_t but in float32 at least.

        Args:
            x_t: noised images or latents (B, C, H, W).
            t: steps of the noise process, int64 (B,).
            cond: text embeddings or one-hot labels; None is the unconditional prediction.

        Raises:
            ValueError: `cond` has a wrong shape, the prediction is unconditional and the network has no condition for
                that, or augmentation labels are given.
        """
        if augment_labels is not None:
            raise ValueError("a network of diffusers takes no augmentation labels; EDM's networks do")
        given: dict[str, Tensor] = {}
        if self.takes_text:
            given["encoder_hidden_states"] = self._text(cond, len(x_t)).to(self.model.dtype)
        elif self.label_dim:
            given["class_labels"] = self._classes(cond, x_t)
        images = self.laid_out(x_t.to(self.model.dtype))
        with self.lowered(x_t.device):
            output = self.model(images, t, **given, return_dict=False)[0]
        return output.to(_at_least_float32(x_t))

    def clean(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the clean image of a prediction at x_t, all (B, C, H, W), in float32 at least."""
        a_t, s_t = self.noise.scales(t)
        return clean_image(self.prediction_type, prediction, x_t.to(_at_least_float32(x_t)), a_t, s_t)

    def use_steps(self, steps: NoiseSteps | None) -> None:
        """Set tau, tmin and tmax of the noise process, those of them that are given.

        Raises:
            ValueError: the schedule has no such steps.
        """
        if steps is not None:
            self.noise = replace(self.noise, **steps.model_dump(exclude_none=True))

    def unconditional(self, cond: Tensor) -> Tensor:
        """Return zero labels or the empty prompt's embeddings, of the shape of `cond`.

        Raises:
            ValueError: the network takes text, and `null_text` is missing or of another shape.
        """
        if not self.takes_text:
            return super().unconditional(cond)
        null_text = self._text(None, len(cond)).to(cond)
        if null_text.shape != cond.shape:
            raise ValueError(f"null_text has shape {tuple(null_text.shape)}, cond {tuple(cond.shape)}")
        return null_text

    def _text(self, cond: Tensor | None, batch: int) -> Tensor:
        """Return the text embeddings (B, tokens, width): `cond`, or the empty prompt's."""
        if cond is None:
            if self.null_text is None:
                raise ValueError("an unconditional prediction needs null_text, the empty prompt's embeddings")
            cond = self.null_text if self.null_text.ndim == 3 else self.null_text.expand(batch, -1, -1)
        if cond.ndim != 3 or len(cond) != batch:
            raise ValueError(
                f"text embeddings must have shape ({batch}, tokens, width), not {tuple(cond.shape)}"
            )
        return cond

    def _classes(self, cond: Tensor | None, x_t: Tensor) -> Tensor:
        """Return the class indices (B,) of one-hot labels; the last class where the label is all zeros."""
        shape = (len(x_t), self.label_dim)
        if cond is None:
            cond = x_t.new_zeros(shape)
        if cond.shape != shape:
            raise ValueError(f"cond must have shape {shape}, not {tuple(cond.shape)}")
        known = cond.any(1)
        if self.null_class:
            return torch.where(known, cond.argmax(1), self.label_dim)
        if not known.all():
            raise ValueError('this network has no class for "no class": it cannot predict unconditionally')
        return cond.argmax(1)


def read_scheduler(config: Mapping[str, Any]) -> tuple[DDPMNoise, PredictionType]:
    """Read the noise process and the prediction type of a network from its diffusers scheduler's config.

    It takes only the training schedule, computed as in diffusers' `DDPMScheduler`, so the config may be that of any
    scheduler with discrete steps (`scheduler_config.json` of a Stable Diffusion model). The process's tau, tmin and
    tmax are those of `DDPMNoise.nearest`.

    Raises:
        UserError: diffusers is not installed, or the config describes something else.
    """
    if "beta_schedule" not in config and config.get("trained_betas") is None:
        # diffusers would fill in its default betas, even for the config of a flow model
        raise UserError("this scheduler config has no beta_schedule: it is not one with discrete DDPM steps")
    try:
        scheduler = diffusers_package().DDPMScheduler.from_config(dict(config))
        noise = DDPMNoise.nearest(scheduler.alphas_cumprod)
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]  # torch appends lists of signatures
        raise UserError(f"this scheduler config describes no noise schedule: {reason}") from None
    kind = scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise UserError(f"a network that predicts {kind!r} cannot be used: only epsilon and v_prediction can")
    return noise, kind


def build_diffusers(settings: DiffusersSettings) -> DiffusersDenoiser:
    """Build the denoiser that settings describe, in train mode, on torch's default device.

    Raises:
        UserError: diffusers is not installed, or has no such U-Net or schedule.
    """
    with torch.device("cpu"):  # the schedule is checked: it needs values even if the network is on meta
        noise, prediction_type = read_scheduler(settings.scheduler.model_dump())
    package = diffusers_package()
    try:
        model = getattr(package, settings.unet_class)(**settings.unet)
    except Exception as error:  # the constructor does not document what it raises
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"diffusers cannot build a {settings.unet_class} with these settings: {reason}"
        ) from None
    network = DiffusersDenoiser(model, noise, prediction_type, null_class=settings.null_class)
    network.settings = settings
    return network


def unet_parameters(unet_class: str) -> Collection[str]:
    """Return the names of the settings of a U-Net's class in diffusers. Raises UserError without the package."""
    parameters = inspect.signature(getattr(diffusers_package(), unet_class).__init__).parameters
    return parameters.keys() - {"self"}


def diffusers_package() -> ModuleType:
    """Import the package diffusers. Raises UserError if that fails."""
    try:
        import diffusers
    except ImportError as error:
        raise UserError(f"models of diffusers need that package ({error}): pip install diffusers") from None
    return diffusers


def _check_model(model: Any) -> None:
    """Check that a model takes only x_t, t and one condition, and predicts epsilon or v. Raises UserError."""
    package = diffusers_package()
    if not isinstance(model, (package.UNet2DModel, package.UNet2DConditionModel)):
        raise UserError(
            f"a {type(model).__name__} cannot be used: only diffusers' UNet2DModel and UNet2DConditionModel can"
        )
    config = model.config
    if config.in_channels != config.out_channels:
        raise UserError(
            f"a U-Net with {config.in_channels} channels in and {config.out_channels} out cannot be used: "
            "they must be the same (no learned variance, no inpainting mask)"
        )
    allowed: dict[str, tuple[Any, ...]] = {"class_embed_type": (None,)}
    if isinstance(model, package.UNet2DConditionModel):
        allowed["num_class_embeds"] = (None,)
        allowed["addition_embed_type"] = (None,)
        allowed["encoder_hid_dim_type"] = (None, "text_proj")
    else:
        allowed["time_embedding_type"] = ("positional", "learned")  # "fourier" is for continuous noise levels
    for name, values in allowed.items():
        if config[name] not in values:
            raise UserError(
                f"a U-Net with {name} {config[name]!r} cannot be used: raysid has no input for it"
            )


def _at_least_float32(images: Tensor) -> torch.dtype:
    return torch.promote_types(images.dtype, torch.float32)
