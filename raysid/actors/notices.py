"""Notices before processes are replaced: of nodes that are about to leave the cluster, and of a change of workers."""

from __future__ import annotations

import math
import time
from collections.abc import Set
from dataclasses import dataclass

import ray

from raysid.ray_internals import draining_nodes

POLL_SECONDS = 1.0  # clouds give notice half a minute to two minutes before they take a machine away


@dataclass(frozen=True)
class Notice:
    """Processes of a run are about to be replaced.

    Attributes:
        text: the reason, in a few words.
        restarts: True if learners are among them, so that all roles start again from a checkpoint.
    """

    text: str
    restarts: bool


class LeavingNodes:
    """The nodes that are about to leave, as Ray was notified of them; it places nothing new on these."""

    def __init__(self) -> None:
        self._deadlines: dict[str, float] = {}
        self._looked = -math.inf
        self._noted: set[str] = set()

    def now(self) -> Set[str]:
        """Return the IDs of the nodes that leave; asks the cluster at most once a second."""
        if time.monotonic() - self._looked > POLL_SECONDS:
            self._deadlines, self._looked = draining_nodes(), time.monotonic()
        return self._deadlines.keys()

    def news(self) -> Set[str]:
        """Return the IDs of the nodes that leave and of which no notice has been asked for yet."""
        return self.now() - self._noted

    def notice(self, learners: Set[str], others: Set[str], movable: bool = True) -> Notice | None:
        """Return a notice of nodes of a run that leave; once for each node.

        Args:
            learners: IDs of the nodes with learners.
            others: IDs of further nodes with processes of the run.
            movable: whether learners can start elsewhere while their node still exists.
        """
        new = self.news() & (learners | others)
        self._noted |= self.now()
        if not new:
            return None
        addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        names = ", ".join(sorted(addresses.get(node, node) for node in new))
        left = min(self._deadlines[node] for node in new) - time.time()
        when = "" if math.isinf(left) else f" in {max(0.0, left):.0f} s"
        return Notice(f"node {names} leaves the cluster{when}", movable and bool(new & learners))
