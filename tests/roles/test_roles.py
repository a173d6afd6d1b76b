"""The three roles: theta's gradient is exact, bad samples affect no others, modes, phases, groups, messages."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raysid.config import Config, LearnerSettings
from raysid.method.augment import LABEL_DIM, augment, draw_transforms
from raysid.method.draws import Draws
from raysid.method.losses import denoising_loss, discriminator_loss, generator_loss
from raysid.networks import EDMDenoiser
from raysid.roles.build import learner_network
from raysid.roles.conditions import LabelConditions, network_conditions, one_hot
from raysid.roles.fake_score import FakeScoreLearner
from raysid.roles.generator_learner import GeneratorLearner
from raysid.roles.learner import Optimizer
from raysid.roles.messages import (
    Conditions,
    Cotangent,
    Images,
    Message,
    Noised,
    Prediction,
    Pull,
    Slice,
    Token,
)
from raysid.roles.protocols import Purpose, Roles
from raysid.roles.step import in_flight, microbatches, scores_and_pulls, take_step
from raysid.roles.teacher import TeacherScorer
from tests.support.tiny_networks import (
    CLASSES,
    PIXEL_MAX,
    SHAPE,
    FixedStream,
    TinyRoles,
    save_teacher,
    tiny_config,
    tiny_network,
    tiny_roles,
)

STEP = 5
FREQUENCIES = (1.0,) * CLASSES
GUIDED = {"guidance": {"train_fake": 1.5, "eval_fake": 2.0, "eval_teacher": 3.0}}
METHODS = {
    "sid": tiny_config(),
    "sid guided": tiny_config(method=GUIDED),
    "sida": tiny_config({}),
    "sida guided": tiny_config({}, method=GUIDED),
    "sida in microbatches": tiny_config({"group_size": 2}, batch_size=8, microbatch_size=4, method=GUIDED),
}
all_methods = pytest.mark.parametrize("config", METHODS.values(), ids=METHODS)
sid_and_sida = pytest.mark.parametrize("config", [METHODS["sid"], METHODS["sida"]], ids=["sid", "sida"])


def gradient(network: nn.Module) -> Tensor:
    """All gradients of a network in one vector."""
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def assert_equal_gradients(ours: Tensor, theirs: Tensor) -> None:
    """Equal up to rounding from another order of summation."""
    assert theirs.norm() > 1e-3
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def generator_pass(roles: Roles, config: Config, at: Slice, noised: Noised) -> None:
    """One microbatch of theta's gradient, alone."""
    (pulls,) = scores_and_pulls(roles, config, [at], [noised], [roles.conditions.of(at, "generator")])
    roles.generator.accumulate(at, *pulls)


def theta_gradient(tiny: TinyRoles, roles: Roles | None = None) -> Tensor:
    """theta's gradient of one step, assembled as by the controller."""
    config = tiny.generator.config
    for at in microbatches(config, STEP):
        noised, _ = tiny.generate(at)
        generator_pass(roles or tiny.roles, config, at, noised)
    return gradient(tiny.generator.network)


# Exactness.


@dataclass(frozen=True)
class Composed:
    """The whole batch in one autograd graph: images, their noised versions, predictions, logits."""

    x_g: Tensor
    x_teacher: Tensor
    x_fake: Tensor
    logits: Tensor | None


def composed(tiny: TinyRoles, theta: EDMDenoiser, keep: Tensor | None = None) -> Composed:
    """One autograd pass through generator, noise, teacher and fake score, as docs/method.md writes it.

    Args:
        keep: indices of the batch's samples that take part; all by default.
    """
    config = tiny.generator.config
    draws = Draws(config.seed, STEP, 0, config.batch_size)
    keep = torch.arange(config.batch_size) if keep is None else keep
    z = draws.normal("generator/z", SHAPE)[keep]
    cond = one_hot(draws.labels("generator/labels", FREQUENCIES)[keep], CLASSES)
    t = tiny.generator.noise.generator_level(draws.uniform("generator/t_uniform")[keep], tiny.generator.tmax)
    eps = draws.normal("generator/noise", SHAPE)[keep]
    sigma_init = config.method.sigma_init
    assert cond is not None

    x_g = theta(sigma_init * z, torch.full((len(z),), sigma_init), cond)
    x_t = x_g + t.reshape(-1, 1, 1, 1) * eps
    predictions = []
    scales = config.method.guidance
    for network, scale in (
        (tiny.teacher.network, scales.eval_teacher),
        (tiny.fake_score.network, scales.eval_fake),
    ):
        unconditional = network(x_t, t, None)
        predictions.append(unconditional + scale * (network(x_t, t, cond) - unconditional))
    logits = tiny.fake_score.network.encode(x_t, t, cond) if config.method.adversarial else None
    return Composed(x_g, predictions[0], predictions[1], logits)


def composed_loss(config: Config, batch: Composed, group_size: int | None = None) -> Tensor:
    """theta's loss of a `composed` batch."""
    method, adversarial = config.method, config.method.adversarial
    loss, _, _ = generator_loss(
        batch.x_g,
        batch.x_teacher,
        batch.x_fake,
        method.alpha,
        method.sid_weight,
        batch.logits,
        adversarial.generator_weight if adversarial else 0.0,
        group_size or (adversarial.group_size if adversarial else 1),
    )
    return loss / config.batch_size


def composed_gradient(tiny: TinyRoles, keep: list[int] | None = None) -> Tensor:
    """theta's gradient by one autograd pass over the batch, or over the samples `keep` of one group."""
    theta = tiny_network(3)
    indices = None if keep is None else torch.tensor(keep)
    for network in (tiny.teacher.network, tiny.fake_score.network):
        network.eval().requires_grad_(False)
    batch = composed(tiny, theta, indices)
    composed_loss(tiny.generator.config, batch, None if keep is None else len(keep)).backward()
    return gradient(theta)


