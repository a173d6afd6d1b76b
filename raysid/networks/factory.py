"""Networks of the user's own: a function returns a module and its noise process.

The function is named `package.module:function` and runs in every process that builds the network. Loading a folder
never runs your code: a folder may name a function, but it is called only if the caller names the same one
(`raysid.networks.build_denoiser`).
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from raysid.config.networks import FactorySettings
from raysid.errors import UserError
from raysid.method.noise import NoiseProcess
from raysid.networks.denoiser import Network

MESSAGE_LENGTH = 300  # characters of an exception's text in an error's one line


class FactoryDenoiser(Network):
    """A denoiser x_hat = D(x_t, t, c) around the user's module, which predicts the clean sample.

    The module is `model`, so the names in the state dict begin with `model.`. It computes in its own precision, or
    within autocast with `precision`; the result is float32 at least. Parameters that it froze stay frozen in the
    learners' copies. If all parameters are frozen, the learners train all of them.
    """

    settings: FactorySettings

    def __init__(self, settings: FactorySettings, model: nn.Module, noise: NoiseProcess) -> None:
        super().__init__()
        self.settings = settings
        self.model = model
        self.noise = noise
        named = dict(self.named_parameters())
        trainable = {name for name, parameter in named.items() if parameter.requires_grad}
        self._learns = trainable or {
            name for name, parameter in named.items() if parameter.is_floating_point()
        }
        self.requires_grad_(True)

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Predict the clean sample, like x_t.

        Args:
            x_t: noised samples (B, *sample_shape).
            t: noise levels (B,), in the noise process's own measure.
            cond: one-hot labels (B, label_dim), a row of zeros for no class; None without classes.

        Raises:
            ValueError: the module does not return a tensor of this shape.
        """
        with self.lowered(x_t.device):
            x_hat = self.model(self.laid_out(x_t), t, cond)
        if not isinstance(x_hat, Tensor) or x_hat.shape != x_t.shape:
            is_tensor = isinstance(x_hat, Tensor)
            given = f"shape {tuple(x_hat.shape)}" if is_tensor else f"a {type(x_hat).__name__}"
            raise ValueError(
                f"{self.settings.factory}'s module returns {given} for x_t of {tuple(x_t.shape)}"
            )
        return x_hat.to(torch.promote_types(x_hat.dtype, torch.float32))

    def predict(
        self, x_t: Tensor, t: Tensor, cond: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """Return the clean sample, which is the module's own prediction; arguments and errors as in `forward`."""
        if augment_labels is not None:
            raise ValueError("a factory's module takes no augmentation labels; EDM's networks do")
        return self(x_t, t, cond)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Act as `nn.Module.requires_grad_`, but parameters that the module froze stay frozen."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(requires_grad and name in self._learns)
        return self


def build_factory(name: str) -> FactoryDenoiser:
    """Call the function `package.module:function` and build a denoiser from its result.

    The module is imported from Python's path, or else from the folder where the process was started.

    Raises:
        UserError: the function cannot be imported or fails, or does not return a module with a
            `sample_shape` and a noise process.
    """
    function = _function(name)
    with user_code(f"factory {name} failed"):
        made = function()
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        kind = type(made).__name__
        if isinstance(made, tuple):
            kind = f"({', '.join(type(part).__name__ for part in made)})"
        raise UserError(
            f"factory {name} returns {kind}; it must return a torch.nn.Module and a noise process"
        )
    model, noise = made
    if missing := [member for member in _MEMBERS if not hasattr(noise, member)]:
        raise UserError(
            f"factory {name} returns a {type(noise).__name__} as its noise process, which has no {missing[0]}: give "
            "raysid.EDMNoise, raysid.DDPMNoise, or an object with all members of raysid.NoiseProcess"
        )
    return FactoryDenoiser(_settings(name, model, noise), model, noise)


def _function(name: str) -> Callable[[], Any]:
    """Import the function of that name."""
    module_name, _, function_name = name.partition(":")
    with suppress(OSError):  # the folder was removed
        # As with `python -m`, but last in the path: a file that happens to lie here hides no installed package.
        if not sys.flags.safe_path and (here := os.getcwd()) not in sys.path:
            sys.path.append(here)
    importlib.invalidate_caches()
    try:
        with user_code(f"factory {name}: {module_name} cannot be imported"):
            module = importlib.import_module(module_name)
    except UserError as error:
        cause = error.__cause__
        missing = cause.name if isinstance(cause, ModuleNotFoundError) else None
        if missing is not None and f"{module_name}.".startswith(f"{missing}."):
            raise UserError(
                f"factory {name}: there is no module {missing}; it must be in the folder where the command is "
                "started, or on PYTHONPATH, on every node"
            ) from None
        raise
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"factory {name}: the module {module_name} has no function {function_name}")
    return function


def _settings(name: str, model: nn.Module, noise: NoiseProcess) -> FactorySettings:
    """Read the settings of a module and its noise process from their attributes."""
    shape = getattr(model, "sample_shape", None)
    if shape is None and hasattr(model, "img_channels") and hasattr(model, "img_resolution"):
        shape = (model.img_channels, model.img_resolution, model.img_resolution)
    if shape is None:
        raise UserError(
            f"factory {name}: its {type(model).__name__} has no attribute sample_shape: give it one, the shape of a "
            "sample, as in (2,) or (3, 32, 32)"
        )
    with user_code(f"factory {name}: {type(noise).__name__}.start_level failed"):
        level = noise.start_level(1.0)
    try:
        return FactorySettings(
            factory=name,
            sample_shape=tuple(shape),
            label_dim=getattr(model, "label_dim", 0),
            discrete_levels=isinstance(level, int),
            default_tmax=noise.default_tmax,
        )
    except (TypeError, ValidationError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        field = str(first["loc"][0]) if first else "sample_shape"
        value = {"default_tmax": noise.default_tmax, "sample_shape": shape}.get(
            field, getattr(model, field, None)
        )
        problem = first["msg"] if first else "a tuple of integers is needed"
        raise UserError(f"factory {name}: {field} is {value!r}: {problem}") from None


@contextmanager
def user_code(what: str) -> Iterator[None]:
    """Turn any error of the user's own code in the block, which may raise anything, into a UserError of one line."""
    try:
        yield
    except (Exception, SystemExit) as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        short = text if len(text) <= MESSAGE_LENGTH else text[:MESSAGE_LENGTH] + "…"
        raise UserError(f"{what}: {short} (RAYSID_DEBUG=1 shows where)") from error


_MEMBERS = sorted(
    name for name in {*vars(NoiseProcess), *NoiseProcess.__annotations__} if not name.startswith("_")
)
