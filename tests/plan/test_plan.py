"""`raysid plan`: which placements fit and why, their predicted speed, and the recommendation."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from raysid.config import Config
from raysid.plan.costs import GraphBytes, NetworkCosts
from raysid.plan.devices import GB, parse_devices
from raysid.plan.hardware import Hardware, counted_hardware
from raysid.plan.memory import role_memory, usable, whole_memory
from raysid.plan.parts import CountedParts
from raysid.plan.placements import Plan, make_plan
from raysid.plan.predict import predict
from raysid.recipes import override
from tests.support.command_line import raysid
from tests.support.tiny_run import tiny_config, tiny_teacher, write_recipe

MILLION = 10**6
GIGA = 1e9
RATE = 1e12  # operations per second, attained
GRAPH = GraphBytes(learn=10 * MILLION, pull=8 * MILLION, encoder=4 * MILLION)


def costs(parameters: int = 50 * MILLION, **changes: Any) -> NetworkCosts:
    """A network whose forward pass F takes 10^9 operations per image."""
    figures: dict[str, Any] = {
        "parameters": parameters,
        "forward": GIGA,
        "pullback": GIGA,
        "backward": 2 * GIGA,
        "encoder": 0.3 * GIGA,
        "encoder_backward": 0.6 * GIGA,
        "graphs": {False: GRAPH, True: GraphBytes(9 * MILLION, 7 * MILLION, 3 * MILLION)},
        "kernels": 0,
        "image_bytes": 4,
        "conditional": True,
    }
    return NetworkCosts(**figures | changes)


def hardware(
    text: str = "8xmine:1:80", teachers: str | None = None, network: NetworkCosts | None = None
) -> Hardware:
    """Devices that attain 10^12 operations per second."""
    teacher_side = None if teachers is None else parse_devices(teachers, "--teacher-devices")
    return counted_hardware(
        parse_devices(text, "--devices"), teacher_side, network or costs(), 1.0, 10 * GB, 8
    )


def config(**changes: Any) -> Config:
    gpus = {"num_gpus": 1.0}
    tree: dict[str, Any] = {
        "teacher": {"path": "unused"},
        "total_images": 10**6,
        "batch_size": 256,
        "resources": {"teacher": gpus, "fake_score": gpus, "generator": gpus},
    }
    return Config.model_validate(tree | changes)


GUIDED = {"guidance": {"train_fake": 1.5, "eval_fake": 1.5, "eval_teacher": 1.5}}


def images_per_second(config: Config, workers: int | None = None, **given: Any) -> float:
    speed = predict(config, hardware(**given), workers).images_per_second
    assert speed is not None
    return speed


# Time


def test_one_process_takes_ten_passes_an_image_and_eleven_in_the_authors_order() -> None:
    local = config(placement="local")
    assert images_per_second(local) == pytest.approx(RATE / (10 * GIGA), rel=1e-3)
    alternating = local.model_copy(update={"schedule": "alternating"})
    assert images_per_second(alternating) == pytest.approx(RATE / (11 * GIGA), rel=1e-3)


def test_a_device_for_each_role_takes_five_passes_when_nothing_else_costs() -> None:
    """The fake score, the busiest role, never idles; calls take milliseconds of a step of over a second."""
    speed = images_per_second(config())
    assert 0.97 * RATE / (5 * GIGA) < speed < RATE / (5 * GIGA)
    found = predict(config(), hardware())
    assert found.busiest == "fake_score" and found.busy["fake_score"] > 0.97
    assert found.busy["generator"] == pytest.approx(0.6, abs=0.03)
    assert found.busy["teacher"] == pytest.approx(0.4, abs=0.03)
    # In the authors' order roles wait: the generator makes images for psi, psi learns, then theta learns.
    assert images_per_second(config(schedule="alternating")) < 0.75 * speed


def test_guidance_doubles_the_guided_passes() -> None:
    """Guidance: psi scores, pulls back and trains with two passes, the teacher scores and pulls back with two."""
    local = config(placement="local", method=GUIDED)
    assert images_per_second(local) == pytest.approx(RATE / ((3 + 4 + 10) * GIGA), rel=1e-3)
    teacher = config(placement="local", method={"guidance": {"eval_teacher": 2.0}})
    assert images_per_second(teacher) == pytest.approx(RATE / ((3 + 4 + 5) * GIGA), rel=1e-3)
    # Without conditions there is no guidance.
    assert images_per_second(local, network=costs(conditional=False)) == pytest.approx(
        RATE / (10 * GIGA), rel=1e-3
    )


def test_real_images_add_the_encoder() -> None:
    local = config(placement="local", method={"adversarial": {}})
    assert images_per_second(local) == pytest.approx(RATE / (10.9 * GIGA), rel=1e-3)


def test_a_graph_that_is_not_kept_is_made_again() -> None:
    local = config(placement="local", teacher={"path": "unused", "graphs_kept": 0})
    assert images_per_second(local) == pytest.approx(RATE / (11 * GIGA), rel=1e-3)


def test_workers_share_a_batch_and_add_up_gradients() -> None:
    """Four workers hold all roles: a quarter of the time, and the gradients of two networks are all-reduced."""
    share = config(placement="local", batch_size=64)
    gradients = 2 * (2 * 3 / 4 * 4 * 50 * MILLION) / (16 * GB)
    seconds = 64 * 10 * GIGA / RATE + gradients
    assert images_per_second(share, workers=4) == pytest.approx(256 / seconds, rel=1e-3)


def test_a_slower_teacher_elsewhere_is_the_busiest_until_there_are_more_of_it() -> None:
    """Devices at a quarter of the speed: one scorer takes 8 F where psi takes 5, four take 2 F."""
    cut = config(microbatch_size=32)
    one = predict(cut, hardware("2xmine:1:80", "4xsmall:0.25:24"))
    assert one.busiest == "teacher"
    four = cut.model_copy(update={"teacher": cut.teacher.model_copy(update={"num_replicas": 4})})
    more = predict(four, hardware("2xmine:1:80", "4xsmall:0.25:24"))
    assert more.busiest == "fake_score"
    assert (more.images_per_second or 0) > 1.3 * (one.images_per_second or 0)


# Memory


def test_memory_of_each_role_by_hand() -> None:
    weights = 4 * 50 * MILLION
    found = role_memory(config(microbatch_size=64), costs())
    # 4 microbatches a step, 2 of them in flight.
    assert found["generator"].weights == 5 * weights  # weights, gradients, Adam's two moments, the average
    assert found["generator"].graphs == 2 * 64 * 10 * MILLION
    assert found["teacher"].weights == weights
    assert found["teacher"].graphs == 2 * 64 * 8 * MILLION
    assert found["fake_score"].weights == 4 * weights
    assert found["fake_score"].graphs == 2 * 64 * 8 * MILLION
    more = config(microbatch_size=64, teacher={"path": "unused", "graphs_kept": 1}, method=GUIDED)
    guided = role_memory(more, costs())
    assert guided["teacher"].graphs == 64 * 2 * 8 * MILLION  # one microbatch, two passes
    half = role_memory(config(microbatch_size=64, precision="fp16"), costs())
    assert half["generator"].weights == 5 * weights  # these stay in float32
    assert half["generator"].graphs == 2 * (64 * 9 * MILLION + 2 * 50 * MILLION)


def test_more_fake_score_workers_leave_the_generators_memory_as_it_is() -> None:
    """Its graphs are those of two microbatches for each of its workers, or one for each scorer."""
    found = [
        config(
            microbatch_size=4,
            generator={"num_workers": 4},
            fake_score={"num_workers": workers},
            teacher={"path": "unused", "num_replicas": scorers},
        )
        for workers, scorers in ((1, 1), (4, 1), (16, 1), (16, 12))
    ]
    assert [one.in_flight for one in found] == [8, 8, 8, 12]
    memory = [role_memory(one, costs()) for one in found]
    assert len({each["generator"].total for each in memory[:3]}) == 1
    assert memory[3]["generator"].graphs == 3 / 2 * memory[2]["generator"].graphs
    assert memory[2]["fake_score"].graphs < memory[1]["fake_score"].graphs


def test_each_process_holds_a_text_encoder_in_half_precision_on_a_gpu() -> None:
    with_text = costs(text_parameters=100 * MILLION)
    for gpus, size in ((0, 4), (1, 2)):
        own = config(resources={role: {"num_gpus": gpus} for role in ("teacher", "fake_score", "generator")})
        plain, more = role_memory(own, costs()), role_memory(own, with_text)
        for role in plain:
            assert more[role].weights - plain[role].weights == size * 100 * MILLION
            assert more[role].graphs == plain[role].graphs
    local = config(placement="local")
    assert whole_memory(local, with_text).weights - whole_memory(local, costs()).weights == 200 * MILLION


@pytest.mark.parametrize(
    ("schedule", "workers", "encode"),
    [
        ("overlapped", 0, {"generator.images", "generator.generate", "teacher.score", "fake_score.score"}),
        (
            "alternating",
            0,
            {
                "generator.images",
                "generator.generate",
                "teacher.score",
                "fake_score.score",
                "fake_score.accumulate",
            },
        ),
        ("overlapped", 2, {"generator.images", "generator.generate"}),
    ],
)
def test_a_process_encodes_the_prompts_of_a_microbatch_once(
    schedule: str, workers: int, encode: set[str]
) -> None:
    own, device = (
        config(schedule=schedule, microbatch_size=16),
        parse_devices("2xmine:1:80", "--devices").device,
    )
    plain, more = (
        CountedParts(counted, device, device, 1.0, 1.0).seconds(own, workers)
        for counted in (costs(), costs(encode=GIGA / 2))
    )
    extra = {f"{role}.{method}": more[role, method] - plain[role, method] for role, method in plain}
    assert {call for call, seconds in extra.items() if seconds} == encode
    assert {round(extra[call] * RATE / GIGA, 6) for call in encode} == {16 / 2}


def test_memory_of_one_process_by_hand() -> None:
    """While psi learns from a microbatch, theta's graph of it exists and the scorers' graphs are freed."""
    weights = 4 * 50 * MILLION
    overlapped = whole_memory(config(placement="local", microbatch_size=32), costs())
    assert overlapped.weights == 10 * weights
    assert overlapped.graphs == 32 * (10 + max(8 + 8, 10)) * MILLION
    adversarial = config(placement="local", microbatch_size=32, method={"adversarial": {}, **GUIDED})
    assert whole_memory(adversarial, costs()).graphs == 32 * (10 + max(16 + 16, 2 * 10 + 4)) * MILLION


def test_a_placement_that_does_not_fit_names_the_role_and_the_memory() -> None:
    large = costs(parameters=2000 * MILLION)
    found = predict(config(placement="local"), hardware("1xmine:1:80", network=large))
    assert found.images_per_second is None
    assert found.why_not == "all three roles: 86.7 GB, mine has room for 71.4"
    split = predict(config(), hardware("3xmine:1:40", network=large))
    assert split.why_not == "generator: 42.6 GB, mine has room for 35.4"
    assert usable(80 * GB, 1) == pytest.approx(71.4 * GB)


def test_a_placement_on_too_many_devices_is_refused() -> None:
    assert predict(config(), hardware("2xmine:1:80")).why_not == "asks for 3 devices, there are 2"
    cpu = {"teacher": {"num_gpus": 1.0}, "generator": {"num_gpus": 1.0}}
    why_not = predict(config(resources=cpu), hardware()).why_not
    assert why_not is not None and "resources.fake_score.num_gpus is 0" in why_not


# Plans


def best(plan: Plan) -> str:
    found = plan.best()
    assert found is not None
    return found.prediction.placement


def test_equal_devices_that_hold_all_networks_are_best_used_by_all_roles_at_once() -> None:
    assert best(make_plan(config(), hardware("8xmine:1:80"))) == "colocated"


def test_the_recommendation_changes_if_the_networks_do_not_fit_together() -> None:
    """40 bytes a weight in one process, 20 in the largest of three processes."""
    plan = make_plan(config(), hardware("8xmine:1:80", network=costs(parameters=2000 * MILLION)))
    assert best(plan) == "split"
    reasons = {
        option.prediction.placement: option.prediction.why_not for option in plan.options if not option.fits
    }
    assert reasons.keys() == {"local", "colocated"}
    assert all(reason and "all three roles" in reason for reason in reasons.values())


def test_a_microbatch_that_fits_is_found_and_reported() -> None:
    plan = make_plan(config(placement="local"), hardware("1xmine:1:8"))
    option = next(option for option in plan.options if option.prediction.placement == "local" and option.fits)
    size = plan.overrides(option)["microbatch_size"]
    assert size < 256 and 256 % size == 0
    has = usable(8 * GB, 1)
    for images, fits in ((size, True), (2 * size, False)):
        cut = config(placement="local", microbatch_size=images)
        assert (whole_memory(cut, costs()).total <= has) == fits
    assert plan.as_given.why_not is not None  # as one microbatch it does not fit


def test_groups_of_the_discriminator_stay_whole() -> None:
    """SiDA's microbatches are multiples of its group: if these are too large, memory is the reason."""
    adversarial = config(method={"adversarial": {"group_size": 64}})
    for option in make_plan(adversarial, hardware("8xmine:1:80")).options:
        if option.fits:
            assert option.prediction.config.microbatch % 64 == 0
    plan = make_plan(adversarial, hardware("1xmine:1:3.5"))
    assert plan.best() is None
    assert all("room for" in (option.prediction.why_not or "") for option in plan.options)


