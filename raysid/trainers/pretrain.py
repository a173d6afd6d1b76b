"""Training a teacher: EDM's denoising loss, data parallel under Ray Train (arXiv 2206.00364)."""

from __future__ import annotations

import concurrent.futures
import copy
import json
import math
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import filelock
import torch
from torch import Tensor
from upath import UPath

from raysid.actors.placing import demand
from raysid.cluster.connect import connect
from raysid.config import PretrainConfig
from raysid.data import ImageSource, open_source, ray_blocks, to_unit
from raysid.data.faults import all_faults, check_faults
from raysid.errors import RaysidError, RunFailed, StorageError, UserError
from raysid.method.draws import Draws, seed_torch
from raysid.method.losses import denoising_loss
from raysid.method.noise import EDMNoise
from raysid.method.schedules import ema_beta, learning_rate
from raysid.networks import EDMDenoiser
from raysid.networks.files import CONFIG, NetworkCard, load_card, save_network
from raysid.roles.build import image_stream
from raysid.roles.learner import move_average, one_hot
from raysid.run.checkpoint import state_bytes, write_state
from raysid.run.progress import ProgressLine
from raysid.storage import (
    children,
    exists,
    for_ray,
    is_local,
    make_folder,
    read_whole,
    remove_folder,
    storage_errors,
    storage_folder,
    write_whole,
)
from raysid.storage.failures import MAKE_ROOM, io_errors, storage_error
from raysid.storage.lease import Lease, lock, still_owned
from raysid.trainers.evaluation import measure_on_cluster, measures
from raysid.trainers.teacher_checks import check_fits
from raysid.trainers.teacher_identity import teacher_digest, teacher_folder, teacher_identity

CHECKPOINTS = "checkpoint_manager_snapshot.json"  # Ray Train's list of a run's checkpoints
TELL_STEPS = 50  # between workers telling each other of bad images
COPY = "whole_snapshot.json"  # the same, as it last was whole


@dataclass(frozen=True)
class PretrainResult:
    """What training a teacher leaves: its folder, and its figures."""

    path: str
    metrics: dict[str, Any]


def pretrain(config: PretrainConfig, out: str | None = None) -> PretrainResult:
    """Train a teacher, measure it, and keep it; one that is there already is not trained again.

    Args:
        out: the folder to keep it in, instead of `teacher_folder(config)`.

    Raises:
        UserError: the settings do not fit the images, or the folder cannot be written or holds another
            teacher.
        RunFailed: training stopped; the same call goes on from its last checkpoint.
    """
    folder = storage_folder(out) if out else teacher_folder(config)
    source = open_source(config.data)
    check_fits(config.network, "network", source)
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
    """The teacher in `folder`, where it is the one that `config` makes."""
    card = load_card(folder, "teacher")
    if card.trained.get("config") != teacher_identity(config):
        raise UserError(f"{folder} holds another teacher than these settings make: give another --out")
    return PretrainResult(str(folder), card.trained["evaluation"])


