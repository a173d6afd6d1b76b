"""Whether a run's folder is one for the driver and for the processes that write their states there."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence

import ray
from upath import UPath

from raysid.errors import UserError
from raysid.storage import holds, remove_file, write_whole


def check_shared(folder: str, who: str, ask: Callable[[str, str], Sequence[str | None]]) -> None:
    """Refuse a run's folder that processes do not share with the driver.

    Args:
        who: what such a process is called.
        ask: takes a file and its content; what `seen_from` says in each process.

    Raises:
        UserError: names a process's node.
    """
    content = uuid.uuid4().hex
    probe = UPath(folder) / f".shared-{content}"
    write_whole(probe, content.encode())
    try:
        for node in ask(str(probe), content):
            if node is not None:
                raise UserError(
                    f"{folder} is not shared: the {who} on node {node} does not see what the driver writes there; "
                    "give --storage a path that all nodes mount"
                )
    finally:
        remove_file(probe)


def seen_from(file: str, content: str) -> str | None:
    """None where this process finds the driver's file as it was written; otherwise the node it runs on."""
    return None if holds(UPath(file), content) else ray.util.get_node_ip_address()
