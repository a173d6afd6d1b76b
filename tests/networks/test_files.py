"""Networks from outside: every fault of a folder is reported in one line, and nothing in it is executed."""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from raysid.errors import StorageError, UserError
from raysid.networks.files import load_card, load_network, save_network, weights_digest
from tests.support.tiny_networks import save_generator, save_teacher, tiny_network


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """The folder of a valid teacher."""
    return Path(save_teacher(tmp_path / "teacher", tiny_network(0), data="digits"))


def refused(folder: Path, kind: Any = "teacher") -> str:
    """The error of loading: one line that names the folder."""
    with pytest.raises(UserError) as caught:
        load_network(folder, kind)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 1000
    assert str(folder) in line
    return line


def test_a_whole_folder_loads_exactly(teacher: Path) -> None:
    card, network = load_network(teacher, "teacher")
    assert card.trained == {"data": "digits"} and card.network == network.settings
    weights = network.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in tiny_network(0).state_dict().items())


def test_every_encoder_of_the_u_nets_loads(tmp_path: Path) -> None:
    """Buffers are saved as well: Fourier frequencies, resampling filters."""
    for number, changes in enumerate(
        [
            {"channel_mult": (1, 2), "encoder_type": "residual", "embedding_type": "fourier"},
            {"channel_mult": (1, 2), "encoder_type": "skip", "decoder_type": "skip"},
            {"model_type": "DhariwalUNet", "model_channels": 32},
        ]
    ):
        network = tiny_network(0, **changes)
        folder = save_teacher(tmp_path / str(number), network)
        loaded = load_network(folder, "teacher")[1].state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in network.state_dict().items())


def test_nothing_there_is_one_line(teacher: Path, tmp_path: Path) -> None:
    assert "no teacher at" in refused(tmp_path / "nowhere")
    assert "no teacher at" in refused(teacher / "config.json")  # a file, not a folder
    (tmp_path / "empty").mkdir()
    assert "holds model.safetensors and config.json" in refused(tmp_path / "empty")


def test_missing_weights_are_one_line(teacher: Path) -> None:
    (teacher / "model.safetensors").unlink()
    assert "is missing: copy the whole folder" in refused(teacher)


def test_weights_that_are_a_folder_are_one_line(teacher: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (teacher / name).unlink()
        (teacher / name).mkdir()
        with pytest.raises(StorageError) as caught:
            load_network(teacher, "teacher")
        assert str(caught.value) == f"{teacher / name} cannot be read: Is a directory"


def test_weights_cut_anywhere_are_one_line(teacher: Path) -> None:
    file = teacher / "model.safetensors"
    whole = file.read_bytes()
    (header,) = struct.unpack("<Q", whole[:8])
    cuts = [0, 1, 7, 8, 9, 8 + header // 2, 8 + header - 1, 8 + header, 8 + header + 1, len(whole) // 2]
    for cut in [*cuts, len(whole) - 4, len(whole) - 1]:
        file.write_bytes(whole[:cut])
        assert "is damaged (truncated or not safetensors)" in refused(teacher), cut
    file.write_bytes(whole + b"\0")
    assert "is damaged" in refused(teacher)


def test_a_card_cut_anywhere_is_one_line(teacher: Path) -> None:
    file = teacher / "config.json"
    whole = file.read_bytes().rstrip()
    for cut in range(0, len(whole), 7):
        file.write_bytes(whole[:cut])
        assert "does not describe a network" in refused(teacher), cut


@pytest.mark.parametrize(
    "content",
    [b"null", b"[]", b"3", b"{}", b'"teacher"', b"\xff\xfe", b"{" * 100_000, b"kind: teacher\n", b"\0" * 50],
)
def test_other_json_is_one_line(teacher: Path, content: bytes) -> None:
    (teacher / "config.json").write_bytes(content)
    refused(teacher)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["kind"], "student", "kind"),
        (["surprise"], 1, "surprise"),
        (["network", "surprise"], 1, "network.surprise"),
        (["network", "img_resolution"], -8, "network.img_resolution"),
        (["network", "img_resolution"], "8; import os", "network.img_resolution"),
        (["network", "model_type"], "os.system", "network.model_type"),
        (["network", "dropout"], float("nan"), "network.dropout"),
        (["sigma_init"], float("inf"), "sigma_init"),
        (["network"], None, "network"),
        (["trained"], "much", "trained"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_wrong_field_is_named(teacher: Path, path: list[str], value: Any, words: str) -> None:
    change_card(teacher, path, value)
    assert f"does not describe a network: {words}: " in refused(teacher)


def change_card(folder: Path, path: list[str], value: Any) -> None:
    """Set a value in a folder's `config.json`."""
    card = json.loads((folder / "config.json").read_text())
    *sections, field = path
    where = card
    for section in sections:
        where = where[section]
    where[field] = value
    (folder / "config.json").write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_channels", 9),  # nine channels do not divide into two groups
        ("model_channels", 10**9),  # exabytes of weights
        ("num_blocks", 3),
        ("img_channels", 2),
        ("label_dim", 0),
        ("channel_mult", [1, 2, 3]),
    ],
)
def test_a_card_of_another_network_than_the_weights_is_one_line(teacher: Path, field: str, value) -> None:
    change_card(teacher, ["network", field], value)
    assert re.search("does not fit|does not describe a network", refused(teacher))


