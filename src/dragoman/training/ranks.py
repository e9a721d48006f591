"""Processes that train one model together: found or started, what they agree on, and how they end.

torchrun and SLURM's srun start them on all machines, each with its rank in the environment. Alone on
a machine, the process that calls `fit` is rank 0, and starts the others. Rank 0 reads, decides,
reports and writes; the others compute along, and leave before the scores.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from threading import Event, Thread
from typing import IO, Any, Literal, cast

import lightning
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import (
    LightningEnvironment,
    find_free_network_port,
)
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy
from rich.console import Console
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from dragoman.engines.ctranslate2_engine import count_cores
from dragoman.errors import DragomanError, SettingsError, Stopped, TrainingError
from dragoman.settings import Settings, TrainingSettings
from dragoman.training.device import find_device
from dragoman.training.run_context import print_plain

_JOIN = timedelta(minutes=3)  # until all have started
_STEP = timedelta(minutes=10)  # the longest wait within a step
_PREPARE = timedelta(days=7)  # one rank may read the pairs for long
_END_S = 15.0  # for a rank to notice that another has died, where only a timeout would tell it

RESUME_OPTIONS = "DRAGOMAN_RESUME_OPTIONS"  # a variable: what the command to resume needs as well

_VARIABLES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    *("GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"),
)

# What `fit` runs in the processes that it starts.
_CODE = (
    "import sys; from dragoman.training.ranks import end_with_parent; end_with_parent(); "
    "from dragoman import fit; fit((), sys.argv[1], {'training': {'accelerator': sys.argv[2]}})"
)


class Ranks:
    """The processes of a training, seen from one of them. Without others: one rank, rank 0.

    `num_threads` are those of torch before it got its share of the cores of this machine.
    """

    def __init__(self, console: Console) -> None:
        self.rank = self.local_rank = 0
        self.num_ranks = self.num_local = 1
        self.console = console
        self.num_threads = torch.get_num_threads()
        self.is_joined = False
        # Of this rank: shared in `exchange`, where the others wait; known to them; or its own.
        self.errors: Literal["shared", "known", "own"] = "shared"
        self._hosts: list[str] = []
        self._children: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
        self._before = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
        self._owns_group = False
        self._ended = Event()

    @property
    def num_nodes(self) -> int:
        """The number of machines."""
        return self.num_ranks // self.num_local

    def join(self, variables: Mapping[str, str], device_type: str) -> None:
        """Take the rank in `variables` (those of torchrun), and wait for all others.

        Raises:
            SettingsError: Rank 0 cannot be reached, its port is taken, or other ranks are missing.
            SystemExit: That is so, and another rank reports it.
        """
        os.environ.update(variables)
        self.rank, self.num_ranks = int(variables["RANK"]), int(variables["WORLD_SIZE"])
        self.local_rank = int(variables["LOCAL_RANK"])
        self.num_local = int(variables["LOCAL_WORLD_SIZE"])
        if self.rank > 0:
            self.console = Console(quiet=True)
            warnings.simplefilter("ignore")
        found_first = False
        try:
            if not dist.is_initialized():
                backend = "nccl" if device_type == "cuda" else "gloo"
                store, _, _ = next(rendezvous("env://", self.rank, self.num_ranks, timeout=_JOIN))
                found_first = True
                keys = [f"joined/{rank}" for rank in range(self.num_ranks)]
                store.set(keys[self.rank], "")
                try:  # where torchrun holds the store, it has not waited
                    store.wait(keys, _JOIN)
                except dist.DistStoreError as error:
                    late = ", ".join(str(i) for i, key in enumerate(keys) if not store.check([key]))
                    message = f"after {_JOIN.total_seconds():.0f} s, not started: rank {late}"
                    raise RuntimeError(message) from error
                store.set_timeout(_STEP)
                dist.init_process_group(
                    *(backend, None, _STEP, self.num_ranks, self.rank),
                    store=PrefixStore("default_pg", store),
                )
                self._owns_group = True
            self._group = dist.new_group(backend="gloo", timeout=_PREPARE)
        except (RuntimeError, ValueError) as error:
            if self.rank > 0 and (found_first or self.local_rank > 0):
                raise SystemExit(2) from error  # rank 0 reports, or the first of this machine
            place = ", ".join(
                f"{name} {variables[name]}" for name in ("MASTER_ADDR", "MASTER_PORT")
            )
            reason = str(error).partition("\n")[0]
            remedy = "check that all processes have started, and that they reach rank 0 there"
            if "EADDRINUSE" in reason or "in use" in reason:
                reason, remedy = "this port is in use", "set MASTER_PORT to a free one"
            raise SettingsError(f"{place}: rank {self.rank}: {reason}; {remedy}") from error
        self.is_joined = True

    def start(self, training: TrainingSettings, out: Path) -> None:
        """Start the processes of `training.devices`, unless torchrun or srun has started all.

        Raises: SettingsError, when there are fewer devices, or other processes than these settings say.
        """
        device_type, devices = find_device(training), training.devices
        counts = {"cpu": count_cores, "cuda": torch.cuda.device_count}
        count = counts[device_type]() if device_type in counts else 1
        if devices == "auto":
            devices = count if device_type == "cuda" else 1
        faults = []
        if self.is_joined:
            if device_type == "cuda" and self.num_local > count:
                faults.append(f"{self.num_local} processes here, but only {count} GPUs; start fewer, "
                              "and let each see all GPUs")  # fmt: skip
            faults += [
                f"training.{name}: {wanted}, but {found} were started; leave it out"
                for name, wanted, found in (
                    ("devices", training.devices, self.num_local),
                    ("num_nodes", training.num_nodes, self.num_nodes),
                )
                if wanted not in (1, "auto", found)
            ]
        elif training.num_nodes > 1:
            faults.append(
                f"training.num_nodes: {training.num_nodes}, but this process is alone; start the "
                "command on all machines by torchrun or srun"
            )
        elif devices > count:
            what = "processor cores" if device_type == "cpu" else f"devices of type {device_type}"
            faults.append(
                f"training.devices: {devices}, but this machine has {count} {what}; set fewer"
            )
        if faults:
            raise SettingsError.gather(faults)
        if self.is_joined or (devices == 1 and training.strategy == "auto"):
            return
        shared = {
            "GROUP_RANK": "0",
            "WORLD_SIZE": str(devices),
            "LOCAL_WORLD_SIZE": str(devices),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": os.environ.get("MASTER_PORT") or str(find_free_network_port()),
        }
        for rank in range(1, devices):
            errors = tempfile.TemporaryFile()  # noqa: SIM115
            child = subprocess.Popen(
                [sys.executable, "-P", "-c", _CODE, str(out), device_type],
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE,  # closes with this process
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
            self._children.append((child, errors))
        Thread(target=self._watch, daemon=True).start()
        self.join({**shared, "RANK": "0", "LOCAL_RANK": "0"}, device_type)

    def meet(self, checkpoint: Path | None) -> Path | None:
        """Compare the versions of all ranks, and share the cores; return the checkpoint of rank 0."""
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        own = {"version": version("dragoman"), "host": socket.gethostname(), "cores": cores}
        found = self.exchange({**own, "checkpoint": checkpoint})
        self._hosts = [one["host"] for one in found]
        first = found[0]["version"]
        if faults := [
            f"{self.name(rank)}: dragoman {one['version']}, but rank 0 has {first}; install the "
            "same version on all machines"
            for rank, one in enumerate(found)
            if one["version"] != first
        ]:
            raise SettingsError.gather(faults)
        if "OMP_NUM_THREADS" not in os.environ:  # which is the number for each process
            sharing = sum(all(one[key] == own[key] for key in ("host", "cores")) for one in found)
            torch.set_num_threads(max(1, self.num_threads // sharing))
        return cast(Path | None, found[0]["checkpoint"])

    def exchange(self, own: object, error: DragomanError | None = None) -> list[Any]:
        """Return what each rank gives; all call it. The `error` of one rank ends all of them."""
        if not self.is_joined:
            return [own]
        found: list[Any] = [None] * self.num_ranks
        dist.all_gather_object(found, (own, error and str(error)), group=self._group)
        messages: dict[str, int] = {}
        for rank, (_, message) in enumerate(found):
            if message:
                messages.setdefault(message, rank)
        if messages and error is None:
            self.errors = "known"
            raise DragomanError.gather(
                [f"{self.name(rank)}: {message}" for message, rank in messages.items()]
            )
        return [one for one, _ in found]

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Let an error in the body end this rank: the others compute, and do not listen."""
        self.errors = "own"
        yield
        self.errors = "shared"

    def name(self, rank: int) -> str:
        """Return the rank, with its machine, for messages."""
        host = f" on {self._hosts[rank]}" if len(set(self._hosts)) > 1 else ""
        return f"rank {rank}{host}"

    def choose_strategy(self) -> tuple[Strategy | str, ClusterEnvironment]:
        """Return how Lightning's Trainer works with the other ranks, and where it finds its own."""
        if not self.is_joined:
            # Also in a job of SLURM, whose variables Lightning would else check and obey.
            return "auto", LightningEnvironment()
        # Our buffers are constants and the sums of a rank: they are not to be broadcast.
        return _RanksStrategy(forward_sync_buffers=False), TorchElasticEnvironment()

    def explain_loss(self, error: BaseException) -> TrainingError | None:
        """Return the error to report if `error` says that a rank has ended; None: it does not.

        Raises: SystemExit, on a rank that is not the one to report it.
        """
        if not self.is_joined or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            return None
        self.errors = "own"
        self._ended.set()
        if self.rank == 1:  # it reports if rank 0 does not live, which holds the store
            time.sleep(1.0)
            store = dist.distributed_c10d._get_default_store()
            with suppress(RuntimeError):
                store.set_timeout(timedelta(seconds=5))
                if store.add("alive", 1):
                    raise SystemExit(2) from error
        elif self.rank > 1:
            raise SystemExit(2) from error
        ended = self._describe_ended(time.monotonic() + 5.0)
        if not self._children:  # the others look whether this one lives
            time.sleep(3.0)
        reason = str(error).partition("\n")[0]
        return TrainingError(ended or f"another rank has ended, or cannot be reached ({reason})")

    def leave(self) -> None:
        """End the work with the other ranks."""
        self._ended.set()
        if self._owns_group:
            dist.destroy_process_group()
            self._owns_group = False
        until_s = time.monotonic() + (_END_S if self.is_joined else 0.0)
        for child, errors in self._children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, until_s - time.monotonic()))
            child.kill()
            child.communicate()
            errors.close()
        self._children = []
        if self.is_joined:
            torch.set_num_threads(self.num_threads)
        self.is_joined = False
        for name in _VARIABLES:
            os.environ.pop(name, None)
            if name in self._before:
                os.environ[name] = self._before[name]

    def _describe_ended(self, until_s: float) -> str:
        """Return which of the started processes have failed, and how; "": none."""
        while self._children and time.monotonic() < until_s:
            found = []
            for rank, (child, errors) in enumerate(self._children, start=1):
                if code := child.poll():
                    errors.seek(0)
                    said = errors.read().decode(errors="replace").strip().splitlines()
                    how = f"ended by {signal.Signals(-code).name}" if code < 0 else "failed"
                    found.append(f"rank {rank} {how}" + (f": {said[-1]}" if said else ""))
            if found:
                return "; ".join(found)
            time.sleep(0.1)
        return ""

    def _watch(self) -> None:
        """End this process if another has failed, and waiting for it does not end by itself."""
        while not self._ended.wait(0.5):
            if any(child.poll() for child, _ in self._children) and not self._ended.wait(_END_S):
                ended = self._describe_ended(time.monotonic() + 1.0)
                print_plain(self.console, f"dragoman: {ended}")
                for child, _ in self._children:
                    child.kill()
                os._exit(2)


