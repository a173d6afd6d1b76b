"""The output of a bench: tables for a terminal, JSON for programs, a trace for chrome://tracing or ui.perfetto.dev."""

from __future__ import annotations

from typing import Any

from raysid.bench.compare import Comparison, SideResult, format_ratio, ratio
from raysid.bench.sides import RoleUse
from raysid.config import ComputeSettings, Config
from raysid.roles.step import all_microbatches
from raysid.run.table import print_table

PARTS = ("generate", "score", "cotangents", "pullback", "accumulate", "step")
ROLE_NAMES = {"generator": "generator", "teacher": "teacher scorer", "fake_score": "fake score"}
TRACED_STEPS = 3


def print_comparison(found: Comparison) -> None:
    """Print the results of a bench."""
    sides = [side for side in (found.this, found.against) if side is not None]
    print_table(
        "images per second, medians over rounds",
        ["", "images/s", "lowest", "highest", "ms per step"],
        [
            [
                describe(side),
                *(f"{value:,.1f}" for value in (side.images_per_second, min(side.speeds), max(side.speeds))),
                f"{1000 * side.config.batch_size / side.images_per_second:,.1f}",
            ]
            for side in sides
        ],
    )
    for side in sides:
        _print_roles(side)
    if found.against is not None:
        print(format_ratio(ratio(found.this, found.against)))
        print(f"bound {bound(found):.3f}: the ratio if neither side ever waited")
    print(f"overhead {overhead(found.this):.1%} of the wall time, in which the busiest role is not busy")
    if found.this.config.placement != "local":
        print(f"driver {1000 * driver_seconds(found.this):.2f} ms of CPU per microbatch")


def as_json(found: Comparison) -> dict[str, Any]:
    """Return all results in numbers: seconds and bytes per step."""
    tree: dict[str, Any] = ratio(found.this, found.against)
    tree |= {"settings": found.this.config.model_dump(mode="json"), "this": _numbers(found.this)}
    if found.against is not None:
        tree |= {
            "against_settings": found.against.config.model_dump(mode="json"),
            "against": _numbers(found.against),
            "bound": bound(found),
        }
    return tree


def as_trace(found: Comparison) -> dict[str, Any]:
    """Return the last steps of this side in Chrome's trace format: a process for each role, a thread for each rank."""
    by_role = found.this.spans
    steps = [span.began for span in by_role["fake_score"][0] if span.name == "step"][-TRACED_STEPS - 1 :]
    events: list[dict[str, Any]] = []
    for number, (role, processes) in enumerate(by_role.items()):
        events.append({"ph": "M", "name": "process_name", "pid": number, "args": {"name": ROLE_NAMES[role]}})
        for rank, spans in enumerate(processes):
            events += [
                {
                    "ph": "X",
                    "name": span.name,
                    "cat": role,
                    "pid": number,
                    "tid": rank,
                    "ts": 1e6 * span.began,
                    "dur": 1e6 * (span.ended - span.began),
                }
                for span in spans
                if span.ended >= steps[0]
            ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def describe(side: SideResult) -> str:
    """Return a side in words, as in `split, overlapped, 3 actors of 1 thread`."""
    config = side.config
    threads = f"{config.torch_threads} thread{'s' * (config.torch_threads != 1)}"
    processes = ""
    if config.placement == "colocated":
        number = config.colocated.num_workers
        processes = f"{number} worker{'s' * (number != 1)} of "
    elif config.placement == "split":
        processes = f"{config.teacher.scaling.min_replicas + sum(config.learner_workers.values())} actors of "
    return ", ".join([config.placement, config.schedule, processes + threads, *_options(config)])


def _options(config: Config) -> list[str]:
    """Return the options of a side that differ from the defaults, then the teacher's that differ from the side's."""
    own = {"precision": config.precision} | config.compute.model_dump()
    teachers_own = {
        "precision": config.teacher.precision or config.precision
    } | config.teacher_compute.model_dump()
    defaults = {"precision": "float32"} | ComputeSettings().model_dump()
    teachers = [f"teacher {option}" for option in _changes(own, teachers_own)]
    return _changes(defaults, own) + teachers


def _changes(usual: dict[str, Any], chosen: dict[str, Any]) -> list[str]:
    """Return unusual options in words, as in `bf16`, `compile` and `no fused_optimizer`."""
    words = {True: "", False: "no "}
    return [
        f"{words[value]}{name}" if isinstance(value, bool) else value
        for name, value in chosen.items()
        if value != usual[name]
    ]


def bound(found: Comparison) -> float:
    """Return the ratio if neither side ever waited: the other side's busy time per image over this side's."""
    assert found.against is not None
    this, against = (_busy(side) / side.config.batch_size for side in (found.this, found.against))
    return against / this


def overhead(side: SideResult) -> float:
    """Return the share of the wall time in which the busiest role is idle; in one process, in which all roles are."""
    return 1 - _busy(side) * side.middle.steps / side.middle.seconds


def driver_seconds(side: SideResult) -> float:
    """Return the driver's CPU seconds per microbatch."""
    config = side.config
    workers = config.colocated.num_workers if config.placement == "colocated" else 1
    count = len(all_microbatches(config, 0, workers))
    return side.middle.driver_seconds / (side.middle.steps * count)


def by_part(use: RoleUse) -> dict[str, float]:
    """Return busy seconds by part; `images` counts as `generate`."""
    parts = dict.fromkeys(PARTS, 0.0)
    for name, seconds in use.parts.items():
        parts["generate" if name == "images" else name] += seconds
    return parts


def _busy(side: SideResult) -> float:
    """Return the busy seconds that bound a step: of all roles in one process, else of the busiest role."""
    busy = [use.busy for use in side.middle.roles.values()]
    return sum(busy) if side.config.placement != "split" else max(busy)


def _print_roles(side: SideResult) -> None:
    middle = side.middle
    uses = [middle.roles[role] for role in ROLE_NAMES]
    parts = [by_part(use) for use in uses]
    rows: list[list[str | None]] = [
        [part, *(f"{1000 * busy[part]:.1f}" if busy[part] else None for busy in parts)] for part in PARTS
    ]
    if side.config.placement == "split":
        rows.append(["transport", *(f"{1000 * use.transport:.1f}" for use in uses)])
        rows.append(["wait", *(f"{1000 * use.wait:.1f}" for use in uses)])
    rows.append(["busy", *(f"{use.busy * middle.steps / middle.seconds:.0%}" for use in uses)])
    if side.config.placement == "split":
        rows.append(["MB moved", *(f"{(use.received_bytes + use.sent_bytes) / 1e6:.2f}" for use in uses)])
    rows.append(["peak MB", *(f"{use.peak_bytes / 1e6:,.0f}" for use in uses)])
    print_table(f"{describe(side)}: ms per step by role", ["", *ROLE_NAMES.values()], rows)


def _numbers(side: SideResult) -> dict[str, Any]:
    middle = side.middle
    return {
        "title": describe(side),
        "images_per_second": side.images_per_second,
        "images_per_second_by_round": side.speeds,
        "seconds_per_step": middle.seconds / middle.steps,
        "overhead": overhead(side),
        "driver_seconds_per_microbatch": driver_seconds(side),
        "roles": {role: _role_numbers(middle.roles[role]) for role in ROLE_NAMES},
    }


def _role_numbers(use: RoleUse) -> dict[str, float]:
    others = {name: value for name, value in vars(use).items() if name != "parts"}
    return by_part(use) | {"busy": use.busy} | others
