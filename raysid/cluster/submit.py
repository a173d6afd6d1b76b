"""Running raysid's commands as jobs of a Ray cluster: submit, follow, list, stop.

A submitted job takes this installation's own `raysid` package and the recipe, resolved here, along: the
cluster needs the libraries but no checkout, and what runs is what was tried on the laptop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysid.cluster.connect import DEFAULT_DASHBOARD, TOKEN_HELP, use_token
from raysid.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from raysid.config import Config

STOP_SECONDS = 120  # between the signal that stops a job and its kill: time to write a checkpoint
_PROGRESS = re.compile(r"(distill|teacher|tune) +\d+% \| ")
_ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})


@dataclass(frozen=True)
class Job:
    """A job as a list shows it."""

    id: str
    status: str
    started: str
    command: str


class Jobs:
    """The jobs of one cluster.

    Args:
        address: of the cluster's dashboard, as `http://127.0.0.1:8265`.

    Raises:
        UserError: nothing answers there, or it wants a token.
    """

    def __init__(self, address: str) -> None:
        if not address.startswith(("http://", "https://")):
            raise UserError(
                f"--address {address} is not a job server's: give the dashboard's, as {DEFAULT_DASHBOARD}"
            )
        self.address = address.rstrip("/")
        use_token()
        with self._explained():
            self._client = _client(self.address)

    def submit(self, command: Sequence[str], files: dict[str, bytes]) -> str:
        """Start a `raysid` command on the cluster.

        Args:
            command: what stands behind `raysid`.
            files: text files by name that the command finds in its working directory.

        Returns:
            The job's id.
        """
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                (Path(folder) / name).write_bytes(content)
            return self.start(
                ["python", "-m", "raysid", *command],
                {"working_dir": folder, "py_modules": [str(Path(__file__).parents[1])]},
                label=shlex.join(command),
            )

    def start(self, command: Sequence[str], runtime_env: dict[str, Any], label: str | None = None) -> str:
        """Start any command on the cluster, in a Ray runtime environment; the job's id.

        Args:
            label: how `list` shows it, when not as it is.
        """
        environment = {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
        with self._explained():
            return self._client.submit_job(
                entrypoint=shlex.join(command),
                runtime_env=runtime_env | {"env_vars": environment},
                metadata={} if label is None else {"raysid": label},
            )

    def follow(self, job: str) -> str:
        """Print a job's log as it grows, from its start, until the job ends; its last status."""
        with self._explained(job):
            asyncio.run(self._print_log(job))
        return self.wait(job)

    def wait(self, job: str, seconds: float = 10.0) -> str:
        """A job's status once it has ended, or after so many seconds."""
        end = time.monotonic() + seconds
        while (status := self.status(job)) not in _ENDED and time.monotonic() < end:
            time.sleep(0.2)
        return status

    def status(self, job: str) -> str:
        """One of PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED."""
        with self._explained(job):
            return str(self._client.get_job_status(job).value)

    def log(self, job: str) -> str:
        """All that a job has printed so far."""
        with self._explained(job):
            return self._client.get_job_logs(job)

    def stop(self, job: str) -> None:
        """Ask a job to end: it writes a checkpoint first, within two minutes."""
        with self._explained(job):
            self._client.stop_job(job)

    def list(self) -> list[Job]:
        """All jobs that the cluster knows, newest first."""
        with self._explained():
            found = self._client.list_jobs()
        jobs = sorted(found, key=lambda job: job.start_time or 0, reverse=True)
        return [
            Job(
                id=job.submission_id or job.job_id or "?",
                status=str(job.status.value),
                started=time.strftime("%Y-%m-%d %H:%M:%S", time.localtime((job.start_time or 0) / 1000)),
                command=(job.metadata or {}).get("raysid") or job.entrypoint or "",
            )
            for job in jobs
        ]

    async def _print_log(self, job: str) -> None:
        """Print what the job prints; on a terminal its progress stays on one line."""
        redraw, open_line = sys.stdout.isatty(), False
        rest = ""
        async for text in self._client.tail_job_logs(job):
            *lines, rest = (rest + text).split("\n")
            for line in lines:
                progress = redraw and _PROGRESS.match(line) is not None
                # From the line's start, over the progress that stands there, if it does.
                print(("\r\x1b[K" if open_line else "") + line, end="" if progress else "\n", flush=True)
                open_line = progress
        if open_line or rest:
            print(rest, flush=True)

    @contextmanager
    def _explained(self, job: str | None = None) -> Iterator[None]:
        """What can go wrong between here and the cluster, as one line that says what to do."""
        import aiohttp
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError:
            raise UserError(f"{self.address}: {TOKEN_HELP}") from None
        except (ConnectionError, requests.exceptions.RequestException, aiohttp.ClientError) as error:
            if isinstance(error, aiohttp.WSServerHandshakeError) and error.status in (401, 403):
                raise UserError(f"{self.address}: {TOKEN_HELP}") from None
            raise UserError(
                f"no Ray cluster answers at {self.address}: is it up, and the tunnel to its dashboard open?"
            ) from None
        except RuntimeError as error:
            if job is not None and ("does not exist" in str(error) or "404" in str(error)):
                raise UserError(
                    f"there is no job {job} at {self.address}: `raysid jobs list` shows them"
                ) from None
            raise UserError(f"{self.address}: {' '.join(str(error).split())}") from None


