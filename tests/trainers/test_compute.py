"""`compute`: settings for speed and memory change results by rounding at most, in every role."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from raysid.actors.local import LocalPlacement
from raysid.actors.split import SplitPlacement
from raysid.config import ComputeSettings, Config, TeacherCompute
from raysid.errors import UserError
from raysid.method.guidance import guided
from raysid.networks import EDMDenoiser, NetworkSettings
from raysid.networks.denoiser import Network
from raysid.networks.diffusers import DiffusersDenoiser, read_scheduler
from raysid.networks.factory import FactoryDenoiser, build_factory
from raysid.networks.files import load_network
from raysid.roles.build import build_conditions, build_fake_score, build_generator, build_teacher
from raysid.roles.compute import equip, set_tf32
from raysid.roles.messages import Conditions, Cotangent, Noised, Slice
from raysid.trainers.teachers import find_teacher
from tests.support import points
from tests.support.tiny_networks import save_teacher
from tests.support.tiny_run import (
    NETWORK,
    Weights,
    assert_same,
    inputs_for,
    local_end,
    placement_end,
    save_whole,
    take_steps,
    tiny_config,
    write_recipe,
)

SLOW = pytest.mark.slow
COMPILING = pytest.mark.timeout(1800)  # on a busy machine
STEPS = 3
CHECKPOINTED = {"compute__activation_checkpointing": True}
LAID_OUT = {"compute__channels_last": True}
COMPILED = {"compute__compile": True}
WITHOUT_DROPOUT = {"generator__dropout": 0.0, "fake_score__dropout": 0.0}
AT = Slice(0, 0, 8)
UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": (8,),
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "down_block_types": ("AttnDownBlock2D",),
    "up_block_types": ("AttnUpBlock2D",),
}
SMALLEST: dict[str, Any] = {
    "model_channels": 4,
    "channel_mult": (1,),
    "attn_resolutions": (),
}  # compiled in seconds


def network(kind: str, dropout: float = 0.0, **changes: Any) -> Network:
    """A small network with attention and no zero parameters; the same weights at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        made: Network
        if kind == "diffusers":
            noise, prediction = read_scheduler({"beta_schedule": "linear"})
            made = DiffusersDenoiser(UNet2DModel(**UNET, dropout=dropout), noise, prediction)
        else:
            settings = NETWORK.model_dump() | {"model_type": kind, "dropout": dropout} | changes
            made = EDMDenoiser(NetworkSettings.model_validate(settings))
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return made


KINDS = ["SongUNet", "DhariwalUNet", "diffusers"]
all_kinds = pytest.mark.parametrize("kind", KINDS)


def batch(made: Network, seed: int = 0) -> tuple[Tensor, Tensor, Tensor | None]:
    source = torch.Generator().manual_seed(seed)
    x_t = torch.randn(8, 1, 8, 8, generator=source)
    if isinstance(made, DiffusersDenoiser):
        return x_t, torch.randint(20, 980, (8,), generator=source), None
    return x_t, 0.1 + torch.rand(8, generator=source), torch.eye(10)[:8]


def pulls(made: Network) -> list[Tensor]:
    """A scorer's predictions, logits and pulls of two microbatches in flight."""
    made.eval().requires_grad_(False)
    with_logits = isinstance(made, EDMDenoiser)
    scored = []
    for seed in (1, 2):
        x_t, t, cond = batch(made, seed)
        x_t.requires_grad_()
        scored.append((x_t, [o for o in guided(made, x_t, t, cond, 2.0, with_logits) if o is not None]))
    found = [output.detach() for _, outputs in scored for output in outputs]
    for x_t, outputs in scored:
        found += torch.autograd.grad(outputs, x_t, [output.detach() for output in outputs])
    return found


def gradients(made: Network) -> list[Tensor]:
    """A learner's gradients of the weights after two microbatches, with scoring in between."""
    for seed in (3, 4):
        made.train().requires_grad_(True)
        x_t, t, cond = batch(made, seed)
        torch.manual_seed(seed)
        x_hat, logits = guided(made, x_t, t, cond, 1.5, with_logits=isinstance(made, EDMDenoiser))
        loss = x_hat.square().mean()
        if logits is not None:
            assert isinstance(made, EDMDenoiser)
            loss = loss + nn.functional.softplus(logits).mean() + made.encode(x_t, t, cond).square().mean()
        loss.backward()
        pulls(made)
    return [parameter.grad for parameter in made.parameters() if parameter.grad is not None]


