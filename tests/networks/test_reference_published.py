"""The authors' .pkl files: converted, they compute what the authors' code computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from raysid.networks.files import load_network, save_network
from raysid.networks.published import read_published
from tests.support.reference_folder import reference_folder

FILES = sorted(reference_folder().glob("edm_*.pkl"))


def test_there_are_reference_files() -> None:
    assert FILES


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_published_network_computes_what_its_authors_do(file: Path, tmp_path: Path) -> None:
    with np.load(file.with_name(f"{file.stem}_expected.npz")) as stored:
        numbers = {name: torch.from_numpy(stored[name]) for name in stored.files}
    found = read_published(file)
    save_network(str(tmp_path), found.card(file.name), found.network())
    for network in (found.network(), load_network(str(tmp_path), "teacher")[1]):
        labels = numbers["labels"] if numbers["labels"].shape[1] else None
        with torch.no_grad():
            denoised = network.eval()(numbers["x"], numbers["sigma"], labels)
        largest = numbers["denoised"].abs().max()
        assert (denoised - numbers["denoised"]).abs().max() <= 1e-4 * largest


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_weights_stay_as_they_are_bit_for_bit(file: Path, tmp_path: Path) -> None:
    found = read_published(file)
    save_network(str(tmp_path), found.card(file.name), found.network())
    weights = load_network(str(tmp_path), "teacher")[1].state_dict()
    assert weights.keys() == found.weights.keys()
    assert all(torch.equal(weights[name], value) for name, value in found.weights.items())
