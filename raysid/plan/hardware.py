"""The hardware of a plan, from a recipe and the names of devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from raysid.actors.placement import all_cores
from raysid.config import Config
from raysid.errors import UserError
from raysid.networks.files import AnySettings
from raysid.plan.calls import Transport
from raysid.plan.costs import NetworkCosts, network_costs
from raysid.plan.devices import GB, Devices, parse_devices
from raysid.plan.measure import measure_parts, this_machine
from raysid.plan.parts import ROLES, CountedParts, Parts
from raysid.plan.transport import measure_transport
from raysid.recipes import load_recipe
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


def _network_of(config: Config) -> AnySettings:
    """Return the network settings of a config's teacher, from the config if they are there, else from its files."""
    teacher = config.teacher
    if teacher.network is not None:
        return teacher.network
    if teacher.recipe is not None and teacher.path is None and teacher.factory is None:
        return load_recipe(teacher.recipe, kind="pretrain").network
    return network_settings(find_teacher(config, None))


def _find_devices(
    config: Config, devices: str | None, teacher_devices: str | None
) -> tuple[Devices, Devices | None]:
    """Return the devices to plan for; by default this machine's cores, or its GPUs if the recipe's roles use GPUs."""
    asks = any(getattr(config.resources, role).num_gpus for role in ROLES)
    if devices is None and asks and not torch.cuda.is_available():
        raise UserError(
            "this recipe's roles ask for GPUs, and this machine has none to measure: give --devices, as in "
            "8xH100-80GB, or 2xcpu for cores of this machine"
        )
    here = f"{torch.cuda.device_count()}xgpu" if asks else f"{all_cores()}xcpu"
    found = parse_devices(devices or here, "--devices")
    apart = None if teacher_devices is None else parse_devices(teacher_devices, "--teacher-devices")
    if apart is not None and (found.device.measured or apart.device.measured):
        raise UserError(
            "--teacher-devices needs named devices on both sides, as in --devices 4xH100-80GB --teacher-devices "
            "4xL4-24GB: cpu and gpu are measured here, where there is one kind"
        )
    if found.device.measured:
        found = this_machine(found.device.name, found.count)
    return found, apart


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
        network: bytes a second between nodes.
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
        network: GB a second between nodes.
        efficiency, node: as for `counted_hardware`.
        seconds, report: as for `measure_parts`.

    Raises:
        NotHere: the teacher's files are needed, and cannot be fetched.
        UserError: a device is not known, this machine lacks the GPUs that the recipe uses, there is no such teacher or
            recipe, or the network cannot be counted.
        RunFailed: measuring failed.
    """
    found, apart = _find_devices(config, devices, teacher_devices)
    costs = network_costs(_network_of(config), config.teacher.factory)
    kind = found.device.name
    if not found.device.measured:
        return counted_hardware(found, apart, costs, efficiency, network * GB, node)
    parts = measure_parts(config, costs, kind, seconds, report)
    report("measuring calls between two Ray actors")
    transport = measure_transport(config, costs.image_bytes, on_pool=kind == "cpu")
    return Hardware(found, None, costs, parts, transport, found.count)
