"""Building a role from files, in whichever process it will live."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raysid.config import Config, LearnerSettings, PretrainConfig
from raysid.data import ImageSource
from raysid.data.order import Order
from raysid.data.stream import ImageStream
from raysid.data.windows import ReadBlocks
from raysid.networks import DiffusersSettings, FactorySettings, build_denoiser
from raysid.networks.denoiser import Network
from raysid.networks.files import load_network
from raysid.roles.compute import equip
from raysid.roles.fake_score import FakeScoreLearner
from raysid.roles.generator_learner import GeneratorLearner
from raysid.roles.ranks import Ranks
from raysid.roles.state_files import read_state
from raysid.roles.step import microbatches
from raysid.roles.teacher import TeacherScorer


@dataclass(frozen=True)
class RunInputs:
    """What the roles of a run are made from. Small: paths and settings, so that it travels to any process.

    Attributes:
        teacher: folder of the teacher.
        label_frequencies: how often each class is drawn for generated images.
        checkpoint: folder of the checkpoint to go on from; None starts from the beginning.
        start: folder of the generator that theta begins as; None is the teacher.
    """

    config: Config
    teacher: str
    label_frequencies: Sequence[float]
    checkpoint: str | None = None
    start: str | None = None


def build_teacher(teacher: str, config: Config, runs_kept: int = 1) -> TeacherScorer:
    """A scorer of the teacher service, from the teacher's folder."""
    network = load_network(teacher, "teacher", config.teacher.factory)[1]
    network.precision = config.teacher.precision or config.precision
    equip(network, config.teacher_compute, config.device_of("teacher"))
    return TeacherScorer(network, config.graphs_kept, runs_kept)


def build_fake_score(
    inputs: RunInputs,
    source: ImageSource | None,
    read_blocks: ReadBlocks | None = None,
    ranks: Ranks | None = None,
    parts: Sequence[tuple[int, int]] | None = None,
) -> FakeScoreLearner:
    """The fake-score learner, from the teacher or from a checkpoint.

    Args:
        source: the real images; None when the method needs none.
        read_blocks: reads them otherwise than in this process.
        ranks: the learner's other ranks, where it has any.
        parts: of every batch, from offset to offset, that are this rank's; all of it where not given.
    """
    config = inputs.config
    stream = None
    if source is not None:
        stream = image_stream(config, source, read_blocks or source.blocks, parts)
    network = learner_network(inputs.teacher, config.fake_score, config.teacher.factory)
    network.precision = config.precision
    equip(network, config.compute, config.device_of("fake_score"))
    learner = FakeScoreLearner(config, network, stream, source.pixel_max if source else 255, ranks=ranks)
    if inputs.checkpoint is not None:
        learner.load_state(read_state(inputs.checkpoint, "fake_score"))
    return learner


def parts_of_rank(config: Config, rank: int) -> list[tuple[int, int]]:
    """The parts of every batch, from offset to offset, that a rank of the fake-score learner has (`RemoteLearner`)."""
    own = microbatches(config, 0)[rank :: config.fake_score.num_workers]
    return [(at.start, at.start + at.count) for at in own]


def read_by_several(config: Config, source: ImageSource) -> str | None:
    """A note where the fake-score learner's ranks read real images that are another one's; None where they do not."""
    ranks, data = config.fake_score.num_workers, config.data
    order = Order(source.shard_sizes, 0, data.shuffle_window, config.batch_size, data.lanes)
    lanes = [order.lanes_of(parts_of_rank(config, rank)) for rank in range(ranks)]
    if order.held or sum(map(len, lanes)) == order.lanes:
        return None
    count = len(microbatches(config, 0))
    window = count * int(source.shard_sizes.max())
    return (
        f"the {ranks} fake-score workers each read real images of the others too: a step's {count} microbatches are in "
        f"{order.lanes} lanes; --data.lanes {count} --data.shuffle_window {window} would keep them apart"
    )


def image_stream(
    config: Config | PretrainConfig,
    source: ImageSource,
    read_blocks: ReadBlocks,
    parts: Sequence[tuple[int, int]] | None = None,
) -> ImageStream:
    """The stream of a run's real images, or of some parts of every batch."""
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
        # A set that fits the window is held: nothing is ahead of it.
        prefetch=source.num_images > data.shuffle_window,
    )


def build_generator(inputs: RunInputs, ranks: Ranks | None = None) -> GeneratorLearner:
    """The generator learner, from the teacher, from a generator (SiD²A) or from a checkpoint.

    Args:
        ranks: the learner's other ranks, where it has any.
    """
    config = inputs.config
    network = learner_network(inputs.teacher, config.generator, config.teacher.factory)
    network.precision = config.precision
    equip(network, config.compute, config.device_of("generator"))
    if inputs.start is not None and inputs.checkpoint is None:
        start = load_network(inputs.start, "generator", config.teacher.factory)[1]
        network.load_state_dict(start.state_dict())
    learner = GeneratorLearner(config, network, inputs.label_frequencies, ranks=ranks)
    if inputs.checkpoint is not None:
        learner.load_state(read_state(inputs.checkpoint, "generator"))
    return learner


def learner_network(teacher: str, settings: LearnerSettings, factory: str | None = None) -> Network:
    """A copy of the teacher for a learner: its own dropout, and no label dropout inside the network.

    A module of the user's own is as its function makes it; `factory` as in `load_network`.

    Only guidance's rule drops conditions (docs/method.md, "Names"); a copy that dropped labels by itself would
    learn another distribution than the generator's.
    """
    card, original = load_network(teacher, "teacher", factory)
    network = card.network
    if isinstance(network, FactorySettings):
        return original
    dropout = network.dropout if settings.dropout is None else settings.dropout
    changes = (
        {"unet": network.unet | {"dropout": dropout}}  # it drops no labels by itself
        if isinstance(network, DiffusersSettings)
        else {"label_dropout": 0.0, "dropout": dropout}
    )
    copied = build_denoiser(network.model_copy(update=changes))
    copied.load_state_dict(original.state_dict())
    return copied
