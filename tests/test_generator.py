"""The generator: created, saved, loaded and sampled without Ray; errors for wrong labels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from raysid import Generator, UserError, load_generator
from raysid.networks.files import NetworkCard
from tests.support.tiny_networks import CLASSES, SHAPE, save_generator, tiny_network


def tiny_generator(label_dim: int = CLASSES) -> Generator:
    network = tiny_network(0, label_dim=label_dim)
    card = NetworkCard(kind="generator", network=network.settings, sigma_init=2.5, trained={"images": 7})
    return Generator(card, network).eval()


def noise(count: int) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


# Sampling.


def test_an_image_is_one_network_evaluation_at_sigma_init_clamped() -> None:
    generator, z, labels = tiny_generator(), 5 * noise(6), torch.arange(6) % CLASSES
    raw = generator.network(2.5 * z, torch.full((6,), 2.5), torch.eye(CLASSES)[labels])
    assert raw.abs().max() > 1  # so that clamping has an effect
    assert torch.equal(generator(z, labels), raw.clamp(-1, 1))
    assert torch.equal(generator.train()(z, labels), raw)


def test_it_says_what_it_makes() -> None:
    assert (tiny_generator().num_classes, tiny_generator().sample_shape) == (CLASSES, SHAPE)
    assert tiny_generator(label_dim=0).num_classes == 0


def test_gradients_reach_the_noise_and_the_weights() -> None:
    generator, z = tiny_generator().train(), noise(2).requires_grad_()
    generator(z, torch.tensor([0, 1])).square().sum().backward()
    assert z.grad is not None and z.grad.abs().sum() > 0
    assert all(p.grad is not None for p in generator.parameters())


def test_samples_with_a_torch_generator_are_reproducible() -> None:
    generator = tiny_generator()
    drawn = [generator.sample(5, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert drawn[0].shape == (5, *SHAPE) and not drawn[0].requires_grad
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_a_torch_generator_leaves_the_global_one_alone_and_keeps_its_state() -> None:
    generator, source = tiny_generator(), torch.Generator().manual_seed(3)
    before = torch.get_rng_state()
    first, second = generator.sample(2, generator=source), generator.sample(2, generator=source)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first, second)


def test_without_one_the_global_generator_decides() -> None:
    generator = tiny_generator()
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        drawn.append(generator.sample(2))
    assert torch.equal(*drawn)


def test_samples_take_a_label_each_or_one_for_all() -> None:
    generator = tiny_generator()

    def sample(labels: object) -> Tensor:
        return generator.sample(3, labels, torch.Generator().manual_seed(0))  # type: ignore[arg-type]

    same = sample(torch.tensor([2, 2, 2]))
    assert torch.equal(sample(torch.tensor(2)), same)
    assert torch.equal(sample(2), same) and torch.equal(sample([2, 2, 2]), same)
    assert not torch.equal(sample(torch.tensor([0, 1, 2])), same)


def test_labels_not_given_are_drawn_from_all_classes() -> None:
    generator, seen = tiny_generator(), []
    generator.network.register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    generator.sample(300, generator=torch.Generator().manual_seed(0))
    assert seen[0].sum(0).min() > 70


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, r"needs class_labels, indices in 0 to 2"),
        (torch.tensor([0, 3]), r"must be in 0 to 2"),
        (torch.tensor([-1, 0]), r"must be in 0 to 2"),
        (torch.tensor([0]), r"shape \(2,\), not \(1,\)"),
        (torch.eye(3, dtype=torch.int64)[:2], r"shape \(2,\), not \(2, 3\)"),
        (torch.tensor([0.5, 1.0]), r"integers"),
    ],
    ids=["none", "above", "negative", "too few", "one-hot", "fractions"],
)
def test_wrong_labels_are_refused(labels: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_generator()(noise(2), labels)


def test_wrong_labels_are_refused_by_sample_too() -> None:
    with pytest.raises(ValueError, match="must be in 0 to 2"):
        tiny_generator().sample(2, torch.tensor(3))
    with pytest.raises(ValueError, match=r"shape \(3,\), not \(2,\)"):
        tiny_generator().sample(3, torch.tensor([0, 1]))


def test_an_unconditional_generator_takes_no_labels() -> None:
    generator = tiny_generator(label_dim=0)
    assert generator.sample(4).shape == generator(noise(4)).shape == (4, *SHAPE)
    for refused in (lambda: generator(noise(1), torch.zeros(1)), lambda: generator.sample(1, torch.zeros(1))):
        with pytest.raises(ValueError, match="has no classes: call it without class_labels"):
            refused()


# Saving and loading.


@pytest.mark.parametrize("label_dim", [CLASSES, 0])
def test_a_kept_generator_is_loaded_exactly(tmp_path: Path, label_dim: int) -> None:
    generator = tiny_generator(label_dim)
    generator.save_pretrained(str(tmp_path / "kept"))
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"model.safetensors", "config.json"}
    for load in (load_generator, Generator.from_pretrained):
        loaded = load(str(tmp_path / "kept"))
        assert loaded.card == generator.card and not loaded.training
        for name, value in generator.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name
        labels = None if label_dim == 0 else torch.tensor([0, 2])
        assert torch.equal(loaded(noise(2), labels), generator(noise(2), labels))


def test_keeping_it_again_changes_no_byte(tmp_path: Path) -> None:
    tiny_generator().save_pretrained(tmp_path / "first")
    load_generator(tmp_path / "first").save_pretrained(tmp_path / "second")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_a_runs_generators_are_found_by_name(tmp_path: Path) -> None:
    save_generator(tmp_path / "generator", tiny_network(1))
    with pytest.raises(UserError, match="no evaluated generator yet: give --which last"):
        load_generator(tmp_path, which="best")
    save_generator(tmp_path / "generator-best", tiny_network(2))
    for which, seed in (("last", 1), ("best", 2)):
        weights = load_generator(tmp_path, which).network.state_dict()  # type: ignore[arg-type]
        assert all(torch.equal(weights[k], v) for k, v in tiny_network(seed).state_dict().items())


def test_a_missing_generator_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no run and no generator at {tmp_path / 'nowhere'}"):
        load_generator(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no generator: give a run's folder"):
        load_generator(tmp_path)
    with pytest.raises(UserError, match="no generator at"):
        Generator.from_pretrained(tmp_path)


def test_it_needs_nothing_of_ray(tmp_path: Path) -> None:
    """Without Ray a generator can be loaded, called, sampled, drawn and saved."""
    folder = save_generator(tmp_path / "kept", tiny_network(0))
    program = f"""
import sys
sys.modules["ray"] = None
import torch
from raysid import Generator, load_generator
generator = load_generator({folder!r})
images = generator.sample(3, torch.tensor([0, 1, 2]), torch.Generator().manual_seed(0))
generator(torch.zeros(1, 1, 4, 4), torch.tensor([0]))
generator.save_pretrained({str(tmp_path / "again")!r})
Generator.from_pretrained({str(tmp_path / "again")!r})
from raysid.cli.main import cli
cli(["sample", {folder!r}, "--out", {str(tmp_path / "grid.png")!r}], standalone_mode=False)
print(images.double().sum().item())
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    images = load_generator(folder).sample(3, torch.tensor([0, 1, 2]), torch.Generator().manual_seed(0))
    assert float(done.stdout.splitlines()[-1]) == pytest.approx(images.double().sum().item())
    assert (tmp_path / "grid.png").exists()
