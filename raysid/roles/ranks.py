"""The data-parallel ranks of a learner: how they meet, and how they sum their gradients."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from raysid.errors import PeerLost
from raysid.roles.torch_internals import gloo_group, nccl_group

TIMEOUT = timedelta(minutes=10)  # for a slow peer, which may be copying its state for a checkpoint
BUCKET = 2**26  # elements summed at a time: bounds the copy to 256 MB in float32, however large the network


class Ranks:
    """One rank of a learner, and its connection to the others.

    Rank 0 opens a store and all ranks join through it. From then on the n-th `all_reduce` of each rank belongs to the
    n-th of every other.

    Args:
        rank: this rank's number, 0 to `size - 1`.
        size: number of ranks, 2 or more.
        nccl: True if each rank has separate GPUs, for NCCL; otherwise gloo sums, on CPUs or for ranks that share a
            GPU, which NCCL refuses.
    """

    def __init__(self, rank: int, size: int, nccl: bool = False) -> None:
        self.rank = rank
        self.size = size
        self.nccl = nccl
        self.exchange_tokens = False  # each rank's driver has the tokens of all ranks
        self._store: Any = None
        self._group: Any = None

    @classmethod
    def from_process_group(cls) -> Ranks:
        """Return the ranks of torch's default process group, which is initialized already. Each has its own driver."""
        group = torch.distributed.group.WORLD
        assert group is not None
        ranks = cls(group.rank(), group.size())
        ranks._group, ranks.exchange_tokens = group, True
        return ranks

    def open(self, host: str) -> tuple[str, int]:
        """Open the store, on rank 0; return its host and port for `join`.

        Args:
            host: this machine's address, as the other ranks reach it.
        """
        # Port 0: the system chooses a free one, and the store keeps it.
        self._store = torch.distributed.TCPStore(
            host, 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT
        )
        return host, self._store.port

    def join(self, address: tuple[str, int], host: str) -> None:
        """Connect to the other ranks; returns once all have joined.

        Args:
            address: host and port from `open` on rank 0.
            host: this machine's address, as the other ranks reach it.

        Raises:
            PeerLost: they did not all join in time.
        """
        try:
            if self._store is None:
                self._store = torch.distributed.TCPStore(*address, is_master=False, timeout=TIMEOUT)
            if self.nccl:
                self._group = nccl_group(self._store, self.rank, self.size, TIMEOUT)
            else:
                self._group = gloo_group(self._store, self.rank, self.size, host, TIMEOUT)
        except RuntimeError as error:
            raise PeerLost(self._describe("could not meet", error)) from error

    def all_reduce(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, in place. All ranks pass tensors of the same shapes.

        The sums are the same on all ranks, bit for bit; of two ranks they are those of one addition.

        Raises:
            PeerLost: a rank died, or did not call in time; the tensors' values are undefined then.
        """
        for bucket in buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            try:
                self._group.allreduce([flat]).wait()
            except RuntimeError as error:
                raise PeerLost(self._describe("lost", error)) from error
            sums = flat.split([tensor.numel() for tensor in bucket])
            for tensor, total in zip(bucket, sums, strict=True):
                tensor.copy_(total.view_as(tensor))

    def _describe(self, what: str, error: RuntimeError) -> str:
        return f"rank {self.rank} of {self.size} {what} the others: {str(error).splitlines()[0]}"


def buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Group tensors of one dtype and device, in order, into groups of at most `BUCKET` elements.

    A larger tensor is a separate group.
    """
    kinds: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for kind in kinds.values():
        bucket: list[Tensor] = []
        for tensor in kind:
            if bucket and sum(one.numel() for one in bucket) + tensor.numel() > BUCKET:
                yield bucket
                bucket = []
            bucket.append(tensor)
        yield bucket
