"""The data-parallel ranks of a learner, as one of them sees the others: where they meet, how they add up."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from raysid.errors import PeerLost

TIMEOUT = timedelta(minutes=10)  # for a peer that is slow: it may be making a checkpoint's bytes
BUCKET = 2**26  # elements summed at a time: a copy of 256 MB in float32, however large the network


class Ranks:
    """One rank's place among the ranks of its learner.

    Rank 0 opens a meeting place, all ranks join it, and from then on their `all_reduce` calls belong
    together, the first of each rank to the first of every other.

    Args:
        rank: this one's number, 0 to `size - 1`.
        size: how many there are, 2 or more.
        nccl: whether each has GPUs of its own, over which NCCL adds; otherwise gloo does, on a CPU or where
            ranks share a GPU, which NCCL refuses.
    """

    def __init__(self, rank: int, size: int, nccl: bool = False) -> None:
        self.rank = rank
        self.size = size
        self.nccl = nccl
        self._store: Any = None
        self._group: Any = None

    @classmethod
    def of_process_group(cls) -> Ranks:
        """The ranks of torch's process group, which has been set up already."""
        group = torch.distributed.group.WORLD
        assert group is not None
        ranks = cls(group.rank(), group.size())
        ranks._group = group
        return ranks

    def open(self, host: str) -> tuple[str, int]:
        """Open the meeting place, on rank 0: host and port under which the other ranks find it.

        Args:
            host: this machine's address, as the others reach it.
        """
        # Port 0: the system picks a free one and it is held from then on.
        self._store = torch.distributed.TCPStore(
            host, 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT
        )
        return host, self._store.port

    def join(self, place: tuple[str, int], host: str) -> None:
        """Meet the other ranks; returns when all are there.

        Args:
            place: what `open` said on rank 0.
            host: this machine's address, as the others reach it.

        Raises:
            PeerLost: they were not all there in time.
        """
        try:
            if self._store is None:
                self._store = torch.distributed.TCPStore(*place, is_master=False, timeout=TIMEOUT)
            self._group = self._nccl() if self.nccl else self._gloo(host)
        except RuntimeError as error:
            raise PeerLost(self._what_failed("could not meet", error)) from error

    def all_reduce(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, of which each brings as many, of the same shapes.

        All ranks come to the same bits. With two ranks these are those of one sum of the two.

        Raises:
            PeerLost: a rank died, or did not come in time; what the tensors hold then means nothing.
        """
        for bucket in buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            try:
                self._group.allreduce([flat]).wait()
            except RuntimeError as error:
                raise PeerLost(self._what_failed("lost", error)) from error
            sums = flat.split([tensor.numel() for tensor in bucket])
            for tensor, total in zip(bucket, sums, strict=True):
                tensor.copy_(total.view_as(tensor))

    def _gloo(self, host: str) -> Any:
        gloo: Any = torch.distributed.ProcessGroupGloo  # whose stub calls its options by another name
        options = gloo._Options()
        # By address: gloo's own choice is what the host's name resolves to, which may be the loopback.
        options._devices = [gloo.create_device(hostname=host)]
        options._timeout = TIMEOUT
        return gloo(self._store, self.rank, self.size, options)

    def _nccl(self) -> Any:
        options = torch.distributed.ProcessGroupNCCL.Options()
        options._timeout = TIMEOUT
        return torch.distributed.ProcessGroupNCCL(self._store, self.rank, self.size, options)

    def _what_failed(self, what: str, error: RuntimeError) -> str:
        return f"rank {self.rank} of {self.size} {what} the others: {str(error).splitlines()[0]}"


def buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors in groups of one dtype and device, in their order, each group of at most `BUCKET` elements.

    A larger tensor is a group of its own.
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
