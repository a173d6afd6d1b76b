"""One worker of a teacher's training, with the loss of its kind of network; gradients are averaged by DDP."""

from __future__ import annotations

import copy
import math
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed
from torch import Tensor
from upath import UPath

from raysid.config import PretrainConfig
from raysid.data import ImageSource, ray_blocks, to_unit
from raysid.data.source import all_faults, check_faults
from raysid.errors import RunFailed
from raysid.method.draws import Draws
from raysid.method.schedules import ema_beta, learning_rate
from raysid.networks import build_denoiser
from raysid.roles.build import image_stream, use_text
from raysid.roles.conditions import one_hot
from raysid.roles.learner import move_average
from raysid.run.checkpoint import Checkpoints
from raysid.trainers.pretrain_captions import CaptionEncoder
from raysid.trainers.pretrain_losses import training_loss
from raysid.trainers.pretrain_state import read_checkpoint, write_checkpoint

FAULTS_STEPS = 50  # steps between the workers' exchanges of bad images


def train_worker(inputs: dict[str, Any]) -> None:
    """Train from the newest checkpoint to the end, on a worker that Ray Train started.

    Args:
        inputs: `config` (JSON), `source` (the real images), `checkpoints` (their folder), `text` (the folder of the
            text encoder, or None), and `progress`, a queue for (images so far, losses, note) of every step.

    Raises:
        RunFailed: the real images cannot be read, or too many of them are bad.
        StorageError: a checkpoint cannot be written.
    """
    config = PretrainConfig.model_validate_json(inputs["config"])
    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config.torch_threads)
    training = TeacherTraining(config, inputs["source"], rank, ranks, inputs["text"])
    checkpoints = Checkpoints(UPath(inputs["checkpoints"]), config.checkpoint.keep)
    start = saved = training.resume(checkpoints)
    total = -(-config.total_images // config.batch_size)
    save_every = max(config.checkpoint.every_images // config.batch_size, 1)
    loss = math.nan
    for step in range(start, total):
        try:
            loss = training.step(step)
        except RunFailed:  # its real images cannot be read; nothing has changed since the last step
            if rank == 0 and step > saved:
                training.save(checkpoints, step, loss)
            raise
        if ranks > 1 and (step + 1) % FAULTS_STEPS == 0:
            training.exchange_faults()
        if rank == 0:
            images = (step + 1) * config.batch_size
            inputs["progress"].put_nowait((images, {"loss/denoising": loss}, training.faults_note()))
            if (step + 1) % save_every == 0 or step + 1 == total:
                training.save(checkpoints, step + 1, loss)
                saved = step + 1


class TeacherTraining:
    """A worker's network, its average, its optimizer and its slice of the real images.

    Args:
        source: the real images.
        rank: this worker's index among `ranks` workers; it takes that slice of every batch.
        text: folder of the text encoder, for a network with text.
    """

    def __init__(
        self, config: PretrainConfig, source: ImageSource, rank: int, ranks: int, text: str | None = None
    ) -> None:
        self.config = config
        self.rank, self.ranks = rank, ranks
        self.count = config.batch_size // ranks
        self.pixel_max = source.pixel_max
        torch.manual_seed(config.seed)
        network = build_denoiser(config.denoiser)
        self.ema = copy.deepcopy(network).eval().requires_grad_(False)
        self.loss = training_loss(network, config.condition_drop)
        self.predictor = ray.train.torch.prepare_model(self.loss.predictor.train())
        self.network = network
        self.device = next(network.parameters()).device
        self.ema.to(self.device)
        self.adam = torch.optim.Adam(
            self.network.parameters(), lr=config.lr, betas=config.betas, eps=config.eps, fused=True
        )
        own = rank * self.count, (rank + 1) * self.count
        self.images = image_stream(config, source, ray_blocks(source), [own])
        encoder = use_text(network, text) if text is not None else None
        self.captions = CaptionEncoder(encoder, source, rank, ranks) if encoder is not None else None
        self.faults: dict[int, str] = {}  # of all workers, as of their last exchange

    def step(self, step: int) -> float:
        """Take one update; return this worker's loss.

        Raises:
            RunFailed: its real images cannot be read; the state is that after `step` steps.
        """
        config = self.config
        seen, start = step * config.batch_size, self.rank * self.count
        draws = Draws(config.seed, step, start, self.count)
        x, cond = self._real_images(seen + start, draws)
        loss = self.loss(self.predictor, x, cond, draws)
        loss.backward()
        for group in self.adam.param_groups:
            group["lr"] = learning_rate(config.lr, config.lr_schedule, seen, config.total_images)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        beta = ema_beta(config.ema, seen, config.batch_size)
        move_average(list(self.ema.parameters()), list(self.network.parameters()), beta, foreach=True)
        return loss.item()

    def exchange_faults(self) -> None:
        """Share the bad images that each worker has found in its own slice; all workers must call this.

        Raises:
            RunFailed: together they exceed `data.max_bad_fraction`.
        """
        found: list[Any] = [None] * self.ranks
        torch.distributed.all_gather_object(found, self.images.faults)
        self.faults = all_faults(found)
        check_faults(self.faults, self.config.data.max_bad_fraction, self.images.num_images)

    def faults_note(self) -> str:
        """Return a note on the bad images so far, empty if there are none."""
        faults = self.faults | self.images.faults
        if not faults:
            return ""
        return f"{len(faults):,} real image{'s' * (len(faults) > 1)} skipped, {next(iter(faults.values()))} the first"

    def save(self, checkpoints: Checkpoints, step: int, loss: float) -> None:
        """Write a checkpoint of the state after `step` steps; `loss`, the last step's, goes into the teacher's card."""
        state = {
            "step": step,
            "loss": loss,
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.adam.state_dict(),
        }
        write_checkpoint(checkpoints, state, self.config.batch_size)

    def resume(self, checkpoints: Checkpoints) -> int:
        """Load the newest whole checkpoint, the same on all workers; return the number of steps it has taken."""
        # One worker chooses: a process of a killed run may be writing another checkpoint just now.
        chosen = [0]
        if self.rank == 0:
            newest = checkpoints.newest()
            chosen = [newest.step if newest else 0]
            checkpoints.remove_unfinished(after_step=chosen[0])
        if self.ranks > 1:
            torch.distributed.broadcast_object_list(chosen)
        if chosen[0] == 0:
            return 0
        state = read_checkpoint(checkpoints.path(chosen[0]))
        self.network.load_state_dict(state["network"])
        self.ema.load_state_dict(state["ema"])
        self.adam.load_state_dict(state["optimizer"])
        return chosen[0]

    def _real_images(self, position: int, draws: Draws) -> tuple[Tensor, Tensor | None]:
        """Read this worker's images of a batch, (n, C, H, W) in [-1, 1], and their conditions.

        Those are labels, one-hot (n, classes), or the embeddings (n, tokens, width) of one caption of each image.
        """
        if self.captions is not None:
            pixels, _, captions = self.images.read_captioned(position, self.count)
            chosen = draws.uniform("caption").tolist()
            texts = [own[int(u * len(own))] for own, u in zip(captions, chosen, strict=True)]
            cond: Tensor | None = self.captions(texts)
        else:
            pixels, labels = self.images.read(position, self.count)
            cond = one_hot(torch.from_numpy(labels), self.config.denoiser.label_dim)
        x = torch.from_numpy(to_unit(pixels, self.pixel_max)).to(self.device)
        return x, None if cond is None else cond.to(self.device)
