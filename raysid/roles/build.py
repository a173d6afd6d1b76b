"""Build a role from files, in the process where it will live."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from raysid.config import Config, LearnerSettings, PretrainConfig
from raysid.data import ImageSource
from raysid.data.order import Order
from raysid.data.prompts import PromptStream, open_prompts
from raysid.data.prompts.stream import ReadPrompts, in_process
from raysid.data.stream import ImageStream
from raysid.data.windows import ReadBlocks
from raysid.method.draws import Draws
from raysid.networks import DiffusersSettings, FactorySettings, build_denoiser
from raysid.networks.denoiser import Network
from raysid.networks.diffusers import DiffusersDenoiser
from raysid.networks.files import load_network
from raysid.networks.parts import TEXT_ENCODER
from raysid.networks.text import TextEncoder, Tokenizer, shared_encoder
from raysid.roles.compute import equip
from raysid.roles.conditions import LabelConditions, PromptConditions
from raysid.roles.fake_score import FakeScoreLearner
from raysid.roles.generator_learner import GeneratorLearner
from raysid.roles.learner import Learner
from raysid.roles.ranks import Ranks
from raysid.roles.state_files import StateFile, read_state, state_file
from raysid.roles.step import microbatches
from raysid.roles.teacher import TeacherScorer
from raysid.storage import exists, location


@dataclass(frozen=True)
class RunInputs:
    """The inputs of a run's roles: only paths and settings, so that they travel to any process.

    Attributes:
        teacher: folder of the teacher.
        label_frequencies: relative frequency of each class among generated images; empty without classes.
        checkpoint: folder of the checkpoint to resume from; None starts from the beginning.
        files: the checkpoint's files; a learner compares what it reads with them.
        start: folder of the generator that initializes theta; None takes the teacher.
    """

    config: Config
    teacher: str
    label_frequencies: Sequence[float]
    checkpoint: str | None = None
    start: str | None = None
    files: tuple[StateFile, ...] = ()


def build_conditions(inputs: RunInputs, read: ReadPrompts = in_process) -> LabelConditions | PromptConditions:
    """Build the source of the generated images' conditions.

    Args:
        read: makes the reader of prompts, such as one through Ray Data.
    """
    config = inputs.config
    if config.prompts.source is not None:
        source = open_prompts(config.prompts)
        stream = PromptStream(source, config.prompts, config.seed, config.batch_size, read)
        return PromptConditions(stream, Tokenizer(inputs.teacher), config)
    return LabelConditions(inputs.label_frequencies, partial(Draws, inputs.config.seed))


def build_teacher(teacher: str, config: Config, runs_kept: int = 1) -> TeacherScorer:
    """Build a scorer of the teacher service from the teacher's folder."""
    network = load_network(teacher, "teacher", config.teacher.factory)[1]
    network.precision = config.teacher.precision or config.precision
    equip(network, config.teacher_compute, config.device_of("teacher"))
    return TeacherScorer(network, config.graphs_kept, runs_kept, use_text(network, teacher))


def build_fake_score(
    inputs: RunInputs,
    source: ImageSource | None,
    read_blocks: ReadBlocks | None = None,
    ranks: Ranks | None = None,
    parts: Sequence[tuple[int, int]] | None = None,
) -> FakeScoreLearner:
    """Build the fake-score learner from the teacher or from a checkpoint.

    Args:
        source: the real images; None if the method needs none.
        read_blocks: reads the real images; None reads them in this process.
        ranks: all ranks of the learner; None if it has one.
        parts: this rank's parts of every batch, from offset to offset; None is the whole batch.
    """
    config = inputs.config
    stream = None if source is None else image_stream(config, source, read_blocks or source.blocks, parts)
    network = learner_network(inputs.teacher, config.fake_score, config.teacher.factory)
    network.use_steps(config.method.noise_steps)
    network.precision = config.precision
    equip(network, config.compute, config.device_of("fake_score"))
    text = use_text(network, inputs.teacher)
    learner = FakeScoreLearner(
        config, network, stream, source.pixel_max if source else 255, ranks=ranks, text=text
    )
    _restore(learner, inputs)
    return learner


def parts_of_rank(config: Config, rank: int) -> list[tuple[int, int]]:
    """Return a fake-score rank's parts of every batch, from offset to offset, as `RemoteLearner` hands them out."""
    own = microbatches(config, 0)[rank :: config.fake_score.num_workers]
    return [(at.start, at.start + at.count) for at in own]


