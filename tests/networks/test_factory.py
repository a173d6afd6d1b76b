"""Networks from a user's factory function: used as they are, refused in one line, imported only on request."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from raysid import DDPMNoise, EDMNoise, UserError, load_generator
from raysid.config.networks import FactorySettings
from raysid.networks.factory import FactoryDenoiser, build_factory
from raysid.networks.factory_check import check_factory
from raysid.networks.files import NetworkCard, load_card, load_network, save_network
from tests.support import points
from tests.support.command_line import raysid

HEAD = "import torch, raysid\nfrom torch import nn\n"
MODULE = """
class Mine(nn.Module):
    sample_shape = (2,)
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
    def forward(self, x_t, t, cond):
        return self.layer(x_t)
"""
MAKE = "def make():\n    return Mine(), raysid.EDMNoise()\n"
SHAPE, LAYER, RETURN = "sample_shape = (2,)", "nn.Linear(2, 2)", "return self.layer(x_t)"
NUMBERS = itertools.count()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a new folder; restore Python's path afterwards."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def module(folder: Path, text: str) -> str:
    """Write a module to a folder, under a name that no other test imports."""
    name = f"mine_{next(NUMBERS)}"
    (folder / f"{name}.py").write_text(text)
    return name


def complaint(name: str, sigma_init: float = 2.5, tmax: int | None = None) -> str:
    """The one-line error for a factory."""
    with pytest.raises(UserError) as caught:
        check_factory(build_factory(name), sigma_init, tmax)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 700
    return line


def test_a_module_is_a_denoiser_as_it_is() -> None:
    network = build_factory("tests.support.points:make")
    assert isinstance(network, FactoryDenoiser) and network.noise == points.EDM
    assert network.settings == FactorySettings(
        factory="tests.support.points:make", sample_shape=(2,), discrete_levels=False, default_tmax=800
    )
    x_t, t = torch.randn(3, 2), torch.tensor([0.1, 1.0, 10.0])
    assert torch.equal(network(x_t, t), network.model(x_t, t, None))
    check_factory(network, 2.5, None)


def test_it_says_what_it_is() -> None:
    conditional = build_factory("tests.support.points:make_conditional").settings
    discrete = build_factory("tests.support.points:make_discrete").settings
    digits = build_factory("tests.support.points:make_digits").settings
    assert conditional.label_dim == 2
    assert discrete.discrete_levels and discrete.default_tmax == 980
    assert digits.sample_shape == (1, 8, 8) and digits.label_dim == 10  # by img_channels and img_resolution
    for name in ("make_conditional", "make_discrete", "make_digits"):
        check_factory(build_factory(f"tests.support.points:{name}"), 2.5, None)


def test_a_module_in_the_working_folder_is_found_and_hides_nothing_that_is_installed(here: Path) -> None:
    name = module(here, HEAD + MODULE + MAKE)
    (here / "colorsys.py").write_text("raise SystemExit('not this one')")
    check_factory(build_factory(f"{name}:make"), 2.5, None)
    sys.modules.pop("colorsys", None)
    assert "has no function make" in complaint("colorsys:make")


def test_frozen_parameters_stay_frozen(here: Path) -> None:
    text = MODULE.replace("nn.Linear(2, 2)", "nn.Linear(2, 2); self.layer.bias.requires_grad_(False)")
    network = build_factory(f"{module(here, HEAD + text + MAKE)}:make")
    for flag in (True, False, True):
        network.requires_grad_(flag)
        assert [p.requires_grad for p in network.parameters()] == [flag, False]


def test_a_module_frozen_as_a_whole_can_learn(here: Path) -> None:
    text = MAKE.replace("Mine()", "Mine().eval().requires_grad_(False)")
    network = build_factory(f"{module(here, HEAD + MODULE + text)}:make")
    assert all(p.requires_grad for p in network.parameters())
    check_factory(network, 2.5, None)


# -- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["points", "points.make", ":make", "points:", "a b:make", "a:b:c", "points:make()", "../x:f"]
)
def test_a_malformed_name(name: str) -> None:
    with pytest.raises(ValidationError, match="allowed: package.module:function, as in points:make"):
        FactorySettings(factory=name, sample_shape=(2,), default_tmax=800)


def test_a_module_that_is_not_there(here: Path) -> None:
    line = complaint("nowhere_at_all:make")
    assert line.startswith(
        "factory nowhere_at_all:make: there is no module nowhere_at_all; it must be in the folder"
    )
    assert "on every node" in line
    assert "there is no module tests.nowhere;" in complaint("tests.nowhere:make")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "import no_such_package",
            "cannot be imported: ModuleNotFoundError: No module named 'no_such_package'",
        ),
        ("raise KeyError('weights')", "cannot be imported: KeyError: 'weights'"),
        ("def make(:", "cannot be imported: SyntaxError"),
        ("import sys; sys.exit('usage: mine FILE')", "cannot be imported: SystemExit: usage: mine FILE"),
        ("", "has no function make"),
        ("make = 1", "has no function make"),
    ],
)
def test_a_module_without_the_function(here: Path, text: str, words: str) -> None:
    name = module(here, text)
    line = complaint(f"{name}:make")
    assert line.startswith(f"factory {name}:make: ") and words in line


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "raise RuntimeError('no file\\nteacher.pt')",
            "failed: RuntimeError: no file teacher.pt (RAYSID_DEBUG=1",
        ),
        ("Mine().load_state_dict({})", "failed: RuntimeError: Error(s) in loading state_dict"),
        ("return Mine()", "returns Mine; it must return a torch.nn.Module and a noise process"),
        ("return None", "returns NoneType; it must return"),
        ("return raysid.EDMNoise(), Mine()", "returns (EDMNoise, Mine); it must return"),
        ("return Mine(), raysid.EDMNoise(), 3", "returns (Mine, EDMNoise, int); it must return"),
        ("return Mine(), 'edm'", "returns a str as its noise process, which has no add_noise"),
        ("return Mine(), Half()", "returns a Half as its noise process, which has no start_level"),
    ],
)
def test_a_function_that_makes_something_else(here: Path, body: str, words: str) -> None:
    half = "class Half(raysid.EDMNoise):\n    start_level = property()\n"  # so that it has no such attribute
    text = f"{HEAD}{MODULE}{half}def make():\n    {body}"
    assert words in complaint(f"{module(here, text)}:make")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (SHAPE, "pass", "its Mine has no attribute sample_shape: give it one"),
        (SHAPE, "sample_shape = ()", "sample_shape is ()"),
        (SHAPE, "sample_shape = 2", "sample_shape is 2: "),
        (SHAPE, "sample_shape = (2, -1)", "sample_shape is (2, -1)"),
        (SHAPE, f"{SHAPE}; label_dim = 'two'", "label_dim is 'two'"),
        (SHAPE, "sample_shape = (3,)", "failed on x_t (2, 3), t (2,) of torch.float32, cond None: Runt"),
        (LAYER, "nn.Linear(2, 1)", "module returns shape (2, 1) for x_t of (2, 2)"),
        (RETURN, f"{RETURN}, t", "module returns a tuple for x_t of (2, 2)"),
        ("(self, x_t, t, cond)", "(self, x_t, t)", "takes 3 positional arguments but 4 were given"),
        (RETURN, f"{RETURN}.detach()", "no gradient flows from its module's output to x_t"),
        (RETURN, "return self.layer(x_t.detach())", "no gradient flows from its module's output to x_t"),
        (RETURN, "return 2 * x_t", "no gradient flows from its module's output to its parameters"),
        (LAYER, "nn.Identity()", "makes a module without parameters"),
        (LAYER, f"{LAYER}; self.tied = self.layer", "layer.weight and tied.weight of its state_dict share"),
        (
            "def forward",
            "def get_extra_state(self): return 'x'\n    def forward",
            "_extra_state of its state_dict",
        ),
        (LAYER, f"{LAYER}; self.file = open(__file__)", "that copy.deepcopy cannot copy"),
        (
            LAYER,
            f"nn.Sequential({LAYER}, nn.BatchNorm1d(2))",
            "changes model.layer.1.num_batches_tracked when",
        ),
    ],
)
def test_a_module_that_is_no_denoiser(here: Path, old: str, new: str, words: str) -> None:
    assert old in MODULE
    assert words in complaint(f"{module(here, HEAD + MODULE.replace(old, new) + MAKE)}:make")


@pytest.mark.parametrize(
    ("noise", "words"),
    [
        ("def scales(self, t): return t.sum(), t.sum()", "Other failed: ValueError: scales gives shape (), not (2,)"),
        ("def generator_level(self, u, tmax): return u[:1]", "generator_level gives shape (1,), not (2,)"),
        ("def loss_weight(self, t): return 1 / (t - t)", "loss_weight gives numbers that are not finite"),
        ("def add_noise(self, x, t, eps): return t * x[0]", "add_noise gives shape (2,), not (2, 2)"),
        ("def add_noise(self, x, t): return x", "its noise process Other failed: TypeError: Other.add_noise() takes"),
        ("def start_level(self, sigma): raise KeyError('sigma')", "Other.start_level failed: KeyError: 'sigma'"),
        ("default_tmax = None", "default_tmax is None"),
        ("default_tmax = 2000", "default_tmax is 2000"),
    ],
)  # fmt: skip
def test_a_noise_process_that_is_none(here: Path, noise: str, words: str) -> None:
    text = f"class Other(raysid.EDMNoise):\n    {noise}\n"
    name = module(here, HEAD + MODULE + text + MAKE.replace("raysid.EDMNoise()", "Other()"))
    assert words in complaint(f"{name}:make")


def test_a_short_schedule_is_drawn_from_its_own_levels(here: Path) -> None:
    noise = "raysid.DDPMNoise(torch.linspace(0.99, 0.01, 400), tmax=380, tau=200)"
    name = module(here, HEAD + MODULE + MAKE.replace("raysid.EDMNoise()", noise))
    network = build_factory(f"{name}:make")
    assert network.settings.default_tmax == 380 and network.settings.discrete_levels
    check_factory(network, 2.5, None)


def test_times_that_its_steps_do_not_have() -> None:
    for tmax in (20, 1001):
        line = complaint("tests.support.points:make_discrete", tmax=tmax)
        assert line.startswith(
            f"method.tmax is {tmax}; allowed for factory tests.support.points:make_discrete: integer above 20"
        )


# -- folders: nothing is imported without permission ---------------------------------------------------------


def untouched(here: Path) -> tuple[Path, str, Path]:
    """A generator's folder that names a factory, the name, and a file that importing its module would write."""
    mark = here / "imported"
    effect = f"open({str(mark)!r}, 'w').close()\n"
    name = f"{module(here, effect + HEAD + MODULE + MAKE)}:make"
    settings = FactorySettings(factory=name, sample_shape=(2,), default_tmax=800)
    network = build_factory("tests.support.points:make")
    card = NetworkCard(kind="generator", network=settings, sigma_init=2.5)
    save_network(here / "generator", card, network)
    return here / "generator", name, mark


