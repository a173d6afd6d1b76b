"""Teachers of the Hugging Face Hub, named `org/name` or `org/name@revision`, copied to its cache on this machine.

The client is huggingface_hub, which diffusers brings (the extra `raysid[diffusers]`). Its settings hold: HF_ENDPOINT,
HF_HOME, HF_HUB_OFFLINE, HF_TOKEN and so on. Of a model only the files that a teacher needs are downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from types import ModuleType

from raysid.errors import NotHere
from raysid.networks.diffusers_folder import SCHEDULER, STEM, weights_name
from raysid.networks.files import CONFIG, WEIGHTS
from raysid.networks.parts import INDEX, TEXT_ENCODER, chosen_files
from raysid.storage import exists, location
from raysid.storage.failures import explain

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[\w./-]{1,250})?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DESCRIBED = {INDEX, CONFIG, SCHEDULER, f"scheduler/{SCHEDULER}", f"unet/{CONFIG}", f"unet/{SCHEDULER}"}
_SHARD = re.compile(rf"{STEM}[\w.-]*-\d+-of-\d+[\w.-]*\.safetensors")


def is_hub_name(path: str) -> bool:
    """True if a user's path can only be a model of the Hub: it has the form of one, and there is no such file."""
    named = _NAME.fullmatch(path) is not None and not path.lower().endswith(".pkl")
    return named and not exists(location(path))


def pinned(path: str, recorded: str | None) -> str:
    """Return a model's name with its commit, `org/name@commit`.

    Args:
        path: a name of the Hub, with a revision or without.
        recorded: the path that the run recorded, whose commit stays.

    Raises:
        NotHere: as `hub_folder`.
    """
    name, _, revision = path.partition("@")
    if _COMMIT.fullmatch(revision):
        return path
    if recorded is not None and recorded.startswith(f"{name}@") and is_hub_name(recorded):
        return recorded
    return f"{name}@{hub_folder(path).name}"


def hub_folder(path: str) -> Path:
    """Download what a teacher needs of a model, and return its folder in the cache; the folder's name is the commit.

    Without an answer of the Hub, or with HF_HUB_OFFLINE, the copy in the cache is used.

    Args:
        path: a name as `is_hub_name` recognises it.

    Raises:
        NotHere: there is neither such a folder nor such a model, or the Hub does not answer and the cache has none.
    """
    hub = _library(path)
    name, _, revision = path.partition("@")
    known = {"repo_id": name, "revision": revision or None}
    errors = hub.errors
    wanted = _DESCRIBED
    try:
        info = hub.HfApi().model_info(**known)
        wanted = {*_needed({file.rfilename for file in info.siblings or ()}, path)}
        return Path(hub.snapshot_download(**known, allow_patterns=sorted(wanted)))
    except errors.GatedRepoError:
        raise NotHere(
            f"there is no folder {path}, and the model of that name on the Hub needs its authors' permission: ask for "
            "it on its page, then `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise NotHere(
            f"there is no folder {path}, and the model {name} on the Hub has no revision {revision}"
        ) from None
    except errors.RepositoryNotFoundError:
        raise NotHere(
            f"there is no folder {path}, and the Hub has no model of that name (a private one needs `hf auth login`)"
        ) from None
    except NotHere:
        raise
    except Exception as error:  # of the client, of its HTTP library, and of the disk
        reason = explain(error)
    try:
        return Path(hub.snapshot_download(**known, local_files_only=True, allow_patterns=sorted(wanted)))
    except Exception:
        raise NotHere(
            f"there is no folder {path}, and no model of that name could be taken from the Hub: {reason}"
        ) from None


def _needed(names: Collection[str], path: str) -> Iterator[str]:
    """Yield those of a model's files that a teacher needs. Raises NotHere if the choice is not clear."""
    unet = "unet/" if f"unet/{CONFIG}" in names else ""
    yield from _DESCRIBED & set(names)
    beside = {name.removeprefix(unet) for name in names if name.rpartition("/")[0] == unet.rstrip("/")}
    try:
        weights = weights_name(beside)
    except ValueError as error:
        raise NotHere(f"the model {path} of the Hub has {error}: give a folder with one of them") from None
    if weights is not None:
        yield unet + weights
        if weights.endswith(".json"):
            yield from (unet + name for name in beside if _SHARD.fullmatch(name))
    elif not unet and WEIGHTS in names:
        yield WEIGHTS
    if any(name.startswith(f"{TEXT_ENCODER}/") for name in names):
        try:
            yield from chosen_files(names)
        except ValueError as error:
            raise NotHere(f"the model {path} of the Hub {error}") from None


def _library(path: str) -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise NotHere(
            f"there is no folder {path}; to take the model of that name from the Hugging Face Hub: "
            "pip install 'raysid[diffusers]'"
        ) from None
    return huggingface_hub
