"""The workers of `placement: colocated`: Ray Train starts and supervises them, and decides on their number."""

from __future__ import annotations

import os
import signal
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
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from upath import UPath

from raysid.actors.capacity import Notify, bundle, on_this_node, this_node, wait_for_capacity
from raysid.actors.local import LocalPlacement
from raysid.actors.mailbox import Call, Group, Mailbox, WorkerProcess
from raysid.actors.results import HANG_SECONDS, describe_death, get
from raysid.actors.shared_folder import seen_from
from raysid.config import Config
from raysid.data import ImageSource, ray_blocks
from raysid.errors import DeviceFailed, LearnerLost, PeerLost, RunFailed, StorageError
from raysid.ray_internals import controller_callback, leave_notices_to_raysid
from raysid.roles.build import RunInputs
from raysid.roles.faults import role_failure
from raysid.roles.messages import StepReport
from raysid.roles.ranks import TIMEOUT, Ranks
from raysid.storage import for_ray, remove_folder

CALLS_WAITING = 100_000  # a few of every worker at a time; Ray's default is 1,000
END_SECONDS = 10.0  # for a worker to finish its call when the run is over


class TrainWorkers:
    """Workers under Ray Train's TorchTrainer, from their start to `close`.

    They take calls from a mailbox. When one dies Ray Train starts a new group, as large as the cluster allows.

    Args:
        folder: for Ray Train's own files, which all nodes must see; removed at the end.
        threads: torch's threads in each worker.
    """

    def __init__(self, config: Config, folder: str, threads: int) -> None:
        self.config = config
        self.folder = UPath(folder)
        self.mailbox: Any = (
            ray.remote(Mailbox)
            .options(num_cpus=0, max_concurrency=CALLS_WAITING, scheduling_strategy=on_this_node())
            .remote(config.failure.max_failures)
        )
        own, resources = config.colocated, config.resources.worker
        path, filesystem = for_ray(self.folder)
        number = own.num_workers if own.min_workers is None else (own.min_workers, own.num_workers)
        scaling: Any = ScalingConfig  # mypy sees that of Ray Train's first version
        run: Any = RunConfig
        trainer = TorchTrainer(
            _serve,
            train_loop_config={"mailbox": self.mailbox, "threads": threads},
            # Ranks that share a GPU cannot use NCCL.
            torch_config=TorchConfig(
                backend="nccl" if resources.num_gpus >= 1 else "gloo", timeout_s=int(TIMEOUT.total_seconds())
            ),
            scaling_config=scaling(
                num_workers=number,
                elastic_resize_monitor_interval_s=own.elastic_resize_monitor_interval_s,
                use_gpu=resources.num_gpus > 0,
                resources_per_worker=bundle(resources),
                label_selector=resources.label_selector or None,
            ),
            run_config=run(
                name="workers",
                storage_path=path,
                storage_filesystem=filesystem,
                # The run counts them itself: only since the last checkpoint that moved it forward.
                failure_config=FailureConfig(max_failures=-1),
                callbacks=[
                    _FailureCallback(self.mailbox),
                    _ChangeCallback(self.mailbox, config.failure.hang_timeout_s or HANG_SECONDS),
                ],
            ),
        )
        leave_notices_to_raysid()
        self._used: str | None = None
        self._ended = threading.Event()
        self._error: BaseException | None = None
        # A daemon: without resources for workers Ray Train waits forever, which must not keep this process alive.
        threading.Thread(target=self._fit, args=(trainer,), name="ray-train", daemon=True).start()

    def next_group(self, notify: Notify) -> Group:
        """Wait for a complete group other than the one returned before, which has ended.

        Raises:
            RunFailed: no resources within `failure.placement_timeout_s`, or the workers cannot start.
        """
        found: list[Group] = []

        def complete(seconds: float) -> bool:
            end = time.monotonic() + seconds
            while True:
                self.check()
                group = get(self.mailbox.group.remote(self._used, min(1.0, max(0.0, end - time.monotonic()))))
                if group is not None:
                    found.append(group)
                if group is not None or time.monotonic() >= end:
                    return group is not None

        fewest = self.config.colocated.min_workers or self.config.colocated.num_workers
        resources = [self.config.resources.worker] * fewest
        timeout = self.config.failure.placement_timeout_s
        wait_for_capacity(complete, "the workers", resources, timeout, notify)
        self._used = found[0].name
        return found[0]

    def check(self) -> None:
        """Raise RunFailed if Ray Train has ended the workers."""
        if self._ended.is_set():
            reason = (
                str(self._error or "Ray Train shut the workers down").strip() or type(self._error).__name__
            )
            raise RunFailed(
                f"Ray Train has ended the workers: {reason.splitlines()[-1]}; run the same command to resume"
            )

    def abandon(self, why: str) -> None:
        """End the present group, of which a worker does not answer: Ray Train starts a new one."""
        processes: list[WorkerProcess] = get(self.mailbox.processes.remote())
        get(self.mailbox.abandon.remote(self._used, why))
        # A worker that hangs may keep its devices for ever, whatever Ray asks of it. The others only wait for it.
        kill = ray.remote(num_cpus=0, max_retries=0)(_kill)
        killed = [
            kill.options(scheduling_strategy=NodeAffinitySchedulingStrategy(process.node, soft=False)).remote(
                process.pid
            )
            for process in processes
        ]
        ray.wait(killed, num_returns=len(killed), timeout=END_SECONDS)

    def close(self) -> None:
        """End the workers, and remove Ray Train's files."""
        controller = None
        with suppress(RayError):
            controller = ray.get(self.mailbox.close.remote())
        if not self._ended.wait(END_SECONDS) and controller is not None:
            with suppress(RayError):  # the controller ends during this call
                ray.get(controller.abort.remote())  # the workers wait for each other, or for resources
            self._ended.wait(END_SECONDS)
        ray.kill(self.mailbox)
        remove_folder(self.folder)

    def _fit(self, trainer: TorchTrainer) -> None:
        try:
            trainer.fit()
        except BaseException as error:  # `check` reports it to the driver's thread
            self._error = error
        finally:
            self._ended.set()


