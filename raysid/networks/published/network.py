"""The network in a published .pkl file, built from its modules' arguments and parameters.

Such a file pickles a dict whose `ema` is the network: a tree of modules, each with the source text of its class, the
arguments of its constructor and its parameters. The arguments become our settings, the parameters, whose names are
ours already, our weights; the source text is ignored.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from raysid.config.networks import NetworkSettings
from raysid.errors import UserError
from raysid.networks.edm import EDMDenoiser
from raysid.networks.files import NetworkCard, misfits, weight_shapes
from raysid.networks.published.modules import Module, TensorView, read_modules
from raysid.networks.published.pickles import BadPickle, PickleStream, printable

NETWORK_CLASS = "EDMPrecond"
SIGMA_INIT = 2.5  # the noise level at which the published generators of SiD and SiDA run
MAX_TENSORS = 10_000  # EDM's largest network has 700
MAX_DEPTH = 10  # modules within modules; EDM's are four deep

# EDM's constructor: its positional arguments, and its defaults.
_POSITIONS = (
    "img_resolution",
    "img_channels",
    "label_dim",
    "use_fp16",
    "sigma_min",
    "sigma_max",
    "sigma_data",
    "model_type",
)
_DEFAULT_MODEL = "DhariwalUNet"
_DEFAULTS: dict[str, dict[str, Any]] = {
    "SongUNet": {},  # ours are the same
    "DhariwalUNet": {
        "model_channels": 192,
        "channel_mult": (1, 2, 3, 4),
        "num_blocks": 3,
        "attn_resolutions": (32, 16, 8),
    },
}


@dataclass(frozen=True)
class Published:
    """The content of a .pkl file.

    Attributes:
        settings: the network's settings.
        weights: its state dict, float32, buffers included.
        use_fp16: True if its authors ran it in half precision on a GPU.
        sha256: digest of the file.
    """

    settings: NetworkSettings
    weights: dict[str, Tensor]
    use_fp16: bool
    sha256: str

    def card(
        self, name: str, kind: Literal["teacher", "generator"] = "teacher", sigma_init: float | None = None
    ) -> NetworkCard:
        """Return the card of this network as one of ours, imported from the file `name`."""
        trained = {"imported_from": name, "sha256": self.sha256, "use_fp16": self.use_fp16}
        return NetworkCard(kind=kind, network=self.settings, sigma_init=sigma_init, trained=trained)

    def network(self) -> EDMDenoiser:
        """Build the network, in train mode; it shares the memory of `weights`."""
        with torch.device("meta"):  # skip drawing initial weights
            network = EDMDenoiser(self.settings)
        network.load_state_dict(self.weights, assign=True)
        return network


def read_published(path: Path, name: str | None = None) -> Published:
    """Read a .pkl file. Nothing in it is executed, and memory stays proportional to its size.

    Args:
        path: the file, on this machine.
        name: its name in messages, if that is not `path`.

    Raises:
        UserError: it cannot be read, is damaged, asks for more than values, or holds another kind of network.
    """
    name = name or str(path)
    if path.exists() and not path.is_file():
        raise UserError(f"{name} is not a file: give the .pkl itself")
    try:
        with path.open("rb") as file:
            stream = PickleStream(file, os.fstat(file.fileno()).st_size)
            module, arguments = _find_network(read_modules(stream))
            settings, use_fp16 = _settings(arguments)
            weights = _weights(settings, module, stream.size)
            file.seek(0)
            return Published(settings, weights, use_fp16, hashlib.file_digest(file, "sha256").hexdigest())
    except BadPickle as error:
        raise UserError(
            f"{name} {error}; nothing in it was executed: give a whole .pkl as EDM's, SiD's or SiDA's authors publish"
        ) from None
    except UnusableNetwork as error:
        raise UserError(f"{name} {error}") from None
    except FileNotFoundError:
        raise UserError(f"there is no file {name}") from None
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}") from None


class UnusableNetwork(Exception):
    """A file that can be read but has no network that can be built; the text is a one-line reason."""


def _find_network(content: Any) -> tuple[Module, dict[str, Any]]:
    """Find the network in a file's content; return it and its constructor's arguments by name."""
    module = content.get("ema") if type(content) is dict else None
    if not isinstance(module, Module):
        raise UnusableNetwork("holds no network: those of EDM, SiD and SiDA are under `ema`")
    if module.class_name != NETWORK_CLASS:
        raise UnusableNetwork(
            f"holds a {printable(module.class_name)}: raysid builds only networks of {NETWORK_CLASS}"
        )
    positional = module.state.get("_init_args") if type(module.state) is dict else None
    if type(positional) is not tuple or len(positional) > len(_POSITIONS):
        raise BadPickle("does not have its network's arguments")
    return module, dict(zip(_POSITIONS, positional, strict=False)) | dict(module.table("_init_kwargs"))


def _settings(arguments: dict[str, Any]) -> tuple[NetworkSettings, bool]:
    """Return our settings for the constructor's arguments, and True if the network ran in half precision."""
    given = {name: _plain(name, value) for name, value in arguments.items()}
    use_fp16 = given.pop("use_fp16", False)
    if unknown := [name for name in given if name not in NetworkSettings.model_fields]:
        raise UnusableNetwork(
            f"was built with the setting {printable(unknown[0])}, which raysid's networks do not have"
        )
    model_type = given.setdefault("model_type", _DEFAULT_MODEL)
    if given.get("sigma_max") == math.inf:
        given["sigma_max"] = None
    try:
        return NetworkSettings.model_validate(_DEFAULTS.get(str(model_type), {}) | given), bool(use_fp16)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "its settings"
        raise UnusableNetwork(
            f"holds no network that can be built: {where}: {first['msg'].removeprefix('Value error, ').splitlines()[0]}"
        ) from None