@all_methods
def test_thetas_gradient_is_one_autograd_pass_through_the_whole_loss(config: Config) -> None:
    tiny = tiny_roles(config)
    assert_equal_gradients(theta_gradient(tiny), composed_gradient(tiny))


@pytest.mark.parametrize("part", ["direct", "teacher", "fake score"])
def test_every_part_of_the_gradient_counts(part: str) -> None:
    """The comparison above detects a gradient that lacks the direct part or one network's pull."""
    tiny = tiny_roles(METHODS["sida"])

    class Zeroed:
        """A scorer whose pull is lost."""

        def __init__(self, scorer: Any) -> None:
            self.score = scorer.score
            self.scorer = scorer

        def pullback(self, *args: Any) -> Pull:
            return Pull(torch.zeros_like(self.scorer.pullback(*args).x_t))

    class Undirected:
        """A generator without the direct part of its gradient."""

        def cotangents(self, *args: Any) -> tuple[Cotangent, Cotangent]:
            cotangents = tiny.generator.cotangents(*args)
            tiny.generator.pending[args[0]].direct = torch.zeros(4, *SHAPE)
            return cotangents

        accumulate = tiny.generator.accumulate

    changed = {
        "direct": {"generator": Undirected()},
        "teacher": {"teacher": Zeroed(tiny.teacher)},
        "fake score": {"fake_score": Zeroed(tiny.fake_score)},
    }[part]
    roles = dataclasses.replace(tiny.roles, **changed)  # type: ignore[arg-type]
    ours, whole = theta_gradient(tiny, roles), composed_gradient(tiny)
    assert (ours - whole).norm() > 1e-2 * whole.norm()


@all_methods
def test_phi_and_psi_get_no_gradient_from_thetas_loss(config: Config) -> None:
    tiny = tiny_roles(config)
    theta_gradient(tiny)
    assert all(p.grad is None for p in tiny.teacher.network.parameters())
    assert all(p.grad is None for p in tiny.fake_score.network.parameters())


@all_methods
def test_psis_gradient_does_not_reach_theta_or_phi(config: Config) -> None:
    tiny = tiny_roles(config)
    for at in microbatches(config, STEP):
        tiny.accumulate(at, tiny.generate(at)[1])
    assert gradient(tiny.fake_score.network).norm() > 0
    for network in (tiny.generator.network, tiny.teacher.network):
        assert all(p.grad is None for p in network.parameters())


def test_scoring_between_psis_microbatches_leaves_its_gradient_alone() -> None:
    """In the overlapped order psi scores one microbatch while another's gradient waits for the step."""
    config = tiny_config({}, batch_size=8, microbatch_size=4)
    apart, between = tiny_roles(config), tiny_roles(config)
    images = [(at, *apart.generate(at)) for at in microbatches(config, STEP)]
    for at, _, made in images:
        apart.accumulate(at, made)
    for at, noised, made in images:
        prediction = between.fake_score.score(at, noised, between.conditions.of(at, "generator"))
        assert prediction.logits is not None
        between.accumulate(at, made)
        between.fake_score.pullback(at, noised, Cotangent(prediction.x_hat, prediction.logits))
        assert at not in between.fake_score.graphs
    assert torch.equal(gradient(apart.fake_score.network), gradient(between.fake_score.network))


# Bad samples.

BAD = 2
GOOD = [0, 1, 3]


@dataclass(frozen=True)
class BadNoise(Draws):
    """Draws whose noise of one sample is not finite."""

    bad: float = torch.nan

    def normal(self, purpose: str, shape: Any = ()) -> Tensor:
        drawn = super().normal(purpose, shape)
        if purpose.endswith("/z"):
            drawn[BAD - self.start] = self.bad
        return drawn


class Spoiling:
    """A scorer that returns a non-finite value for one sample."""

    def __init__(self, scorer: Any, field: str, bad: float) -> None:
        self.scorer, self.field, self.bad = scorer, field, bad

    def score(self, *args: Any) -> Prediction:
        return self._spoil(self.scorer.score(*args))

    def pullback(self, *args: Any) -> Pull:
        return self._spoil(self.scorer.pullback(*args))

    def _spoil(self, message: Any) -> Any:
        if not hasattr(message, self.field):
            return message
        spoilt = getattr(message, self.field).clone()
        spoilt[BAD].flatten()[0] = self.bad
        return dataclasses.replace(message, **{self.field: spoilt})


SPOILT = {
    "x_teacher": ("teacher", "x_hat"),
    "x_fake": ("fake_score", "x_hat"),
    "logits": ("fake_score", "logits"),
    "pull": ("teacher", "x_t"),
}


def spoilt_roles(config: Config, what: str, bad: float) -> tuple[TinyRoles, Roles]:
    """Roles in which one sample of every batch is `bad` in z or in one of `SPOILT`."""
    tiny = tiny_roles(config, partial(BadNoise, config.seed, bad=bad) if what == "z" else None)
    if what == "z":
        return tiny, tiny.roles
    role, field = SPOILT[what]
    spoiling: dict[str, Any] = {role: Spoiling(getattr(tiny, role), field, bad)}
    return tiny, dataclasses.replace(tiny.roles, **spoiling)


@sid_and_sida
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("what", ["z", "x_teacher", "x_fake"])
def test_a_bad_sample_leaves_thetas_loss_and_the_others_as_they_are(
    config: Config, what: str, bad: float
) -> None:
    """The update equals that of the batch without the sample, divided by the same B."""
    tiny, roles = spoilt_roles(config, what, bad)
    assert_equal_gradients(theta_gradient(tiny, roles), composed_gradient(tiny, keep=GOOD))


@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
def test_a_bad_pull_costs_its_own_sample_alone(bad: float) -> None:
    tiny, roles = spoilt_roles(METHODS["sid"], "pull", bad)
    assert_equal_gradients(theta_gradient(tiny, roles), composed_gradient(tiny, keep=GOOD))


