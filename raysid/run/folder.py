"""A run's folder: its owner, its record of sessions, and its check that fixed settings stay the same."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import filelock
from upath import UPath

from raysid.config import Config, fixed_settings
from raysid.config.method import UNRECORDED_STEPS
from raysid.errors import InvalidConfig, RaysidError, RunFailed, StorageError, UserError
from raysid.formats import FORMAT, check_format
from raysid.generator import FOLDERS
from raysid.recipes import config_yaml, validated
from raysid.recipes.migrations import migrated
from raysid.recipes.yaml_form import NotYAML, parse_yaml
from raysid.run.checkpoint import Checkpoints
from raysid.run.events import TENSORBOARD
from raysid.run.metrics import METRICS
from raysid.run.session import new_session, session_end
from raysid.run.tracking import SAMPLES
from raysid.storage import (
    children,
    empty_folder,
    exists,
    is_local,
    make_folder,
    read_json,
    read_whole,
    remove_partial,
    storage_errors,
    storage_folder,
    write_whole,
)
from raysid.storage.lease import Lease, lock, still_owned, this_process
from raysid.storage.mirror import Mirror

LOCK, OWNER, RECORD, CONFIG = ".lock", "owner.json", "run.json", "config.yaml"


class RunFolder:
    """The folder `<storage>/<run.name>`, owned by this process until `close`.

    Attributes:
        path: the folder.
        record: the folder for metrics, samples and events: `path`, or a local folder that is copied to a bucket.
        checkpoints: its training state.
        report: called with messages for the user.
    """

    def __init__(self, config: Config, fresh: bool = False) -> None:
        """Take the folder for this process only; make it if it is not there.

        Args:
            fresh: remove an earlier run's files in `begin`.

        Raises:
            UserError: another process owns it, it is not a run's folder, or it was started with other values of
                settings that may not change.
            StorageError: it cannot be written.
        """
        assert config.run.name is not None
        self.config = config
        self.path = storage_folder(config.storage) / config.run.name
        self.record = Path(self.path.path)
        self.checkpoints = Checkpoints(self.path / "checkpoints", config.checkpoint.keep)
        self.report: Callable[[str], None] = print
        self._fresh = fresh
        self._begun = False
        self._mirror: Mirror | None = None
        self._lock = lock_folder(self.path, self._owner)
        try:
            self._check(fresh)
            write_whole(self.path / OWNER, json.dumps(this_process()).encode())
        except BaseException:
            self.close()
            raise

    def check_inputs(self, teacher_digest: str, new_images: str = "") -> None:
        """Check that the run did not begin with other inputs. Arguments and errors as `begin`."""
        record = {} if self._fresh else self._read_record()
        if record.get("teacher_sha256", teacher_digest) != teacher_digest:
            raise UserError(
                f"{self.path} was started with another teacher (its weights differ): give that teacher, "
                "another --run.name, or --fresh"
            )
        if new_images and "sessions" in record and "format" not in record:
            raise UserError(
                f"{self.path} was started with release 0.1.0, which left out {new_images} of data.source: move these "
                "elsewhere to resume with the same images, or give another --run.name, or --fresh"
            )

    def begin(self, teacher_digest: str, resume_from: str | None = None, new_images: str = "") -> None:
        """Record the settings and this session; with `fresh`, remove the earlier files first.

        Args:
            resume_from: the checkpoint or run that this run branches from, as given by the user.
            new_images: the real images that release 0.1.0 left out (`ImageSource.new_since_first`).

        Raises:
            UserError: the run began with another teacher, or with release 0.1.0 and fewer real images.
        """
        self.check_inputs(teacher_digest, new_images)
        if self._fresh:
            empty_folder(self.path, keep={LOCK, OWNER})
        self.remove_partial()
        record = self._read_record()
        record.setdefault("teacher_sha256", teacher_digest)
        record.setdefault("resume_from", resume_from)
        record.setdefault("sessions", []).append(new_session())
        self._write_record(record)
        write_whole(self.path / CONFIG, config_yaml(self.config).encode())
        self._begun = True
        if not is_local(self.path):
            self.record = Path(tempfile.mkdtemp(prefix="raysid-record-"))
            mirror = Mirror(self.record, self.path, METRICS, self.check, lambda message: self.report(message))
            try:
                mirror.fetch(METRICS, SAMPLES, TENSORBOARD)
            except BaseException:
                shutil.rmtree(self.record, ignore_errors=True)
                raise
            mirror.start()
            self._mirror = mirror  # only now: a partly fetched record must not be copied back

    def check(self) -> None:
        """Raise RunFailed if another process may own the folder by now."""
        still_owned(self._lock)

    def sync(self) -> None:
        """Copy the record so far to `path` if that is in a bucket. Raises as `check`."""
        self.check()
        if self._mirror is not None:
            self._mirror.sync()

    def remove_partial(self) -> None:
        """Remove the files that a kill left half written."""
        remove_partial(self.path, *(self.path / name for name in (*FOLDERS.values(), SAMPLES)))

    def resumed_from(self) -> str | None:
        """The checkpoint or run that this run branched from, if any."""
        return self._read_record().get("resume_from")

    def close(self) -> None:
        """Copy the last of the record, and give up the ownership.

        Raises:
            RunFailed: the bucket cannot be written; the text names the local record.
        """
        mirror, self._mirror = self._mirror, None
        try:
            if mirror is not None:
                mirror.close()
                shutil.rmtree(self.record)
        except (StorageError, RunFailed) as error:
            raise RunFailed(f"{error}: the last metrics are in {self.record}") from error
        finally:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._begun:
            with suppress(RaysidError):  # the storage may be why the session ends
                self._record_end(error)
        try:
            self.close()
        except RunFailed as failed:
            if error is None:
                raise
            self.report(str(failed))  # the run ends with its first error

    def _record_end(self, error: BaseException | None) -> None:
        """Record in run.json how this session ends."""
        self.check()
        record = self._read_record()
        record.setdefault("sessions", [{}])[-1]["ended"] = session_end(error, self.checkpoints.newest_step())
        self._write_record(record)

    def _read_record(self) -> dict[str, Any]:
        """The content of run.json, empty where there is none. Raises UserError for one of a newer release."""
        record = read_json(self.path / RECORD)
        if record is None:
            return {}
        if not isinstance(record, dict):
            raise UserError(f"{self.path / RECORD} is damaged: it is no JSON object; put a copy of it back")
        check_format(record.get("format"), self.path / RECORD)
        return record

    def _write_record(self, record: dict[str, Any]) -> None:
        content = record | {"format": FORMAT}
        write_whole(self.path / RECORD, (json.dumps(content, indent=2) + "\n").encode())

    def _check(self, fresh: bool) -> None:
        names = {path.name for path in children(self.path)} - {LOCK}
        if fresh:
            if names and not names & {CONFIG, OWNER}:
                raise UserError(f"{self.path} is not a run's folder, so --fresh does not empty it")
            return
        # Before anything is written: a newer release's files are refused as they are.
        self._read_record()
        self.checkpoints.all()
        if CONFIG in names:
            self._check_unchanged()

    def _owner(self) -> str:
        """The owner's process and host."""
        owner = read_json(self.path / OWNER) or {}
        return f"process {owner.get('pid', '?')} on {owner.get('host', 'this machine')}"

    def _check_unchanged(self) -> None:
        before = recorded_config(self.path / CONFIG)
        if before.method.noise_steps is None and self.config.method.noise_steps is not None:
            steps = {"noise_steps": UNRECORDED_STEPS}
            before = before.model_copy(update={"method": before.method.model_copy(update=steps)})
        if changed := _first_difference("", fixed_settings(before), fixed_settings(self.config)):
            where, old, new = changed
            raise UserError(
                f"{self.path} was started with {where} = {old} and cannot resume with {new}: give another --run.name, "
                "or --fresh to start over"
            )


