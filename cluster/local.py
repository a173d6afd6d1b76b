"""Start and end the autoscaling cluster on this machine that `local-autoscale.yaml` describes.

    python cluster/local.py up        (make cluster)
    python cluster/local.py down      (make cluster-down)

Token authentication is on: clients need the token in ~/.ray/auth_token.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import yaml

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
DOWN_SECONDS = 20


@click.group()
def cli() -> None:
    """An autoscaling Ray cluster on this machine."""


_folder = click.option(
    "--folder", default="/tmp/raysid-cluster", show_default=True, help="Folder for the cluster's files."
)


@cli.command()
@_folder
@click.option("--port", default=6379, show_default=True, help="Port of Ray's control store.")
@click.option(
    "--dashboard-port", default=8265, show_default=True, help="Port of the dashboard and the job server."
)
@click.option("--num-cpus", default=2, show_default=True, help="CPUs of the head node.")
def up(folder: str, port: int, dashboard_port: int, num_cpus: int) -> None:
    """Start the cluster."""
    if any(processes(folder)):
        raise click.ClickException(f"a cluster is running in {folder} already: `make cluster-down` ends it")
    config = yaml.safe_load((HERE / "local-autoscale.yaml").read_text())
    config["provider"]["gcs_address"] = f"127.0.0.1:{port}"
    config["provider"]["folder"] = f"{folder}/nodes"
    Path(folder).mkdir(parents=True, exist_ok=True)
    file = Path(folder) / "autoscaler.yaml"
    file.write_text(yaml.safe_dump(config))
    head = config["provider"]["head_node_id"]
    environment = os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # jobs run this Python
        "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "RAY_AUTH_MODE": "token",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": head,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": head,
        "RAY_worker_niceness": "0",  # Ray's default, 15, starves it on a machine that does anything else
    }
    subprocess.run(
        [BIN / "ray", "get-auth-token", "--generate"], check=True, env=environment, stdout=subprocess.DEVNULL
    )
    command = [BIN / "ray", "start", "--head", f"--port={port}", f"--dashboard-port={dashboard_port}"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--num-cpus={num_cpus}"]
    command += ["--dashboard-agent-listen-port=0"]  # any free port: another cluster here may have the default
    command += [f"--temp-dir={folder}", f"--autoscaling-config={file}"]
    started = subprocess.run(command, env=environment, capture_output=True, text=True)
    if started.returncode:
        raise click.ClickException(f"Ray did not start:\n{started.stdout}{started.stderr}")
    click.echo(f"cluster up: dashboard and job server at http://127.0.0.1:{dashboard_port}")


@cli.command()
@_folder
def down(folder: str) -> None:
    """End the cluster and everything that runs on it; other clusters on this machine are left alone."""
    end = time.monotonic() + DOWN_SECONDS
    while found := dict(processes(folder)):
        kill = time.monotonic() > end
        # The head's server last: without it nodes wait until they are killed.
        nodes = [pid for pid, command in found.items() if "/gcs_server " not in command]
        for pid in nodes or found:
            try:
                os.kill(pid, signal.SIGKILL if kill else signal.SIGTERM)
            except ProcessLookupError:
                pass
        time.sleep(0.5)
    click.echo("cluster down")


def processes(folder: str) -> Iterator[tuple[int, str]]:
    """The processes of the cluster in `folder` with their command lines, which hold the folder's path."""
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,command="], capture_output=True, text=True).stdout
    for line in listed.splitlines():
        pid, _, command = line.strip().partition(" ")
        ours = any(part.partition("=")[2].startswith(f"{folder}/") for part in command.split())
        if ours or f"--temp-dir={folder}" in command.split():
            yield int(pid), command


if __name__ == "__main__":
    cli()
