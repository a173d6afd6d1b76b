"""The output of a plan: tables and commands for a terminal, JSON for programs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from raysid.bench.report import ROLE_NAMES
from raysid.config import Config
from raysid.plan.devices import EFFICIENCY, GB
from raysid.plan.memory import FRAGMENTS, PROCESS, passes, role_memory
from raysid.plan.parts import ROLES, CountedParts, arithmetic, calls_of
from raysid.plan.placements import SCHEDULES, Plan
from raysid.plan.predict import Prediction
from raysid.run.table import print_table

PROCESS_NAMES = {"fake_score": "fake score", "generator": "generator", "teacher": "scorers"}
GREEK = {"fake_score": "psi", "generator": "theta", "teacher": "phi"}
LEGEND = """split A+B+C: A workers of the fake score, B of the generator, C scorers; those
with * share a device. batch: images of a microbatch. busiest: the role with
most work; theta is the generator, psi the fake score, phi the teacher. GB: on
the fullest device."""
LINE = 80  # characters of a line of a command


def print_plan(plan: Plan, recipe: str, given: Mapping[str, Any]) -> None:
    """Print a plan.

    Args:
        recipe: name or path of the recipe.
        given: overrides of the recipe that the plan was made with, by dotted name.
    """
    print(*_assumptions(plan), "", sep="\n")
    _print_roles(plan)
    for schedule in sorted(SCHEDULES, key=lambda name: name != plan.config.schedule):
        _print_placements(plan, schedule)
    print(f"as given: {describe(plan.as_given)}")
    print(LEGEND)
    for name, prediction in _named(plan):
        if prediction.why_not:
            print(f"does not fit: {name}, {prediction.config.schedule}: {prediction.why_not}")
    print("", *recommendation(plan, recipe, given), sep="\n")


def recommendation(plan: Plan, recipe: str, given: Mapping[str, Any]) -> list[str]:
    """Return lines with the command to run, and with that of the other schedule where it is faster."""
    best = plan.best()
    if best is None:
        own = (one.prediction for one in plan.in_schedule(plan.config.schedule))
        reasons = dict.fromkeys(f"{one.placement}: {one.why_not}" for one in own)
        return [f"nothing fits: {'; '.join(reasons)}"]
    speed = best.prediction.images_per_second
    assert speed is not None
    lines = [
        f"recommended: {describe(best.prediction)}, {speed:,.1f} images/s",
        format_command(recipe, given, plan.overrides(best)),
    ]
    other_name = "overlapped" if plan.config.schedule == "alternating" else "alternating"
    other = plan.best(other_name)
    if other is not None and (faster := (other.prediction.images_per_second or 0.0) / speed) > 1.02:
        lines += [
            f"{faster:.2f}x as fast in the {other_name} order, which trains psi on other images: "
            f"{describe(other.prediction)}",
            format_command(recipe, given, plan.overrides(other)),
        ]
    return lines


def format_command(recipe: str, given: Mapping[str, Any], changes: Mapping[str, Any]) -> str:
    """Return the `raysid distill` command with overrides given by a user and those of a placement, which win."""
    settings = {name: value for name, value in given.items() if name not in changes} | dict(changes)
    lines = [f"  raysid distill {shlex.quote(recipe)}"]
    for name, value in settings.items():
        option = f"--{name} {shlex.quote(value if isinstance(value, str) else _as_yaml(value))}"
        if len(lines[-1]) + len(option) + 3 > LINE:
            lines[-1] += " \\"
            lines.append("     ")
        lines[-1] += f" {option}"
    return "\n".join(lines)


def describe(prediction: Prediction) -> str:
    """Return a placement in words, as in `split, fake score 4, generator 2, scorers 2`."""
    if prediction.workers:
        return prediction.placement + (f", {prediction.workers} workers" if prediction.workers > 1 else "")
    counts, sharing = _processes(prediction)
    names = [PROCESS_NAMES[role] for role in sharing]
    shared = f" ({' and '.join(names)} on one device)" if names else ""
    return "split, " + ", ".join(f"{PROCESS_NAMES[role]} {counts[role]}" for role in ROLES) + shared


def as_json(plan: Plan) -> dict[str, Any]:
    """Return all of a plan in numbers: seconds, bytes, operations."""
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
        "memory": {role: vars(memory) for role, memory in role_memory(plan.config, costs).items()},
        "as_given": _numbers(plan.as_given, plan.config),
        "placements": [
            _numbers(one.prediction, plan.config) | {"overrides": plan.overrides(one)} for one in plan.options
        ],
        "recommended": plan.options.index(best) if best else None,
    }


def _numbers(prediction: Prediction, config: Config) -> dict[str, Any]:
    return {
        "title": describe(prediction),
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


def _named(plan: Plan) -> list[tuple[str, Prediction]]:
    """Return every prediction with its short name: the recipe's own, then the placements."""
    placements = (one.prediction for one in plan.options)
    return [("as given", plan.as_given), *((_short_name(one), one) for one in placements)]