def test_bad_logits_leave_their_groups_average_and_their_sample_keeps_its_other_term() -> None:
    config = METHODS["sida"]
    tiny, roles = spoilt_roles(config, "logits", torch.nan)
    ours = theta_gradient(tiny, roles)

    theta = tiny_network(3)
    batch = composed(tiny, theta)
    assert batch.logits is not None
    masked = batch.logits.index_fill(0, torch.tensor([BAD]), torch.nan)
    composed_loss(config, dataclasses.replace(batch, logits=masked)).backward()
    assert gradient(theta).isfinite().all()
    assert_equal_gradients(ours, gradient(theta))

    # By hand: SiD's term of all four; the fakeness of the other three, weighted by all four.
    by_hand = tiny_network(3)
    batch = composed(tiny, by_hand)
    assert batch.logits is not None and config.method.adversarial is not None
    sid = composed_loss(tiny_config(), dataclasses.replace(batch, logits=None))
    weight = (batch.x_g - batch.x_teacher).abs().mean((1, 2, 3)).detach()
    fakeness = nn.functional.softplus(-batch.logits[GOOD].clamp(-10, 10)).mean()
    adversarial = 0.01 * (batch.x_g[0].numel() * fakeness / weight).sum() / config.batch_size
    ((sid + adversarial) / 2).backward()
    assert_equal_gradients(ours, gradient(by_hand))


@sid_and_sida
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_image_leaves_psis_loss_and_the_others_as_they_are(config: Config, bad: float) -> None:
    tiny = tiny_roles(config)
    images = tiny.generate(AT)[1]
    token = tiny.accumulate(AT, spoilt_images(images, bad))
    assert all(np.isfinite(value) for value in token.sums.values())
    assert_equal_gradients(gradient(tiny.fake_score.network), psi_gradient(tiny, images, GOOD))


def spoilt_images(images: Images, bad: float) -> Images:
    """The same images except for one pixel of the sample BAD."""
    spoilt = images.x_g.clone()
    spoilt[BAD, 0, 0, 0] = bad
    return dataclasses.replace(images, x_g=spoilt)


def psi_gradient(tiny: TinyRoles, images: Images, keep: list[int]) -> Tensor:
    """psi's gradient by docs/method.md, from the generated images `keep` of one group and all real ones."""
    config, noise = tiny.fake_score.config, tiny.fake_score.noise
    psi = tiny_network(2, augment_dim=tiny.fake_score.network.settings.augment_dim)
    draws = Draws(config.seed, STEP, 0, 4)
    sigma = noise.fake_score_level(draws.normal("fake/sigma_normal"))
    eps, weight = draws.normal("fake/noise", SHAPE), noise.loss_weight(sigma)
    (x, told), (real, real_told) = (images.x_g, None), (None, None)
    if config.method.adversarial:
        real, real_cond = tiny.fake_score._real(AT)
    if config.fake_score.augment:
        x, told = augment(x, draw_transforms(draws, "fake/augment", config.fake_score.augment))
        if real is not None:
            transforms = draw_transforms(draws, "fake/augment_real", config.fake_score.augment)
            real, real_told = augment(real, transforms)
    cond = one_hot(draws.labels("generator/labels", FREQUENCIES), CLASSES)
    x_hat, logits = psi.predict_with_logits(noise.add_noise(x, sigma, eps), sigma, cond, told)
    loss = denoising_loss(x_hat[keep], x[keep], weight[keep]).sum()
    if real is not None:
        real_logits = psi.encode(noise.add_noise(real, sigma, eps), sigma, real_cond, real_told)
        fakes = nn.functional.softplus(logits[keep]).mean()
        reals = nn.functional.softplus(-real_logits).mean()
        loss = loss + (weight * (reals + fakes) / 2).sum()
    (loss / config.batch_size).backward()
    return gradient(psi)


def test_a_batch_of_nothing_but_bad_samples_moves_nothing() -> None:
    config = METHODS["sida"]
    tiny = tiny_roles(config)
    before = [p.clone() for p in tiny.generator.network.parameters()]
    at = Slice(STEP, 0, 4)
    noised, _ = tiny.generate(at)
    nothing = Prediction(torch.full((4, *SHAPE), torch.nan), tiny.fake_score.score(at, noised, COND).logits)
    cotangents = tiny.generator.cotangents(at, nothing, nothing)
    assert all(cotangent.x_hat.abs().sum() == 0 for cotangent in cotangents)
    pulls = [Pull(torch.full((4, *SHAPE), torch.nan)) for _ in range(2)]
    tiny.generator.step(STEP, tiny.generator.accumulate(at, *pulls))
    after = tiny.generator.network.parameters()
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


# Gradients before the optimizer's step.


def step_gradients(optimizer: Optimizer, step: Callable[[], object]) -> list[Tensor]:
    """The gradients that Adam receives."""
    seen: list[Tensor] = []

    def remember(*_: Any) -> None:
        seen.extend(p.grad.clone() for p in optimizer.parameters if p.grad is not None)

    handle = optimizer.adam.register_step_pre_hook(remember)
    step()
    handle.remove()
    return seen


def test_gradients_are_cleaned_before_adam_sees_them() -> None:
    network = nn.Linear(5, 1, bias=False)
    optimizer = Optimizer(network, LearnerSettings(), tiny_config())
    dirty = torch.tensor([[torch.nan, torch.inf, -torch.inf, 3.0, -0.5]])
    for clip, expected in ((None, [0, 1e5, -1e5, 3.0, -0.5]), (1.0, [0, 1, -1, 1, -0.5])):
        network.weight.grad = dirty.clone()
        (seen,) = step_gradients(optimizer, lambda clip=clip: optimizer.step(0, clip))
        assert seen.tolist() == [expected]
        assert network.weight.grad is None
    assert network.weight.isfinite().all()


