"""Text runs on digits are measured: distance, digits read, agreement with the caption, words never seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from upath import UPath

from raysid.config import Config
from raysid.data.captions import WORDS, evaluation_captions, read_caption
from raysid.metrics.agreement import CaptionAgreement
from raysid.networks.known_texts import read_known
from raysid.networks.text import TextEncoder, Tokenizer, keep_texts
from raysid.run.watch import state_of
from raysid.trainers.distill import distill
from raysid.trainers.evaluation import evaluate_generator_path
from raysid.trainers.measuring import evaluator, real_agreement, real_images
from tests.support.command_line import raysid
from tests.support.tiny_digits_text import tiny_text_teacher
from tests.support.tiny_run import lines_of, run_of

SAMPLES, BATCH = 60, 8
FIGURES = ("frechet_distance", "label_accuracy", "agreement", "words_right")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_text_teacher(tmp_path_factory.mktemp("given") / "teacher")


def digits_config(teacher: str, storage: Path, **changes: Any) -> Config:
    tree: dict[str, Any] = {
        "storage": str(storage),
        "run": {"name": "text"},
        "placement": "local",
        "torch_threads": 1,
        "teacher": {"path": teacher},
        "prompts": {"source": "digits"},
        "data": {"source": None},
        "method": {"guidance": {"train_fake": 1.5, "eval_fake": 1.5, "eval_teacher": 1.5}},
        "total_images": 4 * BATCH,
        "batch_size": BATCH,
        "evaluation": {"every_images": 2 * BATCH, "num_samples": SAMPLES},
        "checkpoint": {"every_images": 2 * BATCH},
    }
    return Config.model_validate(tree | changes)


@pytest.fixture(scope="module")
def run(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = digits_config(teacher, tmp_path_factory.mktemp("runs"))
    threads = torch.get_num_threads()
    distill(config)
    torch.set_num_threads(threads)
    return run_of(config)


def test_a_run_records_and_shows_its_figures(run: Path) -> None:
    """In every evaluation, in the table of the teacher and the generators, and where `raysid watch` looks."""
    recorded = lines_of(run, "evaluation")
    assert [entry["step"] for entry in recorded] == [0, 2, 4]
    assert all(0 <= entry["agreement"] <= entry["label_accuracy"] <= 1 for entry in recorded)
    (table,) = lines_of(run, "table")
    rows = {row["name"]: row for row in table["rows"]}
    for name in ("teacher", "generator before", "generator, last EMA", "generator, best evaluated EMA"):
        assert all(isinstance(rows[name][figure], float) for figure in FIGURES)
    assert rows["teacher"]["evaluations"] == 2 and rows["teacher"]["guidance"] == 1.5
    real = rows["real images, one half against the other"]
    assert (
        real["agreement"] == pytest.approx(real_agreement("digits")["agreement"])
        and real["words_right"] == 1.0
    )
    assert "agreement with the prompt" in state_of(str(run)).text
    assert (run / "samples" / "step-00000004.png").exists()


def test_evaluate_repeats_the_figures_and_shows_words_never_seen(run: Path) -> None:
    recorded = lines_of(run, "evaluation")[-1]
    figures = evaluate_generator_path(str(run), "last", SAMPLES, 1)
    for name in FIGURES:
        assert figures[name] == pytest.approx(recorded[name], rel=1e-6)
    assert 0 <= figures["held_out_right"] <= 1
    held_out = {known[-1] for words in WORDS.values() for known in words.values()}
    assert held_out <= set(figures["by_word"])
    shown = raysid("evaluate", run, "--num-samples", SAMPLES)
    assert shown.exit_code == 0 and "never seen" in shown.output and "delicate" in shown.output
    picture = run / "eight.png"
    assert raysid("sample", run, "--prompt", "a bold eight", "-n", 2, "--out", picture).exit_code == 0


def test_real_images_agree_with_their_captions_and_others_do_not() -> None:
    images = real_images("digits")[0]
    assert real_agreement("digits")["agreement"] > 0.99
    judge = CaptionAgreement(evaluation_captions(len(images)))
    evaluator("digits").judge(images.roll(1, 0), judge)
    assert judge.figures()["agreement"] < 0.2
    broken = CaptionAgreement(evaluation_captions(4))
    evaluator("digits").judge(torch.full((4, 1, 8, 8), float("nan")), broken)
    assert broken.figures()["agreement"] == 0


def test_captions_of_an_evaluation_go_through_the_images_first() -> None:
    captions = evaluation_captions(2000)
    assert captions[:1797] == evaluation_captions(1797)
    assert read_caption(captions[1797]).digit == read_caption(captions[0]).digit
    seen = {word for known in WORDS["ink"].values() for word in known[:-1]}
    unseen = " ".join(evaluation_captions(1797, held_out=True))
    assert "delicate" in unseen and not any(f" {word} " in unseen for word in seen)


# Prompts that are encoded once.


def test_a_process_that_meets_kept_prompts_alone_loads_no_encoder(
    teacher: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> Any:
        raise AssertionError("transformers was loaded")

    known = read_known(UPath(teacher))
    assert known is not None and "" in known.rows
    caption = evaluation_captions(1)
    monkeypatch.setattr("raysid.networks.text._transformers", missing)
    fresh = TextEncoder(teacher, torch.device("cpu"))
    assert fresh.encode(caption).shape == (1, *known.embeddings.shape[1:])
    assert torch.equal(fresh.null_text(), known.embeddings[known.rows[""]])


def test_kept_embeddings_are_those_of_the_encoder_and_of_no_other(tmp_path: Path) -> None:
    folder = tiny_text_teacher(tmp_path / "teacher")
    prompts = ["a thin one", "a bold 8 leaning left"]
    before, ids = TextEncoder(folder, torch.device("cpu")).encode(prompts), Tokenizer(folder)(prompts).ids
    keep_texts(folder, prompts)
    assert torch.equal(Tokenizer(folder)(prompts).ids, ids)
    torch.testing.assert_close(TextEncoder(folder, torch.device("cpu")).encode(prompts), before)
    mixed = TextEncoder(folder, torch.device("cpu")).encode([prompts[0], "a wide two"])
    torch.testing.assert_close(mixed[:1], before[:1])
    config = tmp_path / "teacher" / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"note": "another"}))
    assert read_known(UPath(folder)) is None  # made by another encoder than the one that is there now


def test_texts_that_are_kept_later_change_none_of_those_before(tmp_path: Path) -> None:
    """Another run on the same teacher has other prompts, and this run must resume exactly."""
    folder = tiny_text_teacher(tmp_path / "teacher")
    prompts = ["a thin one", "a bold 8 leaning left", "A thin one"]
    keep_texts(folder, prompts)
    before = TextEncoder(folder, torch.device("cpu"))
    keep_texts(folder, ["a wide two leaning right", prompts[1], "a four"])
    after = TextEncoder(folder, torch.device("cpu"))
    assert torch.equal(after.encode(prompts), before.encode(prompts))
    assert torch.equal(after.null_text(), before.null_text())
    known = read_known(UPath(folder))
    assert known is not None and {*prompts, "a four", ""} <= known.rows.keys()
