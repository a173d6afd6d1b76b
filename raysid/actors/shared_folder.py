"""Check that the processes which write a run's states see its folder as the driver does."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence

import ray
from upath import UPath

from raysid.errors import UserError
from raysid.storage import holds, remove_file, write_whole


def check_shared(folder: str, who: str, ask: Callable[[str, str], Sequence[str | None]]) -> None:
    """Check that processes share a run's folder with the driver.

    Args:
        who: name of such a process, for the message.
        ask: takes a file and its content; returns the result of `seen_from` in each process.

    Raises:
        UserError: a process does not; names its node.
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
    """Return None if this process finds the driver's file with its content, otherwise this node's address."""
    return None if holds(UPath(file), content) else ray.util.get_node_ip_address()