def test_a_generator_is_no_teacher_nor_the_reverse(teacher: Path, tmp_path: Path) -> None:
    generator = Path(save_generator(tmp_path / "generator", tiny_network(0)))
    assert "holds a generator, where a teacher is needed" in refused(generator)
    assert "holds a teacher, where a generator is needed" in refused(teacher, "generator")
    with pytest.raises(UserError, match="holds a generator"):
        load_card(generator, "teacher")


def test_a_generator_without_its_noise_level_is_one_line(teacher: Path) -> None:
    change_card(teacher, ["kind"], "generator")
    assert "sigma_init" in refused(teacher, "generator")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("num_blocks", 10**9, "1,000,000,000 blocks over all levels are too many"),
        ("num_blocks", 10**600, "blocks over all levels are too many"),
        ("img_resolution", 10**6, "a sample of 1 x 1,000,000 x 1,000,000 numbers is too large"),
        ("img_channels", 10**9, "img_channels"),
        ("label_dim", 10**9, "label_dim"),
        ("channel_mult", [1] * 10**5, "channel_mult"),
        ("resample_filter", [1.0] * 10**5, "resample_filter"),
        ("attn_resolutions", [1] * 10**5, "attn_resolutions"),
        ("model_channels", 4 * 10**9, "config.json"),
        ("model_channels", 4 * 10**60, "config.json"),
        ("channel_mult_emb", 10**12, "config.json"),
        ("augment_dim", 10**15, "config.json"),
    ],
)
@pytest.mark.parametrize("kind", ["teacher", "generator"])
def test_numbers_that_no_network_has_are_refused_before_it_is_built(
    teacher: Path, tmp_path: Path, field: str, value: Any, words: str, kind: str
) -> None:
    folder = teacher if kind == "teacher" else Path(save_generator(tmp_path / "generator", tiny_network(0)))
    change_card(folder, ["network", field], value)
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert words in refused(folder, kind)
    assert time.process_time() - began < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_a_description_of_any_size_is_not_read(teacher: Path) -> None:
    with (teacher / "config.json").open("r+b") as file:
        file.truncate(2**34)
    assert "has 17,179,869,184 bytes" in refused(teacher)


@pytest.mark.parametrize(
    "content", [b"[" * 200_000, b'{"a":' * 200_000, b"\xff", b"{", b"", b"[]", b"1", b'"a"']
)
def test_a_description_that_is_no_card_is_one_line(teacher: Path, content: bytes) -> None:
    (teacher / "config.json").write_bytes(content)
    assert "does not describe a network" in refused(teacher)


def altered(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Any:
    return pytest.param(change, id=name)


@pytest.mark.parametrize(
    "change",
    [
        altered("one more", lambda weights: weights.update({"model.more": torch.zeros(3)})),
        altered("one less", lambda weights: weights.pop("model.map_layer0.weight")),
        altered("another shape", lambda weights: weights.update({"model.map_layer0.bias": torch.zeros(3)})),
        altered("none", lambda weights: weights.clear()),
    ],
)
def test_foreign_tensors_are_one_line(teacher: Path, change) -> None:
    weights = dict(tiny_network(0).state_dict())
    change(weights)
    (teacher / "model.safetensors").write_bytes(safetensors.torch.save(weights))
    line = refused(teacher)
    assert "does not fit the network of config.json" in line and "model." in line


def test_weights_in_half_precision_load_as_the_networks_own(teacher: Path) -> None:
    halves = {name: value.half() for name, value in tiny_network(0).state_dict().items()}
    (teacher / "model.safetensors").write_bytes(safetensors.torch.save(halves))
    loaded = load_network(teacher, "teacher")[1].state_dict()
    assert all(torch.equal(loaded[name], value.float()) for name, value in halves.items())


class Executed:
    """An object whose unpickling writes a file."""

    def __init__(self, evidence: Path) -> None:
        self.evidence = evidence

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.evidence}",)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_pickle_under_a_networks_name_is_refused_and_not_executed(
    teacher: Path, tmp_path: Path, name: str, form: str
) -> None:
    evidence = tmp_path / "executed"
    if form == "pickle":
        (teacher / name).write_bytes(pickle.dumps(Executed(evidence)))
    else:
        torch.save({"weights": Executed(evidence)}, teacher / name)
    refused(teacher)
    assert not evidence.exists()
    with (teacher / name).open("rb") as file:  # the trap works when unpickled
        torch.load(file, weights_only=False) if form == "torch" else pickle.load(file)
    assert evidence.exists()


def test_files_beside_a_network_are_not_looked_at(teacher: Path, tmp_path: Path) -> None:
    evidence = tmp_path / "executed"
    for name in ("pytorch_model.bin", "model.pkl", "network.py"):
        (teacher / name).write_bytes(pickle.dumps(Executed(evidence)))
    load_network(teacher, "teacher")
    assert not evidence.exists()


def test_a_digest_tells_networks_apart(teacher: Path, tmp_path: Path) -> None:
    same = save_teacher(tmp_path / "same", tiny_network(0), data="elsewhere")
    other = save_teacher(tmp_path / "other", tiny_network(1))
    assert weights_digest(teacher) == weights_digest(same) != weights_digest(other)


def test_writing_over_a_network_leaves_it_whole_at_every_moment(
    teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies while it writes leaves the old files or the new ones, never a partial file."""
    before = {path.name: path.read_bytes() for path in teacher.iterdir()}
    card, _ = load_network(teacher, "teacher")

    def die(*_: Any) -> None:
        raise SystemExit("killed")

    monkeypatch.setattr(type(teacher / "x"), "replace", die)
    with pytest.raises(SystemExit):
        save_network(str(teacher), card, tiny_network(5))
    assert {name: (teacher / name).read_bytes() for name in before} == before
