"""The workers of `placement: colocated`: Ray Train starts them, watches over them, and says how many they are."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

import ray
import ray.train
import torch
import torch.distributed
from ray.exceptions import RayActorError, RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.execution.callback import ControllerCallback
from upath import UPath

from raysid.actors.mailbox import Call, Group, Mailbox
from raysid.actors.placement import LocalPlacement
from raysid.actors.placing import Say, demand, on_this_node, wait_for_room
from raysid.actors.results import get, what_died
from raysid.actors.shared_folder import seen_from
from raysid.config import Config
from raysid.data import ImageSource, ray_blocks
from raysid.errors import LearnerLost, PeerLost, RunFailed, StorageError
from raysid.roles.build import RunInputs
from raysid.roles.fake_score import IMAGES_UNTIL
from raysid.roles.ranks import TIMEOUT, Ranks
from raysid.storage import for_ray, remove_folder

CALLS_WAITING = 100_000  # at a time: some of every worker; Ray takes 1,000 where nothing is said
END_SECONDS = 10.0  # for a worker to finish what it is at when the run is over


class TrainWorkers:
    """Workers under Ray Train's TorchTrainer, from their start to `close`.

    They take calls from a mailbox. When one dies Ray Train starts all anew, as many as there is room for.

    Args:
        folder: for Ray Train's own notes, which all nodes must see; removed at the end.
        threads: torch's threads in each.
    """

    def __init__(self, config: Config, folder: str, threads: int) -> None:
        self.config = config
        self.folder = UPath(folder)
        self.mailbox: Any = (
            ray.remote(Mailbox)
            .options(num_cpus=0, max_concurrency=CALLS_WAITING, scheduling_strategy=on_this_node())
            .remote()
        )
        own, place = config.colocated, config.resources.worker
        path, filesystem = for_ray(self.folder)
        number = own.num_workers if own.min_workers is None else (own.min_workers, own.num_workers)
        scaling: Any = ScalingConfig  # which mypy takes for that of Ray Train's first version
        run: Any = RunConfig
        trainer = TorchTrainer(
            _serve,
            train_loop_config={"mailbox": self.mailbox, "threads": threads},
            # Ranks that share a GPU cannot use NCCL.
            torch_config=TorchConfig(
                backend="nccl" if place.num_gpus >= 1 else "gloo", timeout_s=int(TIMEOUT.total_seconds())
            ),
            scaling_config=scaling(
                num_workers=number,
                elastic_resize_monitor_interval_s=own.elastic_resize_monitor_interval_s,
                use_gpu=place.num_gpus > 0,
                resources_per_worker=demand(place),
                label_selector=place.label_selector or None,
            ),
            run_config=run(
                name="workers",
                storage_path=path,
                storage_filesystem=filesystem,
                failure_config=FailureConfig(max_failures=config.failure.max_failures),
                callbacks=[_News(self.mailbox)],
            ),
        )
        self._used: str | None = None
        self._ended = threading.Event()
        self._error: BaseException | None = None
        # A daemon: where there is no room for workers Ray Train waits for ever, and no process should for it.
        threading.Thread(target=self._fit, args=(trainer,), name="ray-train", daemon=True).start()

    def next_group(self, say: Say) -> Group:
        """The workers, when all are there; not those that this has returned before, which are gone.

        Raises:
            RunFailed: there is no room for them within `failure.placement_timeout_s`, or they cannot start.
        """
        found: list[Group] = []

        def there(seconds: float) -> bool:
            end = time.monotonic() + seconds
            while True:
                self.check()
                group = get(self.mailbox.group.remote(self._used, min(1.0, max(0.0, end - time.monotonic()))))
                if group is not None:
                    found.append(group)
                if group is not None or time.monotonic() >= end:
                    return group is not None

        fewest = self.config.colocated.min_workers or self.config.colocated.num_workers
        places = [self.config.resources.worker] * fewest
        wait_for_room(there, "the workers", places, self.config.failure.placement_timeout_s, say)
        self._used = found[0].name
        return found[0]

    def check(self) -> None:
        """Raises RunFailed where Ray Train has given up."""
        if self._ended.is_set():
            reason = str(self._error or "it has sent them home").strip() or type(self._error).__name__
            raise RunFailed(
                f"Ray Train has ended the workers: {reason.splitlines()[-1]}; run the same command to resume"
            )

    def close(self) -> None:
        """Send the workers home, and remove Ray Train's notes."""
        controller = None
        with suppress(RayError):
            controller = ray.get(self.mailbox.close.remote())
        if not self._ended.wait(END_SECONDS) and controller is not None:
            with suppress(RayError):  # it ends with this call
                ray.get(controller.abort.remote())  # they wait for each other, or for room
            self._ended.wait(END_SECONDS)
        ray.kill(self.mailbox)
        remove_folder(self.folder)

    def _fit(self, trainer: TorchTrainer) -> None:
        try:
            trainer.fit()
        except BaseException as error:
            self._error = error
        finally:
            self._ended.set()


