"""The shipped digits classifier is as accurate as its file says, on digits and not by chance."""

from __future__ import annotations

from importlib import resources

import pytest
import torch
from safetensors import safe_open

from raysid.metrics.classifier import WEIGHTS_FILE, load_digits_classifier
from tests.support import train_digits_classifier as script


def digits_classifier_metadata() -> dict[str, str]:
    """The metadata of the shipped weights: held-out accuracy, split and seeds, script."""
    with safe_open(str(resources.files("raysid.metrics") / WEIGHTS_FILE), framework="pt") as weights:
        return dict(weights.metadata())


def test_held_out_accuracy_is_what_the_file_records_and_at_least_98_percent() -> None:
    metadata = digits_classifier_metadata()
    split = script.digits_split(int(metadata["split_seed"]))
    assert len(split.test_labels) == int(metadata["held_out_images"]) == 360
    measured = script.accuracy(load_digits_classifier(), split.test_images, split.test_labels)
    assert measured >= 0.98
    # Within one image: another processor may round a borderline digit differently.
    assert measured == pytest.approx(float(metadata["held_out_accuracy"]), abs=1.5 / 360)


def test_the_split_keeps_train_and_test_apart_and_every_class_in_both() -> None:
    split = script.digits_split()
    assert len(split.train_labels) + len(split.test_labels) == 1797
    assert split.test_labels.bincount().min() >= 30
    assert split.train_images.min() == -1 and split.train_images.max() == 1
    train = {image.numpy().tobytes() for image in split.train_images}
    assert not any(image.numpy().tobytes() in train for image in split.test_images)


def test_accuracy_against_shuffled_labels_is_chance() -> None:
    split = script.digits_split()
    order = torch.randperm(360, generator=torch.Generator().manual_seed(0))
    assert script.accuracy(load_digits_classifier(), split.test_images, split.test_labels[order]) < 0.25


def test_shipped_classifier_is_frozen_and_does_not_depend_on_the_batch() -> None:
    classifier = load_digits_classifier()
    assert not classifier.training
    assert not any(parameter.requires_grad for parameter in classifier.parameters())
    images = script.digits_split().test_images[:32]
    features, logits = classifier.features_and_logits(images)
    assert features.shape == (32, 64) and logits.shape == (32, 10)
    assert torch.allclose(classifier.features(images[:1]), features[:1], atol=1e-4)
    assert torch.allclose(classifier(images), logits, atol=1e-4)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"takes images \(B, 1, 8, 8\), got \(2, 3, 32, 32\)"):
        load_digits_classifier()(torch.zeros(2, 3, 32, 32))


def test_script_writes_weights_that_load_and_repeats_itself(tmp_path, monkeypatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(script, "EPOCHS", 1)
    written = []
    try:
        for name in ("first", "second"):
            path = tmp_path / f"{name}.safetensors"
            monkeypatch.setattr("sys.argv", ["train_digits_classifier", "--out", str(path)])
            script.main()
            with safe_open(path, framework="pt") as file:
                assert file.metadata().keys() == digits_classifier_metadata().keys()
                written.append({key: file.get_tensor(key) for key in file.keys()})
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    assert written[0].keys() == load_digits_classifier().state_dict().keys()
    assert all(torch.equal(written[0][key], written[1][key]) for key in written[0])
