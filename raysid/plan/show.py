"""What a plan found: tables for a terminal, JSON for programs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from raysid.bench.show import ROLES as NAMES
from raysid.config import Config
from raysid.plan.devices import EFFICIENCY, GB
from raysid.plan.memory import FRAGMENTS, PROCESS, passes, role_memory
from raysid.plan.parts import CountedParts, arithmetic, calls_of
from raysid.plan.placements import Plan, Way
from raysid.plan.predict import ROLES, Prediction
from raysid.run.table import print_table

SHORT = {"fake_score": "fake score", "generator": "generator", "teacher": "scorers"}


def show(plan: Plan, recipe: str) -> None:
    """Print a plan; `recipe` is how the user named it."""
    print(_hardware(plan))
    for line in _assumed(plan):
        print(line)
    print()
    _show_roles(plan)
    rows = [["as given: " + title(plan.as_given), *_row(plan.as_given, plan.config)]]
    rows += [[title(way.prediction), *_row(way.prediction, plan.config)] for way in plan.ways]
    print_table(
        f"{plan.config.total_images:,} images in steps of {plan.config.batch_size}: predicted",
        [
            "placement",
            "schedule",
            "devices",
            "micro-batch",
            "images/s",
            "hours",
            "busiest role",
            "GB",
            "fits",
        ],
        rows,
    )
    for line in recommendation(plan, recipe):
        print(line)


def recommendation(plan: Plan, recipe: str) -> list[str]:
    """What to type, and what the other schedule would give."""
    best = plan.best()
    if best is None:
        return [f"nothing fits: {_why(plan)}"]
    speed = best.prediction.images_per_second
    assert speed is not None
    lines = [
        f"recommended: {title(best.prediction)}, {speed:,.1f} images/s",
        f"  {command(plan, best, recipe)}",
    ]
    other_name = "overlapped" if plan.config.schedule == "alternating" else "alternating"
    other = plan.best(other_name)
    if other is not None and (faster := (other.prediction.images_per_second or 0.0) / speed) > 1.02:
        lines += [
            f"{faster:.2f}x as fast in the {other_name} order, which trains psi on other images: "
            f"{title(other.prediction)}",
            f"  {command(plan, other, recipe)}",
        ]
    return lines


def command(plan: Plan, way: Way, recipe: str) -> str:
    """The command that runs the recipe so."""
    given = [f"--{name} {shlex.quote(_text(value))}" for name, value in plan.overrides(way).items()]
    return " ".join(["raysid distill", recipe, *given])


def title(prediction: Prediction) -> str:
    """A placement in words."""
    if prediction.workers:
        return prediction.placement + (f", {prediction.workers} workers" if prediction.workers > 1 else "")
    counts = prediction.config.learner_workers | {"teacher": prediction.config.teacher.scaling.min_replicas}
    shares = {role: getattr(prediction.config.resources, role).num_gpus for role in ROLES}
    sharing = [SHORT[role] for role in ROLES if 0 < shares[role] < 1]
    shared = f" ({' and '.join(sharing)} on one device)" if sharing else ""
    return "split, " + ", ".join(f"{SHORT[role]} {counts[role]}" for role in ROLES) + shared


def as_json(plan: Plan) -> dict[str, Any]:
    """All of it, in numbers: seconds, bytes, operations."""
    hardware, costs = plan.hardware, plan.hardware.costs
    best = plan.best()
    return {
        "settings": plan.config.model_dump(mode="json"),
        "devices": str(hardware.devices),
        "teacher_devices": hardware.teacher_devices and str(hardware.teacher_devices),
        "measured": hardware.devices.device.measured,
        "transport": vars(hardware.transport),
        "network": {
            "parameters": costs.parameters,
            "forward_operations": costs.forward,
            "pullback_operations": costs.pullback,
            "backward_operations": costs.backward,
            "encoder_operations": costs.encoder,
        },
        "call_seconds": {
            f"{role}.{method}": seconds
            for (role, method), seconds in hardware.parts.seconds(plan.config, 0).items()
        },
        "memory": {
            role: {"weights": memory.weights, "graphs": memory.graphs}
            for role, memory in role_memory(plan.config, costs).items()
        },
        "as_given": _numbers(plan.as_given, plan.config),
        "placements": [
            _numbers(way.prediction, plan.config) | {"overrides": plan.overrides(way)} for way in plan.ways
        ],
        "recommended": plan.ways.index(best) if best else None,
    }


def _numbers(prediction: Prediction, config: Config) -> dict[str, Any]:
    return {
        "title": title(prediction),
        "placement": prediction.placement,
        "schedule": prediction.config.schedule,
        "devices": prediction.devices,
        "microbatch_size": prediction.config.microbatch,
        "images_per_second": prediction.images_per_second,
        "hours": _hours(prediction, config),
        "busy": prediction.busy,
        "memory": prediction.memory,
        "fits": prediction.why_not is None,
        "why_not": prediction.why_not,
    }


def _row(prediction: Prediction, config: Config) -> list[Any]:
    speed, hours = prediction.images_per_second, _hours(prediction, config)
    busiest = prediction.busy and f"{NAMES[prediction.busiest]} {prediction.busy[prediction.busiest]:.0%}"
    return [
        prediction.config.schedule,
        prediction.devices or None,
        prediction.config.microbatch,
        None if speed is None else f"{speed:,.1f}",
        None if hours is None else f"{hours:,.1f}" if hours >= 1 else f"{hours:.3f}",
        busiest or None,
        None if prediction.memory is None else f"{prediction.memory / GB:,.1f}",
        f"no: {prediction.why_not}" if prediction.why_not else "yes",
    ]


def _hours(prediction: Prediction, config: Config) -> float | None:
    speed = prediction.images_per_second
    return None if speed is None else config.total_images / speed / 3600


def _hardware(plan: Plan) -> str:
    hardware, costs = plan.hardware, plan.hardware.costs
    beside = f", scorers on {hardware.teacher_devices}" if hardware.teacher_devices else ""
    forward = f"{costs.forward / 1e9:,.4g} GFLOP"
    return f"{hardware.devices}{beside}; {costs.parameters / 1e6:,.2f} M parameters, F = {forward} an image"


def _assumed(plan: Plan) -> list[str]:
    """What the prediction rests on."""
    hardware, parts, call = plan.hardware, plan.hardware.parts, plan.hardware.transport
    lines = []
    if isinstance(parts, CountedParts):
        speeds: dict[str, None] = {}
        for role in ROLES:
            kind = arithmetic(plan.config, role)
            device = parts.teacher_device if role == "teacher" else parts.device
            share = parts.efficiency or EFFICIENCY[kind]
            speeds[f"{share:.0%} of {device.name}'s {device.peak(kind) / 1e12:g} TFLOP/s in {kind}"] = None
        stated = "as stated" if parts.efficiency else "the share is a guess: --efficiency sets it"
        lines.append(f"speed: {', '.join(speeds)} ({stated})")
        lines += [
            f"between devices of a node (of {hardware.node}) {parts.device.link / GB:g} GB/s, between nodes "
            f"{parts.network / GB:g} GB/s (--network)"
        ]
    milliseconds = [1000 * seconds for seconds in (call.process, call.driver, call.latency)]
    how = "measured on this machine: " if hardware.devices.device.measured else ""
    lines.append(
        "{}a call between processes takes its process {:.1f} ms, the driver {:.1f} ms and {:.1f} ms on the way".format(
            how, *milliseconds
        )
    )
    lines.append(
        f"of each device {FRAGMENTS:.0%} of the memory is left free, and each process takes {PROCESS / GB:g} GB beside "
        "what it computes"
    )
    return lines


def _show_roles(plan: Plan) -> None:
    """Work and memory of each role, in the recipe's own cut or that of the best way to split."""
    splits = [way.prediction.config for way in plan.ways if way.prediction.workers == 0]
    own = [config for config in splits if config.schedule == plan.config.schedule]
    config = next(iter(own), plan.config)
    memory = role_memory(config, plan.hardware.costs)
    seconds = plan.hardware.parts.seconds(config, 0)
    work = _work(config, plan)
    rows = []
    for role in ROLES:
        each = sum(calls_of(role, config, seconds))
        weights, graphs = memory[role].weights, memory[role].graphs
        milliseconds = 1000 * each / config.microbatch
        rows.append(
            [
                NAMES[role],
                f"{work[role]:.1f}",
                f"{milliseconds:.3g}",
                f"{weights / GB:.2f}",
                f"{graphs / GB:.2f}",
                f"{memory[role].total / GB:.2f}",
            ]
        )
    print_table(
        f"each role: work, and memory of one process at microbatches of {config.microbatch}",
        ["", "F an image", "ms an image", "GB of weights, optimizer", "GB of graphs", "GB"],
        rows,
    )


def _work(config: Config, plan: Plan) -> Mapping[str, float]:
    """Operations an image of each role, in forward passes."""
    costs, guidance = plan.hardware.costs, config.method.guidance
    forward, backward = costs.forward, costs.backward
    made = 2 if config.schedule == "alternating" else 1
    pull = forward + costs.pullback
    adversarial = config.method.adversarial is not None
    fake = passes(costs, guidance.eval_fake) * pull + passes(costs, guidance.train_fake) * (
        forward + backward
    )
    again = forward if config.graphs_kept == 0 else 0.0
    work = {
        "generator": made * forward + backward,
        "teacher": passes(costs, guidance.eval_teacher) * (pull + again),
        "fake_score": fake + adversarial * (costs.encoder + costs.encoder_backward),
    }
    return {role: operations / forward for role, operations in work.items()}


def _why(plan: Plan) -> str:
    return "; ".join(
        dict.fromkeys(
            f"{way.prediction.placement}: {way.prediction.why_not}"
            for way in plan.ways
            if way.prediction.config.schedule == plan.config.schedule
        )
    )


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {one}" for key, one in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) else json.dumps(value).strip('"')