def test_two_devices_are_shared_by_three_roles() -> None:
    """Psi has one device (5 F), theta and the scorer share the other (3 F and 2 F)."""
    plan = make_plan(config(), hardware("2xmine:1:80"))
    splits = [option for option in plan.options if option.fits and option.prediction.placement == "split"]
    settings = splits[0].settings
    shares = {role: settings[f"resources.{role}.num_gpus"] for role in ("fake_score", "generator", "teacher")}
    assert shares == {"fake_score": 1.0, "generator": 0.5, "teacher": 0.5}
    assert splits[0].prediction.devices == 2


def test_scorers_sit_on_the_devices_given_for_them() -> None:
    plan = make_plan(config(), hardware("4xH100-80GB", "4xL4-24GB"))
    splits = [option for option in plan.options if option.fits and option.prediction.placement == "split"]
    assert splits[0].settings["teacher.num_replicas"] > 1
    assert splits[0].settings["resources.teacher.label_selector"] == {"ray.io/accelerator-type": "L4"}
    assert splits[0].settings["resources.generator.label_selector"] == {"ray.io/accelerator-type": "H100"}


def test_every_way_that_fits_is_one_that_a_run_would_take() -> None:
    """Its settings are a valid config with the same prediction."""
    plan = make_plan(config(), hardware("6xmine:1:80"))
    for option in plan.options:
        if option.fits and option.prediction.placement != "colocated":
            found = predict(override(plan.config, option.settings), plan.hardware)
            assert found.config.microbatch == option.prediction.config.microbatch
            assert (found.step_seconds, found.memory) == (
                option.prediction.step_seconds,
                option.prediction.memory,
            )


