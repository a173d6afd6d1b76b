"""Ray's worker processes, and raysid's commands, as forks of one process that has imported torch.

A new worker imports torch, Ray and raysid for four seconds, and the tests start hundreds. A fork of a process that has
them is ready in a few tenths, and is an ordinary process otherwise: it has its own pid, output and environment, Ray
registers and watches it, and it can be killed. Only `ray` itself is imported after the fork, because it reads the
environment of a worker once, at its import.

A test starts a command by `ForkedCommand`, over the same socket.

Ray starts a worker by a script, with the worker's arguments. `forked_workers` names this file as that script. The
script sends its arguments, environment and outputs to the server over a socket, and ends with the fork. A worker whose
runtime environment has more than variables, or sets the threads of libraries, is started by Ray's script. At an
upgrade of Ray, watch `RayParams.setup_worker_path`, `setup_worker.py` and the arguments that it takes.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

SOCKET = "RAYSID_TESTS_WORKERS"  # the environment variable that names the server's socket

# Imported before the fork: packages that workers import, except those that import Ray.
PRELOADED = (
    "aiohttp google.protobuf.json_format grpc.aio jsonschema requests rich.console yaml "  # for Ray
    "gcsfs pandas pyarrow.dataset pyarrow.parquet torch._dynamo torch.distributed torch.nn.parallel "
    "raysid.roles.build raysid.generator raysid.recipes raysid.run.checkpoint raysid.metrics.evaluate "
    "scipy.linalg PIL.Image raysid.networks.factory raysid.data.stream raysid.storage.mirror "
    "diffusers.models.unets.unet_2d diffusers.models.unets.unet_2d_condition diffusers.schedulers.scheduling_ddpm "
    "diffusers.models.autoencoders.autoencoder_kl transformers.models.clip.modeling_clip "
    "transformers.models.bert.modeling_bert transformers.models.auto.tokenization_auto"
).split()


def start_forked_workers() -> None:
    """Make the workers of the clusters that this process starts forks, by the server whose socket `SOCKET` names."""
    from ray._private.parameter import RayParams

    init = RayParams.__init__

    def init_with_forks(self: RayParams, *given: object, **named: object) -> None:
        # The log monitor looks at the log of every worker that ever was, for a driver that prints none of them.
        tests = {"setup_worker_path": os.path.abspath(__file__), "include_log_monitor": False}
        init(self, *given, **tests | named)

    RayParams.__init__ = init_with_forks  # type: ignore[method-assign]


def parents() -> dict[int, int]:
    """The pid of the script that asked for each fork, by the fork's pid: Ray's tree of processes has the script."""
    if SOCKET not in os.environ:
        return {}
    folder = os.path.dirname(os.environ[SOCKET])
    return {int(name): int(os.readlink(f"{folder}/{name}")) for name in os.listdir(folder) if name.isdigit()}


class ForkedCommand:
    """A `raysid` command in a fork of the server's; its methods are those of `subprocess.Popen`.

    Args:
        arguments: the command line after `raysid`.
        output: the file descriptor for what it prints.
        env: its environment.
    """

    def __init__(self, arguments: Sequence[str], output: int, env: Mapping[str, str]) -> None:
        self.returncode: int | None = None
        self._server = socket.socket(socket.AF_UNIX)
        self._server.connect(os.environ[SOCKET])
        argv = [os.path.abspath(__file__), *arguments]
        _ask(self._server, {"argv": argv, "env": dict(env), "cwd": os.getcwd(), "command": True}, output)
        self.pid = int.from_bytes(self._server.recv(8), "big")

    def poll(self) -> int | None:
        """Return the exit code, or minus the signal that ended it; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit code. Raises TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._server], [], [], timeout)[0]:
                assert timeout is not None
                raise subprocess.TimeoutExpired("raysid", timeout)
            self.returncode = int.from_bytes(self._server.recv(8), "big", signed=True)
            self._server.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)


