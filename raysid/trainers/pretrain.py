"""Train a teacher under Ray Train, resumable, and keep it with its evaluation."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import filelock
import torch
from ray.exceptions import RayError
from torch import Tensor
from upath import UPath

from raysid.actors.capacity import bundle
from raysid.actors.requirements import check_resources
from raysid.cluster.connect import connect
from raysid.config import PretrainConfig, fixed_settings
from raysid.data import ImageSource, open_source
from raysid.data.captions import evaluation_captions
from raysid.errors import RaysidError, RunFailed, StorageError, UserError
from raysid.networks import build_denoiser
from raysid.networks.files import CONFIG, NetworkCard, load_card, save_network
from raysid.networks.parts import copy_parts
from raysid.networks.text import TextEncoder, keep_texts
from raysid.networks.text_folders import find_text_encoder
from raysid.ray_internals import worker_errors
from raysid.run.checkpoint import Checkpoints
from raysid.run.progress import ProgressLine
from raysid.storage import exists, make_folder, remove_folder, storage_errors, storage_folder
from raysid.storage.failures import MAKE_ROOM
from raysid.storage.lease import Lease, lock, still_owned
from raysid.trainers.measuring import TeacherSampling, measure_on_cluster, measured_by
from raysid.trainers.pretrain_state import newest_checkpoint, read_checkpoint
from raysid.trainers.teacher_checks import check_trains


@dataclass(frozen=True)
class PretrainResult:
    """The outcome of training a teacher.

    Attributes:
        path: the teacher's folder.
        metrics: its evaluation; empty for images that raysid cannot evaluate.
        loss: the loss of the last step, where it is recorded: per image of EDM's networks, per pixel of diffusers'.
    """

    path: str
    metrics: dict[str, Any]
    loss: float | None = None


def teacher_digest(config: PretrainConfig) -> str:
    """Return a short hash of the settings that make this teacher."""
    identity = json.dumps(fixed_settings(config), sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def teacher_folder(config: PretrainConfig) -> UPath:
    """Return `<storage>/teachers/<digest>`, where the teacher of a recipe is kept."""
    return storage_folder(config.storage) / "teachers" / teacher_digest(config)


def pretrain(config: PretrainConfig, out: str | None = None) -> PretrainResult:
    """Train a teacher, measure it, and keep it. A teacher that is kept already is not trained again.

    Args:
        out: the folder to keep it in, instead of `teacher_folder(config)`.

    Raises:
        UserError: the settings do not fit the images, or the folder cannot be written or holds another
            teacher.
        RunFailed: training stopped; the same call resumes from its last checkpoint.
    """
    folder = storage_folder(out) if out else teacher_folder(config)
    source = open_source(config.data, captioned=config.takes_text)
    check_trains(config, source)
    if exists(folder / CONFIG):
        return _kept(config, folder)
    make_folder(folder.parent)
    lock_file = folder.with_name(f"{folder.name}.lock")
    held = lock(lock_file)
    with storage_errors(lock_file, "written"):
        try:
            held.acquire(timeout=0)
        except filelock.Timeout:
            print(f"another process is training {folder}; waiting for it")
            held.acquire()
    try:
        if not exists(folder / CONFIG):
            _train(config, source, folder, held)
    finally:
        held.release()
    return _kept(config, folder)


def _kept(config: PretrainConfig, folder: UPath) -> PretrainResult:
    """Return the teacher in `folder`, if it is the one that `config` makes."""
    trained = load_card(folder, "teacher").trained
    if trained.get("config") != fixed_settings(config):
        raise UserError(f"{folder} holds another teacher than these settings make: give another --out")
    return PretrainResult(str(folder), trained["evaluation"], trained.get("loss"))


def _train(
    config: PretrainConfig, source: ImageSource, folder: UPath, held: filelock.BaseFileLock | Lease
) -> None:
    """Train from the newest checkpoint to the end, measure the average, keep it, and remove the checkpoints."""
    from ray.train import TrainingFailedError

    # Other settings make another teacher, so their checkpoints have a separate folder.
    training = folder.with_name(f"{folder.name}-training-{teacher_digest(config)[:8]}")
    checkpoints = Checkpoints(training / "checkpoints", config.checkpoint.keep)
    start = newest_checkpoint(training, checkpoints, config.batch_size)
    text = _text_encoder(config, training)
    images = start.images if start else 0
    with ProgressLine("teacher", config.total_images, images, config.batch_size) as line:
        for note in source.notes:
            line.message(f"real images: {note}")
        line.message("connecting to Ray")
        connect()
        check_resources({"worker_resources": config.worker_resources}, False, line.message)
        if start is not None:
            line.message(f"resuming from {training}, step {start.step:,}")
        try:
            _run_workers(config, source, checkpoints, text, line)
        except (TrainingFailedError, RayError) as error:
            raise _failure(error, checkpoints, held) from error
        newest = checkpoints.newest()
        assert newest is not None
        state = read_checkpoint(newest.path)
        network = build_denoiser(config.denoiser)
        network.load_state_dict(state["ema"])
        card = NetworkCard(kind="teacher", network=config.denoiser)
        figures: dict[str, Any] = {}
        if measured_by(card.network, source.name, source.name) is not None:
            line.message(f"measuring the teacher on {config.evaluation_samples:,} samples")
            figures = _measured(config, card, state["ema"], source, text)
    trained = {
        "config": fixed_settings(config),
        "data": source.name,
        "sampler_steps": config.sampler_steps,
        "loss": state.get("loss"),
        "evaluation": figures,
    }
    still_owned(held)
    try:
        if text is not None:
            copy_parts(text, folder)
        save_network(folder, card.model_copy(update={"trained": trained}), network)
    except StorageError as error:
        again = MAKE_ROOM if error.full else "run the same command"
        raise RunFailed(f"{error}; {again} {_how_to_resume(checkpoints)}") from error
    remove_folder(training)


def _measured(
    config: PretrainConfig,
    card: NetworkCard,
    weights: dict[str, Tensor],
    source: ImageSource,
    text: UPath | None,
) -> dict[str, Any]:
    """Measure the teacher, with guidance if it takes text."""
    cpus = config.worker_resources.num_cpus
    if text is None:
        sampling = TeacherSampling(config.sampler_steps, config.evaluation_samples)
        return measure_on_cluster(card, weights, source.name, sampling, cpus)
    scale = config.evaluation_guidance
    keep_texts(text, evaluation_captions(config.evaluation_samples))
    encoder = TextEncoder(text, torch.device("cpu"))
    sampling = TeacherSampling(config.sampler_steps, config.evaluation_samples, scale)
    return measure_on_cluster(card, weights, source.name, sampling, cpus, encoder) | {"guidance": scale}


def _text_encoder(config: PretrainConfig, training: UPath) -> UPath | None:
    """Keep the text encoder of a network with text in the training's folder, from where all workers read it.

    Returns:
        Its folder; None for a network without text.

    Raises:
        UserError: it is missing, cannot be used, or makes embeddings that the network does not take.
    """
    if not config.takes_text:
        return None
    assert config.text.encoder is not None and config.diffusers is not None
    found = find_text_encoder(config.text.encoder)
    if found.width != (width := config.diffusers.text_width):
        raise UserError(
            f"text.encoder {found.name} makes embeddings of width {found.width}, and the U-Net takes {width}: give "
            f"diffusers.unet.encoder_hid_dim {found.width}"
        )
    folder = training / "text"
    found.keep(folder, config.text.tokens)
    # Refuses an encoder that cannot be used before workers start. The empty caption has one rounding from here on.
    keep_texts(folder, [])
    return folder


def _run_workers(
    config: PretrainConfig,
    source: ImageSource,
    checkpoints: Checkpoints,
    text: UPath | None,
    line: ProgressLine,
) -> None:
    """Have Ray Train run the workers, which write the checkpoints, and restart them when one fails.

    Raises:
        TrainingFailedError: they failed more than `failure.max_failures` times.
        RayError: Ray Train itself failed.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Empty, Queue

    from raysid.trainers.pretrain_worker import train_worker

    progress: Any = Queue(actor_options={"num_cpus": 0})
    resources = config.worker_resources
    with (
        # Ray Train keeps no checkpoints here, so its own folder need not be on shared storage.
        tempfile.TemporaryDirectory(prefix="raysid-ray-train-") as notes,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={
                "config": config.model_dump_json(),
                # Not by `datasets=`: Ray Train would drop the order that makes the stream addressable.
                "source": source,
                "text": None if text is None else str(text),
                "progress": progress,
                "checkpoints": str(checkpoints.folder),
            },
            scaling_config=ScalingConfig(
                num_workers=config.num_workers,
                use_gpu=resources.num_gpus > 0,
                resources_per_worker=bundle(resources),
            ),
            run_config=RunConfig(
                name="teacher",
                storage_path=notes,
                failure_config=FailureConfig(max_failures=config.failure.max_failures),
            ),
        )
        fitting = pool.submit(trainer.fit)
        while not fitting.done():
            with suppress(Empty):
                line.update(*progress.get(timeout=0.5))
        progress.shutdown()
        fitting.result()