# Devices


@pytest.mark.parametrize(
    ("text", "count", "name"),
    [
        ("8xH100-80GB", 8, "H100-80GB"),
        ("h100", 1, "H100-80GB"),
        ("2xl4", 2, "L4-24GB"),
        ("4xRTX 4090", 4, "RTX4090-24GB"),
        ("1xA100_40gb", 1, "A100-40GB"),
    ],
)
def test_known_devices(text: str, count: int, name: str) -> None:
    found = parse_devices(text, "--devices")
    assert (found.count, found.device.name) == (count, name)


def test_a_user_defined_device() -> None:
    found = parse_devices("2xnew:40:24", "--devices")
    assert (found.count, found.device.memory, found.device.peak("bf16")) == (2, 24 * GB, 40e12)
    assert str(found) == "2xnew"


def run(*arguments: str) -> Result:
    return raysid("plan", *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--devices", "8xB9000"], "B9000 is not known; known: H200, H100-80GB"),
        (["--devices", "8xB9000"], "8xB9000:TFLOPS:GB"),
        (["--devices", "8xA100"], "A100 is one of several; known: A100-80GB, A100-40GB"),
        (["--devices", "0xL4"], "give a number and a name, as in 8xH100-80GB"),
        (["--devices", "2xmine:fast:24"], "NAME:TFLOPS:GB"),
        (
            ["--devices", "2xV100-16GB", "--precision", "bf16"],
            "V100-16GB has no bf16, which precision asks for",
        ),
        (["--devices", "2xcpu", "--teacher-devices", "4xL4"], "--teacher-devices needs named devices"),
        (["--devices", "2xL4", "--efficiency", "1.5"], "--efficiency"),
        (["--devices", "2xL4", "--json", "no/such/plan.json"], "there is no folder no/such"),
    ],
)
def test_a_config_that_cannot_be_planned_is_one_line(arguments: list[str], words: str) -> None:
    result = run("digits-sid", *arguments)
    assert result.exit_code == 2 and words in result.stderr, result.output
    assert result.stderr.startswith("Usage") or result.stderr.count("\n") == 1


