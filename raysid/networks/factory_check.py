"""Checks that a network of the user's own can be distilled, before a run begins."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from raysid.errors import UserError
from raysid.method.noise import DDPMNoise, NoiseProcess
from raysid.networks.factory import FactoryDenoiser, user_code


def check_factory(network: FactoryDenoiser, sigma_init: float, tmax: int | None) -> None:
    """Run a network once on two samples, as the roles do, and check its weights.

    Args:
        sigma_init: the noise level at which the generator runs.
        tmax: the largest time of theta's noise levels; None for the noise process's default.

    Raises:
        UserError: it fails or returns a wrong result, gradients do not flow through it, its noise process fails or
            returns wrong shapes, or its weights cannot be saved or copied.
    """
    settings, noise = network.settings, network.noise
    what = f"factory {settings.factory}"
    if not [*network.parameters()]:
        raise UserError(
            f"{what} makes a module without parameters: the fake score and the generator are copies of it that learn"
        )
    _check_weights(what, network.model)
    with user_code(f"{what} makes a module that copy.deepcopy cannot copy"):
        tried = copy.deepcopy(network).eval()  # state that it keeps of this call must not stay in the teacher
    tmax = noise.default_tmax if tmax is None else tmax
    if isinstance(noise, DDPMNoise) and not noise.tmin < tmax <= len(noise.alphas_cumprod):
        raise UserError(
            f"method.tmax is {tmax}; allowed for {what}: integer above {noise.tmin}, at most "
            f"{len(noise.alphas_cumprod)}"
        )
    with user_code(f"{what}: its noise process {type(noise).__name__} failed"):
        noised = _noised(noise, sigma_init, tmax, settings.sample_shape)
    for x_t, t in noised:
        _check_gradients(what, tried, x_t, t)
    _check_buffers(what, tried, *noised[-1])


def _check_buffers(what: str, network: FactoryDenoiser, x_t: Tensor, t: Tensor) -> None:
    """Check that training does not change buffers: psi has one version a step, on all of its workers."""
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
    """Check that a network runs on noised samples (2, ...), and that its output depends on x_t and on its weights."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    x_t, t, cond = _arguments(network, x_t, t)
    x_t.requires_grad_()
    label = None if cond is None else tuple(cond.shape)
    given = f"x_t {tuple(x_t.shape)}, t {tuple(t.shape)} of {t.dtype}, cond {label}"
    with user_code(f"{what}: its module failed on {given}"):
        x_hat = network(x_t, t, cond)
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
    """x_t (2, ...) without a graph, t, and labels of the first and the last class, on the network's device."""
    device, classes = next(network.parameters()).device, network.settings.label_dim
    ends = torch.tensor([0, classes - 1], device=device)
    cond = nn.functional.one_hot(ends, classes).float() if classes else None
    return x_t.detach().to(device), t.to(device), cond


def _noised(
    noise: NoiseProcess, sigma_init: float, tmax: int, shape: tuple[int, ...]
) -> list[tuple[Tensor, Tensor]]:
    """Noised samples (2, *shape) and their noise levels (2,), from each of the three methods that set levels.

    Raises:
        ValueError: levels, scales, a weight or noised samples have a wrong shape or are not finite.
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
    """Check that a file of tensors can hold the weights: all are tensors, none share memory."""
    names: dict[int, str] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"{what}: {name} of its state_dict is a {type(value).__name__}; only tensors can be saved"
            )
        first = names.setdefault(value.untyped_storage().data_ptr(), name) if value.numel() else name
        if first != name:
            raise UserError(
                f"{what}: {first} and {name} of its state_dict share memory, which a file of tensors cannot store: "
                "give each its own"
            )