def equipped(made: Network, **compute: bool) -> Network:
    equip(made, ComputeSettings(**compute), "cpu")
    return made


# -- activation checkpointing ------------------------------------------------------------------------------


@all_kinds
def test_checkpointed_networks_give_the_same_bits(kind: str) -> None:
    plain, checkpointed = (network(kind, dropout=0.3) for _ in range(2))
    equipped(checkpointed, activation_checkpointing=True)
    for of in (pulls, gradients):
        for ours, theirs in zip(of(checkpointed), of(plain), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("schedule", ["overlapped", "alternating"])
def test_a_checkpointed_run_gives_the_same_bits(teacher: str, tmp_path: Path, schedule: str) -> None:
    """SiDA with dropout and two microbatches in flight, one of them recomputed because its graph was evicted."""
    changes = {"microbatches_in_flight": 2, "teacher__graphs_kept": 1, "schedule": schedule}
    plain = tiny_config(teacher, tmp_path, **changes)
    checkpointed = tiny_config(teacher, tmp_path, **changes, **CHECKPOINTED)
    ends = [local_end(config, tmp_path / str(i), STEPS) for i, config in enumerate((plain, checkpointed))]
    assert_same(ends[1][0], ends[0][0])
    assert ends[1][1] == ends[0][1]


def test_mode_changes_in_between_do_not_affect_a_kept_graph(teacher: str, tmp_path: Path) -> None:
    """Recomputation uses the mode (train or eval) of the first computation."""
    found = []
    for changes in ({}, CHECKPOINTED):
        inputs, source = inputs_for(tiny_config(teacher, tmp_path, **changes))
        assert source is not None
        generator, psi = build_generator(inputs), build_fake_score(inputs, source)
        at, other = (Slice(1, start, 16) for start in (0, 16))
        cond, others = (build_conditions(inputs).of(each, "generator") for each in (at, other))
        noised, _ = generator.generate(at, cond)
        prediction = psi.score(at, noised, cond)
        assert prediction.logits is not None
        psi.accumulate(other, generator.images(other, others), others)
        x_g = generator.pending[at].x_g
        generator.pending[at].direct, generator.pending[at].sums = x_g.detach(), {"teacher_recomputes": 0}
        pull = psi.pullback(at, noised, Cotangent(prediction.x_hat, prediction.logits))
        generator.images(other, others)
        generator.accumulate(at, pull, pull)
        found.append([pull.x_t, *(p.grad for p in generator.network.parameters())])
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)


