"""Networks of one's own: a module and a noise process that a function of the user's makes.

A function is named `package.module:function` and runs in every process that builds its network. What a folder says
never decides that it runs: its name comes from whoever reads the folder, too (`raysid.networks.build_denoiser`).
"""

from __future__ import annotations

import copy
import importlib
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from raysid.config.networks import FactorySettings, Precision
from raysid.errors import UserError
from raysid.method.noise import DDPMNoise, NoiseProcess
from raysid.networks.precision import laid_out, lowered

MESSAGE_LENGTH = 300  # of what a user's own code says, in an error's one line


class FactoryDenoiser(nn.Module):
    """A denoiser x_hat = D(x_t, t, c) around a module of the user's own, which predicts the clean sample.

    The module is `model`, so the names of the state dict begin with `model.`. It computes as it likes, within autocast
    where `precision` says so; the result is in float32 at least. Parameters that it froze stay frozen in the copies
    that learn; one that is frozen as a whole was made ready to be a teacher, and its copies learn all of it.

    Attributes:
        settings: what the module says of itself.
        noise: the process it was trained with.
        precision: what autocast makes of its layers.
        memory_format: how images lie in memory when they come to the module.
    """

    def __init__(self, settings: FactorySettings, model: nn.Module, noise: NoiseProcess) -> None:
        super().__init__()
        self.settings = settings
        self.model = model
        self.noise = noise
        self.precision: Precision = "float32"
        self.memory_format = torch.contiguous_format
        named = dict(self.named_parameters())
        trainable = {name for name, parameter in named.items() if parameter.requires_grad}
        self._learns = trainable or {
            name for name, parameter in named.items() if parameter.is_floating_point()
        }
        self.requires_grad_(True)

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The prediction of the clean sample, like x_t.

        Args:
            x_t: noised samples (B, *sample_shape).
            t: noise levels (B,), in the noise process's own measure.
            cond: one-hot labels (B, label_dim), a row of zeros for no class; None without classes.

        Raises:
            ValueError: the module returns no tensor of this shape.
        """
        with lowered(self.precision, x_t.device):
            x_hat = self.model(laid_out(x_t, self.memory_format), t, cond)
        if not isinstance(x_hat, Tensor) or x_hat.shape != x_t.shape:
            given = (
                f"shape {tuple(x_hat.shape)}" if isinstance(x_hat, Tensor) else f"a {type(x_hat).__name__}"
            )
            raise ValueError(
                f"{self.settings.factory}'s module returns {given} for x_t of {tuple(x_t.shape)}"
            )
        return x_hat.to(torch.promote_types(x_hat.dtype, torch.float32))

    def predict(
        self, x_t: Tensor, t: Tensor, cond: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """The module's own prediction, which is the clean sample; arguments and errors as `forward`."""
        if augment_labels is not None:
            raise ValueError("a factory's module takes no augmentation labels; EDM's networks do")
        return self(x_t, t, cond)

    def clean(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The prediction itself."""
        return prediction

    def unconditional(self, cond: Tensor) -> Tensor:
        """All-zero labels, like `cond`."""
        return torch.zeros_like(cond)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As any module's, without the parameters that are frozen."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(requires_grad and name in self._learns)
        return self


def build_factory(name: str) -> FactoryDenoiser:
    """Call the function `package.module:function` and take what it makes.

    The module is looked for on Python's path, and then in the folder where the process was started.

    Raises:
        UserError: it cannot be imported, fails, or makes something else than a module that says its `sample_shape`,
            and a noise process.
    """
    function = _function(name)
    try:
        made = function()
    except (Exception, SystemExit) as error:
        raise UserError(_failure(f"factory {name} failed", error)) from error
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        kind = (
            f"({', '.join(type(part).__name__ for part in made)})"
            if isinstance(made, tuple)
            else type(made).__name__
        )
        raise UserError(
            f"factory {name} returns {kind}; it must return a torch.nn.Module and a noise process"
        )
    model, noise = made
    if missing := [member for member in _MEMBERS if not hasattr(noise, member)]:
        raise UserError(
            f"factory {name} returns a {type(noise).__name__} as its noise process, which has no {missing[0]}: give "
            "raysid.EDMNoise, raysid.DDPMNoise, or all that raysid.NoiseProcess has"
        )
    return FactoryDenoiser(_settings(name, model, noise), model, noise)


def check_factory(network: FactoryDenoiser, sigma_init: float, tmax: int | None) -> None:
    """Run a network once on two samples, as the roles will, and look at its weights.

    Args:
        sigma_init: the noise level at which the generator is to run.
        tmax: the largest time of theta's noise levels; None: the noise process's own.

    Raises:
        UserError: it fails, does not return what it should, gradients do not flow through it, its noise process does
            not do what it should, or its weights cannot be kept in a folder or copied.
    """
    settings, noise = network.settings, network.noise
    what = f"factory {settings.factory}"
    if not [*network.parameters()]:
        raise UserError(
            f"{what} makes a module without parameters: the fake score and the generator are copies of it that learn"
        )
    _check_weights(what, network.model)
    try:
        tried = copy.deepcopy(network).eval()  # what it keeps of this call is not the teacher's
    except Exception as error:
        raise UserError(_failure(f"{what} makes a module that copy.deepcopy cannot copy", error)) from error
    tmax = noise.default_tmax if tmax is None else tmax
    if isinstance(noise, DDPMNoise) and not noise.tmin < tmax <= len(noise.alphas_cumprod):
        raise UserError(
            f"method.tmax is {tmax}; allowed for {what}: integer above {noise.tmin}, at most "
            f"{len(noise.alphas_cumprod)}"
        )
    try:
        noised = _noised(noise, sigma_init, tmax, settings.sample_shape)
    except Exception as error:
        name = type(noise).__name__
        raise UserError(_failure(f"{what}: its noise process {name} failed", error)) from error
    for x_t, t in noised:
        _check_gradients(what, tried, x_t, t)
    _check_buffers(what, tried, *noised[-1])


def _check_buffers(what: str, network: FactoryDenoiser, x_t: Tensor, t: Tensor) -> None:
    """Refuse a network whose buffers change as it trains: psi has one version a step, on every worker of it."""
    before = {name: value.clone() for name, value in network.named_buffers()}
    with torch.no_grad():
        network.train()(*_arguments(network, x_t, t))
    after = dict(network.named_buffers())
    changed = before.keys() ^ after.keys() or {
        name for name, value in before.items() if not torch.equal(value, after[name])
    }
    if changed:
        raise UserError(
            f"{what}: its module changes {min(changed)} when it is trained, as batch normalisation does: use a module "
            "without running statistics (group or layer normalisation)"
        )


def _check_gradients(what: str, network: FactoryDenoiser, x_t: Tensor, t: Tensor) -> None:
    """Refuse a network that fails on noised samples (2, ...), or whose output depends on no input or no weight."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    x_t, t, cond = _arguments(network, x_t, t)
    x_t.requires_grad_()
    try:
        x_hat = network(x_t, t, cond)
    except Exception as error:
        label = None if cond is None else tuple(cond.shape)
        given = f"x_t {tuple(x_t.shape)}, t {tuple(t.shape)} of {t.dtype}, cond {label}"
        raise UserError(_failure(f"{what}: its module failed on {given}", error)) from error
    inputs = [x_t, *parameters]
    reached = (
        torch.autograd.grad(x_hat.sum(), inputs, allow_unused=True)
        if x_hat.requires_grad
        else (None,) * len(inputs)
    )
    if reached[0] is None or all(gradient is None for gradient in reached[1:]):
        to = "x_t" if reached[0] is None else "its parameters"
        raise UserError(
            f"{what}: no gradient flows from its module's output to {to}: it must not compute under torch.no_grad, or "
            "detach"
        )


def _arguments(network: FactoryDenoiser, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """x_t (2, ...), t and labels of the first and the last class, where the network is; x_t without a graph."""
    device, classes = next(network.parameters()).device, network.settings.label_dim
    cond = torch.eye(classes, device=device)[[0, -1]] if classes else None
    return x_t.detach().to(device), t.to(device), cond


def _function(name: str) -> Callable[[], Any]:
    """The function of that name."""
    module_name, _, function_name = name.partition(":")
    with suppress(OSError):  # the folder is gone
        # As `python -m` has it, but last: a file that happens to lie here hides nothing that is installed.
        if not sys.flags.safe_path and (here := os.getcwd()) not in sys.path:
            sys.path.append(here)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(
                f"factory {name}: there is no module {error.name}; it must be in the folder where the command is "
                "started, or on PYTHONPATH, on every node"
            ) from None
        raise UserError(_failure(f"factory {name}: {module_name} cannot be imported", error)) from error
    except (Exception, SystemExit) as error:
        raise UserError(_failure(f"factory {name}: {module_name} cannot be imported", error)) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"factory {name}: the module {module_name} has no function {function_name}")
    return function


def _settings(name: str, model: nn.Module, noise: NoiseProcess) -> FactorySettings:
    """What a module and its noise process say of themselves."""
    shape = getattr(model, "sample_shape", None)
    if shape is None and hasattr(model, "img_channels") and hasattr(model, "img_resolution"):
        shape = (model.img_channels, model.img_resolution, model.img_resolution)
    if shape is None:
        raise UserError(
            f"factory {name}: its {type(model).__name__} has no attribute sample_shape: give it one, the shape of a "
            "sample, as in (2,) or (3, 32, 32)"
        )
    try:
        level = noise.start_level(1.0)
    except Exception as error:
        raise UserError(
            _failure(f"factory {name}: {type(noise).__name__}.start_level failed", error)
        ) from error
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
        said = first["msg"] if first else "a tuple of integers is needed"
        raise UserError(f"factory {name}: {field} is {value!r}: {said}") from None


def _noised(
    noise: NoiseProcess, sigma_init: float, tmax: int, shape: tuple[int, ...]
) -> list[tuple[Tensor, Tensor]]:
    """Noised samples (2, *shape) and their noise levels (2,) from the three places that draw them.

    Raises:
        ValueError: levels, scales, a weight or noised samples are of another shape, or not finite.
    """

    def checked(member: str, value: Tensor, wanted: tuple[int, ...] = (2,)) -> Tensor:
        if value.shape != wanted:
            raise ValueError(f"{member} gives shape {tuple(value.shape)}, not {wanted}")
        if not value.isfinite().all():
            raise ValueError(f"{member} gives numbers that are not finite")
        return value

    uniform = torch.tensor([0.0, 0.999])
    draw = torch.tensor([-2.0, 2.0]) if noise.fake_score_draw == "normal" else uniform
    levels = {
        "start_level": torch.full((2,), noise.start_level(sigma_init)),
        "generator_level": noise.generator_level(uniform, tmax),
        "fake_score_level": noise.fake_score_level(draw),
    }
    checked("loss_weight", noise.loss_weight(checked("fake_score_level", levels["fake_score_level"])))
    x, eps = torch.randn(2, 2, *shape, generator=torch.Generator().manual_seed(0))
    noised = []
    for member, t in levels.items():
        for scale in noise.scales(checked(member, t)):
            checked("scales", scale)
        noised.append((checked("add_noise", noise.add_noise(x, t, eps), tuple(x.shape)), t))
    return noised


def _check_weights(what: str, model: nn.Module) -> None:
    """Refuse weights that a file of tensors cannot hold."""
    names: dict[int, str] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"{what}: {name} of its state_dict is a {type(value).__name__}; only tensors can be kept"
            )
        first = names.setdefault(value.untyped_storage().data_ptr(), name) if value.numel() else name
        if first != name:
            raise UserError(
                f"{what}: {first} and {name} of its state_dict share their memory, which a file of tensors cannot say: "
                "give each its own"
            )


def _failure(what: str, error: BaseException) -> str:
    """What failed, and how, in one line."""
    said = " ".join(f"{type(error).__name__}: {error}".split())
    short = said if len(said) <= MESSAGE_LENGTH else said[:MESSAGE_LENGTH] + "…"
    return f"{what}: {short} (RAYSID_DEBUG=1 shows where)"


_MEMBERS = sorted(
    name for name in {*vars(NoiseProcess), *NoiseProcess.__annotations__} if not name.startswith("_")
)