class _RanksStrategy(DDPStrategy):
    """Lightning's DDP for processes that are there: it starts none, so it works in notebooks too."""

    def _configure_launcher(self) -> None:
        self._launcher = None


@contextmanager
def join_ranks(settings: Settings, console: Console) -> Iterator[Ranks]:
    """Give the ranks of which this process is one, once all that torchrun or srun started are there.

    At the end, and after an error, this one leaves. An error of any rank before the training ends
    all of them, and is reported by rank 0.
    """
    ranks = Ranks(console)
    try:
        if variables := find_variables():
            ranks.join(variables, find_device(settings.training))
        yield ranks
    except DragomanError as error:
        if ranks.is_joined and ranks.errors == "shared":
            ranks.exchange(None, error)
            ranks.errors = "known"
        if ranks.rank == 0 or not ranks.is_joined:
            raise
        if ranks.errors == "own":
            raise type(error)(f"{ranks.name(ranks.rank)}: {error}") from error
        raise SystemExit(2) from error
    except Stopped as stop:
        if ranks.rank > 0:
            raise SystemExit(stop.exit_code) from stop
        raise
    finally:
        ranks.leave()


def end_with_parent() -> None:
    """End this process when its standard input closes: its parent has ended."""

    def wait() -> None:
        # Not by sys.stdin: Python aborts if a thread still reads from it at the end.
        while os.read(0, 1024):
            pass
        os._exit(1)

    Thread(target=wait, daemon=True).start()


