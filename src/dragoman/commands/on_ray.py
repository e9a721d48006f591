"""`--on ray`: a command on the machines of a Ray cluster, which share the disk of its files.

The cluster is the one at RAY_ADDRESS, else the one that runs on this machine.
"""

import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dragoman.commands.join import join
from dragoman.commands.predict import Job, run_job
from dragoman.errors import DragomanError, SettingsError
from dragoman.predictor import Predictor
from dragoman.settings import Settings, TrainingSettings

if TYPE_CHECKING:
    from dragoman.commands.tune import Runner
    from dragoman.training.graceful_stop import SignalHandler

_MAX_RETRIES = 10  # of a part whose worker or machine is lost; Ray's default is 3
_CONNECT_S = 5.0
_SAY_S = 60.0  # from one message about waiting to the next
_LOCK_S = 120.0  # for the lock of a lost worker, which may outlive its machine's connection


def predict(
    model: Sequence[Path],
    settings: Settings,
    job: Job,
    *,
    workers: int,
    options: dict[str, Any],
) -> list[str]:
    """Predict in `workers` parts side by side, join them, and return lines for the user.

    A part is a task of Ray: on another worker it resumes where a lost one stopped. The outputs are
    those of `run_job`, byte for byte.

    Args:
        model: Model folders, and `settings` over their own, as for `Predictor.load`.
        options: The other arguments of `Predictor.load`. Each worker has `threads` (None: 1) processors,
            and a GPU if `device` is one.

    Raises:
        DragomanError: As `run_job` and `join`; Ray is not installed; there is no cluster, or it has no
            machine for a worker; or workers die again and again.
    """
    if job.input is None or job.output is None or job.part is not None:
        raise DragomanError(
            "--on ray: give --input and --output, and no --part: Ray takes all parts"
        )
    threads = options["threads"] or 1
    needs = {"CPU": threads, "GPU": int(options["device"].startswith("cuda"))}
    with _connected() as ray:
        if not _count_room(ray, needs):
            raise DragomanError(
                f"--on ray: a worker needs {threads} processors (--threads) and {needs['GPU']} GPUs "
                "(--device), and no machine of the Ray cluster has them"
            )
        start = _prepare(ray, _run_part, needs, {"max_retries": _MAX_RETRIES})
        values = (Path.cwd(), model, settings, {**options, "threads": threads})
        parts = [(number, workers) for number in range(1, workers + 1)]
        running = {start(*values, replace(job, part=part)): part for part in parts}
        while running:
            [done], _ = ray.wait([*running])
            number, count = running.pop(done)
            try:
                ray.get(done)
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError as error:
                raise DragomanError(
                    f"--on ray: part {number}/{count} lost its worker {_MAX_RETRIES + 1} times; look "
                    f"for the cause, such as too little memory; the same command resumes: {error}"
                ) from error
            print(f"dragoman: part {number}/{count} is done", file=sys.stderr)
    return join(job.output, workers)


def _run_part(
    folder: Path, model: Sequence[Path], settings: Settings, options: dict[str, Any], job: Job
) -> None:
    """Predict a part in a worker; relative paths are those of `folder`."""
    _enter(folder)
    run_job(Predictor.load(model, settings, **options), job, lock_s=_LOCK_S)


# ------------------------------------------------------------------ fit


