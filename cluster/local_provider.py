"""Node provider of the autoscaling cluster on one machine: a node is a Ray process.

Ray's own provider for tests starts nodes that share one folder, in which one node's runtime environment can delete
another's; here each node has its own folder.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_WORKER,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

STOP_SECONDS = 15


class LocalNodeProvider(FakeMultiNodeProvider):  # type: ignore[misc]
    """Starts a node by `ray start` and ends it by a signal. Only the autoscaler calls it.

    Settings under `provider` in the cluster's file: `gcs_address`, and `folder` for the nodes' files.
    """

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self.folder = Path(provider_config["folder"])

    def _create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        with self.lock:
            node, kind = self._next_hex_node_id(), tags[TAG_RAY_USER_NODE_TYPE]
            custom = {
                name: amount for name, amount in resources.items() if name not in ("CPU", "GPU", "memory")
            }
            command = [
                Path(sys.executable).parent / "ray",
                "start",
                "--block",
                f"--address={self._gcs_address}",
            ]
            command += [f"--num-cpus={resources.get('CPU', 0):g}", f"--resources={json.dumps(custom)}"]
            command += [
                f"--temp-dir={self.folder / str(self._next_node_id)}",
                "--object-store-memory=200000000",
            ]
            if labels:
                command.append("--labels=" + ",".join(f"{key}={value}" for key, value in labels.items()))
            process = subprocess.Popen(
                command,
                env=os.environ
                | {"RAY_CLOUD_INSTANCE_ID": node, "RAY_NODE_TYPE_NAME": kind}
                | {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": node},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            own = {
                TAG_RAY_NODE_KIND: NODE_KIND_WORKER,
                TAG_RAY_USER_NODE_TYPE: kind,
                TAG_RAY_NODE_NAME: node,
                TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE,
            }
            self._nodes[node] = {"tags": own | tags, "node": process}

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """The running nodes. A killed node, like a preempted spot machine, is removed from the list."""
        with self.lock:
            for node, known in list(self._nodes.items()):
                if "node" in known and known["node"].poll() is not None:
                    del self._nodes[node]
            return list(super().non_terminated_nodes(tag_filters))

    def _terminate_node(self, node: dict[str, Any]) -> None:
        process = node["node"]
        process.terminate()  # `ray start --block` ends its own processes
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