def disarm(trainer: lightning.Trainer) -> None:
    """Take out what Lightning does about SIGTERM: `GracefulStop` does it, with the sums of a step.

    Lightning 2.6.6 broadcasts a flag and waits for it at every micro-batch (issue 21487), and its
    signal handler broadcasts in the middle of other operations.
    """
    if trainer.world_size > 1:
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def requeue_job() -> str:
    """Put this job of SLURM back into its queue; return what became of it, for a message."""
    job = os.environ["SLURM_JOB_ID"]
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", "").strip() or error
        return f"warning: job {job} is not requeued: {reason}"
    return f"job {job} is requeued"


def find_variables() -> dict[str, str]:
    """Return the rank of this process, by the names of torchrun; empty: it is alone."""
    found = dict(os.environ)
    if "RANK" not in found and int(found.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        nodes = SLURMEnvironment.resolve_root_node_address(found["SLURM_STEP_NODELIST"])
        found = {
            "RANK": found["SLURM_PROCID"],
            "WORLD_SIZE": found["SLURM_STEP_NUM_TASKS"],
            "LOCAL_RANK": found["SLURM_LOCALID"],
            "GROUP_RANK": found["SLURM_NODEID"],
            "LOCAL_WORLD_SIZE": str(
                int(found["SLURM_STEP_NUM_TASKS"]) // int(found["SLURM_STEP_NUM_NODES"])
            ),
            "MASTER_ADDR": found.get("MASTER_ADDR", nodes),
            # As Lightning: the same on all machines, different for each job.
            "MASTER_PORT": found.get("MASTER_PORT", str(15_000 + int(found["SLURM_JOB_ID"][-4:]))),
        }
    found.setdefault("GROUP_RANK", found.get("NODE_RANK", "0"))
    found.setdefault("LOCAL_WORLD_SIZE", found.get("WORLD_SIZE", "1"))
    if not found.keys() >= {*_VARIABLES} or found["WORLD_SIZE"] == "1":
        return {}
    return {name: found[name] for name in _VARIABLES}