class _ChangeCallback(controller_callback()):  # type: ignore[misc]
    """Reports changes of the group to the mailbox, from Ray Train's controller.

    It is no `UserCallback`: Ray Train calls only the documented methods of these.
    """

    def __init__(self, mailbox: Any, seconds: float) -> None:
        self.mailbox = mailbox
        self.seconds = seconds  # for the driver to save

    def after_controller_start(self, train_run_context: Any) -> None:
        """See `ControllerCallback`."""
        self.mailbox.started.remote(ray.get_runtime_context().current_actor)

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """See `ControllerCallback`. Ray Train ends the workers after this call, so their end counts as no failure.

        The driver writes a checkpoint meanwhile, so that the new workers repeat nothing.
        """
        ray.get(self.mailbox.resize.remote(resize_decision.num_workers, self.seconds))


class _FailureCallback(UserCallback):
    """Reports failed workers to the mailbox, from Ray Train's controller."""

    def __init__(self, mailbox: Any) -> None:
        self.mailbox = mailbox

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """See `UserCallback`."""
        reasons = {rank: describe_death(error) for rank, error in worker_exceptions.items()}
        # The other workers fail because they have lost these.
        died = {rank: line for rank, line in reasons.items() if line.endswith(" died")}
        lines = [f"worker {rank}: {line}" for rank, line in (died or reasons).items()]
        self.mailbox.lost.remote("; ".join(lines))


class Worker:
    """Answers the driver's calls: `build` first, then methods of the roles' placement, and `step` and `sees` of it.

    Args:
        ranks: all workers.
        threads: torch's threads.
    """

    def __init__(self, ranks: Ranks, threads: int) -> None:
        self.ranks, self.threads = ranks, threads
        self.placement: LocalPlacement | None = None

    def build(self, inputs: RunInputs, source: ImageSource | None) -> None:
        """Build the roles, from the beginning or from a checkpoint."""
        read_blocks = None if source is None else ray_blocks(source)
        self.placement = LocalPlacement(inputs, source, self.threads, self.ranks, read_blocks)

    @staticmethod
    def step(roles: LocalPlacement, step: int) -> StepReport:
        """Take this worker's share of a step; the figures are of the whole step."""
        return roles.collect(roles.step(step))

    @staticmethod
    def sees(roles: LocalPlacement, file: str, content: str) -> str | None:
        return seen_from(file, content)

    def answer(self, call: Call) -> Any:
        """Execute a call of the driver.

        Raises:
            RunFailed: it failed; the line names the worker, the method and the step.
            DeviceFailed: this worker's accelerator failed.
            PeerLost: another worker is lost.
        """
        try:
            return call.method(self if call.method is Worker.build else self.placement, *call.arguments)
        except (LearnerLost, RunFailed, StorageError):
            raise
        except Exception as error:  # any failure of a role ends the run with one line
            at = f" of step {call.arguments[0]}" if call.method is Worker.step else ""
            what = f"worker {self.ranks.rank} failed in `{call.method.__name__}`{at}"
            raise role_failure(what, error) from error


def _serve(inputs: dict[str, Any]) -> None:
    """Take calls and answer them until the group ends: the function that Ray Train runs in each worker."""
    mailbox = inputs["mailbox"]
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    name = [uuid.uuid4().hex]
    torch.distributed.broadcast_object_list(name)
    group = Group(name[0], size)
    ended = threading.Event()
    threading.Thread(target=_exit_with_group, args=(mailbox, group.name, ended), daemon=True).start()
    worker = Worker(Ranks.from_process_group(), inputs["threads"])
    try:
        ray.get(mailbox.join.remote(group, rank, WorkerProcess(this_node(), os.getpid())))
        number, upcoming = 0, mailbox.take.remote(group.name, rank, 0)
        # Once a step has failed the other workers are still in it, so all later calls fail too.
        failed: Exception | None = None
        while (call := ray.get(upcoming)) is not None:
            upcoming = mailbox.take.remote(group.name, rank, number + 1)  # fetched during this call
            value, error = None, failed
            if failed is None:
                try:
                    value = worker.answer(call)
                except Exception as raised:  # the driver gets it as the answer
                    error = raised
                    failed = raised if call.method is Worker.step else None
            answer = partial(mailbox.answer.remote, group.name, rank, number)
            if isinstance(value, Future):  # a write: the next calls do not wait for it
                value.add_done_callback(partial(_answer_when_done, answer))
            else:
                answer(value, error)
            if isinstance(error, PeerLost | DeviceFailed):
                raise error  # Ray Train starts a new group
            number += 1
        ray.get(mailbox.ended.remote(group.name))
    except RayActorError:
        pass  # the driver and its mailbox have ended
    finally:
        ended.set()


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _answer_when_done(answer: Callable[..., Any], written: Future[Any]) -> None:
    error = written.exception()
    answer(None if error else written.result(), error)


def _exit_with_group(mailbox: Any, group: str, ended: threading.Event) -> None:
    """Exit this process some time after its group has ended: the worker may wait for another one, which is lost."""
    with suppress(RayError):
        ray.get(mailbox.over.remote(group))
    if not ended.wait(2 * END_SECONDS):
        os._exit(1)
