"""Published .pkl files: networks are converted exactly, and no code in a file ever runs."""

from __future__ import annotations

import copyreg
import io
import pickle
import resource
import struct
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raysid.errors import UserError
from raysid.networks.published import read_published
from tests.support.published_files import Persistent, persistent, pickled, published, save_published
from tests.support.tiny_networks import tiny_network

NETWORKS: dict[str, dict[str, Any]] = {
    "DDPM++": {},
    "augmented, unconditional": {"label_dim": 0, "augment_dim": 9, "channel_mult": (1, 2)},
    "NCSN++": {
        "channel_mult": (1, 2),
        "encoder_type": "residual",
        "embedding_type": "fourier",
        "channel_mult_noise": 2,
        "resample_filter": (1, 3, 3, 1),
    },
    "skips": {"channel_mult": (1, 2), "encoder_type": "skip", "decoder_type": "skip"},
    "ADM": {"model_type": "DhariwalUNet", "model_channels": 32, "channel_mult": (1, 2)},
}


def refused(path: Path, seconds: float = 5) -> str:
    """The error of reading a file: one line that names it, after at most `seconds` of CPU time."""
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        read_published(path)
    assert time.process_time() - start < seconds
    line = str(caught.value)
    assert line.startswith(f"{path} ") and line.isprintable() and len(line) < 500
    return line


def refused_bytes(folder: Path, content: bytes) -> str:
    """`refused` for a file with this content."""
    path = folder / "hostile.pkl"
    path.write_bytes(content)
    return refused(path)


@pytest.mark.parametrize("changes", NETWORKS.values(), ids=NETWORKS)
def test_settings_and_weights_are_read_exactly(changes: dict[str, Any], tmp_path: Path) -> None:
    network = tiny_network(0, **changes)
    found = read_published(save_published(tmp_path / "network.pkl", network))
    assert found.settings == network.settings and found.use_fp16
    weights = found.network().state_dict()
    assert {name: value.dtype for name, value in weights.items()} == dict.fromkeys(weights, torch.float32)
    for name, value in network.state_dict().items():
        assert torch.equal(weights.pop(name), value)
    assert not weights


def test_settings_missing_from_a_file_have_edms_defaults(tmp_path: Path) -> None:
    """The constructor's defaults depend on the kind of network; the first arguments may be positional."""
    network = tiny_network(0, model_type="DhariwalUNet", model_channels=32)
    content = published(network)
    state = content["ema"].meta["state"]
    kwargs = state["_init_kwargs"]
    state["_init_args"] = (kwargs.pop("img_resolution"), kwargs.pop("img_channels"), kwargs.pop("label_dim"))
    del kwargs["model_type"]
    (tmp_path / "network.pkl").write_bytes(pickled(content))
    assert read_published(tmp_path / "network.pkl").settings == network.settings
    for name in ("model_channels", "channel_mult", "num_blocks", "attn_resolutions"):
        del kwargs[name]
    kwargs["surprise"] = 1
    assert "the setting surprise" in refused_bytes(tmp_path, pickled(content))
    del kwargs["surprise"]
    kwargs["img_resolution"] = 4  # cannot be halved three times, as ADM's four levels need
    state["_init_args"] = ()
    kwargs["img_channels"] = 1
    assert "cannot be halved 3 times" in refused_bytes(tmp_path, pickled(content))