def test_a_folder_alone_has_nothing_imported(here: Path) -> None:
    folder, name, mark = untouched(here)
    assert load_card(folder).network.sample_shape == (2,)
    for factory in (None, "tests.support.points:make", name + "r"):
        with pytest.raises(UserError) as caught:
            load_generator(folder, factory=factory)
        assert (
            f"is built by {name}, a function that is not in its folder: give --factory {name} if you trust it"
            in str(caught.value)
        )
    commands = (["sample", "--out", "out.png"], ["export", "--to", "torch", "--out", "g.pt"], ["evaluate"])
    for command in commands:
        result = raysid(*command, folder)
        assert result.exit_code == 2 and f"give --factory {name} if you trust it" in result.output
    assert not mark.exists() and name.partition(":")[0] not in sys.modules
    with pytest.raises(UserError, match="does not fit the network"):  # weights of another module
        load_generator(folder, factory=name)
    assert mark.exists()


def test_a_factory_that_makes_something_else_now(here: Path) -> None:
    name = f"{module(here, HEAD + MODULE + MAKE)}:make"
    network = build_factory(name)
    settings = network.settings.model_copy(update={"label_dim": 3})
    save_network(here / "teacher", NetworkCard(kind="teacher", network=settings), network)
    with pytest.raises(
        UserError, match=r"makes .* label_dim 0, .* where the folder's network is .* label_dim 3"
    ):
        load_network(here / "teacher", "teacher", name)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("factory", "os.system('x')", "network.factory: .* does not name a function"),
        ("sample_shape", [], "network.sample_shape: "),
        ("sample_shape", [2, 0], "network.sample_shape"),
        ("label_dim", -1, "network.label_dim: "),
        ("surprise", 1, "network.surprise: "),
    ],
)
def test_a_card_of_something_else(here: Path, field: str, value: Any, words: str) -> None:
    folder, _, mark = untouched(here)
    file = folder / "config.json"
    card = json.loads(file.read_text())
    card["network"][field] = value
    file.write_text(json.dumps(card))
    with pytest.raises(UserError, match=f"does not describe a network: {words}"):
        load_generator(folder, factory="tests.support.points:make")
    assert not mark.exists()


def test_a_generator_runs_where_its_noise_process_starts_and_is_not_clamped(here: Path) -> None:
    for name, level in (("make", 2.5), ("make_discrete", 625)):
        network = build_factory(f"tests.support.points:{name}")
        card = NetworkCard.for_generator(network, 2.5, {})
        assert card.level == level and type(card.level) is type(level)
        save_network(here / name, card, network)
        generator = load_generator(here / name, factory=f"tests.support.points:{name}")
        z = 100 * torch.randn(3, 2)
        t = torch.full((3,), level)
        with torch.no_grad():
            expected = network.model(network.noise.scales(t)[1][:, None] * z, t, None)
            assert torch.equal(generator(z), expected) and expected.abs().max() > 1
        assert generator.sample(5).shape == (5, 2)


def test_the_two_noise_processes_start_where_they_should() -> None:
    assert EDMNoise().start_level(1.5) == 1.5
    assert DDPMNoise(points.DDPM.alphas_cumprod, tau=300).start_level(1.5) == 300