def _failure(error: Exception, checkpoints: Checkpoints, held: filelock.BaseFileLock | Lease) -> RunFailed:
    """Turn Ray Train's error into one line. If the storage is full, remove what is not a whole checkpoint."""
    failures = worker_errors(error)
    for failure in failures:
        if isinstance(failure, StorageError) and failure.full:
            with suppress(RaysidError):  # the storage may fail again, and another process may own it by now
                still_owned(held)
                checkpoints.remove_unfinished(after_step=checkpoints.newest_step() or 0)
            return RunFailed(f"{failure}; {MAKE_ROOM} {_how_to_resume(checkpoints)}")
    reasons = [str(failure) for failure in failures if isinstance(failure, RaysidError)]
    reason = (reasons or (str(error).strip() or type(error).__name__).splitlines()[-1:])[0]
    reason = reason.removesuffix("; run the same command to resume")
    return RunFailed(
        f"training the teacher stopped: {reason}; run the same command {_how_to_resume(checkpoints)}"
    )


def _how_to_resume(checkpoints: Checkpoints) -> str:
    """Return the end of a message that says `run the same command`."""
    try:
        step = checkpoints.newest_step()
    except StorageError:  # it may be why the training stopped
        return "to resume"
    return "to start again" if step is None else f"to resume from the last whole checkpoint, of step {step:,}"
