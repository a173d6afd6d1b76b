"""The hardware of a plan, from a recipe and the names of devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from raysid.actors.placement import all_cores
from raysid.bench.compare import recipe_network
from raysid.config import Config
from raysid.errors import UserError
from raysid.plan.calls import Transport
from raysid.plan.costs import NetworkCosts, network_costs
from raysid.plan.devices import GB, Devices, parse_devices
from raysid.plan.measure import measure_parts, this_machine
from raysid.plan.parts import ROLES, CountedParts, Parts
from raysid.plan.transport import measure_transport
from raysid.trainers.teachers import find_teacher, network_settings

# A call through Ray between two processes of one machine, measured on two cores of an AMD EPYC: an empty call, and
# the bytes of its arrays.
CALL = Transport(process=1e-3, driver=0.7e-3, latency=0.7e-3, byte=0.7e-9, on_pool=False)


@dataclass(frozen=True)
class Hardware:
    """The devices of a plan, and the costs of calls on them.

    Attributes:
        devices: devices of all roles, or of the learners if there are `teacher_devices`.
        teacher_devices: devices of the scorers, on other nodes.
        parts: seconds of the roles' calls.
        transport: cost of calls between processes.
        node: devices of a node.
    """

    devices: Devices
    teacher_devices: Devices | None
    costs: NetworkCosts
    parts: Parts
    transport: Transport
    node: int

    @property
    def shared_cores(self) -> bool:
        """True if the devices are cores, on which any process may run."""
        return self.devices.device.name == "cpu"


def _find_devices(
    config: Config, devices: str | None, teacher_devices: str | None
) -> tuple[Devices, Devices | None]:
    """Return the devices to plan for; by default this machine's cores, or its GPUs if the recipe's roles use GPUs."""
    uses_gpus = any(getattr(config.resources, role).num_gpus for role in ROLES)
    if devices is None and uses_gpus and not torch.cuda.is_available():
        raise UserError(
            "this recipe's roles ask for GPUs, and this machine has none to measure: give --devices, as in "
            "8xH100-80GB, or 2xcpu for cores of this machine"
        )
    here = f"{torch.cuda.device_count()}xgpu" if uses_gpus else f"{all_cores()}xcpu"
    found = parse_devices(devices or here, "--devices")
    teacher_side = None if teacher_devices is None else parse_devices(teacher_devices, "--teacher-devices")
    if teacher_side is not None and (found.device.measured or teacher_side.device.measured):
        raise UserError(
            "--teacher-devices needs named devices on both sides, as in --devices 4xH100-80GB --teacher-devices "
            "4xL4-24GB: cpu and gpu are measured here, where there is one kind"
        )
    if found.device.measured:
        found = this_machine(found.device.name, found.count)
    return found, teacher_side


def counted_hardware(
    devices: Devices,
    teacher_devices: Devices | None,
    costs: NetworkCosts,
    efficiency: float | None,
    network: float,
    node: int,
) -> Hardware:
    """Return hardware with a share of the data sheet's speed.

    Args:
        efficiency: share of the peak, in (0, 1]; None: a default for each precision.
        network: bytes per second between nodes.
        node: devices of a node.
    """
    parts = CountedParts(costs, devices.device, (teacher_devices or devices).device, efficiency, network)
    transport = replace(CALL, network_byte=1 / network)
    return Hardware(devices, teacher_devices, costs, parts, transport, node)


def make_hardware(
    config: Config,
    devices: str | None = None,
    teacher_devices: str | None = None,
    efficiency: float | None = None,
    network: float = 1.25,
    node: int = 8,
    seconds: float = 10.0,
    report: Callable[[str], None] = lambda line: None,
) -> Hardware:
    """Return the hardware of a plan.

    Args:
        devices, teacher_devices: as for `raysid plan`.
        network: GB per second between nodes.
        efficiency, node: as for `counted_hardware`.
        seconds, report: as for `measure_parts`.

    Raises:
        NotHere: the teacher's files are needed, and cannot be fetched.
        UserError: a device is not known, this machine lacks the GPUs that the recipe uses, there is no such teacher or
            recipe, or the network cannot be counted.
        RunFailed: measuring failed.
    """
    found, teacher_side = _find_devices(config, devices, teacher_devices)
    settings = recipe_network(config) or network_settings(find_teacher(config, None))
    costs = network_costs(settings, config.teacher.factory)
    kind = found.device.name
    if not found.device.measured:
        return counted_hardware(found, teacher_side, costs, efficiency, network * GB, node)
    parts = measure_parts(config, costs, kind, seconds, report)
    report("measuring calls between two Ray actors")
    transport = measure_transport(config, costs.image_bytes, on_pool=kind == "cpu")
    return Hardware(found, None, costs, parts, transport, found.count)