@pytest.mark.parametrize(("name", "largest"), [("sid", 50.0), ("sida", 0.25)])
def test_psis_gradients_are_clipped_when_it_discriminates_and_thetas_never(name: str, largest: float) -> None:
    config = tiny_config({"clip_gradient": 0.25} if name == "sida" else None)
    tiny = tiny_roles(config)
    tokens = {
        "fake_score": Token(Slice(0, 0, 4), {}),
        "generator": Token(Slice(0, 0, 4), {"teacher_recomputes": 0}),
    }
    for role, expected in (("fake_score", largest), ("generator", 50.0)):
        learner = getattr(tiny, role)
        learner.network.requires_grad_(True)
        for parameter in learner.network.parameters():
            parameter.grad = torch.full_like(parameter, -50.0)
        seen = step_gradients(learner.optimizer, lambda it=learner, of=role: it.step(0, tokens[of]))
        assert {value for grad in seen for value in grad.flatten().tolist()} == {-expected}


@pytest.mark.parametrize(
    "spans",
    [
        [(STEP, 0, 2)],
        [(STEP, 0, 2), (STEP, 0, 2)],
        [(STEP, 0, 2), (STEP, 2, 2), (STEP, 2, 2)],
        [(STEP, 0, 2), (STEP - 1, 2, 2)],
        [(STEP, 1, 3)],
        [],
    ],
    ids=["one lost", "one twice", "one too many", "another step's", "the first lost", "none"],
)
@pytest.mark.parametrize("role", ["fake_score", "generator"])
def test_a_step_without_a_token_of_every_microbatch_is_refused(role: str, spans) -> None:
    tiny = tiny_roles(tiny_config(microbatch_size=2))
    learner = getattr(tiny, role)
    before = [p.clone() for p in learner.network.parameters()]
    tokens = [Token(Slice(*span), {"teacher_recomputes": 0}) for span in spans]
    with pytest.raises(RuntimeError, match=f"step {STEP} has microbatches .* one was lost"):
        learner.step(STEP, *tokens)
    assert all(torch.equal(a, b) for a, b in zip(before, learner.network.parameters(), strict=True))


# Modes and dropout.

AT = Slice(STEP, 0, 4)
COND = Conditions({"labels": torch.tensor([0, 2, 1, 2])})


def dropping_roles() -> TinyRoles:
    """SiDA's roles with dropout 0.5 in all three networks, after the mode changes of a step."""
    tiny = tiny_roles(METHODS["sida"], dropout=0.5)
    tiny.accumulate(AT, tiny.generate(AT)[1])
    return tiny


def noised_at(at: Slice) -> Noised:
    """Noised images of an address, independent of dropout."""
    draws = Draws(9, at.step, at.start, at.count)
    return Noised(at, draws.normal("x_t", SHAPE), 0.1 + draws.uniform("t"))


@pytest.mark.parametrize("role", ["teacher", "fake_score"])
def test_scorers_drop_nothing(role: str) -> None:
    scorer, noised = getattr(dropping_roles(), role), noised_at(AT)
    address = () if role == "teacher" else (AT,)
    prediction = scorer.score(*address, noised, COND)
    network = tiny_network(1 if role == "teacher" else 2)
    cond = network_conditions(COND, network, torch.device("cpu"))
    torch.testing.assert_close(prediction.x_hat, network(noised.x_t, noised.t, cond))
    cotangent = Cotangent(torch.ones(4, *SHAPE))
    pull = scorer.pullback(*address, noised, *((COND,) if role == "teacher" else ()), cotangent)
    x_t = noised.x_t.clone().requires_grad_()
    network(x_t, noised.t, cond).sum().backward()
    torch.testing.assert_close(pull.x_t, x_t.grad)


@pytest.mark.parametrize("role", ["teacher", "fake_score"])
def test_scorers_are_frozen_while_they_score(role: str) -> None:
    """A graph to the weights would cost memory in every kept microbatch."""
    scorer = getattr(dropping_roles(), role)
    scorer.score(*(() if role == "teacher" else (AT,)), noised_at(AT), COND)
    assert not scorer.network.training
    assert not any(p.requires_grad for p in scorer.network.parameters())


def test_psi_drops_in_its_own_update() -> None:
    dropping, plain = dropping_roles(), tiny_roles(METHODS["sida"])
    images = plain.generate(AT)[1]
    dropping.fake_score.optimizer.adam.zero_grad()
    for tiny in (dropping, plain):
        tiny.accumulate(AT, images)
    with_dropout, without = gradient(dropping.fake_score.network), gradient(plain.fake_score.network)
    assert (with_dropout - without).norm() > 0.01 * without.norm()


def test_theta_drops_in_its_own_step_and_not_in_images_for_psis_update() -> None:
    tiny, plain = dropping_roles(), tiny_roles(METHODS["sida"])
    tiny.generator.discard(AT)
    assert not torch.allclose(tiny.generate(AT)[1].x_g, plain.generate(AT)[1].x_g)
    torch.testing.assert_close(tiny.images(AT).x_g, plain.images(AT).x_g)
    assert not tiny.images(AT).x_g.requires_grad
    assert not tiny.generator.ema.training


def test_dropout_masks_are_a_function_of_the_address() -> None:
    def once(scramble: bool, at: Slice = AT) -> tuple[Tensor, Tensor, Tensor]:
        tiny = tiny_roles(METHODS["sida"], dropout=0.5)
        if scramble:
            torch.manual_seed(123)
            tiny.images(Slice(1, 0, 4))
            tiny.generate(Slice(2, 4, 4))
        noised, images = tiny.generate(at)
        if scramble:
            torch.rand(7)
        tiny.accumulate(at, images)
        generator_pass(tiny.roles, tiny.generator.config, at, noised)
        return images.x_g, gradient(tiny.fake_score.network), gradient(tiny.generator.network)

    for first, again in zip(once(scramble=False), once(scramble=True), strict=True):
        assert torch.equal(first, again)


