"""The files of a learner's state: copied at once, written later, compared with their digest when they are read."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from upath import UPath

from raysid.actors.local import LocalPlacement
from raysid.errors import RunFailed, UserError
from raysid.roles.learner import check_finite
from raysid.roles.state_files import (
    StateFile,
    _Digested,
    copied_state,
    read_outline,
    read_state,
    write_state,
)
from raysid.run.checkpoint import Checkpoints
from tests.support.tiny_run import (
    BATCH,
    assert_same,
    inputs_for,
    leaves,
    local_end,
    take_steps,
    tiny_config,
    tiny_teacher,
)


def trained(seed: int) -> tuple[nn.Module, torch.optim.Adam]:
    """A module with buffers, and an optimizer with state."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    adam = torch.optim.Adam(module.parameters(), lr=0.1)
    update(module, adam)
    return module, adam


def update(module: nn.Module, adam: torch.optim.Adam) -> None:
    module(torch.randn(8, 3)).square().sum().backward()
    adam.step()


def state_of(module: nn.Module, adam: torch.optim.Adam) -> dict[str, Any]:
    return {"network": module.state_dict(), "optimizer": adam.state_dict()}


def test_a_copied_state_does_not_change_when_training_continues(tmp_path: Path) -> None:
    module, adam = trained(0)
    other = nn.Linear(2, 2).to(memory_format=torch.contiguous_format)
    copied = copied_state(state_of(module, adam))
    expected = {
        name: torch.as_tensor(value).clone() for name, value in leaves("", copied).items() if tensors(value)
    }
    update(module, adam)
    write_state(tmp_path, "generator", copied)
    found = leaves("", read_state(tmp_path, "generator"))
    assert_same({name: found[name] for name in expected}, expected)
    assert not torch.equal(found[".network.0.weight"], module.state_dict()["0.weight"])
    # As torch's own state dicts: with the versions of the modules, and each tensor's layout.
    assert copied["network"]._metadata == module.state_dict()._metadata
    wide = torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert copied_state([wide])[0].stride() == wide.stride()
    assert copied_state(other.state_dict()).keys() == other.state_dict().keys()


def tensors(value: object) -> bool:
    return isinstance(value, Tensor)


def test_a_file_equals_torchs_own_and_its_digest_that_of_its_content(tmp_path: Path) -> None:
    state = copied_state(state_of(*trained(1)))
    file = write_state(tmp_path, "generator", state)
    content = (tmp_path / file.name).read_bytes()
    torch.save(state, tmp_path / "own.pt")
    assert_same(
        leaves("", torch.load(tmp_path / "own.pt", weights_only=True)),
        leaves("", read_state(tmp_path, "generator", file)),
    )
    assert file.size == len(content)
    (tmp_path / file.name).write_bytes(content[:-1] + b"?")
    for expected in (file, StateFile(file.name, file.size + 1, file.sha256)):
        with pytest.raises(UserError, match=r"generator\.pt is damaged: it does not match"):
            read_state(tmp_path, "generator", expected)


def test_a_full_disk_is_reported_as_the_system_reports_it() -> None:
    """torch's writer replaces the file's exception by a line about positions."""
    with open("/dev/full", "wb", buffering=0) as full:
        file: Any = _Digested(full)
        torch.save({"weight": torch.ones(1000)}, file)
    assert file.error is not None and file.error.errno == errno.ENOSPC


def test_the_outline_of_a_state_has_its_shapes_and_reads_no_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"network": {"weight": torch.ones(500, 1000), "bias": torch.ones(7)}}
    write_state(tmp_path, "generator", state)
    monkeypatch.setattr(Path, "read_bytes", None)  # which reads a file whole
    outline = read_outline(tmp_path, "generator")["network"]
    assert {name: tuple(value.shape) for name, value in outline.items()} == {
        "weight": (500, 1000),
        "bias": (7,),
    }
    (tmp_path / "generator.pt").write_bytes(b"PK")
    with pytest.raises(UserError, match="is not a training state"):
        read_outline(tmp_path, "generator")


def test_weights_whose_sum_overflows_are_finite() -> None:
    large = torch.full((10,), 3e38)
    check_finite("generator", [large, torch.ones(2)])
    large[3] = torch.inf
    with pytest.raises(RunFailed, match="the generator's weights are NaN or infinite"):
        check_finite("generator", [torch.ones(2), large])


def test_a_checkpoint_is_of_its_step_however_late_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run takes two steps before torch has serialized anything, which happens in another thread."""
    config = tiny_config(tiny_teacher(tmp_path / "teacher"), tmp_path, total_images=4 * BATCH)
    expected, _ = local_end(config, tmp_path / "at-once", 2)
    threads, before = [], torch.get_num_threads()
    may_write, save = threading.Event(), torch.save

    def waiting(*arguments: Any) -> None:
        threads.append(threading.current_thread())
        assert may_write.wait(60)
        save(*arguments)

    placement = LocalPlacement(*inputs_for(config), threads=1)
    try:
        take_steps(placement, config, last=2)
        monkeypatch.setattr(torch, "save", waiting)
        written = placement.save(str(tmp_path / "late"))
        product = placement.export(str(tmp_path / "generator"), {})
        take_steps(placement, config, first=2, last=4)
        assert not written.done() and not product.done()
        may_write.set()
        files = written.result()
        product.result()
    finally:
        may_write.set()
        placement.close()
        torch.set_num_threads(before)
    assert threading.main_thread() not in threads and len(threads) == 2
    found = {}
    for file in files:
        name = file.name.removesuffix(".pt")
        found |= leaves(name, read_state(tmp_path / "late", name, file))
    assert_same(found, expected)


def test_sizes_or_contents_are_compared_with_the_manifest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(UPath(tmp_path))
    for step in (1, 2):
        files = [write_state(checkpoints.path(step), "generator", {"step": step})]
        checkpoints.finish(step, step, files)
    path = tmp_path / "step-00000002" / "generator.pt"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    reported: list[str] = []
    sizes, contents = (checkpoints.newest(reported.append, contents) for contents in (False, True))
    assert sizes is not None and contents is not None and (sizes.step, contents.step) == (2, 1)
    assert reported == [f"{path} is damaged: that checkpoint is not used"]