def fit(words: Sequence[str], out: Path, training: TrainingSettings) -> int:
    """Train on `training.devices` workers of the cluster, and return the exit code of rank 0.

    Each worker runs the command `fit` with `words`, as under torchrun, on one GPU, or on one processor
    if the cluster has no GPU or `training.accelerator` is cpu. If a worker or its machine is lost, all
    start again, and resume from the last checkpoint; as long as the cluster is too small, they wait.

    Raises:
        DragomanError: There is no cluster, it has too few devices, or workers die again and again.
    """
    from dragoman.commands.fit_setup import lock_folder, name_folders
    from dragoman.training.checkpoints import list_checkpoints
    from dragoman.training.resume import CHECKPOINTS

    def stamp_checkpoints() -> set[tuple[Path, int]]:
        found = list_checkpoints(name_folders(out)[1] / CHECKPOINTS)
        return {(path, path.stat().st_mtime_ns) for path in found}

    if training.num_nodes > 1:
        raise SettingsError("training.num_nodes: --on ray finds the machines; leave it out")
    words = _leave_out(words, "--on", "--training.devices")
    with _connected() as ray:
        found, name = ray.cluster_resources(), _name_device(ray, training)
        num_gpus = int(found.get("GPU", 0)) if name == "GPU" else 0
        devices = max(num_gpus, 1) if training.devices == "auto" else training.devices
        if devices > found.get(name, 0):
            raise SettingsError(
                f"training.devices: {devices}, but the Ray cluster has {found.get(name, 0):g} of the "
                f"resource {name}; set at most those"
            )
        words += ["--training.devices", "1", "--training.num_nodes", str(devices)]
        needs = {"CPU": 1, "GPU": int(name == "GPU")}
        before = stamp_checkpoints()
        for _ in range(_MAX_RETRIES + 1):
            codes = _run_ranks(ray, words, devices, needs)
            if codes and min(codes) >= 0:  # negative: killed by a signal
                return codes[0]
            # Until this run has a checkpoint, those there are may be of the one that it overwrites.
            if "--overwrite" not in words or stamp_checkpoints() != before:
                words = [*_leave_out(words, "--overwrite", "--resume"), "--resume", "auto"]
            with lock_folder(out, _LOCK_S):  # once the ranks that were left have ended
                print("dragoman: a worker was lost; all start again", file=sys.stderr)
    raise DragomanError(
        f"--on ray: workers were lost {_MAX_RETRIES + 1} times; look for the cause, such as too little "
        "memory; with --resume auto, the same command resumes"
    )


def _run_ranks(
    ray: ModuleType, words: Sequence[str], num_ranks: int, needs: Mapping[str, int]
) -> list[int]:
    """Start all ranks, show what rank 0 says, and return their exit codes; []: a worker was lost."""
    from dragoman.training.ranks import RESUME_OPTIONS

    group = ray.util.placement_group([dict(needs)] * num_ranks)
    try:
        while not group.wait(_SAY_S):
            print(f"dragoman: waiting until {num_ranks} devices are free", file=sys.stderr)
        place = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
        ranks = []
        for rank in range(
            num_ranks
        ):  # three calls at a time: `stop`, while `wait` and `read_line` wait
            options = {"max_concurrency": 3, "scheduling_strategy": place(group, rank)}
            ranks.append(_prepare(ray, _Rank, needs, options)())
        # Each worker is a machine of its own, with one device: Ray shows it no other one.
        shared = {
            **ray.get(ranks[0].find_address.remote()),
            "WORLD_SIZE": str(num_ranks),
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            RESUME_OPTIONS: f" --on ray --training.devices {num_ranks}",
        }
        own = [{**shared, "RANK": str(i), "GROUP_RANK": str(i)} for i in range(num_ranks)]
        starting = zip(ranks, own, strict=True)
        ray.get([rank.start.remote(Path.cwd(), words, variables) for rank, variables in starting])
        waiting = {one.wait.remote(): rank for rank, one in enumerate(ranks)}
        waiting[ranks[0].read_line.remote()] = -1
        codes, is_stopping = [0] * num_ranks, False
        while waiting:
            try:
                [done], _ = ray.wait([*waiting])
            except KeyboardInterrupt:
                if is_stopping:
                    raise
                is_stopping = True
                ray.get(ranks[0].stop.remote())  # all ranks stop together, with a checkpoint
                continue
            rank, found = waiting.pop(done), ray.get(done)
            if rank >= 0:
                codes[rank] = found
            elif found:
                print(found, end="", file=sys.stderr)
                waiting[ranks[0].read_line.remote()] = -1
        return codes
    except ray.exceptions.RayActorError:
        return []
    finally:
        ray.util.remove_placement_group(group)