def _ask(server: socket.socket, request: dict[str, object], *outputs: int) -> None:
    """Send a request for a fork, whose standard output and error are `outputs`, or the one that is given."""
    content = json.dumps(request).encode()
    socket.send_fds(server, [len(content).to_bytes(8, "big")], [outputs[0], outputs[-1]])
    server.sendall(content)


def main() -> None:
    """Have the server fork a worker, and wait until it ends."""
    arguments = sys.argv[1:]
    context = next(
        (a.partition("=")[2] for a in arguments if a.startswith("--serialized-runtime-env-context=")), ""
    )
    own = {key: value for key, value in json.loads(context or "{}").items() if value}
    variables = own.pop("env_vars", {})
    if own.keys() - {"py_executable"} or any("THREADS" in name for name in variables):
        import ray._private.workers

        script = os.path.join(os.path.dirname(ray._private.workers.__file__), "setup_worker.py")
        os.execv(sys.executable, [sys.executable, script, *arguments])
    os.environ.update({name: os.path.expandvars(value) for name, value in variables.items()})
    passed = [a for a in arguments if not a.startswith(("--serialized-runtime-env-context=", "--language="))]
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(os.environ[SOCKET])
        _ask(server, {"argv": passed, "env": dict(os.environ), "cwd": os.getcwd()}, 1, 2)
        pid = int.from_bytes(server.recv(8), "big")
        signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
        server.recv(1)  # until the fork has ended, which closes its end


def serve(path: str) -> None:
    """Import `PRELOADED`, then fork a worker for each connection to `path`, until stdin ends."""
    import gc
    import importlib

    for module in PRELOADED:
        importlib.import_module(module)
    assert "ray" not in sys.modules
    gc.freeze()  # a collection in a fork would copy the pages of everything that is imported
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps forks that have ended
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        connection, _ = listener.accept()
        header, outputs, _, _ = socket.recv_fds(connection, 8, 2)
        size, content = int.from_bytes(header, "big"), b""
        while len(content) < size:
            content += connection.recv(size - len(content))
        request = json.loads(content)
        if request.get("command"):
            pid = _fork_command(request, connection, outputs, listener)
        elif (pid := os.fork()) == 0:
            listener.close()
            _become(request, connection, outputs)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        link = os.path.join(os.path.dirname(path), str(pid))
        with contextlib.suppress(FileNotFoundError):
            os.remove(link)  # of an earlier process with this pid
        os.symlink(str(struct.unpack("3i", credentials)[0]), link)
        connection.close()
        for output in outputs:
            os.close(output)


def _fork_command(
    request: dict[str, Any], connection: socket.socket, outputs: list[int], listener: socket.socket
) -> int:
    """Fork a command, and a process that waits for its end and sends its exit code; return the command's pid."""
    ours, theirs = os.pipe()
    if os.fork() == 0:
        listener.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if (pid := os.fork()) == 0:
            _become(request, connection, outputs)
        os.write(theirs, pid.to_bytes(8, "big"))
        for descriptor in (ours, theirs, *outputs):
            os.close(descriptor)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(OSError):  # nobody waits for it
            connection.sendall(code.to_bytes(8, "big", signed=True))
        os._exit(0)
    os.close(theirs)
    pid = int.from_bytes(os.read(ours, 8), "big")
    os.close(ours)
    return pid


def _become(request: dict[str, Any], connection: socket.socket, outputs: list[int]) -> NoReturn:
    """Run Ray's worker, or a command, with the arguments, environment, folder and outputs of `request`."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for output, target in zip(outputs, (1, 2), strict=True):
        os.dup2(output, target)
        os.close(output)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = request["argv"]
    connection.sendall(os.getpid().to_bytes(8, "big"))
    code = 0
    try:
        if request.get("command"):
            connection.close()  # the process that waits for this one has it
            sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
            start_forked_workers()
            from raysid.cli.main import main as raysid

            raysid()
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
    else:
        main()