def begun_config(config: Config, fresh: bool, branch: UPath | None) -> Config | None:
    """Return the recorded config of the run that `config` resumes or branches from; None for a new run.

    Args:
        branch: the folder of the checkpoint to branch from, if the run branches.

    Raises:
        UserError: as `recorded_config`.
    """
    own = storage_folder(config.storage) / str(config.run.name) / CONFIG
    if not fresh and exists(own):
        return recorded_config(own)
    if branch is not None and exists(branched := branch.parent.parent / CONFIG):
        return recorded_config(branched)
    return None


def recorded_config(file: UPath) -> Config:
    """Read the config that a run recorded, also that of an earlier release.

    Raises:
        UserError: a newer release wrote it, or it is damaged.
    """
    try:
        values = parse_yaml(read_whole(file))
        if not isinstance(values, dict):
            raise NotYAML("it holds no settings")
        return validated(Config, migrated(values, file), file.name)
    except (NotYAML, InvalidConfig) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{file} cannot be read ({reason}): give --fresh to start over, or put a copy of it back"
        ) from None


def lock_folder(folder: UPath, owner: Callable[[], str]) -> filelock.BaseFileLock | Lease:
    """Take a folder for this process only; make it if it is not there.

    Args:
        owner: returns the present owner's name, for the error message.

    Raises:
        UserError: another process has it.
        StorageError: it cannot be written.
    """
    make_folder(folder)
    held = lock(folder / LOCK)
    with storage_errors(folder / LOCK, "written"):
        try:
            held.acquire_if_abandoned() if isinstance(held, Lease) else held.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(
                f"{folder} is in use by {owner()}: wait for it, or give another --run.name"
            ) from None
    return held


def _first_difference(name: str, before: Any, now: Any) -> tuple[str, Any, Any] | None:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in [*before, *(now.keys() - before.keys())]:
            path = f"{name}.{key}" if name else key
            if found := _first_difference(path, before.get(key), now.get(key)):
                return found
        return None
    return None if before == now else (name, before, now)