class _Rank:
    """A rank of a training, in a process of its own: it may end as it likes."""

    def find_address(self) -> dict[str, str]:
        """Return this machine, and a free port of it."""
        with socket.socket() as one:
            one.bind(("", 0))
            port = one.getsockname()[1]
        return {
            "MASTER_ADDR": import_module("ray").util.get_node_ip_address(),
            "MASTER_PORT": str(port),
        }

    def start(self, folder: Path, words: Sequence[str], variables: Mapping[str, str]) -> None:
        """Start the command; not when the actor is made, where an error would be a lost worker."""
        _enter(folder)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CODE, *words],
            env={**os.environ, **variables},
            stdin=subprocess.PIPE,  # closes with the worker
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def read_line(self) -> str:
        assert self._process.stderr is not None
        return self._process.stderr.readline()

    def wait(self) -> int:
        return self._process.wait()

    def stop(self) -> None:
        self._process.terminate()


_CODE = (
    "import sys; from dragoman.training.ranks import end_with_parent; end_with_parent(); "
    "from dragoman.cli import main; sys.exit(main())"
)


def _leave_out(words: Sequence[str], *options: str) -> list[str]:
    """Return the words of a command line without these options and their values."""
    kept, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if word.partition("=")[0] not in options:
            kept.append(word)
        elif word in ("--on", "--training.devices") or (word, *rest[:1]) == ("--resume", "auto"):
            rest.pop(0)
    return kept


# ------------------------------------------------------------------ tune


