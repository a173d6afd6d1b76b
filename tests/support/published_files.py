"""Files in the format in which EDM's authors publish networks, with code in them that must never run."""

from __future__ import annotations

import pickle
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from raysid.networks import EDMDenoiser


def published(network: EDMDenoiser, **changes: Any) -> dict[str, Any]:
    """The content of a published file: the network under `ema`, and its settings with `changes`."""
    kwargs = network.settings.model_dump()
    if network.settings.model_type == "DhariwalUNet":
        for name in (
            "embedding_type",
            "encoder_type",
            "decoder_type",
            "channel_mult_noise",
            "resample_filter",
        ):
            del kwargs[name]
    kwargs |= {"channel_mult": list(kwargs["channel_mult"]), "sigma_max": float("inf"), "use_fp16": True}
    return {"ema": persistent(network, "EDMPrecond", kwargs | changes), "loss_fn": None, "augment_pipe": None}


def persistent(module: nn.Module, class_name: str, init_kwargs: dict[str, Any]) -> Any:
    """A module as it is pickled: containers as they are, all others with the source of their class."""
    modules = {name: persistent(child, type(child).__name__, {}) for name, child in module.named_children()}
    if isinstance(module, nn.ModuleDict):
        container = nn.ModuleDict()
        container.__dict__["_modules"] = modules
        return container
    state = {
        "training": False,
        "_parameters": {name: value.detach() for name, value in module.named_parameters(recurse=False)},
        "_buffers": dict(module.named_buffers(recurse=False)),
        "_non_persistent_buffers_set": set(),
        "_modules": modules,
        "_init_args": (),
        "_init_kwargs": init_kwargs,
    }
    return Persistent(class_name, state)


class Persistent:
    """An object that pickles as those of EDM's `torch_utils.persistence` do."""

    def __init__(self, class_name: str, state: Any) -> None:
        self.meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": class_name}
        self.meta["state"] = state

    def __reduce__(self) -> Any:
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


SOURCE = "raise SystemExit('this was executed')\n"


@contextmanager
def their_module() -> Iterator[None]:
    """Provide the module that published files name while they are written."""

    def _reconstruct_persistent_obj(meta: dict[str, Any]) -> Any:
        exec(meta["module_src"])

    module: Any = types.ModuleType("torch_utils.persistence")
    _reconstruct_persistent_obj.__module__ = module.__name__
    _reconstruct_persistent_obj.__qualname__ = _reconstruct_persistent_obj.__name__
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    sys.modules |= {"torch_utils": types.ModuleType("torch_utils"), module.__name__: module}
    try:
        yield
    finally:
        del sys.modules["torch_utils"], sys.modules[module.__name__]


def pickled(content: Any) -> bytes:
    """The bytes of a published file with this content."""
    with their_module():
        return pickle.dumps(content, protocol=4)


def save_published(path: Path, network: EDMDenoiser, **changes: Any) -> Path:
    """Write a network as a published file, its settings with `changes`; return the path."""
    path.write_bytes(pickled(published(network, **changes)))
    return path
