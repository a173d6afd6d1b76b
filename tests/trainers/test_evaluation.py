"""Evaluation figures: the same for the same seed by every path to them; the best generator is the best recorded."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from upath import UPath

from raysid.data import open_source
from raysid.errors import RunFailed, UserError
from raysid.generator import load_generator
from raysid.networks.files import CONFIG, WEIGHTS, NetworkCard
from raysid.run.metrics import read_metrics
from raysid.storage import children
from raysid.trainers.distill import distill
from raysid.trainers.evaluation import evaluate_folder, evaluate_generator_path, generator_before
from raysid.trainers.grids import draw_grids
from raysid.trainers.measuring import measure, real_images, teacher_sampler
from tests.support.tiny_networks import digits_network, save_generator, save_teacher
from tests.support.tiny_run import BATCH, SAMPLES, lines_of, run_of, tiny_config, tiny_teacher

FIGURES = ("frechet_distance", "label_accuracy", "num_samples")


def known(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures without those that depend on the clock."""
    return {name: figures[name] for name in FIGURES}


@pytest.fixture(scope="module")
def generator_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("evaluated") / "generator"
    return save_generator(folder, digits_network(1), data="digits")


# A generator's figures.


def test_the_same_seed_gives_the_same_figures_and_another_others(generator_path: str) -> None:
    first, again, other = (
        known(evaluate_generator_path(generator_path, "last", SAMPLES, seed)) for seed in (2, 2, 3)
    )
    assert first == again
    assert first["frechet_distance"] != other["frechet_distance"]
    assert first["num_samples"] == SAMPLES


def test_a_runs_folder_and_its_generators_folder_agree(generator_path: str, tmp_path: Path) -> None:
    shutil.copytree(generator_path, tmp_path / "run" / "generator")
    save_generator(tmp_path / "run" / "generator-best", digits_network(2), data="digits")
    by_run, by_best = (
        known(evaluate_generator_path(str(tmp_path / "run"), which, SAMPLES, 2))  # type: ignore[arg-type]
        for which in ("last", "best")
    )
    assert by_run == known(evaluate_generator_path(generator_path, "last", SAMPLES, 2))
    best_folder = str(tmp_path / "run" / "generator-best")
    assert by_best == known(evaluate_generator_path(best_folder, "last", SAMPLES, 2))
    assert by_run != by_best


def test_evaluation_beside_training_gives_the_figures_of_evaluate(generator_path: str) -> None:
    figures, _ = evaluate_folder(generator_path, open_source("digits"), SAMPLES, seed=2)
    assert known(figures) == known(evaluate_generator_path(generator_path, "last", SAMPLES, 2))


def test_figures_include_the_score_of_two_halves_of_the_real_images(generator_path: str) -> None:
    figures = evaluate_generator_path(generator_path, "last", SAMPLES, 2)
    assert 0 < figures["halves_distance"] < figures["frechet_distance"]
    other = evaluate_generator_path(generator_path, "last", SAMPLES, 5)
    assert other["halves_distance"] == figures["halves_distance"]


