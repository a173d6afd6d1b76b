"""Measure generators and teachers: the same figures in training, in the final table, and by `raysid evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from upath import UPath

from raysid.config import Config
from raysid.config.method import NoiseSteps
from raysid.data import ImageSource, open_source
from raysid.errors import RunFailed, UserError
from raysid.generator import FOLDERS, Generator, Which, load_generator
from raysid.networks.files import NetworkCard, load_network
from raysid.storage import location
from raysid.trainers.grids import Grids, draw_grids, draw_prompts
from raysid.trainers.measuring import HELD_OUT_SAMPLES, evaluator, measure, measured_by, measures


def evaluate_folder(
    folder: str,
    source: ImageSource | None,
    num_samples: int,
    seed: int,
    threads: int | None = None,
    factory: str | None = None,
    prompts: Sequence[str] = (),
) -> tuple[dict[str, Any] | None, Grids]:
    """Measure the generator in `folder`, if its images can be compared, and draw its grid. Runs in any process.

    Args:
        prompts: those of the grid, for a generator that takes text.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    generator = Generator.from_pretrained(folder, factory)
    figures, card = None, generator.card
    known = measured_by(card.network, None if source is None else source.name, card.trained.get("prompts"))
    if known is not None:
        figures = measure(generator, card, known, num_samples, seed)
    if generator.takes_text:
        return figures, draw_prompts(generator, prompts)
    return figures, draw_grids(generator, source)


class EvaluationFailed(RunFailed):
    """An evaluation failed. The learners are not affected."""


class PendingEvaluation:
    """An evaluation of a run's last generator: a Ray task, or for `placement: local` a call by `result`.

    It reads the generator's folder, which must not change until the evaluation is done.

    Args:
        run: the run's folder.
        step: steps taken by that generator.
        source: the real images, if the config names any.
        prompts: those of the grid, for a generator that takes text.
    """

    def __init__(
        self,
        config: Config,
        run: UPath,
        step: int,
        source: ImageSource | None,
        prompts: Sequence[str] = (),
    ) -> None:
        self.step = step
        settings = config.evaluation
        arguments = (str(run / FOLDERS["last"]), source, settings.num_samples, settings.seed)
        given: dict[str, Any] = {"factory": config.teacher.factory, "prompts": tuple(prompts)}
        self._evaluate = partial(evaluate_folder, *arguments, **given)
        self._task: Any = None
        if config.placement != "local":
            import ray
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

            # Outside this process's placement group: that of a search's trial has bundles only for its learners.
            outside = PlacementGroupSchedulingStrategy(placement_group=None)  # type: ignore[arg-type]
            task = ray.remote(evaluate_folder).options(num_cpus=0.25, scheduling_strategy=outside)
            self._task = task.remote(*arguments, threads=1, **given)

    def done(self) -> bool:
        """Return True once the evaluation has ended or failed, or if `result` runs it in this process."""
        if self._task is None:
            return True
        from raysid.actors.results import is_ready

        return is_ready(self._task)

    def result(self) -> tuple[dict[str, Any] | None, Grids]:
        """Wait for the evaluation; return its figures, None for images that cannot be compared, and its grids.

        Raises:
            EvaluationFailed: it failed.
        """
        try:
            if self._task is None:
                return self._evaluate()
            from raysid.actors.results import get

            return get(self._task)
        except (UserError, RunFailed) as error:
            raise EvaluationFailed(
                f"the evaluation of step {self.step:,} failed: {error}; run the same command to resume"
            ) from error


def generator_before(
    teacher: str,
    sigma_init: float,
    start: str | None = None,
    factory: str | None = None,
    noise_steps: NoiseSteps | None = None,
) -> Generator:
    """Return the generator before a distillation: the teacher's network, run once at `sigma_init` (or tau).

    Args:
        start: folder of a generator to start from instead.
        factory: as in `load_network`.
        noise_steps: the run's `method.noise_steps`.
    """
    if start is not None:
        return Generator.from_pretrained(start, factory)
    card, network = load_network(teacher, "teacher", factory)
    network.use_steps(noise_steps)
    parts = teacher if card.network.text_width else None
    before = NetworkCard.for_generator(network, sigma_init, card.trained, parts)
    return Generator(before, network, None if parts is None else location(parts)).eval()


def evaluate_generator_path(
    path: str, which: Which, num_samples: int, seed: int, factory: str | None = None
) -> dict[str, Any]:
    """Measure the generator of a run, or that in a generator's folder, for `raysid evaluate`.

    Args:
        which, factory: as in `load_generator`.

    Raises:
        UserError: there is no generator, or its images cannot be compared with its source's.
    """
    generator = load_generator(path, which, factory)
    trained = generator.card.trained
    source = trained.get("prompts") if generator.takes_text else trained.get("data")
    if source is None:
        what, key = ("prompts", "prompts") if generator.takes_text else ("real images", "data")
        raise UserError(
            f"{UPath(path)} does not name the {what} it was made for: its config.json has no {key}"
        )
    if not measures(str(source)):
        raise UserError(
            f"{UPath(path)} was made for {source}, and these are images that raysid cannot evaluate: make some in "
            "Python, by raysid.load_generator(...).sample(...), and measure those"
        )
    real = open_source(str(source)).image_shape
    if generator.sample_shape != real:
        raise UserError(
            f"{UPath(path)} makes images of shape {generator.sample_shape}, but the images of {source}, which its "
            f"config.json names, have {real}"
        )
    figures = measure(
        generator, generator.card, source, num_samples, seed, held_out=min(num_samples, HELD_OUT_SAMPLES)
    )
    return figures | {"halves_distance": evaluator(source).reference_figures()["halves_distance"]}