def test_numbers_of_numpy_and_other_layouts_are_read(tmp_path: Path) -> None:
    network = tiny_network(0)
    content = published(
        network, sigma_data=np.float64(0.5), dropout=np.float32(0.25), label_dropout=np.float64(0)
    )
    model = content["ema"].meta["state"]["_modules"]["model"].meta["state"]["_modules"]
    layer = model["map_layer0"].meta["state"]["_parameters"]
    whole = torch.randn(7 + layer["bias"].numel(), dtype=torch.float16)
    layer["bias"] = whole[7:]
    layer["weight"] = torch.nn.Parameter(layer["weight"].T.contiguous().T)
    (tmp_path / "network.pkl").write_bytes(pickled(content))
    found = read_published(tmp_path / "network.pkl")
    assert (found.settings.sigma_data, found.settings.dropout) == (0.5, 0.25)
    assert torch.equal(found.weights["model.map_layer0.bias"], whole[7:].float())
    assert torch.equal(found.weights["model.map_layer0.weight"], layer["weight"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"surprise": 1}, "was built with the setting surprise"),
        ({"img_resolution": "8; import os"}, "img_resolution"),
        ({"img_resolution": 2**1000}, ""),
        ({"num_blocks": 10**9}, "blocks over all levels are too many"),
        ({"num_blocks": 100}, "too few for the network that its settings describe"),
        ({"model_channels": 10**9}, "holds no network that can be built"),
        ({"model_channels": 2**1000}, ""),
        ({"label_dim": 10**12}, "label_dim"),
        ({"label_dim": 10**6}, "does not fit its own settings"),
        ({"label_dim": 2**1000}, ""),
        ({"sigma_data": 2**2000}, ""),
        ({"model_type": "DhariwalUNet", "label_dim": 2**2000}, ""),
        ({"channel_mult": [1] * 50}, ""),
        ({"channel_mult": [[1]]}, "channel_mult that is neither"),
        ({"channel_mult": [1] * 1000}, "channel_mult that is neither"),
        ({"dropout": float("nan")}, "dropout"),
        ({"model_type": "os.system"}, "model_type"),
        ({"model_type": ["SongUNet"]}, "model_type"),
        ({"model_channels": 5}, "does not fit"),
        ({"attn_resolutions": {"16": 1}}, "attn_resolutions that is neither"),
        ({"resample_filter": [1, 2]}, "another filter than that of resample_filter"),
        ({"no\nname\x1b[2J": 1}, r"no\nname\x1b[2J"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_settings_that_do_not_fit_are_named(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    network = tiny_network(0, channel_mult=(1, 2))
    assert words in refused(save_published(tmp_path / "network.pkl", network, **changes))


def test_another_network_is_named(tmp_path: Path) -> None:
    other = Persistent("VPPrecond", {"_init_args": (), "_init_kwargs": {}})
    assert "holds a VPPrecond: raysid builds only networks of EDMPrecond" in refused_bytes(
        tmp_path, pickled({"ema": other})
    )
    for content in ({}, {"ema": None}, {"G": other}, [], None, {"ema": {"model": 1}}, other):
        assert "holds no network" in refused_bytes(tmp_path, pickled(content))
    for state in (None, {}, {"_init_args": ()}, [], {"_init_args": (), "_init_kwargs": 3}):
        assert "nothing in it was executed" in refused_bytes(
            tmp_path, pickled({"ema": Persistent("EDMPrecond", state)})
        )


def test_a_file_that_is_no_pickle_is_one_line(tmp_path: Path) -> None:
    for content in (
        b"",
        b"\0",
        b"PK\x03\x04" + bytes(100),
        b"<!DOCTYPE html>",
        b"\x80\x04",
        b".",
        b"\x80\x04.",
    ):
        refused_bytes(tmp_path, content)
    torch.save({"ema": torch.ones(3)}, tmp_path / "hostile.pkl")
    refused(tmp_path / "hostile.pkl")
    assert "there is no file" in str(pytest.raises(UserError, read_published, tmp_path / "none.pkl").value)
    assert "is not a file" in str(pytest.raises(UserError, read_published, tmp_path).value)


# Files with code.


@pytest.fixture
def evidence(tmp_path: Path) -> Iterator[Path]:
    """A file that exists once any of the code was executed."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


def text(value: str) -> bytes:
    """The opcode that pushes a text."""
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


SYSTEM = b"cos\nsystem\n"
EXTENSION = 240


def calls(path: Path) -> dict[str, bytes]:
    """Every way in which a pickle can call os.system, as opcodes that leave one value."""
    touch = text(f"touch {path}")
    name = b"\x8c\x02os\x8c\x06system\x93"
    state = b"}X\x0c\0\0\0__setstate__" + SYSTEM + b"s"
    return {
        "REDUCE of GLOBAL": SYSTEM + touch + b"\x85R",
        "REDUCE of STACK_GLOBAL": name + touch + b"\x85R",
        "REDUCE of posix": b"cposix\nsystem\n" + touch + b"\x85R",
        "REDUCE of eval": b"cbuiltins\neval\n" + text(f"open({str(path)!r}, 'w')") + b"\x85R",
        "REDUCE of getattr": b"cbuiltins\ngetattr\n"
        + SYSTEM
        + text("__call__")
        + b"\x86R"
        + touch
        + b"\x85R",
        "INST": b"(" + touch + b"ios\nsystem\n",
        "OBJ": b"(" + SYSTEM + touch + b"o",
        "NEWOBJ": SYSTEM + touch + b"\x85\x81",
        "NEWOBJ_EX": SYSTEM + touch + b"\x85}\x92",
        "EXT1": b"\x82" + bytes([EXTENSION]) + touch + b"\x85R",
        "EXT2": b"\x83" + struct.pack("<H", EXTENSION) + touch + b"\x85R",
        "EXT4": b"\x84" + struct.pack("<I", EXTENSION) + touch + b"\x85R",
        "BUILD with __setstate__": b"ccollections\nOrderedDict\n)R" + state + b"b" + touch + b"b",
        "BUILD of a module": b"ctorch.nn.modules.container\nModuleDict\n)\x81" + state + b"b" + touch + b"b",
        "BUILD of a name": b"ccollections\nOrderedDict\n" + state + b"b",
        "memo": SYSTEM + b"\x940h\0" + touch + b"\x85R",
    }


@pytest.fixture
def extension() -> Iterator[None]:
    """os.system under an extension code, as an application may register it."""
    copyreg.add_extension("os", "system", EXTENSION)
    yield
    copyreg.remove_extension("os", "system", EXTENSION)


@pytest.mark.parametrize("call", calls(Path()))
@pytest.mark.parametrize(
    "place", ["whole", "ema", "behind ema", "state", "source", "storage", "storage's id"]
)
def test_no_instruction_executes_anything(
    call: str, place: str, evidence: Path, tmp_path: Path, extension: None
) -> None:
    body = calls(evidence)[call]
    persistent = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n"
    key = b"\x8c%c%s"
    whole = pickled(published(tiny_network(0)))
    content = {
        "whole": b"\x80\x04" + body + b".",
        "ema": b"\x80\x04}" + key % (3, b"ema") + body + b"s.",
        "behind ema": whole[:-1] + key % (7, b"loss_fn") + body + b"s.",
        "state": b"\x80\x04}"
        + key % (3, b"ema")
        + persistent
        + b"}"
        + key % (5, b"state")
        + body
        + b"s\x85Rs.",
        "source": b"\x80\x04}"
        + key % (3, b"ema")
        + persistent
        + b"}"
        + key % (10, b"module_src")
        + body
        + b"s\x85Rs.",
        "storage": b"\x80\x04" + loaded(b"\x80\x02" + body + b"."),
        "storage's id": b"\x80\x04" + loaded(torch_header() + b"\x80\x02" + body + b"."),
    }[place]
    line = refused_bytes(tmp_path, content)
    assert "nothing in it was executed" in line
    if "REDUCE" in call or call in ("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "memo"):
        assert "asks for " in line and any(name in line for name in ("system", "eval", "getattr"))


@pytest.mark.parametrize("call", sorted(calls(Path()).keys() - {"NEWOBJ", "NEWOBJ_EX", "BUILD of a name"}))
def test_the_traps_work(call: str, tmp_path: Path, extension: None) -> None:
    """Python does not run the others either: they need classes."""
    evidence = tmp_path / "executed"
    pickle.loads(b"\x80\x04" + calls(evidence)[call] + b".")
    assert evidence.exists()


def loaded(storage: bytes) -> bytes:
    """The opcodes that load bytes as a tensor's storage, the rest of a pickle."""
    return b"ctorch.storage\n_load_from_bytes\n" + content(storage) + b"\x85R."


def content(value: bytes) -> bytes:
    """The opcode that pushes bytes."""
    return b"B" + struct.pack("<I", len(value)) + value


def torch_header() -> bytes:
    """The opcodes before a storage's id."""
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join(pickle.dumps(part, protocol=2) for part in parts)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch", "_utils._rebuild_tensor_v2"),
        ("torch.storage", "_load_from_bytes.__class__"),
        ("torch.storage", "io.open"),
        ("collections", "OrderedDict.__init__"),
        ("collections", "OrderedDict.__reduce_ex__"),
        ("torch_utils", "persistence._reconstruct_persistent_obj"),
        ("torch_utils.persistence", "_reconstruct_persistent_obj "),
        ("torch_utils.persistence", "exec"),
        ("numpy", "core.multiarray.scalar"),
        ("numpy", "load"),
        ("torch", "load"),
        ("torch", "FloatStorage"),
        ("builtins", "set"),
        ("", ""),
        ("os\nsystem", "\x1b[2J" * 1000),
        ("os", "syst\udc80em"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_names_are_taken_letter_for_letter(module: str, name: str, tmp_path: Path) -> None:
    line = refused_bytes(tmp_path, b"\x80\x04" + text(module) + text(name) + b"\x93.")
    assert "asks for" in line and ascii(module)[1:-1] in line


NAMES = {
    "persistent": b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n",
    "container": b"ctorch.nn.modules.container\nModuleDict\n",
    "dict": b"ccollections\nOrderedDict\n",
    "parameter": b"ctorch._utils\n_rebuild_parameter\n",
    "tensor": b"ctorch._utils\n_rebuild_tensor_v2\n",
    "storage": b"ctorch.storage\n_load_from_bytes\n",
    "type": b"cnumpy\ndtype\n",
    "number": b"cnumpy._core.multiarray\nscalar\n",
}


@pytest.mark.parametrize(
    "arguments", [b")", b"K\x01\x85", b"}\x85", b"N\x85", b"N", b"]", b"(NNNNNNNNt", b"((((tttt"]
)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("call", [b"R", b"\x81"])
def test_known_names_with_odd_arguments_are_one_line(
    name: str, arguments: bytes, call: bytes, tmp_path: Path
) -> None:
    refused_bytes(tmp_path, b"\x80\x04" + NAMES[name] + arguments + call + b".")


def test_bytes_that_were_taken_for_a_pickle_are_one_line(tmp_path: Path) -> None:
    """Every opcode, alone and among others, on every kind of value."""
    values = [
        b"",
        b"N",
        b"K\x01",
        b"]",
        b"}",
        b"\x8f",
        b")",
        b"X\x01\0\0\0a",
        NAMES["dict"],
        NAMES["type"] + b"\x8c\x02f8\x85R",
    ]
    for code in range(256):
        for value in values:
            refused_bytes(tmp_path, b"\x80\x04" + value * 2 + bytes([code]) + b"\x01\0\0\0\0\0\0\0.")
            refused_bytes(tmp_path, b"\x80\x04(" + value + bytes([code]) + b"\x01\0\0\0\0\0\0\0.")


# Files that need much memory or time.

HUNDRED_GB = 100 * 10**9


@pytest.fixture
def bounded() -> Iterator[None]:
    """Fail the test if it takes much memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KB


def storage(numbers: torch.Tensor, claim: int | None = None, held: int | None = None) -> bytes:
    """A storage as torch writes it, with claimed lengths in its id and before its numbers."""
    file = io.BytesIO()
    torch.save(numbers._typed_storage(), file, _use_new_zipfile_serialization=False)
    content = file.getvalue()
    count = numbers.numel()
    if claim is not None:
        assert count < 256
        content = content.replace(
            b"K" + bytes([count]) + b"Nt", b"\x8a\x08" + struct.pack("<q", claim) + b"Nt"
        )
    if held is not None:
        start = len(content) - numbers.nbytes - 8
        content = content[:start] + struct.pack("<q", held) + content[start + 8 :]
    return content


LONG = struct.pack("<Q", HUNDRED_GB)
ONES = torch.ones(8)
# None a hundred thousand times, below the first value of every storage.
LONG_STORAGE = storage(ONES)[:2] + b"N" * 100_000 + storage(ONES)[2:]
AGAIN = b"\x94h\0h\x01\x85R"  # calls the first memoised value with the second
BOMBS = {
    "text": b"\x8d" + LONG,
    "bytes": b"\x8e" + LONG,
    "bytearray": b"\x96" + LONG,
    "frame": b"\x95" + LONG,
    "short text": b"X" + struct.pack("<I", 2**32 - 1),
    "short bytes": b"B" + struct.pack("<I", 2**32 - 1),
    "old text": b"T" + struct.pack("<i", 2**31 - 1),
    "number": b"\x8b" + struct.pack("<i", 2**31 - 1),
    "memo": b"Nr" + struct.pack("<I", 2**32 - 1) + b"j" + struct.pack("<I", 2**32 - 2),
    "buffer": b"\x97",
    "decimal": b"I" + b"9" * 5000 + b"\n",
    "endless line": b"c" + b"a" * 10**7,
    "values": b"\x8f" * 3_000_000,
    "marks": b"(" * 3_000_000,
    "copies": b"]" + b"2" * 3_000_000,
    "lists in lists": b"]" * 400_000 + b"a" * 399_999 + b".",
    "tuples in tuples": b")" + b"\x85" * 400_000 + b".",
    "dicts in dicts": b"}" + b"\x8c\x01a}" * 100_000 + b"s" * 100_000 + b".",
    "a key of tuples": b"})" + b"\x85" * 400_000 + b"Ns.",
    "an item of tuples": b"\x8f()" + b"\x85" * 400_000 + b"\x90.",
    "a list of itself": b"}\x8c\x03ema]\x94h\0as.",
    "storage in its id": loaded(storage(ONES, claim=HUNDRED_GB)),
    "storage in its id, less than none": loaded(storage(ONES, claim=-8)),
    "storage": loaded(storage(ONES, held=HUNDRED_GB)),
    "storage in both": loaded(storage(ONES, claim=HUNDRED_GB, held=HUNDRED_GB)),
    "storages again and again": NAMES["storage"] + b"\x94" + content(storage(torch.ones(10**6))) + AGAIN * 60_000,
    "instructions in storages": NAMES["storage"] + b"\x94" + content(LONG_STORAGE) + AGAIN * 1000,
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_no_file_takes_more_than_it_holds(bomb: str, tmp_path: Path, bounded: None) -> None:
    refused_bytes(tmp_path, b"\x80\x04" + BOMBS[bomb])


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((HUNDRED_GB,), (0,), 0),
        ((8, HUNDRED_GB), (1, 0), 0),
        ((9,), (1,), 0),
        ((8,), (1,), 1),
        ((2,), (2**61,), 0),
        ((2,), (-1,), 1),
        ((-8,), (1,), 0),
        ((8,), (1,), -1),
        ((8,), (1, 1), 0),
        ((2**400,), (1,), 0),
        ((1,) * 1000, (1,) * 1000, 0),
        ((8.0,), (1,), 0),
        ((True,), (True,), 0),
        (("8",), (1,), 0),
    ],
    ids=lambda value: str(value)[:30],
)
def test_tensors_beyond_their_storage_are_one_line(
    size, stride, offset, tmp_path: Path, bounded: None
) -> None:
    network = tiny_network(0)
    content = published(network, label_dim=HUNDRED_GB)
    model = content["ema"].meta["state"]["_modules"]["model"].meta["state"]["_modules"]
    model["map_label"].meta["state"]["_parameters"]["weight"] = View(size, stride, offset)
    refused_bytes(tmp_path, pickled(content))


class View:
    """An object that pickles as a tensor of eight numbers with arbitrary bounds."""

    def __init__(self, size: Any, stride: Any, offset: Any) -> None:
        self.bounds = offset, size, stride

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, (ONES._typed_storage(), *self.bounds, False, OrderedDict())


def test_weights_that_share_their_numbers_are_not_multiplied(tmp_path: Path, bounded: None) -> None:
    """A network of megabytes in a file of kilobytes: every weight is a view of one number."""
    network = tiny_network(0, label_dim=0)
    content = published(network, label_dim=10**6)
    modules = content["ema"].meta["state"]["_modules"]["model"].meta["state"]["_modules"]
    label = Persistent("Linear", dict(modules["map_layer0"].meta["state"]))
    label.meta["state"]["_parameters"] = {"weight": torch.ones(1).expand(4, 10**6), "bias": torch.ones(4)}
    modules["map_label"] = label
    assert "claims more numbers than it holds" in refused_bytes(tmp_path, pickled(content))


def test_work_is_bounded_by_what_is_visited(tmp_path: Path, bounded: None) -> None:
    """Many modules share one table of many entries; each is checked as often as it is read."""
    tree = published(tiny_network(0))
    table = {f"n{number}": None for number in range(8_000)}
    modules = {}
    for number in range(2_000):
        modules[f"m{number}"] = torch.nn.ModuleDict()
        modules[f"m{number}"].__dict__ |= {"_parameters": table, "_buffers": table, "_modules": {}}
    tree["ema"].meta["state"]["_modules"] = modules
    assert "has modules with over 100,000 entries" in refused_bytes(tmp_path, pickled(tree))


def test_keys_that_all_hash_alike_are_refused(tmp_path: Path) -> None:
    alike = {number * (2**61 - 1): None for number in range(1, 50)}
    assert "has a large number as a key" in refused_bytes(tmp_path, pickled({"ema": alike}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    network = tiny_network(0)
    with torch.no_grad():
        network.model.map_layer0.bias[1] = value
    assert "map_layer0.bias that are NaN or infinite" in refused(save_published(tmp_path / "a.pkl", network))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float64])
def test_weights_that_are_no_fractions_are_named(tmp_path: Path, dtype: torch.dtype) -> None:
    tree = published(tiny_network(0))
    parameters = tree["ema"].meta["state"]["_modules"]["model"].meta["state"]["_modules"]["map_layer0"].meta
    parameters = parameters["state"]["_parameters"]
    parameters["bias"] = parameters["bias"].to(dtype)
    assert "map_layer0.bias as torch." in refused_bytes(tmp_path, pickled(tree))


def test_modules_within_themselves_are_one_line(tmp_path: Path) -> None:
    content = published(tiny_network(0))
    modules = content["ema"].meta["state"]["_modules"]
    modules["again"] = modules["model"]
    assert "in several places" in refused_bytes(tmp_path, pickled(content))
    deep = modules.pop("again")
    for _ in range(30):
        deep = Persistent("Linear", {"_parameters": {}, "_buffers": {}, "_modules": {"a": deep}})
    modules["model"] = deep
    assert "within itself" in refused_bytes(tmp_path, pickled(content))


def test_files_cut_anywhere_are_one_line(tmp_path: Path, bounded: None) -> None:
    """Pickles with frames, whose length shows a cut at once, and without, which are read up to the cut."""
    network = tiny_network(0, label_dim=0)
    whole = pickled(published(network))
    layer = pickled({"ema": persistent(network.model.map_layer0, "EDMPrecond", {})})
    for content, step in ((whole, 10), (without_frame(whole), 1009), (without_frame(layer), 1)):
        for cut in range(0, len(content), step):
            line = refused_bytes(tmp_path, content[:cut])
            assert "truncated" in line or "ends before" in line
    (tmp_path / "network.pkl").write_bytes(without_frame(whole))
    read_published(tmp_path / "network.pkl")


def without_frame(content: bytes) -> bytes:
    """A pickle of one frame, rewritten without it."""
    assert content[2:3] == b"\x95" and struct.unpack("<Q", content[3:11])[0] == len(content) - 11
    return content[:2] + content[11:]


def test_files_with_any_byte_changed_end_in_a_line_or_a_network(tmp_path: Path, bounded: None) -> None:
    whole = pickled(published(tiny_network(0, label_dim=0)))
    source = np.random.default_rng(0)
    path = tmp_path / "changed.pkl"
    for place, value in zip(
        source.integers(len(whole), size=150), source.integers(256, size=150), strict=True
    ):
        path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
        try:
            read_published(path)
        except UserError as error:
            assert str(error).isprintable()