def test_each_microbatch_has_masks_of_its_own() -> None:
    """Two addresses with the same noise differ in their dropout masks only."""
    same_noise = dataclasses.make_dataclass("SameNoise", [], bases=(Draws,), frozen=True)
    same_noise.normal = lambda self, purpose, shape=(): Draws(0, 0, 0, self.count).normal(purpose, shape)
    same_noise.labels = lambda self, purpose, weights: Draws(0, 0, 0, self.count).labels(purpose, weights)

    def images(dropout: float) -> list[Tensor]:
        config = tiny_config(batch_size=8, microbatch_size=4)
        tiny = tiny_roles(config, partial(same_noise, 0), dropout=dropout)
        return [tiny.generate(at)[1].x_g for at in (*microbatches(config, 0), Slice(1, 0, 4))]

    plain, dropped = images(0.0), images(0.5)
    assert torch.equal(plain[0], plain[1]) and torch.equal(plain[0], plain[2])
    assert not torch.equal(dropped[0], dropped[1]) and not torch.equal(dropped[0], dropped[2])


# The learners' copies of the teacher.


def test_learners_copy_the_teachers_weights_without_its_label_dropout(tmp_path: Path) -> None:
    teacher = tiny_network(1, label_dropout=0.5, dropout=0.2)
    folder = save_teacher(tmp_path / "teacher", teacher)
    copied = learner_network(folder, LearnerSettings())
    assert copied.settings.label_dropout == 0 and copied.settings.dropout == 0.2
    assert learner_network(folder, LearnerSettings(dropout=0.0)).settings.dropout == 0.0
    weights = copied.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in teacher.state_dict().items())

    undropped = learner_network(folder, LearnerSettings(dropout=0.0)).train()
    noised, cond = noised_at(AT), torch.eye(CLASSES)[[0, 2, 1, 2]]
    for _ in range(4):
        torch.testing.assert_close(
            undropped(noised.x_t, noised.t, cond), tiny_network(1)(noised.x_t, noised.t, cond)
        )


# Start-up phases and the opening step.


class RecordedRoles:
    """A stand-in for all three roles that records the calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    @property
    def roles(self) -> Roles:
        names = ("teacher", "fake_score", "generator", "conditions")
        return Roles(*(_Recorder(name, self.calls) for name in names))  # type: ignore[arg-type]


class _Recorder:
    def __init__(self, role: str, calls: list[str]) -> None:
        self.role, self.calls = role, calls

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(*_: Any) -> Any:
            self.calls.append(f"{self.role}.{method}")
            return (None, None) if method in ("generate", "cotangents") else None

        return call


def calls_of(config: Config, step: int) -> list[str]:
    """The roles' calls in one step, in order."""
    recorded = RecordedRoles()
    result = take_step(recorded.roles, config, step)
    assert (result.generator is None) or "generator.step" in recorded.calls
    return recorded.calls


def phased(schedule: str, generator: int, adversarial: int) -> Config:
    phases = {"generator_start_images": generator, "adversarial_start_images": adversarial}
    return tiny_config(phases, schedule=schedule)


@pytest.mark.parametrize(
    ("schedule", "start", "learning"),
    [
        ("alternating", 0, [True] * 5),
        ("overlapped", 0, [False] + [True] * 4),  # psi equals phi: theta has nothing to learn yet
        ("alternating", 8, [False, False, False, True, True]),  # 0, 4, 8, 12, 16 images before the step
        ("overlapped", 8, [False, False, False, True, True]),
        ("overlapped", 9, [False, False, False, True, True]),
        ("overlapped", 7, [False, False, True, True, True]),
    ],
)
def test_theta_steps_once_its_phase_is_over_and_psi_always(schedule: str, start: int, learning) -> None:
    config = phased(schedule, start, 0)
    for step, expected in enumerate(learning):
        calls = calls_of(config, step)
        assert calls.count("generator.step") == expected
        assert calls.count("fake_score.step") == calls.count("fake_score.accumulate") == 1
        assert ("teacher.score" in calls) == expected  # no unused pass is computed


def test_a_microbatch_that_theta_does_not_learn_from_is_forgotten() -> None:
    tiny = tiny_roles(phased("overlapped", 8, 0))
    for step in range(5):
        take_step(tiny.roles, tiny.generator.config, step)
        assert not tiny.generator.pending and not tiny.fake_score.graphs and not tiny.teacher.kept


def test_the_overlapped_opening_moves_psi_and_leaves_theta_and_its_average() -> None:
    tiny = tiny_roles(METHODS["sida"])
    before = {name: value.clone() for name, value in tiny.generator.network.state_dict().items()}
    psi = {name: value.clone() for name, value in tiny.fake_score.network.state_dict().items()}
    take_step(tiny.roles, METHODS["sida"], 0)
    for network in (tiny.generator.network, tiny.generator.ema):
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    after = tiny.fake_score.network.state_dict()
    assert not all(torch.equal(value, psi[name]) for name, value in after.items())