def _train(
    config: PretrainConfig, source: ImageSource, folder: UPath, held: filelock.BaseFileLock | Lease
) -> None:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Empty, Queue

    # Ray Train goes on from the checkpoints of a run of this name; other settings make another teacher.
    training = folder.with_name(f"{folder.name}-training-{teacher_digest(config)[:8]}")
    start = steps_so_far(training)
    connect()
    progress: Any = Queue(actor_options={"num_cpus": 0})
    resources = config.worker_resources
    storage_path, filesystem = for_ray(training.parent)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "config": config.model_dump_json(),
            # Not by `datasets=`: Ray Train would drop the order that makes the stream addressable.
            "source": source,
            "progress": progress,
            "training": str(training),
        },
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=resources.num_gpus > 0,
            resources_per_worker=demand(resources),
        ),
        run_config=RunConfig(
            name=training.name,
            storage_path=storage_path,
            storage_filesystem=filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=config.checkpoint.keep),
            failure_config=FailureConfig(max_failures=config.failure.max_failures),
        ),
    )
    with (
        ProgressLine("teacher", config.total_images, start * config.batch_size, config.batch_size) as line,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        if start:
            line.message(f"resuming from {training}, step {start:,}")
        fitting = pool.submit(trainer.fit)
        copied = 0
        while not fitting.done():
            if is_local(training):
                copied = _copy_list(training, copied)
            try:
                line.update(*progress.get(timeout=0.5))
            except Empty:
                continue
        try:
            result = fitting.result()
        except Exception as error:
            if (full := _full_storage(error, training)) is None:
                raise RunFailed(
                    f"training the teacher stopped: {_reason(error)}; run the same command {_left(training)}"
                ) from error
            with suppress(RaysidError):  # the storage is full, or another process owns it by now
                still_owned(held)
                _mend_list(training)
            raise _storage_full(full, training) from error
        progress.shutdown()
        assert result.checkpoint is not None
        with result.checkpoint.as_directory() as directory:
            state = torch.load(Path(directory) / "state.pt", weights_only=True, map_location="cpu")
        network = EDMDenoiser(config.network)
        network.load_state_dict(state["ema"])
        card = NetworkCard(kind="teacher", network=config.network)
        figures: dict[str, Any] = {}
        if measures(source.name):
            line.message(f"measuring the teacher on {config.evaluation_samples:,} samples")
            figures = measure_on_cluster(card, state["ema"], source.name, config)
    trained = {
        "config": teacher_identity(config),
        "data": source.name,
        "sampler_steps": config.sampler_steps,
        "evaluation": figures,
    }
    still_owned(held)
    try:
        save_network(folder, card.model_copy(update={"trained": trained}), network)
    except StorageError as error:
        if not error.full:
            raise
        raise _storage_full(error, training) from error
    remove_folder(training)


def _full_storage(error: Exception, training: UPath) -> StorageError | None:
    """The full storage for which Ray Train stopped; None where that is not why it failed."""
    if hasattr(error, "worker_failures"):
        failures = _of_workers(error)
    else:  # of the list of checkpoints, which Ray Train writes itself
        failures = [getattr(error, "controller_failure", error)]
    for failure in failures:
        if isinstance(failure, io_errors()):
            failure = storage_error(failure, training, "written")
        if isinstance(failure, StorageError) and failure.full:
            return failure
    return None


def _reason(error: Exception) -> str:
    """Why a training stopped, in one line."""
    said = [str(failure) for failure in _of_workers(error) if isinstance(failure, RaysidError)]
    lines = said or (str(error).strip() or type(error).__name__).splitlines()[-1:]
    return lines[0].removesuffix("; run the same command to resume")


def _of_workers(error: Exception) -> list[Exception]:
    """What the workers raised, as Ray Train passes it on. (The text of it is all of a worker's traceback.)"""
    failures = getattr(error, "worker_failures", {})
    return [getattr(failure, "_base_exc", failure) for failure in failures.values()]


def _storage_full(error: StorageError, training: UPath) -> RunFailed:
    """The end of a training whose storage is full, with the checkpoint to resume from."""
    return RunFailed(f"{error}; {MAKE_ROOM} {_left(training)}")


def _left(training: UPath) -> str:
    """From where the same command resumes."""
    try:
        steps = _steps_of(_known(training))
    except StorageError:  # the bucket may be why the training stopped
        return "to resume"
    return f"to resume from the last whole checkpoint, of step {steps:,}" if steps else "to start again"


def steps_so_far(training: UPath) -> int:
    """Steps of the newest checkpoint in Ray Train's folder of a run, 0 where there is none.

    Ray Train refuses a list of checkpoints that comes from another version of Ray: such a run is removed, so that it
    starts over.
    """
    if not exists(training / CHECKPOINTS):
        return 0
    known = _read_list(training / CHECKPOINTS) or _mend_list(training)
    if known is None:
        remove_folder(training)
    return _steps_of(known)


def _steps_of(known: dict[str, Any] | None) -> int:
    newest = known and known["latest_checkpoint_result"]
    return int(newest["metrics"]["step"]) if newest else 0


def _known(training: UPath) -> dict[str, Any] | None:
    """Ray Train's list, or its copy where that is not whole."""
    return _read_list(training / CHECKPOINTS) or _read_list(training / COPY)


def _read_list(file: UPath) -> dict[str, Any] | None:
    """Ray Train's list of a run's checkpoints, where it is there, whole and of this version of Ray."""
    try:
        known = json.loads(read_whole(file))
        newest = known["latest_checkpoint_result"]
        if newest is None or int(newest["metrics"]["step"]) >= 0:
            return known if known["ray_version"] == version("ray") else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    return None


def _copy_list(training: UPath, copied: int) -> int:
    """Copy Ray Train's list where it has changed since it was last copied: it is written in place, and cut short by a
    kill or a full disk it is worth nothing. Returns when it had changed, in nanoseconds."""
    with suppress(
        OSError, StorageError
    ):  # it is not there yet, or the disk is full: the copy stays as it was
        changed = Path((training / CHECKPOINTS).path).stat().st_mtime_ns
        if changed != copied and (known := _read_list(training / CHECKPOINTS)) is not None:
            # As it was read: it may be cut short by now.
            write_whole(training / COPY, json.dumps(known).encode())
            return changed
    return copied


def _mend_list(training: UPath) -> dict[str, Any] | None:
    """Put the copy in the place of a list that is not whole, where there is one; what it does not name is removed."""
    known = _known(training)
    if known is not None:
        named = {result["checkpoint_dir_name"] for result in known["checkpoint_results"]}
        for path in children(training):
            if path.name.startswith("checkpoint_") and path.name not in named | {CHECKPOINTS}:
                remove_folder(path)
        if _read_list(training / CHECKPOINTS) is None:
            write_whole(training / CHECKPOINTS, json.dumps(known).encode())
    return known


def _worker(inputs: dict[str, Any]) -> None:
    """One data-parallel worker: its slice of every batch, gradients averaged by DDP."""
    import ray.train
    import ray.train.torch

    config = PretrainConfig.model_validate_json(inputs["config"])
    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config.torch_threads)
    training = _Training(config, inputs, rank, ranks)
    start = 0
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as directory:
            start = training.load(Path(directory) / "state.pt")
    total = -(-config.total_images // config.batch_size)
    save_every = max(config.checkpoint.every_images // config.batch_size, 1)
    loss = math.nan
    for step in range(start, total):
        try:
            loss = training.step(step)
        except RunFailed:  # its images cannot be read
            if ranks == 1 and step > start:  # of several the others wait for this one's gradients
                _report(training, inputs, rank, step, loss)
            raise
        if ranks > 1 and (step + 1) % TELL_STEPS == 0:
            training.tell_faults()
        images = (step + 1) * config.batch_size
        if rank == 0:
            inputs["progress"].put_nowait((images, {"loss/denoising": loss}, training.skipped()))
        if (step + 1) % save_every == 0 or step + 1 == total:
            _report(training, inputs, rank, step + 1, loss)


def _report(training: _Training, inputs: dict[str, Any], rank: int, step: int, loss: float) -> None:
    """Have Ray Train keep a checkpoint after `step` steps, with the last one's loss; all workers have to."""
    import ray.train

    figures = {"step": step, "images": step * training.config.batch_size, "loss": loss}
    with tempfile.TemporaryDirectory() as directory:
        saved = None
        try:
            if rank == 0:
                training.save(directory, step)
                saved = ray.train.Checkpoint.from_directory(directory)
            ray.train.report(figures, checkpoint=saved)
        except io_errors() as error:  # of Ray Train, which copies the checkpoint to its storage
            raise storage_error(
                error, getattr(error, "filename", None) or inputs["training"], "written"
            ) from error


class _Training:
    """A worker's network, its average, its optimizer and its slice of the real images."""

    def __init__(self, config: PretrainConfig, inputs: dict[str, Any], rank: int, ranks: int) -> None:
        import ray.train.torch

        self.config = config
        self.rank = rank
        self.count = config.batch_size // ranks
        source: ImageSource = inputs["source"]
        self.pixel_max = source.pixel_max
        torch.manual_seed(config.seed)
        network = EDMDenoiser(config.network)
        self.ema = copy.deepcopy(network).eval().requires_grad_(False)
        self.wrapped = ray.train.torch.prepare_model(network.train())
        self.network = getattr(self.wrapped, "module", self.wrapped)
        self.device = next(self.network.parameters()).device
        self.ema.to(self.device)
        self.noise = EDMNoise(sigma_data=config.network.sigma_data)
        self.adam = torch.optim.Adam(
            self.network.parameters(), lr=config.lr, betas=config.betas, eps=config.eps, fused=True
        )
        own = self.rank * self.count, (self.rank + 1) * self.count
        self.images = image_stream(config, source, ray_blocks(source), [own])
        self.faults: dict[int, str] = {}  # of all workers, when they last told each other

    def step(self, step: int) -> float:
        """One update; returns this worker's loss per image."""
        config = self.config
        seen, start = step * config.batch_size, self.rank * self.count
        x, cond = self._real(seen + start)
        draws = Draws(config.seed, step, start, self.count)
        sigma = self.noise.fake_score_level(draws.normal("sigma_normal")).to(self.device)
        eps = draws.normal("noise", x.shape[1:]).to(self.device)
        seed_torch(draws.dropout_seed("dropout"), self.device)
        x_hat = self.wrapped(self.noise.add_noise(x, sigma, eps), sigma, cond)
        loss = denoising_loss(x_hat, x, self.noise.loss_weight(sigma)).mean()
        loss.backward()
        for group in self.adam.param_groups:
            group["lr"] = learning_rate(config.lr, config.lr_schedule, seen, config.total_images)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        beta = ema_beta(config.ema, seen, config.batch_size)
        move_average(list(self.ema.parameters()), list(self.network.parameters()), beta, foreach=True)
        return loss.item()

    def tell_faults(self) -> None:
        """Tell the other workers which bad images this one has met, as each does: each reads its own part.

        Raises:
            RunFailed: together they are too many.
        """
        of_all: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(of_all, self.images.faults)
        self.faults = all_faults(of_all)
        check_faults(self.faults, self.config.data.max_bad_fraction, self.images.num_images)

    def skipped(self) -> str:
        """A note on real images that cannot be used, where there are any."""
        faults = self.faults | self.images.faults
        if not faults:
            return ""
        return f"{len(faults):,} real image{'s' * (len(faults) > 1)} skipped, {next(iter(faults.values()))} the first"

    def save(self, folder: str, step: int) -> None:
        """Write everything that going on after `step` steps needs, as `state.pt`."""
        state = {
            "step": step,
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.adam.state_dict(),
        }
        write_state(folder, "state", state_bytes(state))

    def load(self, path: Path) -> int:
        """Read what `save` wrote; returns the step to go on with."""
        state = torch.load(path, weights_only=True, map_location=self.device)
        self.network.load_state_dict(state["network"])
        self.ema.load_state_dict(state["ema"])
        self.adam.load_state_dict(state["optimizer"])
        return state["step"]

    def _real(self, position: int) -> tuple[Tensor, Tensor | None]:
        pixels, labels = self.images.read(position, self.count)
        cond = one_hot(torch.from_numpy(labels), self.config.network.label_dim)
        x = torch.from_numpy(to_unit(pixels, self.pixel_max)).to(self.device)
        return x, None if cond is None else cond.to(self.device)
