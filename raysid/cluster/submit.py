"""Submit raysid's commands as jobs of a Ray cluster, and follow them.

A job takes this installation's own `raysid` package and the recipe, resolved here, along: the cluster needs the
libraries but no checkout, and runs the code that was tried here.
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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysid.cluster.connect import DEFAULT_DASHBOARD, TOKEN_HELP, use_token
from raysid.errors import UserError
from raysid.ray_internals import PACKAGING_LOG
from raysid.run.output import drawing, printable_lines

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from raysid.config import Config

STOP_SECONDS = 120  # from SIGTERM to SIGKILL of a stopped job: time to write a checkpoint
_PROGRESS = re.compile(r"(distill|teacher|tune) +\d+% \| ")
_ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})


class JobServer:
    """The job server of a cluster, which is part of its dashboard.

    Args:
        address: the dashboard's URL, as `http://127.0.0.1:8265`.

    Raises:
        UserError: nothing answers there, or the token is missing.
    """

    def __init__(self, address: str) -> None:
        if not address.startswith(("http://", "https://")):
            raise UserError(
                f"--address {address} is not a job server's: give the dashboard's, as {DEFAULT_DASHBOARD}"
            )
        self.address = address.rstrip("/")
        use_token()
        with self._user_errors():
            self._client = _client(self.address)

    def submit(self, command: Sequence[str], files: dict[str, bytes]) -> str:
        """Start a `raysid` command on the cluster.

        Args:
            command: the arguments of `raysid`.
            files: text files by name, for the command's working directory.

        Returns:
            The job's id.
        """
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                (Path(folder) / name).write_bytes(content)
            return self.start(
                ["python", "-m", "raysid", *command],
                {"working_dir": folder, "py_modules": [str(Path(__file__).parents[1])]},
            )

    def start(self, command: Sequence[str], runtime_env: dict[str, Any]) -> str:
        """Start any command on the cluster in a Ray runtime environment; return the job's id."""
        environment = {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
        with self._user_errors():
            return self._client.submit_job(
                entrypoint=shlex.join(command), runtime_env=runtime_env | {"env_vars": environment}
            )

    def ray_commands(self, job: str) -> dict[str, str]:
        """Return Ray's own commands for a job, by purpose, ready to paste."""
        # `ray job` sends the user's token only in this mode.
        mode = "RAY_AUTH_MODE=token " if os.environ.get("RAY_AUTH_MODE") == "token" else ""
        verbs = {"log": "logs -f", "status": "status", "stop": "stop"}
        return {
            purpose: f"{mode}ray job {verb} {job} --address {self.address}" for purpose, verb in verbs.items()
        }

    def follow(self, job: str) -> str:
        """Print a job's log from its start until the job ends; return its last status."""
        with self._user_errors():
            asyncio.run(self._print_log(job))
        return self.wait(job)

    def wait(self, job: str, seconds: float = 10.0) -> str:
        """Return a job's status (PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED) when it ends or the time is over."""
        end = time.monotonic() + seconds
        while True:
            with self._user_errors():
                status = str(self._client.get_job_status(job).value)
            if status in _ENDED or time.monotonic() >= end:
                return status
            time.sleep(0.2)

    async def _print_log(self, job: str) -> None:
        """Print the job's output; on a terminal its progress stays on one line."""
        redraw, open_line = sys.stdout.isatty(), False
        rest = ""
        async for text in self._client.tail_job_logs(job):
            *lines, rest = (rest + text).split("\n")
            for line in lines:
                progress = redraw and _PROGRESS.match(line) is not None
                # From the line's start, over the progress that stands there, if it does.
                out = drawing(sys.stdout)
                clean = ("\r\x1b[K" if open_line else "") + printable_lines(line)
                print(clean, end="" if progress else "\n", file=out, flush=True)
                open_line = progress
        if open_line or rest:
            print(printable_lines(rest), flush=True)

    @contextmanager
    def _user_errors(self) -> Iterator[None]:
        """Turn failures between here and the cluster into UserErrors."""
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
            raise UserError(f"{self.address}: {' '.join(str(error).split())}") from None


def job_files(recipe: str, overrides: dict[str, str], kind: Any) -> dict[str, bytes]:
    """Return the files of a job: its recipe, resolved here, and its teacher's recipe if that is a file.

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


def check_absolute(name: str, path: str) -> None:
    """Refuse a relative path: it would lie in the job's temporary folder, which is empty and ends with the job."""
    if "://" not in path and not Path(path).is_absolute():
        raise UserError(
            f"{name} {path} would lie in the job's temporary folder: give an absolute path that all nodes share"
        )


def _with_its_teacher(config: Config, files: dict[str, bytes]) -> Config:
    """Return the config as the job reads it. If its teacher's recipe is a file, add that to `files`."""
    from raysid.data.opening import BUILT_IN
    from raysid.recipes import config_yaml, load_recipe, packaged_recipes

    teacher, source = config.teacher, config.data.source
    for name, path in (("teacher.path", teacher.path), ("generator.path", config.generator.path)):
        if path is not None:
            check_absolute(name, path)
    for path in [source] if isinstance(source, str) else source or []:
        if path not in BUILT_IN:
            check_absolute("data.source", path)
    if teacher.recipe is None or teacher.recipe in packaged_recipes():
        return config
    files["teacher.yaml"] = config_yaml(load_recipe(teacher.recipe, {}, kind="pretrain")).encode()
    return config.model_copy(update={"teacher": teacher.model_copy(update={"recipe": "teacher.yaml"})})


def _client(address: str) -> JobSubmissionClient:
    from ray.dashboard.modules import dashboard_sdk
    from ray.dashboard.modules.job import sdk
    from ray.job_submission import JobSubmissionClient

    # Users need no notice of uploads and closed sockets.
    for name in (sdk.__name__, dashboard_sdk.__name__, PACKAGING_LOG):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Ray prefers either variable to the address in the call.
    shadowed = {
        name: os.environ.pop(name) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS") if name in os.environ
    }
    try:
        return JobSubmissionClient(address)
    finally:
        os.environ.update(shadowed)
