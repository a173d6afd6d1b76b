"""The prediction of one placement on given hardware: its memory and its speed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from raysid.bench.compare import steady
from raysid.bench.report import ROLE_NAMES
from raysid.config import Config
from raysid.plan.calls import Pool, Process, Transport, Workers
from raysid.plan.devices import GB, Devices
from raysid.plan.hardware import Hardware
from raysid.plan.memory import PROCESS, role_memory, usable, whole_memory
from raysid.plan.parts import ROLES, Seconds, calls_of, role_seconds
from raysid.plan.simulate import simulate


@dataclass(frozen=True)
class Prediction:
    """The prediction of one placement.

    Attributes:
        config: the settings; for `colocated` those of one worker.
        workers: number of processes that hold all roles (`local`, `colocated`); 0 for `split`.
        devices: number of devices it uses.
        memory: bytes on the fullest device; None if there are too few devices.
        step_seconds: length of a step; None if it does not fit.
        busy: share of the time in which each role's busiest process works.
        why_not: reason why it does not fit; None if it does.
    """

    config: Config
    workers: int
    devices: int
    memory: float | None = None
    step_seconds: float | None = None
    busy: dict[str, float] = field(default_factory=dict)
    why_not: str | None = None

    @property
    def placement(self) -> str:
        if self.workers == 0:
            return "split"
        return "local" if self.workers == 1 else "colocated"

    @property
    def batch_size(self) -> int:
        """Images of a step, over all workers."""
        return self.config.batch_size * max(1, self.workers)

    @property
    def images_per_second(self) -> float | None:
        return None if self.step_seconds is None else self.batch_size / self.step_seconds

    @property
    def busiest(self) -> str:
        """The role with the highest busy share."""
        return max(self.busy, key=lambda role: self.busy[role])


Assignment = tuple[str, tuple[bool, int]]
"""The role and the device of one process: True for a device of `Hardware.teacher_devices`, and its number."""


class DoesNotFit(Exception):
    """A placement needs more devices or memory than there is; the message says which."""


def predict(
    config: Config, hardware: Hardware, workers: int | None = None, quick: bool = False
) -> Prediction:
    """Predict a placement, without running it.

    Args:
        config: the settings of the run; for `colocated` those of one worker.
        workers: number of processes that hold all roles, 0 for `split`; None: as `config.placement`.
        quick: take the busiest process or device as the length of a step, as if nothing ever waited.

    Raises:
        UserError: the devices lack the config's precision.
    """
    if workers is None:
        workers = 1 if config.placement == "local" else 0
    try:
        if workers:
            return _predict_whole(config, hardware, workers)
        return _predict_split(config, hardware, quick)
    except DoesNotFit as error:
        return Prediction(config, workers, 0, why_not=str(error))


def _predict_whole(config: Config, hardware: Hardware, workers: int) -> Prediction:
    """Predict one process that holds all three roles, or several that sum their gradients.

    The calls of a process follow each other without a gap, so a step lasts as long as all of them.
    """
    devices = hardware.devices
    if workers > devices.count:
        raise DoesNotFit(f"needs {workers} devices, there are {devices.count}")
    memory = whole_memory(config, hardware.costs, workers).total
    processes = workers if hardware.shared_cores else 1
    why_not = _too_much(memory * processes, devices, processes, "all three roles")
    memory = processes * (memory + PROCESS)
    if why_not:
        return Prediction(config, workers, workers, memory, why_not=why_not)
    seconds = dict(hardware.parts.seconds(config, workers))
    if workers > 1:
        for role in ("generator", "fake_score"):
            seconds[role, "step"] += hardware.parts.all_reduce(workers, workers <= hardware.node)
    work = {role: role_seconds(role, config, seconds) for role in ROLES}
    step = sum(work.values())
    busy = {role: own / step for role, own in work.items()}
    taken = devices.count if hardware.shared_cores else workers
    return Prediction(config, workers, taken, memory, step, busy)


def _predict_split(config: Config, hardware: Hardware, quick: bool) -> Prediction:
    """Predict a placement with processes for each role."""
    devices = hardware.devices
    cores = Pool(devices.count / (config.torch_threads or 1)) if hardware.shared_cores else None
    assignments = _assign(config, hardware)
    taken = len({device for _, device in assignments})
    memory, why_not = _split_memory(config, hardware, assignments)
    if why_not:
        return Prediction(config, 0, taken, memory, why_not=why_not)
    by_role: dict[str, list[Process]] = {role: [] for role in ROLES}
    pools = {(False, 0): cores} if cores else {}
    for role, device in assignments:
        teacher_side, number = device
        node = f"{'teachers' if teacher_side else 'devices'} {number // hardware.node}"
        by_role[role].append(Process(pools.setdefault(device, Pool()), node))
    workers = Workers(
        **by_role,
        driver=Process(cores or Pool(), "devices 0"),
        ray=Process(cores, "devices 0") if cores else None,
        one_scorer=config.teacher.scaling.max_replicas == 1,
    )
    seconds = dict(hardware.parts.seconds(config, 0))
    for role, number in config.learner_workers.items():
        if number > 1:
            nodes = {process.node for process in by_role[role]}
            seconds[role, "step"] += hardware.parts.all_reduce(number, len(nodes) == 1)
    taken = devices.count if cores else taken
    if quick:
        return Prediction(config, 0, taken, memory, _bound(config, workers, seconds, hardware.transport))
    found = simulate(steady(config), workers, seconds, hardware.transport, hardware.costs.image_bytes)
    return Prediction(config, 0, taken, memory, *found)


def _bound(config: Config, workers: Workers, seconds: Seconds, transport: Transport) -> float:
    """Return the length of a step in which no process and no device ever waits."""
    count = config.batch_size // config.microbatch
    longest = 0.0
    by_pool: defaultdict[Pool, float] = defaultdict(float)
    for role in ROLES:
        ranks: list[Process] = getattr(workers, role)
        each = [call + transport.process for call in calls_of(role, config, seconds)]
        work = sum(each) * count / len(ranks) + seconds.get((role, "step"), 0.0)
        longest = max(longest, work)
        for rank in ranks:
            by_pool[rank.pool] += work / rank.pool.capacity
    return max(longest, *by_pool.values())


def _processes(config: Config) -> list[str]:
    """Return the role of every process of a config."""
    counts = config.learner_workers | {"teacher": config.teacher.scaling.min_replicas}
    return [role for role in ROLES for _ in range(counts[role])]


def _assign(config: Config, hardware: Hardware) -> list[Assignment]:
    """Assign to each process the first device with enough of a GPU left, by `resources.<role>.num_gpus`.

    Processes on cores have one assignment in common: any of them may run on any core.
    """
    if hardware.shared_cores:
        return [(role, (False, 0)) for role in _processes(config)]
    teachers = hardware.teacher_devices
    free = {False: [1.0] * hardware.devices.count, True: [1.0] * (teachers.count if teachers else 0)}
    assignments = []
    processes = [(role, role == "teacher" and teachers is not None) for role in _processes(config)]
    for role, teacher_side in processes:
        share = getattr(config.resources, role).num_gpus
        if share == 0:
            raise DoesNotFit(f"resources.{role}.num_gpus is 0: the role would not compute on the devices")
        if share > 1:
            raise DoesNotFit(f"resources.{role}.num_gpus is {share:g}: a role computes on one device")
        room = free[teacher_side]
        found = next((index for index, left in enumerate(room) if left >= share - 1e-9), None)
        if found is None:
            here = (one for one, side in processes if side == teacher_side)
            asked = sum(getattr(config.resources, one).num_gpus for one in here)
            raise DoesNotFit(f"asks for {asked:g} devices, there are {len(room)}")
        room[found] -= share
        assignments.append((role, (teacher_side, found)))
    return assignments


def _split_memory(config: Config, hardware: Hardware, found: list[Assignment]) -> tuple[float, str | None]:
    """Return the bytes on the fullest device, and the reason why a device is too small, if one is."""
    needs = role_memory(config, hardware.costs)
    on: dict[tuple[bool, int], list[str]] = {}
    for role, device in found:
        on.setdefault(device, []).append(role)
    fullest, why_not = 0.0, None
    for (teacher_side, _), roles in on.items():
        total = sum(needs[role].total for role in roles)
        fullest = max(fullest, total + len(roles) * PROCESS)
        devices = hardware.teacher_devices if teacher_side and hardware.teacher_devices else hardware.devices
        why_not = why_not or _too_much(total, devices, len(roles), " + ".join(ROLE_NAMES[r] for r in roles))
    return fullest, why_not


def _too_much(total: float, devices: Devices, processes: int, roles: str) -> str | None:
    has = usable(devices.device.memory, processes)
    if total <= has:
        return None
    return f"{roles}: {total / GB:.1f} GB, {devices.device.name} has room for {max(0.0, has) / GB:.1f}"