def test_noise_belongs_to_the_sample_and_labels_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two generators are compared on the same noise for the same seed, whatever the batches."""
    card = NetworkCard(kind="generator", network=digits_network(0).settings, sigma_init=2.5)

    def drawn(batch: int, count: int) -> tuple[Tensor, Tensor]:
        seen: list[tuple[Tensor, Tensor]] = []

        def make(z: Tensor, labels: Tensor | None) -> Tensor:
            assert labels is not None
            seen.append((z, labels))
            return z.clamp(-1, 1)

        monkeypatch.setattr("raysid.trainers.measuring.BATCH", batch)
        measure(make, card, "digits", count, seed=7)
        z, labels = zip(*seen[1:], strict=True)  # the first is a warm-up
        return torch.cat(z), torch.cat(labels)

    z, labels = drawn(500, 60)
    assert labels.tolist() == [i % 10 for i in range(60)]
    for batch, count in ((500, 25), (16, 60)):
        other_z, other_labels = drawn(batch, count)
        assert torch.equal(other_z, z[:count]) and torch.equal(other_labels, labels[:count])


def test_real_images_score_better_than_noise(generator_path: str) -> None:
    """The scale of the figures: real images in another order score near 0."""
    images, labels = real_images("digits")
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(images)))
    card = NetworkCard(kind="generator", network=digits_network(0, label_dim=0).settings, sigma_init=2.5)
    position = 0

    def real(z: Tensor, _: Tensor | None) -> Tensor:
        nonlocal position
        chosen = order[position : position + len(z)]
        position = position + len(z) if position else 0  # the warm-up batch is drawn again
        return images[chosen]

    assert len(labels) == len(images) == 1797
    perfect = measure(real, card, "digits", 1000, 0)["frechet_distance"]
    noise = measure(lambda z, _: z.clamp(-1, 1), card, "digits", 1000, 0)["frechet_distance"]
    assert perfect < 10 < noise
    assert perfect < evaluate_generator_path(generator_path, "last", 1000, 0)["frechet_distance"]


def test_a_generator_before_distillation_is_the_teachers_network_run_once(tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher", digits_network(4))
    before = generator_before(teacher, 2.5)
    z, labels = torch.randn(3, 1, 8, 8), torch.tensor([0, 4, 9])
    expected = digits_network(4)(2.5 * z, torch.full((3,), 2.5), torch.eye(10)[labels]).clamp(-1, 1)
    torch.testing.assert_close(before(z, labels), expected)


def test_a_teachers_samples_are_heuns_under_their_labels() -> None:
    network, z = digits_network(4).train(), torch.randn(3, 1, 8, 8)
    images = teacher_sampler(network, 3)(z, torch.tensor([0, 4, 9]))
    assert images.shape == z.shape and not network.training
    assert torch.equal(images, teacher_sampler(network, 3)(z, torch.tensor([0, 4, 9])))
    assert not torch.allclose(images, teacher_sampler(network, 3)(z, torch.tensor([1, 1, 1])))


def test_grids_show_the_same_noise_beside_real_images_of_the_same_labels(generator_path: str) -> None:
    grids, again = (draw_grids(load_generator(generator_path), open_source("digits")) for _ in range(2))
    assert grids.generated.shape == grids.real.shape == (80, 1, 8, 8)
    assert (grids.generated == again.generated).all() and (grids.real == again.real).all()
    images, labels = real_images("digits")
    known_images = {
        image.tobytes(): label for image, label in zip(images.numpy(), labels.tolist(), strict=True)
    }
    shown = [known_images[image.tobytes()] for image in grids.real]
    assert shown == [row for row in range(10) for _ in range(8)]
    assert len({image.tobytes() for image in grids.real}) == 80


@pytest.mark.parametrize(
    ("trained", "words"),
    [({}, "does not name the real images"), ({"data": "dogs"}, "dogs")],
    ids=["none", "unknown"],
)
def test_a_generator_of_unknown_images_cannot_be_measured(
    tmp_path: Path, trained: dict[str, Any], words: str
) -> None:
    folder = save_generator(tmp_path / "generator", digits_network(1), **trained)
    with pytest.raises(UserError, match=words):
        evaluate_generator_path(folder, "last", SAMPLES, 2)


# The evaluations of a run.


def test_a_run_whose_evaluation_fails_writes_a_checkpoint_and_resumes_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seldom = {"checkpoint__every_images": 10_000, "evaluation__every_images": 10_000}
    teacher = tiny_teacher(tmp_path / "teacher")
    config = tiny_config(teacher, tmp_path, placement="local", total_images=5 * BATCH, **seldom)

    def away(*arguments: Any, **options: Any) -> Any:
        raise UserError("the images are away")

    with monkeypatch.context() as patch:
        patch.setattr("raysid.trainers.evaluation.evaluate_folder", away)
        with pytest.raises(RunFailed) as caught:
            distill(config)
    said = re.fullmatch(
        "the evaluation of step 0 failed: the images are away; run the same command to resume; checkpoint of step "
        "([1-5]) written",
        str(caught.value),
    )
    assert said and f"step-{int(said[1]):08d}" in [
        path.name for path in children(UPath(run_of(config)) / "checkpoints")
    ]
    result = distill(config)
    assert result.checkpoint is not None and result.checkpoint.endswith("step-00000005")
    assert [entry["step"] for entry in lines_of(run_of(config), "evaluation")] == [5]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps in this process, evaluated every 2 steps."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config(
        tiny_teacher(folder / "teacher"),
        folder,
        placement="local",
        total_images=12 * 32,
        evaluation__every_images=2 * 32,
        evaluation__seed=5,
        generator__lr=3e-2,  # fast enough that it also gets worse
    )
    threads = torch.get_num_threads()
    distill(config)
    torch.set_num_threads(threads)
    return run_of(config)


def evaluations(run: Path) -> list[dict[str, Any]]:
    """The run's recorded evaluations, in order."""
    return [entry for entry in read_metrics(run) if entry["kind"] == "evaluation"]  # type: ignore[arg-type]


def test_the_best_generator_is_the_one_of_the_smallest_evaluated_distance(run: Path) -> None:
    recorded = evaluations(run)
    assert [entry["step"] for entry in recorded] == [0, 2, 4, 6, 8, 10, 12]
    smallest = min(recorded, key=lambda entry: entry["frechet_distance"])
    assert 0 < smallest["step"] < 12, "the run should get better and then worse; change its rate"
    card = json.loads((run / "generator-best" / CONFIG).read_text())
    assert card["trained"]["step"] == smallest["step"]
    assert (run / "generator-best" / WEIGHTS).read_bytes() != (run / "generator" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("which", ["best", "last"])
def test_evaluate_repeats_what_the_run_recorded(run: Path, which: Any) -> None:
    """With the seed and sample count of the run's evaluations: the saved weights are the evaluated ones."""
    recorded = evaluations(run)
    entry = min(recorded, key=lambda one: one["frechet_distance"]) if which == "best" else recorded[-1]
    figures = evaluate_generator_path(str(run), which, SAMPLES, 5)
    assert figures["frechet_distance"] == pytest.approx(entry["frechet_distance"], rel=1e-6)
    assert figures["label_accuracy"] == pytest.approx(entry["label_accuracy"])


def test_the_final_table_measures_on_other_noise_than_the_one_that_chose(run: Path) -> None:
    (table,) = [entry for entry in read_metrics(run) if entry["kind"] == "table"]  # type: ignore[arg-type]
    rows = {row["name"]: row for row in table["rows"]}
    for name, which in (("generator, last EMA", "last"), ("generator, best evaluated EMA", "best")):
        figures = evaluate_generator_path(str(run), which, SAMPLES, 6)  # type: ignore[arg-type]
        assert rows[name]["frechet_distance"] == pytest.approx(figures["frechet_distance"], rel=1e-6)
        assert rows[name]["evaluations"] == 1
    assert rows["teacher"]["frechet_distance"] == 1.0  # as its card says
    assert rows["generator before"]["frechet_distance"] > 0