def job_files(recipe: str, overrides: dict[str, str], kind: Any) -> dict[str, bytes]:
    """The files that a job needs: its recipe, resolved here, and the teacher's where that is a file.

    Raises:
        UserError: the recipe cannot be used, or its storage would be lost with the job.
    """
    from raysid.config import Config, TuneConfig
    from raysid.recipes import config_yaml, load_recipe, packaged_recipes

    config = load_recipe(recipe, overrides, kind=kind)
    check_absolute("storage", config.storage)
    files: dict[str, bytes] = {}
    if isinstance(config, Config):
        config = _with_its_teacher(config, files)
    elif isinstance(config, TuneConfig) and config.recipe not in packaged_recipes():
        trial = _with_its_teacher(load_recipe(config.recipe, {}, kind="distill"), files)
        files["distill.yaml"] = config_yaml(trial).encode()
        config = config.model_copy(update={"recipe": "distill.yaml"})
    return files | {"recipe.yaml": config_yaml(config).encode()}


def check_absolute(what: str, path: str) -> None:
    """Refuse a path relative to the job's temporary folder, which ends with the job and is empty before it."""
    if "://" not in path and not Path(path).is_absolute():
        raise UserError(
            f"{what} {path} would lie in the job's temporary folder: give an absolute path that all nodes share"
        )


def _with_its_teacher(config: Config, files: dict[str, bytes]) -> Config:
    """The config as the job will read it; a file that its teacher's recipe is goes along in `files`."""
    from raysid.data.opening import is_path
    from raysid.recipes import config_yaml, load_recipe, packaged_recipes

    teacher, source = config.teacher, config.data.source
    if teacher.path is not None:
        check_absolute("teacher.path", teacher.path)
    if config.generator.path is not None:
        check_absolute("generator.path", config.generator.path)
    for path in [source] if isinstance(source, str) else source or []:
        if is_path(path):
            check_absolute("data.source", path)
    if teacher.recipe is None or teacher.recipe in packaged_recipes():
        return config
    files["teacher.yaml"] = config_yaml(load_recipe(teacher.recipe, {}, kind="pretrain")).encode()
    return config.model_copy(update={"teacher": teacher.model_copy(update={"recipe": "teacher.yaml"})})


def _client(address: str) -> JobSubmissionClient:
    from ray._private.runtime_env import packaging
    from ray.dashboard.modules import dashboard_sdk
    from ray.dashboard.modules.job import sdk
    from ray.job_submission import JobSubmissionClient

    for quiet in (sdk, dashboard_sdk, packaging):  # uploads and closed sockets are nothing to the user
        logging.getLogger(quiet.__name__).setLevel(logging.WARNING)
    # Ray lets either variable go before the address that it is given.
    shadowed = {
        name: os.environ.pop(name) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS") if name in os.environ
    }
    try:
        return JobSubmissionClient(address)
    finally:
        os.environ.update(shadowed)
