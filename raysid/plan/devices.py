"""Accelerators: speed and memory by their data sheets, and the share of the speed that these networks reach."""

from __future__ import annotations

import re
from dataclasses import dataclass

from raysid.errors import UserError

GB = 10**9
Arithmetic = str
"""Arithmetic of a network: `float32`, `tf32`, `bf16` or `fp16`."""

EFFICIENCY = {"float32": 0.6, "tf32": 0.35, "bf16": 0.3, "fp16": 0.3}
"""Default shares of the data sheet's speed that networks reach: guesses, not measured."""

MEASURED = ("cpu", "gpu")
"""Devices whose calls are measured on this machine: a core and a GPU of it."""


@dataclass(frozen=True)
class Device:
    """One accelerator, or one core or GPU of this machine.

    Attributes:
        teraflops: peak dense operations per second, in 10^12, by arithmetic; empty for a measured device.
        memory: bytes.
        link: bytes per second between two devices of one node, each way.
        label: value of Ray's node label `ray.io/accelerator-type`; None if Ray has none for it.
    """

    name: str
    teraflops: dict[Arithmetic, float]
    memory: float
    link: float
    label: str | None = None

    @property
    def measured(self) -> bool:
        return self.name in MEASURED

    def peak(self, arithmetic: Arithmetic, setting: str = "precision") -> float:
        """Return the peak operations per second.

        Args:
            setting: name of the setting that asks for this arithmetic, for the message.

        Raises:
            UserError: the device lacks this arithmetic.
        """
        if arithmetic not in self.teraflops:
            raise UserError(
                f"{self.name} has no {arithmetic}, which {setting} asks for; it has {', '.join(self.teraflops)}"
            )
        return 1e12 * self.teraflops[arithmetic]


# NVIDIA's data sheets: dense operations (without sparsity, accumulating in float32); NVLink of the SXM modules and
# PCIe of the others, one way.
_SHEETS: list[tuple[str, float, tuple[float | None, ...], float, str | None]] = [
    # name          GB  float32   tf32   bf16    fp16   GB/s  Ray's label
    ("H200", 141, (67.0, 494.0, 989.0, 989.0), 450, "H200"),
    ("H100-80GB", 80, (67.0, 494.0, 989.0, 989.0), 450, "H100"),
    ("A100-80GB", 80, (19.5, 156.0, 312.0, 312.0), 300, "A100"),
    ("A100-40GB", 40, (19.5, 156.0, 312.0, 312.0), 300, "A100"),
    ("L40S-48GB", 48, (91.6, 183.0, 362.0, 362.0), 32, "L40S"),
    ("L4-24GB", 24, (30.3, 60.0, 121.0, 121.0), 32, "L4"),
    ("A10G-24GB", 24, (31.5, 35.0, 70.0, 70.0), 32, "A10G"),
    ("T4-16GB", 16, (8.1, None, None, 65.0), 16, "T4"),
    ("V100-32GB", 32, (15.7, None, None, 125.0), 150, "V100"),
    ("V100-16GB", 16, (15.7, None, None, 125.0), 150, "V100"),
    ("RTX4090-24GB", 24, (82.6, 82.6, 165.2, 165.2), 32, None),
]
KNOWN = [
    Device(
        name,
        {kind: speed for kind, speed in zip(EFFICIENCY, speeds, strict=True) if speed},
        GB * memory,
        GB * link,
        label,
    )
    for name, memory, speeds, link, label in _SHEETS
]
OWN_LINK = 16 * GB  # of a device given as NAME:TFLOPS:GB


@dataclass(frozen=True)
class Devices:
    """A number of equal devices."""

    count: int
    device: Device

    def __str__(self) -> str:
        return f"{self.count}x{self.device.name}"


def parse_devices(text: str, option: str) -> Devices:
    """Parse the value of `--devices` or `--teacher-devices`: `8xH100-80GB`, or `8xNAME:TFLOPS:GB` for others.

    `2xcpu` and `1xgpu` are cores and GPUs like those of this machine; their memory is set when they are measured.

    Raises:
        UserError: the value has neither form; the message lists the known names.
    """
    match = re.fullmatch(r"(?:(\d+)x)?(.+)", text.strip())
    count = int(match[1] or 1) if match else 0
    if match is None or count == 0:
        raise UserError(f"{option} is {text!r}; give a number and a name, as in 8xH100-80GB")
    name = match[2]
    if name in MEASURED:
        return Devices(count, Device(name, {}, 0.0, OWN_LINK))
    if ":" in name:
        return Devices(count, _own(name, option))
    plain = _plain(name)
    fitting = [device for device in KNOWN if _plain(device.name) == plain]
    fitting = fitting or [device for device in KNOWN if _plain(device.name.partition("-")[0]) == plain]
    if len(fitting) == 1:
        return Devices(count, fitting[0])
    known = ", ".join(device.name for device in (fitting or KNOWN))
    problem = "is one of several" if fitting else "is not known"
    raise UserError(
        f"{option} {text}: {name} {problem}; known: {known}; cpu or gpu for this machine's own; any other as "
        f"{count}x{re.sub('[^A-Za-z0-9-]', '', name) or 'NAME'}:TFLOPS:GB, at the precision that will be used"
    )


def _own(text: str, option: str) -> Device:
    name, *figures = text.split(":")
    try:
        teraflops, gigabytes = map(float, figures)
    except ValueError:
        teraflops = gigabytes = 0.0
    if not name or not 0 < teraflops < 1e9 or not 0 < gigabytes < 1e9:
        raise UserError(
            f"{option}: {text!r} is not a device; give NAME:TFLOPS:GB, as in mine:40:24 for 40e12 operations per "
            "second and 24 GB"
        )
    return Device(name, dict.fromkeys(EFFICIENCY, teraflops), gigabytes * GB, OWN_LINK)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower().removeprefix("nvidia")