def _plain(name: str, value: Any) -> Any:
    """Return a setting's value, which must be a number, text, or a list of them."""
    if value is None or type(value) in (bool, int, float) or (type(value) is str and len(value) <= 100):
        return value
    flat = type(value) in (list, tuple) and not any(type(item) in (list, tuple) for item in value)
    if flat and len(value) <= 100:
        return [_plain(name, item) for item in value]
    raise UnusableNetwork(
        f"was built with a {printable(name)} that is neither a number, a text nor a list of them"
    )


def _weights(settings: NetworkSettings, module: Module, file_size: int) -> dict[str, Tensor]:
    """Return the network's state dict, checked against the settings."""
    views = dict(islice(_tensors(module, "", set()), MAX_TENSORS))
    # Each block of the encoder and of the decoder has ten tensors: a much larger network is not even described.
    if 20 * settings.num_blocks * len(settings.channel_mult) > len(views):
        raise UnusableNetwork(f"has {len(views)} tensors, too few for the network that its settings describe")
    try:
        expected = weight_shapes(settings)
    except ValueError as error:
        raise UnusableNetwork(f"holds no network that can be built: {error}") from None
    if odd := misfits(expected, {name: view.size for name, view in views.items()}):
        raise UnusableNetwork(
            f"does not fit its own settings: {printable(odd[0])} and {len(odd) - 1} more differ"
        )
    if sum(view.nbytes for view in views.values()) > file_size:
        raise UnusableNetwork("claims more numbers than it holds: its tensors share them")
    other = next((n for n, view in views.items() if view.storage.dtype not in _FLOATS), None)
    if other is not None:
        raise UnusableNetwork(
            f"holds {other} as {views[other].storage.dtype}, where float32 or half precision is needed"
        )
    weights = {name: view.tensor() for name, view in views.items()}
    if bad := next((name for name, value in weights.items() if not value.isfinite().all()), None):
        raise UnusableNetwork(f"has values in {bad} that are NaN or infinite: give another file")
    _check_filters(settings, weights)
    return weights


_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def _tensors(module: Module, prefix: str, seen: set[int]) -> Iterator[tuple[str, TensorView]]:
    """Yield each parameter and buffer of the state dict with its name."""
    if id(module) in seen or prefix.count(".") > MAX_DEPTH:
        raise BadPickle("has a module within itself, or in several places")
    seen.add(id(module))
    tables = [module.table(table) for table in ("_parameters", "_buffers")]
    unsaved = module.state.get("_non_persistent_buffers_set")
    for name, view in chain.from_iterable(table.items() for table in tables):
        if view is None or (type(unsaved) is set and name in unsaved):
            continue
        if type(view) is not TensorView:
            raise BadPickle(f"has a parameter {printable(name)} that is not a tensor")
        yield prefix + name, view
    for name, child in module.table("_modules").items():
        if type(child) is Module:
            yield from _tensors(child, f"{prefix}{name}.", seen)
        elif child is not None:
            raise BadPickle(f"has an entry {printable(name)} of `_modules` that is not a module")


def _check_filters(settings: NetworkSettings, weights: dict[str, Tensor]) -> None:
    """Check that the resampling filters in the buffers are those of the settings."""
    taps = torch.tensor(settings.resample_filter, dtype=torch.float32)
    expected = torch.outer(taps, taps) / taps.sum().square()
    for name, value in weights.items():
        if name.endswith("resample_filter") and not torch.allclose(value, expected, rtol=1e-3):
            raise UnusableNetwork(
                f"does not fit its own settings: {name} is another filter than that of resample_filter"
            )