class Worker:
    """What a driver can ask of one worker: the roles of its share of a run, by the names of a placement's calls.

    Args:
        ranks: the other workers.
        threads: torch's threads.
    """

    def __init__(self, ranks: Ranks, threads: int) -> None:
        self.ranks, self.threads = ranks, threads
        self.placement: LocalPlacement | None = None

    def build(self, inputs: RunInputs, source: ImageSource | None) -> None:
        """Make the roles, from the beginning or a checkpoint."""
        read_blocks = None if source is None else ray_blocks(source)
        self.placement = LocalPlacement(inputs, source, self.threads, self.ranks, read_blocks)

    def step(self, step: int) -> tuple[Any, Any]:
        """Take a step's share; what the two learners say of the whole step."""
        assert self.placement is not None
        result = self.placement.step(step)
        until = self.placement.fake_score.images_until(step + 1)
        return result.fake_score | {IMAGES_UNTIL: until}, result.generator

    def sees(self, file: str, content: str) -> str | None:
        return seen_from(file, content)

    def call(self, call: Call) -> Any:
        """Do what is asked.

        Raises:
            RunFailed: it failed; says where and why.
            PeerLost: another worker is gone.
        """
        method = getattr(self if hasattr(self, call.method) else self.placement, call.method)
        try:
            return method(*call.arguments)
        except (LearnerLost, RunFailed, StorageError):
            raise
        except Exception as error:
            at = f" of step {call.arguments[0]}" if call.method == "step" else ""
            raise RunFailed(f"worker {self.ranks.rank} failed in `{call.method}`{at}: {error}") from error


class _News(UserCallback, ControllerCallback):
    """Tells the mailbox, from Ray Train's controller, what becomes of the workers."""

    def __init__(self, mailbox: Any) -> None:
        self.mailbox = mailbox

    def after_controller_start(self, train_run_context: Any) -> None:
        """See `ControllerCallback`."""
        self.mailbox.begun.remote(ray.get_runtime_context().current_actor)

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """See `ControllerCallback`. Before the workers are touched: what they say of that is no loss."""
        ray.get(self.mailbox.changes.remote(resize_decision.num_workers))

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """See `UserCallback`."""
        told = {rank: what_died(error) for rank, error in worker_exceptions.items()}
        # The others' errors are that they have lost these.
        died = {rank: line for rank, line in told.items() if line.endswith(" died")}
        lines = [f"worker {rank}: {line}" for rank, line in (died or told).items()]
        self.mailbox.lost.remote("; ".join(lines))


def _serve(inputs: dict[str, Any]) -> None:
    """A worker's whole life: it takes calls, and answers them, until it is sent home."""
    mailbox = inputs["mailbox"]
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    name = [uuid.uuid4().hex]
    torch.distributed.broadcast_object_list(name)
    group = Group(name[0], size)
    at_home = threading.Event()
    threading.Thread(target=_leave_at_the_end, args=(mailbox, group.name, at_home), daemon=True).start()
    worker = Worker(Ranks.of_process_group(), inputs["threads"])
    try:
        ray.get(mailbox.join.remote(group, rank))
        number, upcoming = 0, mailbox.take.remote(group.name, rank, 0)
        failed: Exception | None = (
            None  # in a step: the others are still in it, and nothing after it is right
        )
        while (call := ray.get(upcoming)) is not None:
            upcoming = mailbox.take.remote(group.name, rank, number + 1)  # on its way while this one is done
            value, error = None, failed
            if failed is None:
                try:
                    value = worker.call(call)
                except Exception as raised:
                    error = raised
                    failed = raised if call.method == "step" else None
            answer = partial(mailbox.answer.remote, group.name, rank, number)
            if isinstance(value, Future):  # a write: the next calls do not wait for it
                value.add_done_callback(partial(_answer_when_done, answer))
            else:
                answer(value, error)
            if isinstance(error, PeerLost):
                raise error  # Ray Train starts all of them anew
            number += 1
    except RayActorError:
        pass  # the driver is gone, and its mailbox with it
    finally:
        at_home.set()


def _answer_when_done(answer: Callable[..., Any], written: Future[Any]) -> None:
    error = written.exception()
    answer(None if error else written.result(), error)


def _leave_at_the_end(mailbox: Any, group: str, at_home: threading.Event) -> None:
    """End this process where its group is over and the worker does not come to see that: it waits for another one."""
    with suppress(RayError):
        ray.get(mailbox.over.remote(group))
    if not at_home.wait(2 * END_SECONDS):
        os._exit(1)