def shared_reading_warning(config: Config, source: ImageSource) -> str | None:
    """Return a warning if several fake-score ranks read the same real images, otherwise None."""
    ranks, data = config.fake_score.num_workers, config.data
    order = Order(source.shard_sizes, 0, data.shuffle_window, config.batch_size, data.lanes)
    lanes = [order.lanes_of(parts_of_rank(config, rank)) for rank in range(ranks)]
    if order.held or sum(map(len, lanes)) == order.lanes:
        return None
    count = len(microbatches(config, 0))
    window = count * int(source.shard_sizes.max())
    return (
        f"the {ranks} fake-score workers each read real images of the others too: a step's {count} microbatches are in "
        f"{order.lanes} lanes; --data.lanes {count} --data.shuffle_window {window} would separate them"
    )


def image_stream(
    config: Config | PretrainConfig,
    source: ImageSource,
    read_blocks: ReadBlocks,
    parts: Sequence[tuple[int, int]] | None = None,
) -> ImageStream:
    """Open the stream of a run's real images, or of some parts of every batch."""
    data = config.data
    return ImageStream(
        read_blocks,
        source.shard_sizes,
        config.seed,
        data.shuffle_window,
        batch_size=config.batch_size,
        lanes=data.lanes,
        parts=parts,
        xflip=data.xflip,
        max_bad_fraction=data.max_bad_fraction,
        # A set that fits the window stays in memory: there is nothing to prefetch.
        prefetch=source.num_images > data.shuffle_window,
    )


def build_generator(inputs: RunInputs, ranks: Ranks | None = None) -> GeneratorLearner:
    """Build the generator learner from the teacher, from a generator (SiD²A) or from a checkpoint.

    Args:
        ranks: all ranks of the learner; None if it has one.
    """
    config = inputs.config
    network = learner_network(inputs.teacher, config.generator, config.teacher.factory)
    network.use_steps(config.method.noise_steps)
    network.precision = config.precision
    equip(network, config.compute, config.device_of("generator"))
    if inputs.start is not None and inputs.checkpoint is None:
        start = load_network(inputs.start, "generator", config.teacher.factory)[1]
        network.load_state_dict(start.state_dict())
    learner = GeneratorLearner(config, network, ranks=ranks, text=use_text(network, inputs.teacher))
    _restore(learner, inputs)
    return learner


def use_text(network: Network, teacher: str) -> TextEncoder | None:
    """Return the text encoder of a teacher's folder on a network's device, and give the network the empty prompt.

    Returns None for a network without text, and for a folder without an encoder, whose runs get embeddings.
    """
    if not network.settings.text_width or not exists(location(teacher) / TEXT_ENCODER):
        return None
    text = shared_encoder(teacher, next(network.parameters()).device)
    assert isinstance(network, DiffusersDenoiser)
    network.null_text = text.null_text()
    return text


def _restore(learner: Learner, inputs: RunInputs) -> None:
    """Load the learner's state from the checkpoint, if there is one. Raises UserError as `read_state`."""
    if inputs.checkpoint is not None:
        expected = next((file for file in inputs.files if file.name == state_file(learner.name)), None)
        learner.load_state(read_state(inputs.checkpoint, learner.name, expected))


def learner_network(teacher: str, settings: LearnerSettings, factory: str | None = None) -> Network:
    """Copy the teacher for a learner, with the learner's dropout and without label dropout inside the network.

    A module of the user's own stays as its function makes it; `factory` as in `load_network`.

    Only guidance's rule drops conditions (docs/method.md, "Names"); a copy that dropped labels by itself would
    learn a distribution other than the generator's.
    """
    card, original = load_network(teacher, "teacher", factory)
    network = card.network
    if isinstance(network, FactorySettings):
        return original
    dropout = network.dropout if settings.dropout is None else settings.dropout
    changes = (
        {"unet": network.unet | {"dropout": dropout}}  # diffusers' networks drop no labels
        if isinstance(network, DiffusersSettings)
        else {"label_dropout": 0.0, "dropout": dropout}
    )
    copied = build_denoiser(network.model_copy(update=changes))
    copied.load_state_dict(original.state_dict())
    return copied