def kept_bytes(teacher: str, folder: Path, **changes: Any) -> int:
    """The bytes that a scorer keeps of a scored microbatch, without its weights."""
    scorer = build_teacher(teacher, tiny_config(teacher, folder, **changes))
    weights = {parameter.untyped_storage().data_ptr() for parameter in scorer.network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x_t, t, cond = batch(scorer.network)
    labels = Conditions({} if cond is None else {"labels": cond.argmax(1)})
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scorer.score(Noised(AT, x_t, t), labels)
    assert scorer.kept == [AT]
    assert all(p.grad is None and not p.requires_grad for p in scorer.network.parameters())
    return sum(kept.values())


def test_a_checkpointed_scorer_keeps_a_third(teacher: str, tmp_path: Path) -> None:
    """A scorer holds its weights and the kept graphs, but no optimizer and no gradients of weights."""
    plain = kept_bytes(teacher, tmp_path)
    assert 0 < kept_bytes(teacher, tmp_path, **CHECKPOINTED) < plain / 3
    assert kept_bytes(teacher, tmp_path, teacher__compute__activation_checkpointing=True) < plain / 3


def test_a_users_module_must_support_checkpointing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = CHECKPOINTED | {
        "teacher__factory": "tests.support.points:make",
        "teacher__path": None,
        "data__source": None,
        "method__adversarial": None,
        "generator__dropout": None,
        "fake_score__dropout": None,
    }
    config = tiny_config("", tmp_path, **changes)
    with pytest.raises(
        UserError, match="tests.support.points:make: its Points has no method enable_gradient_checkpointing"
    ):
        find_teacher(config, None)

    asked: list[nn.Module] = []

    def enable(self: nn.Module) -> None:
        asked.append(self)

    monkeypatch.setattr(points.Points, "enable_gradient_checkpointing", enable, raising=False)
    made = build_factory("tests.support.points:make")
    assert isinstance(made, FactoryDenoiser)
    equipped(made, activation_checkpointing=True)
    assert asked == [made.model]


# -- memory format, optimizer, average ---------------------------------------------------------------------


@all_kinds
def test_channels_last_is_the_same_up_to_rounding(kind: str) -> None:
    plain, laid_out = network(kind), equipped(network(kind), channels_last=True)
    formats = {
        p.is_contiguous(memory_format=torch.channels_last) for p in laid_out.parameters() if p.ndim == 4
    }
    assert formats == {True}
    for of in (pulls, gradients):
        for ours, theirs in zip(of(laid_out), of(plain), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (LAID_OUT, {}),
        pytest.param({}, LAID_OUT, marks=SLOW),
        pytest.param({"compute__fused_optimizer": False}, {}, marks=SLOW),
        ({}, {"compute__fused_optimizer": False, "compute__foreach_ema": False}),
    ],
    ids=["channels last to contiguous", "contiguous to channels last", "to fused", "from fused"],
)
def test_a_run_resumes_with_other_options(
    teacher: str, tmp_path: Path, first: dict[str, bool], then: dict[str, bool]
) -> None:
    """Checkpoints are interchangeable: weights, Adam's moments and the average mean the same either way."""
    settings = {**WITHOUT_DROPOUT, "generator__betas": [0.5, 0.9], "fake_score__betas": [0.5, 0.9]}
    plain = tiny_config(teacher, tmp_path, **settings)
    start, _ = local_end(plain, tmp_path / "start", 0)
    whole, _ = local_end(plain, tmp_path / "whole", 6)
    local_end(tiny_config(teacher, tmp_path, **settings, **first), tmp_path / "first", 3)
    config = tiny_config(teacher, tmp_path, **settings, **then)
    placement = LocalPlacement(*inputs_for(config, str(tmp_path / "first")), threads=1)
    take_steps(placement, config, 3, 6)
    (group,) = placement.generator.optimizer.adam.param_groups
    assert bool(group["fused"]) == config.compute.fused_optimizer
    placement.export(str(tmp_path / "product"), {}).result()
    then_weights, _ = placement_end(placement, config, tmp_path / "then", 0)
    assert_near(start, then_weights, whole)
    ema = load_network(tmp_path / "product", "generator")[1].state_dict()
    assert_same(ema, {name: then_weights[f"generator.ema.{name}"] for name in ema})


def assert_near(start: Weights, ours: Weights, theirs: Weights) -> None:
    """For each learner the difference of two results is under 2% of the change since the start."""
    for learner in ("generator.network.", "generator.ema.", "fake_score.network."):
        names = [name for name in theirs if name.startswith(learner)]
        change, error = (
            torch.cat([(there[name] - theirs[name]).flatten() for name in names]).norm()
            for there in (start, ours)
        )
        assert change > 0 and error < 0.02 * change, f"{learner} {error / change:.1%}"


def test_the_averages_two_ways_are_the_same_bits(teacher: str, tmp_path: Path) -> None:
    ends = [
        local_end(
            tiny_config(teacher, tmp_path, compute__foreach_ema=foreach), tmp_path / str(foreach), STEPS
        )[0]
        for foreach in (True, False)
    ]
    assert_same(*ends)


@SLOW
@pytest.mark.parametrize("changes", [LAID_OUT, CHECKPOINTED], ids=["channels last", "checkpointed"])
def test_actors_give_the_results_of_one_process(
    ray_cluster: None, teacher: str, tmp_path: Path, changes: dict[str, bool]
) -> None:
    check_local_and_split(tiny_config(teacher, tmp_path, **changes), tmp_path)


def check_local_and_split(config: Config, folder: Path) -> None:
    local, figures = local_end(config, folder / "local", STEPS)
    inputs, source = inputs_for(config)
    split, split_figures = placement_end(SplitPlacement(inputs, source, 1), config, folder / "split", STEPS)
    assert_same(split, local)
    assert split_figures == figures