def _print_placements(plan: Plan, schedule: str) -> None:
    rows = []
    for name, prediction in _named(plan):
        if prediction.config.schedule != schedule:
            continue
        speed, hours = prediction.images_per_second, _hours(prediction, plan.config)
        busiest = prediction.busy and f"{GREEK[prediction.busiest]} {prediction.busy[prediction.busiest]:.0%}"
        rows.append(
            [
                name,
                prediction.devices or None,
                prediction.config.microbatch,
                None if speed is None else f"{speed:,.1f}",
                None if hours is None else f"{hours:,.1f}" if hours >= 1 else f"{hours:.3f}",
                busiest or None,
                None if prediction.memory is None else f"{prediction.memory / GB:,.1f}",
            ]
        )
    print_table(
        f"{schedule}, {plan.config.total_images:,} images in steps of {plan.config.batch_size:,}: predicted",
        ["placement", "devices", "batch", "images/s", "hours", "busiest", "GB"],
        rows,
    )


def _short_name(prediction: Prediction) -> str:
    """Return a placement as in `split 4+2+2`: fake score, generator, teacher; `*` marks those that share a device."""
    if prediction.workers:
        return prediction.placement + (f" {prediction.workers}" if prediction.workers > 1 else "")
    counts, sharing = _processes(prediction)
    return "split " + "+".join(f"{counts[role]}{'*' * (role in sharing)}" for role in ROLES)


def _processes(prediction: Prediction) -> tuple[dict[str, int], list[str]]:
    """Return the number of processes of each role, and the roles that share a device."""
    config = prediction.config
    counts = config.learner_workers | {"teacher": config.teacher.scaling.min_replicas}
    return counts, [role for role in ROLES if 0 < getattr(config.resources, role).num_gpus < 1]


def _hours(prediction: Prediction, config: Config) -> float | None:
    speed = prediction.images_per_second
    return None if speed is None else config.total_images / speed / 3600


def _assumptions(plan: Plan) -> list[str]:
    """Return lines on the hardware, the network, and the figures that a prediction rests on."""
    hardware, costs = plan.hardware, plan.hardware.costs
    parts, call = hardware.parts, hardware.transport
    scorers = f", scorers on {hardware.teacher_devices}" if hardware.teacher_devices else ""
    forward = f"{costs.forward / 1e9:,.4g} GFLOP"
    size = f"{costs.parameters / 1e6:,.2f} M parameters"
    lines = [f"{hardware.devices}{scorers}; {size}, F = {forward} per image"]
    if isinstance(parts, CountedParts):
        speeds: dict[str, None] = {}
        for role in ROLES:
            kind = arithmetic(plan.config, role)
            device = parts.teacher_device if role == "teacher" else parts.device
            share = parts.efficiency or EFFICIENCY[kind]
            speeds[f"{share:.0%} of {device.name}'s {device.peak(kind) / 1e12:g} TFLOP/s in {kind}"] = None
        stated = "as stated" if parts.efficiency else "the share is a guess: --efficiency sets it"
        lines += [
            f"speed: {', '.join(speeds)} ({stated})",
            f"links: {parts.device.link / GB:g} GB/s in a node of {hardware.node}, {parts.network / GB:g} GB/s "
            "between nodes (--network)",
        ]
    process, driver, latency = (1000 * seconds for seconds in (call.process, call.driver, call.latency))
    measured = " (measured on this machine)" if hardware.devices.device.measured else ""
    lines += [
        f"calls: {process:.1f} ms of the called process, {driver:.1f} ms of the driver, {latency:.1f} ms on the way"
        f"{measured}",
        f"memory: {FRAGMENTS:.0%} of each device stays free; each process takes {PROCESS / GB:g} GB beside its tensors",
    ]
    return lines


def _print_roles(plan: Plan) -> None:
    """Print work and memory of each role, at the recipe's microbatch or that of the best split."""
    own = (one.prediction for one in plan.in_schedule(plan.config.schedule))
    config = next((one.config for one in own if one.workers == 0), plan.config)
    memory = role_memory(config, plan.hardware.costs)
    seconds = plan.hardware.parts.seconds(config, 0)
    work = _passes_per_image(config, plan)
    rows = []
    for role in ROLES:
        each = sum(calls_of(role, config, seconds))
        sizes = memory[role].weights, memory[role].graphs, memory[role].total
        figures = f"{work[role]:.1f}", f"{1000 * each / config.microbatch:.3g}"
        rows.append([ROLE_NAMES[role], *figures, *(f"{size / GB:.2f}" for size in sizes)])
    print_table(
        f"work of each role, and memory of one process, at microbatches of {config.microbatch}",
        ["", "F/image", "ms/image", "GB state", "GB graphs", "GB in all"],
        rows,
    )


def _passes_per_image(config: Config, plan: Plan) -> Mapping[str, float]:
    """Return the operations per image of each role, in forward passes."""
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


def _as_yaml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {one}" for key, one in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) else json.dumps(value).strip('"')