def run_trials(runner: "Runner", workers: int, signals: "SignalHandler") -> None:
    """Run the trials of a search, `workers` side by side, each in a process of its own on the cluster.

    A trial has as many processors as OMP_NUM_THREADS (1 without it), and a GPU, if the cluster has one
    and `training.accelerator` is not cpu. The first one prepares the data; then the others start. A
    trial whose worker or machine is lost is repeated.

    Raises:
        DragomanError: There is no cluster, or it has no room for `workers`, or does not share the disk.
        TrainingError: The trial with the settings that `fit` chooses failed.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = max(1, int(given)) if given.isdecimal() else 1
    with _connected() as ray:
        signals.install()  # Ray has taken SIGTERM for itself
        num_gpus = int(_name_device(ray, runner.settings.training) == "GPU")
        needs = {"CPU": threads, "GPU": num_gpus}
        if workers > (room := _count_room(ray, needs)):
            raise SettingsError(
                f"--workers: {workers}, but the Ray cluster has room for {room}: each takes {threads} "
                f"processors (OMP_NUM_THREADS) and {num_gpus} GPUs of a machine; "
                "set fewer, or start more machines"
            )
        # Three calls at a time: `read_report` and `answer`, while `train` runs.
        start = _prepare(ray, _TrialWorker, needs, {"max_concurrency": 3})
        ending, reporting, have_reported = dict[Any, Any](), dict[Any, Any](), set[int]()
        while True:
            while (
                len(ending) < workers
                and (have_reported or not ending)
                and runner.may_start(len(ending))
            ):
                trial, train = runner.ask()
                worker = start()
                score = worker.train.remote(Path.cwd(), runner.folder, threads, train)
                ending[score] = trial, worker
                reporting[worker.read_report.remote()] = trial, worker
            if not ending:
                return
            found, _ = ray.wait([*ending, *reporting], timeout=_SAY_S)
            if not found:
                if not any(trial.number in have_reported for trial, _ in ending.values()):
                    print(
                        "dragoman: waiting for free devices of the cluster, or for the data",
                        file=sys.stderr,
                    )
                continue
            [done] = found
            if done in ending:
                trial, worker = ending.pop(done)
                reporting = {key: one for key, one in reporting.items() if one[1] is not worker}
                runner.finish(trial, partial(_take_score, ray, done))
                ray.kill(worker)
            else:
                trial, worker = reporting.pop(done)
                with suppress(ray.exceptions.RayError):  # a lost worker: `train` ends with it, too
                    worker.answer.remote(runner.report(trial, *ray.get(done)))
                    have_reported.add(trial.number)
                    reporting[worker.read_report.remote()] = trial, worker


def _take_score(ray: ModuleType, done: object) -> float:
    """Return what `train_trial` returned in a worker, or raise what it raised."""
    from dragoman.commands.tune import WorkerLostError

    try:
        return float(ray.get(done))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise WorkerLostError(
            "the worker was lost; if that is so again and again, look for the cause, such as too "
            "little memory"
        ) from error


class _TrialWorker:
    """Trains a trial; at each of its reports, it waits for the answer of the search."""

    def __init__(self) -> None:
        self._reports = SimpleQueue[tuple[str, float | None, int]]()
        self._answers = SimpleQueue[bool]()

    def train(self, folder: Path, trials: Path, threads: int, train: Callable[..., float]) -> float:
        import torch

        _enter(folder / trials)
        _enter(folder)
        torch.set_num_threads(threads)
        return train(self._report)

    def _report(self, *report: Any) -> bool:  # noqa: ANN401
        self._reports.put(report)
        return self._answers.get()

    def read_report(self) -> tuple[str, float | None, int]:
        return self._reports.get()

    def answer(self, is_pruned: bool) -> None:
        self._answers.put(is_pruned)


# ------------------------------------------------------------------ the cluster


def _name_device(ray: ModuleType, training: TrainingSettings) -> str:
    """Return what a training needs one of: GPU, if the cluster has any, or CPU."""
    if training.accelerator == "cpu":
        return "CPU"
    return "GPU" if training.accelerator == "cuda" or "GPU" in ray.cluster_resources() else "CPU"


def _count_room(ray: ModuleType, needs: Mapping[str, int]) -> int:
    """Return how many workers, each with these processors and GPUs, the machines can hold."""
    machines = [one["Resources"] for one in ray.nodes() if one["Alive"]]
    used = {name: count for name, count in needs.items() if count}
    return sum(min(int(one.get(name, 0) // used[name]) for name in used) for one in machines)


def _prepare(
    ray: ModuleType, what: Callable[..., Any], needs: Mapping[str, int], options: Mapping[str, Any]
) -> Callable[..., Any]:
    """Return what starts the function or class `what` on a worker that has what it needs."""
    remote = ray.remote(what).options(num_cpus=needs["CPU"], num_gpus=needs["GPU"], **options)
    return remote.remote  # type: ignore[no-any-return]


def _enter(folder: Path) -> None:
    """Make relative paths in a worker those of `folder`."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise DragomanError(
            f"{folder}: not on the machine {socket.gethostname()} of the Ray cluster; run from a folder "
            "on a disk that all machines share"
        ) from error


@contextmanager
def _connected() -> Iterator[ModuleType]:
    """Give the module `ray`, connected to the cluster; raise the errors of workers as they were."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Of 40 s each, to a cluster that has gone; default: 20.
    os.environ["RAY_NUM_REDIS_GET_RETRIES"] = "2"
    ray = import_module("ray")
    address = os.environ.get("RAY_ADDRESS") or "auto"
    try:
        if place := re.fullmatch(r"(?:ray://)?(.+):(\d+)", address):
            socket.create_connection((place[1], int(place[2])), _CONNECT_S).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise DragomanError(
            f"--on ray: no Ray cluster at {address} (RAY_ADDRESS): start one by `ray start --head`, or "
            f"name its address: {error}"
        ) from error
    # Ray prints the logs of lost machines, until its end.
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        try:
            yield ray
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, DragomanError):
                raise error.cause from None
            raise
        finally:
            ray.shutdown()