# -- TF32, and the teacher's own options -------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_set_for_every_role(teacher: str, tmp_path: Path, allowed: bool) -> None:
    config = tiny_config(teacher, tmp_path, compute__tf32=allowed)
    try:
        set_tf32(not allowed)
        build_teacher(teacher, config)
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == allowed
    finally:
        set_tf32(False)


def test_the_teachers_options_are_its_own(teacher: str, tmp_path: Path) -> None:
    config = tiny_config(teacher, tmp_path, **LAID_OUT, **CHECKPOINTED, teacher__compute__channels_last=False)
    assert config.teacher_compute == ComputeSettings(activation_checkpointing=True)
    assert config.teacher.compute == TeacherCompute(channels_last=False)
    inputs, _ = inputs_for(config)
    formats = [
        role.network.memory_format
        for role in (build_teacher(teacher, config), build_fake_score(inputs, None))
    ]
    assert formats == [torch.contiguous_format, torch.channels_last]


# -- torch.compile -----------------------------------------------------------------------------------------


@SLOW
@COMPILING
def test_a_run_without_a_compiler_is_refused(teacher: str, tmp_path: Path) -> None:
    recipe = write_recipe(
        tiny_config(teacher, tmp_path, placement="local", **COMPILED), tmp_path / "recipe.yaml"
    )
    environment = {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "raysid", "distill", str(recipe)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 2
    loading, line = done.stderr.splitlines()
    assert loading == f"raysid distill {recipe}: loading torch and Ray"
    assert line.startswith("raysid: error: compute.compile needs a C++ compiler")
    assert line.endswith("install them, or give compute.compile false")


@SLOW
@COMPILING
@pytest.mark.parametrize(
    ("kind", "checkpointed"),
    [*((kind, False) for kind in KINDS), ("SongUNet", True)],
)
def test_compiled_networks_give_the_same_up_to_rounding(kind: str, checkpointed: bool) -> None:
    """Pulls and gradients with two microbatches in flight, each network in all its modes."""
    plain = network(kind, **SMALLEST)
    compiled = equipped(network(kind, **SMALLEST), compile=True, activation_checkpointing=checkpointed)
    assert_same(compiled.state_dict(), plain.state_dict())
    for of in (pulls, gradients):
        for ours, theirs in zip(of(compiled), of(plain), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@SLOW
@COMPILING
def test_compiled_dropout_is_a_function_of_the_seed() -> None:
    compiled = equipped(network("SongUNet", dropout=0.5, **SMALLEST), compile=True).train()

    def once(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return compiled(*batch(compiled))

    assert torch.equal(once(1), once(1))
    assert not torch.allclose(once(1), once(2))


@SLOW
@COMPILING
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_compiled_run_is_the_same_up_to_rounding(tmp_path: Path, precision: str) -> None:
    teacher = save_teacher(tmp_path / "teacher", network("SongUNet", **SMALLEST))
    plain = tiny_config(teacher, tmp_path, precision=precision, **WITHOUT_DROPOUT)
    compiled = plain.model_copy(update={"compute": ComputeSettings(compile=True)})
    whole, figures = local_end(plain, tmp_path / "plain", STEPS)
    ours, our_figures = local_end(compiled, tmp_path / "compiled", STEPS)
    assert ours.keys() == whole.keys()
    tolerance = 1e-3 if precision == "float32" else 5e-2
    for said, theirs in zip(our_figures, figures, strict=True):
        assert said == pytest.approx(theirs, rel=tolerance)
    if precision == "float32":
        assert_near(local_end(plain, tmp_path / "start", 0)[0], ours, whole)


@SLOW
@COMPILING
def test_compiled_actors_give_the_results_of_one_compiled_process(ray_cluster: None, tmp_path: Path) -> None:
    """With dropout; an uncompiled run can resume from the checkpoint."""
    teacher = save_teacher(tmp_path / "teacher", network("SongUNet", **SMALLEST))
    config = tiny_config(teacher, tmp_path, **COMPILED)
    check_local_and_split(config, tmp_path)
    plain = tiny_config(teacher, tmp_path)
    placement = LocalPlacement(*inputs_for(plain, str(tmp_path / "split")), threads=1)
    take_steps(placement, plain, STEPS, STEPS + 1)
    save_whole(placement, str(tmp_path / "on"))
    placement.close()