@pytest.mark.parametrize("images", [0, 16, 20])
def test_the_adversarial_term_joins_thetas_loss_strictly_after_its_phase(images: int) -> None:
    tiny = tiny_roles(phased("alternating", 0, 16))
    at = Slice(images // 4, 0, 4)
    noised, _ = tiny.generate(at)
    teacher, fake = tiny.teacher.score(noised, COND), tiny.fake_score.score(at, noised, COND)
    _, fake_cotangent = tiny.generator.cotangents(at, teacher, fake)
    sums = tiny.generator.pending[at].sums
    assert sums is not None
    if images > 16:
        assert fake_cotangent.logits is not None
        assert sums["generator"] == pytest.approx((sums["sid"] + sums["adversarial"]) / 2)
    else:
        assert fake_cotangent.logits is None and "adversarial" not in sums
        assert sums["generator"] == sums["sid"]  # not halved


def test_psi_discriminates_and_clips_from_the_first_image() -> None:
    config = tiny_config(
        {"generator_start_images": 100, "adversarial_start_images": 200, "clip_gradient": 1e-3}
    )
    tiny = tiny_roles(config)
    token = tiny.accumulate(Slice(0, 0, 4), tiny.generate(Slice(0, 0, 4))[1])
    assert token.sums["discriminator"] > 0
    seen = step_gradients(tiny.fake_score.optimizer, lambda: tiny.fake_score.step(0, token))
    assert max(grad.abs().max().item() for grad in seen) == pytest.approx(1e-3)


def test_theta_clips_its_gradient_if_asked_to() -> None:
    seen = {}
    for bound in (None, 1e-4):
        tiny = tiny_roles(tiny_config(generator={"clip_gradient": bound}))
        at = Slice(STEP, 0, 4)
        generator_pass(tiny.roles, tiny.generator.config, at, tiny.generate(at)[0])
        token = Token(at, {"teacher_recomputes": 0})
        gradients = step_gradients(tiny.generator.optimizer, partial(tiny.generator.step, STEP, token))
        seen[bound] = max(gradient.abs().max().item() for gradient in gradients)
    assert seen[None] > 1e-3 and seen[1e-4] == pytest.approx(1e-4)


# Groups and real images.


def gradients_of_cut(microbatch_size: int, group_size: int) -> tuple[Tensor, Tensor]:
    """theta's and psi's gradients of a batch of 8 in microbatches."""
    config = tiny_config({"group_size": group_size}, batch_size=8, microbatch_size=microbatch_size)
    tiny = tiny_roles(config)
    for at in microbatches(config, STEP):
        noised, images = tiny.generate(at)
        generator_pass(tiny.roles, config, at, noised)
        tiny.accumulate(at, images)
    return gradient(tiny.generator.network), gradient(tiny.fake_score.network)


def test_groups_of_fakeness_do_not_follow_the_microbatches() -> None:
    whole = gradients_of_cut(8, group_size=2)
    for microbatch_size in (4, 2):
        for ours, theirs in zip(gradients_of_cut(microbatch_size, group_size=2), whole, strict=True):
            assert_equal_gradients(ours, theirs)
    for ours, theirs in zip(gradients_of_cut(8, group_size=4), whole, strict=True):
        assert (ours - theirs).norm() > 1e-4 * theirs.norm()


def test_real_images_take_their_places_in_the_stream_each_under_its_own_label() -> None:
    config = tiny_config({"group_size": 2}, batch_size=8, microbatch_size=4)
    tiny, seen = tiny_roles(config), []
    encode = tiny.fake_score.network.encode

    def remember(x_t: Tensor, t: Tensor, cond: Tensor, **kwargs: Any) -> Tensor:
        seen.append((x_t, t, cond))
        return encode(x_t, t, cond, **kwargs)

    tiny.fake_score.network.encode = remember  # type: ignore[method-assign, assignment]
    for at in microbatches(config, STEP):
        tiny.accumulate(at, tiny.generate(at)[1])
    x_t, sigma, cond = (torch.cat(parts) for parts in zip(*seen, strict=True))

    draws = Draws(config.seed, STEP, 0, 8)
    expected_sigma = tiny.fake_score.noise.fake_score_level(draws.normal("fake/sigma_normal"))
    assert torch.equal(sigma, expected_sigma)
    pixels, labels = FixedStream().read(STEP * 8, 8)
    assert cond.argmax(1).tolist() == labels.tolist() and torch.equal(cond.sum(1), torch.ones(8))
    clean = x_t - sigma.reshape(-1, 1, 1, 1) * draws.normal("fake/noise", SHAPE)  # the generated images' eps
    expected = torch.from_numpy(pixels.astype(np.float32)) / PIXEL_MAX * 2 - 1
    torch.testing.assert_close(clean, expected, atol=1e-4, rtol=0)


def test_generated_labels_are_drawn_as_the_data_is() -> None:
    config = tiny_config(batch_size=400)
    tiny = tiny_roles(config, label_frequencies=(1.0, 0.0, 3.0))
    at = Slice(STEP, 0, 400)
    purposes: tuple[Purpose, ...] = ("fake", "generator")
    for purpose in purposes:
        labels = tiny.conditions.of(at, purpose).values["labels"]
        counts = torch.bincount(labels, minlength=3).tolist()
        assert counts[1] == 0 and counts[0] == pytest.approx(100, abs=35)


@pytest.mark.parametrize("schedule", ["alternating", "overlapped"])
def test_psi_learns_without_a_condition_if_guidance_needs_it(schedule: str) -> None:
    """The alternating schedule drops the condition before the image is made, the overlapped one after."""
    guidance = {"train_fake": 1.5, "condition_drop": 0.5}
    config = tiny_config(schedule=schedule, batch_size=64, method={"guidance": guidance})
    tiny = tiny_roles(config)

    def remembered(learner: FakeScoreLearner | GeneratorLearner) -> list[Tensor]:
        """The conditions that the learner's network gets from now on."""
        seen: list[Tensor] = []
        forward = learner.network.forward

        def remember(x_t: Tensor, t: Tensor, cond: Tensor, **kwargs: Any) -> Any:
            seen.append(cond)
            return forward(x_t, t, cond, **kwargs)

        learner.network.forward = remember  # type: ignore[method-assign, assignment]
        return seen

    seen = remembered(tiny.fake_score)
    at = Slice(STEP, 0, 64)
    made = remembered(tiny.generator)
    if schedule == "alternating":
        tiny.accumulate(at, tiny.images(at), "fake")
    else:
        tiny.accumulate(at, tiny.generate(at)[1])
    dropped = (Draws(config.seed, STEP, 0, 64).uniform("fake/condition_drop") < 0.5).tolist()
    assert [row.sum().item() == 0 for row in seen[0]] == dropped
    made_without = [row.sum().item() == 0 for row in made[0]]
    assert made_without == (dropped if schedule == "alternating" else [False] * 64)


# Augmentation.


class VariedStream(FixedStream):
    """Real images that every transform changes."""

    def read(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        pixels = Draws(5, 0, start, count).uniform("pixels", SHAPE) * PIXEL_MAX
        return pixels.numpy().astype(np.uint8), super().read(start, count)[1]


def augmenting_roles(adversarial: dict[str, Any] | None = None, **changes: Any) -> TinyRoles:
    """Roles whose psi takes augmentation labels; each transform applies to half of the images by default."""
    config = tiny_config(adversarial, **{"fake_score": {"augment": 0.5}} | changes)
    tiny = tiny_roles(config, augment_dim=LABEL_DIM)
    tiny.fake_score.real_images = VariedStream()
    return tiny


@pytest.mark.parametrize("adversarial", [None, {}], ids=["sid", "sida"])
def test_psi_learns_transformed_images_with_their_augmentation_labels(
    adversarial: dict[str, Any] | None,
) -> None:
    """Real images have their own transforms; a bad image affects no other image here either."""
    for keep in ([0, 1, 2, 3], GOOD):
        tiny = augmenting_roles(adversarial)
        images = tiny.generate(AT)[1]
        tiny.accumulate(AT, images if len(keep) == 4 else spoilt_images(images, torch.nan))
        assert_equal_gradients(gradient(tiny.fake_score.network), psi_gradient(tiny, images, keep))


def test_psis_gradient_follows_the_probability() -> None:
    """Starting with the smallest probability, at which images are flipped and nothing else."""

    def encoder_gradient(probability: float) -> Tensor:
        tiny = augmenting_roles({}, fake_score={"augment": probability})
        tiny.accumulate(AT, tiny.generate(AT)[1])
        return gradient(tiny.fake_score.network.model.enc)

    gradients = [encoder_gradient(probability) for probability in (0.0, 1e-9, 0.5, 1.0)]
    for one, other in pairwise(gradients):
        assert (one - other).norm() > 1e-2 * one.norm()


def test_without_augmentation_psi_gets_no_labels_and_nothing_is_drawn() -> None:
    tiny = augmenting_roles({}, fake_score={"augment": 0.0})
    drawn: list[str] = []

    @dataclass(frozen=True)
    class Noted(Draws):
        """Draws that record their purpose."""

        def uniform(self, purpose: str, shape: Any = ()) -> Tensor:
            drawn.append(purpose)
            return super().uniform(purpose, shape)

    tiny.fake_score.draws = partial(Noted, 0)
    images = tiny.generate(AT)[1]
    tiny.accumulate(AT, images)
    assert not drawn
    told = tiny.fake_score.network.model.map_augment
    assert told is not None and told.weight.grad is None
    assert_equal_gradients(gradient(tiny.fake_score.network), psi_gradient(tiny, images, [0, 1, 2, 3]))


def test_augmentation_does_not_follow_the_microbatches() -> None:
    def psi_gradient_of_cut(microbatch_size: int) -> Tensor:
        tiny = augmenting_roles({"group_size": 2}, batch_size=8, microbatch_size=microbatch_size)
        for at in microbatches(tiny.fake_score.config, STEP):
            tiny.accumulate(at, tiny.generate(at)[1])
        return gradient(tiny.fake_score.network)

    whole = psi_gradient_of_cut(8)
    for microbatch_size in (4, 2):
        assert_equal_gradients(psi_gradient_of_cut(microbatch_size), whole)


def test_scoring_knows_nothing_of_augmentation() -> None:
    augmenting, plain = augmenting_roles({}), augmenting_roles({}, fake_score={"augment": 0.0})
    assert torch.equal(theta_gradient(augmenting), theta_gradient(plain))


# The teacher's bounded memory.

SCALE = 3.0


def scorer_and_work(graphs_kept: int, count: int) -> tuple[TeacherScorer, list[Noised], list[Cotangent]]:
    scorer = TeacherScorer(tiny_network(1), graphs_kept)
    work = [noised_at(Slice(STEP, 4 * i, 4)) for i in range(count)]
    cotangents = [Cotangent(Draws(1, STEP, 4 * i, 4).normal("seed", SHAPE)) for i in range(count)]
    return scorer, work, cotangents


@pytest.mark.parametrize("graphs_kept", [0, 1, 2, 4])
def test_a_pull_is_the_same_with_and_without_its_graph(graphs_kept: int) -> None:
    keeping, work, cotangents = scorer_and_work(4, 4)
    bounded, _, _ = scorer_and_work(graphs_kept, 4)
    for noised in work:
        assert torch.equal(keeping.score(noised, COND, SCALE).x_hat, bounded.score(noised, COND, SCALE).x_hat)
        assert len(bounded.kept) <= graphs_kept
    recomputed = []
    for noised, cotangent in zip(work, cotangents, strict=True):
        kept, pull = (scorer.pullback(noised, COND, cotangent, SCALE) for scorer in (keeping, bounded))
        assert torch.equal(kept.x_t, pull.x_t) and kept.recomputed == 0
        recomputed.append(pull.recomputed)
    # The oldest are evicted first.
    assert recomputed == [1] * (4 - graphs_kept) + [0] * graphs_kept
    assert not bounded.kept and not keeping.kept


def test_a_repeated_pullback_recomputes_and_gives_the_same() -> None:
    scorer, (noised,), (cotangent,) = scorer_and_work(2, 1)
    scorer.score(noised, COND)
    first, again = (scorer.pullback(noised, COND, cotangent) for _ in range(2))
    assert torch.equal(first.x_t, again.x_t)
    assert (first.recomputed, again.recomputed) == (0, 1)


def test_a_repeated_score_takes_no_second_place_in_memory() -> None:
    scorer, (one, other), _ = scorer_and_work(2, 2)
    for noised in (one, other, other):
        scorer.score(noised, COND)
    assert scorer.kept == [one.at, other.at]


def test_a_scorers_memory_never_exceeds_its_bound_over_a_run() -> None:
    config = tiny_config({"group_size": 2}, batch_size=8, microbatch_size=2, teacher={"path": "unused"})
    tiny = tiny_roles(config)
    most = 0
    score = tiny.teacher.score

    def watched(noised: Noised, cond: Conditions, guidance_scale: float = 1.0) -> Prediction:
        nonlocal most
        prediction = score(noised, cond, guidance_scale)
        most = max(most, len(tiny.teacher.kept))
        return prediction

    tiny.teacher.score = watched  # type: ignore[method-assign]
    for step in range(3):
        for at in chain(*in_flight(config, step)):  # all are scored before the first is pulled back
            tiny.teacher.score(noised_at(at), tiny.conditions.of(at, "generator"))
        take_step(tiny.roles, config, step)
    assert most == config.graphs_kept == 2


def test_no_parameter_of_a_scorer_ever_has_a_gradient() -> None:
    scorer, work, cotangents = scorer_and_work(1, 3)
    for noised in work:
        scorer.score(noised, COND)
    for noised, cotangent in zip(work, cotangents, strict=True):
        scorer.pullback(noised, COND, cotangent)
    assert all(p.grad is None and not p.requires_grad for p in scorer.network.parameters())


# Messages.

RECORDS = [
    Noised(AT, torch.randn(4, 3, 32, 32), torch.rand(4)),
    Conditions({"embeddings": torch.randn(4, 77, 64).transpose(1, 2), "labels": torch.arange(4)}),
    Conditions({}),
    Images(torch.randn(4, 3, 32, 32).requires_grad_()),
    Prediction(torch.randn(4, 3, 32, 32), torch.randn(4, 1, 8, 8), recomputed=1),
    Cotangent(torch.randn(4, 3, 32, 32), None),
    Pull(torch.randn(4, 3, 32, 32).transpose(2, 3), recomputed=1),
]


@contextmanager
def no_torch_pickling() -> Iterator[None]:
    """Fail if a torch tensor is pickled."""

    def refuse(self: Tensor, protocol: int) -> Any:
        raise AssertionError("a torch tensor was pickled")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "__reduce_ex__", refuse)
        yield


def tensors_in(record: Message) -> dict[str, Tensor]:
    """The tensors of a message, those of its mappings included."""
    flat = {name: value for name, value in vars(record).items() if isinstance(value, Tensor)}
    mappings = [value for value in vars(record).values() if isinstance(value, dict)]
    return flat | {f"{name} of a mapping": value for each in mappings for name, value in each.items()}


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_messages_travel_as_numpy_out_of_band_and_arrive_equal(record: Message) -> None:
    tensors = tensors_in(record)
    buffers: list[pickle.PickleBuffer] = []
    with no_torch_pickling():
        in_band = pickle.dumps(record, protocol=5, buffer_callback=buffers.append)
    assert sum(len(buffer.raw()) for buffer in buffers) == sum(t.nbytes for t in tensors.values())
    assert len(in_band) < 2000

    wire = [bytearray(buffer.raw()) for buffer in buffers]
    arrived = pickle.loads(in_band, buffers=wire)
    assert type(arrived) is type(record)
    there = tensors_in(arrived)
    assert there.keys() == tensors.keys()
    for name, value in tensors.items():
        here = there[name]
        assert torch.equal(here, value) and here.dtype == value.dtype and not here.requires_grad
    for name, other in vars(record).items():
        assert isinstance(other, Tensor | dict) or getattr(arrived, name) == other
    # Read in place: a change in the shared memory is visible in the tensor.
    for buffer in wire:
        buffer[:] = bytes(len(buffer))
    assert all(tensor.abs().sum() == 0 for tensor in there.values())


def test_a_record_moves_only_where_it_is_not_yet() -> None:
    for record in RECORDS:
        assert record.to(torch.device("cpu")) is record
        moved = tensors_in(record.to(torch.device("meta")))
        assert all(tensor.is_meta for tensor in moved.values())
        assert not any(tensor.is_meta for tensor in tensors_in(record).values())


# Learners.


@pytest.mark.parametrize("role", ["fake_score", "generator"])
def test_a_learners_state_restores_it_exactly(role: str) -> None:
    config = METHODS["sida"]
    original, restored = tiny_roles(config), tiny_roles(config)
    for step in range(2):
        take_step(original.roles, config, step)
    for name in ("fake_score", "generator"):
        buffer = pickle.dumps(getattr(original, name).state())
        getattr(restored, name).load_state(pickle.loads(buffer))
    results = [take_step(tiny.roles, config, 2) for tiny in (original, restored)]
    assert results[0] == results[1]
    states = [getattr(tiny, role).state() for tiny in (original, restored)]
    for part in ("network", "ema") if role == "generator" else ("network",):
        for name, value in states[0][part].items():
            assert torch.equal(value, states[1][part][name]), name


def test_learners_of_unconditional_networks_work_without_labels() -> None:
    config = METHODS["sida"]
    networks = [tiny_network(seed, label_dim=0) for seed in (1, 2, 3)]
    tiny = TinyRoles(
        TeacherScorer(networks[0]),
        FakeScoreLearner(config, networks[1], FixedStream(), PIXEL_MAX),
        GeneratorLearner(config, networks[2]),
        LabelConditions((), partial(Draws, config.seed)),
    )
    result = take_step(tiny.roles, config, 1)
    assert all(np.isfinite(value) for report in result.reports for value in report.figures.values())


def test_the_whole_discriminator_loss_is_the_papers() -> None:
    """lambda (BCE(real, 1) + BCE(fake, 0)) / 2, from logits of images with the same sigma and eps."""
    real, fake = torch.tensor([[[[0.3]]], [[[-1.2]]]]), torch.tensor([[[[2.0]]], [[[0.1]]]])
    weight = torch.tensor([4.0, 7.0])
    losses = discriminator_loss(real, fake, weight, group_size=2)
    per_group = (nn.functional.softplus(-real).mean() + nn.functional.softplus(fake).mean()) / 2
    torch.testing.assert_close(losses, weight * per_group)
