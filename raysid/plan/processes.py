"""The processes of a placement, the devices they compute on, and the cost of a call between two of them."""

from __future__ import annotations

from dataclasses import dataclass

# Compared by identity: they are the keys of the simulation's inner loop.


@dataclass(frozen=True, eq=False)
class Pool:
    """A device, or the cores of a machine, that processes share.

    Attributes:
        capacity: number of processes that can compute at full speed at the same time.
    """

    capacity: float = 1.0


@dataclass(frozen=True, eq=False)
class Process:
    """A process of a role, the driver, or Ray's own processes as one.

    Attributes:
        pool: the device or the cores it computes on.
        node: processes of different nodes reach each other over the network.
    """

    pool: Pool
    node: str


@dataclass(frozen=True)
class Transport:
    """The cost of a call between processes, beside its work.

    Attributes:
        process: seconds of the called process, to unpack the call and pack the answer.
        driver: seconds of the driver's process, to submit the call.
        others: seconds of Ray's own processes.
        latency: seconds from an answer to the call that takes it, in which no process computes.
        byte: further seconds for each byte between two processes of a node.
        network_byte: further seconds for each byte between two nodes.
        on_pool: whether the processes' seconds occupy their pools (on a CPU) or pass beside them (on a GPU).
    """

    process: float = 0.0
    driver: float = 0.0
    others: float = 0.0
    latency: float = 0.0
    byte: float = 0.0
    network_byte: float = 0.0
    on_pool: bool = True


@dataclass(frozen=True)
class Workers:
    """The processes of a `split` placement.

    Attributes:
        ray: Ray's own processes; None where their cores are not those that the roles compute on.
        one_scorer: True if there is one scorer, to which calls are submitted at once; with several the driver waits
            for a call's inputs before it submits the call.
    """

    generator: list[Process]
    teacher: list[Process]
    fake_score: list[Process]
    driver: Process
    ray: Process | None = None
    one_scorer: bool = True

    @property
    def all(self) -> list[Process]:
        """Every process, once."""
        ray = [self.ray] if self.ray is not None else []
        return [*self.generator, *self.teacher, *self.fake_score, self.driver, *ray]