def test_the_command(tmp_path: Path) -> None:
    """A table and a command to type, and the same as JSON; without the teacher's file."""
    file = tmp_path / "plan.json"
    result = run("cifar10-uncond-sid", "--devices", "8xH100-80GB", "--json", str(file))
    assert result.exit_code == 0, result.output
    for words in (
        "8xH100-80GB; 55.73 M parameters",
        "60% of H100-80GB's 67 TFLOP/s",
        "colocated, 8 workers",
        "local",
    ):
        assert words in result.output
    assert "raysid distill cifar10-uncond-sid --placement colocated" in result.output
    tree = json.loads(file.read_text())
    recommended = tree["placements"][tree["recommended"]]
    assert recommended["fits"] and recommended["schedule"] == "alternating"  # the recipe's own
    fitting = [one for one in tree["placements"] if one["fits"] and one["schedule"] == "alternating"]
    fastest = max(one["images_per_second"] for one in fitting)
    assert recommended["images_per_second"] >= 0.98 * fastest
    assert recommended["hours"] == pytest.approx(500e6 / recommended["images_per_second"] / 3600)


def test_the_printed_command_has_the_overrides_that_it_was_planned_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that change the recipe, but for settings that the placement sets itself."""
    monkeypatch.chdir(tmp_path)
    recipe = Path("mine recipe.yaml")
    recipe.write_text("extends: cifar10-uncond-sid\nteacher: {path: teacher}\n")
    result = run(
        str(recipe), "--devices", "8xH100-80GB", "--precision", "bf16", "--compute.tf32", "true",
        "--schedule", "alternating", "--generator.num_workers", "2", "--storage", "my runs",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (line,) = [one for one in result.output.split("recommended: ")[1].split("\n  raysid distill")[1:2]]
    printed = shlex.split(line.split("\n1.")[0].replace("\\\n", ""))
    assert printed[0] == str(recipe)
    options = dict(zip(printed[1::2], printed[2::2], strict=True))
    assert options == {
        "--precision": "bf16",
        "--compute.tf32": "true",
        "--storage": "my runs",
        "--placement": "colocated",
        "--colocated.num_workers": "8",
        "--generator.num_workers": "1",
        "--resources.worker.num_gpus": "1",
    }
    rows = [row for row in result.output.splitlines() if row.startswith("  ")]  # of tables and commands
    assert max(map(len, rows)) <= 80


def test_a_stated_efficiency_is_used_and_printed() -> None:
    local = config(placement="local")
    devices = parse_devices("1xL40S", "--devices")
    for share in (0.2, 0.4):
        speed = predict(local, counted_hardware(devices, None, costs(), share, 10 * GB, 8)).images_per_second
        assert speed == pytest.approx(91.6e12 * share / (10 * GIGA), rel=1e-3)
    result = run("digits-sid", "--devices", "1xL40S", "--efficiency", "0.2")
    assert result.exit_code == 0, result.output
    assert "20% of L40S-48GB's 91.6 TFLOP/s in float32 (as stated)" in result.output


def test_half_precision_has_the_speed_of_tensor_cores() -> None:
    devices = parse_devices("1xA100-40GB", "--devices")
    half = config(placement="local", precision="bf16")
    speed = predict(half, counted_hardware(devices, None, costs(), 0.5, 10 * GB, 8)).images_per_second
    assert speed == pytest.approx(312e12 * 0.5 / (10 * GIGA), rel=1e-3)


@pytest.mark.slow
def test_this_machine_is_measured(ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --devices the roles' calls are timed here, and three placements predicted from that."""
    monkeypatch.chdir(tmp_path)
    tiny = tiny_config(tiny_teacher(tmp_path / "teacher"), tmp_path / "runs")
    recipe = write_recipe(tiny, tmp_path / "mine.yaml")
    result = run(str(recipe), "--devices", "2xcpu", "--seconds", "0.1", "--json", "plan.json")
    assert result.exit_code == 0, result.output
    assert "measuring the roles' calls" in result.output and "measured on this machine" in result.output
    tree = json.loads(Path("plan.json").read_text())
    assert tree["measured"] and tree["devices"] == "2xcpu"
    assert len(tree["call_seconds"]) == 11 and all(seconds > 0 for seconds in tree["call_seconds"].values())
    assert tree["transport"]["driver"] > 0 and tree["transport"]["process"] > 0
    kinds = {one["placement"] for one in tree["placements"] if one["fits"] and one["images_per_second"] > 0}
    assert kinds == {"local", "colocated", "split"}
    runs = Path(tiny.storage)
    assert not runs.exists() or not list(runs.iterdir())  # nothing is left in the storage
