"""`--on ray`: a command on the machines of a Ray cluster, which share the disk of its files.

The cluster is the one at RAY_ADDRESS, else the one that runs on this machine.
"""

import logging
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from dragoman.commands.join import join
from dragoman.commands.predict import Job, run_job
from dragoman.errors import DragomanError
from dragoman.predictor import Predictor
from dragoman.settings import Settings

_MAX_RETRIES = 10  # of a part whose worker or machine is lost; Ray's default is 3
_CONNECT_S = 5.0
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
    with _connected(needs) as ray:
        task = ray.remote(_run_part).options(
            num_cpus=needs["CPU"], num_gpus=needs["GPU"], max_retries=_MAX_RETRIES
        )
        values = (Path.cwd(), model, settings, {**options, "threads": threads})
        parts = [(number, workers) for number in range(1, workers + 1)]
        running = {task.remote(*values, replace(job, part=part)): part for part in parts}
        while running:
            [done], _ = ray.wait([*running])
            number, count = running.pop(done)
            try:
                ray.get(done)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, DragomanError):
                    raise error.cause from None
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
    try:
        os.chdir(folder)
    except OSError as error:
        raise DragomanError(
            f"{folder}: not on the machine {socket.gethostname()} of the Ray cluster; run from a folder "
            "on a disk that all machines share"
        ) from error
    run_job(Predictor.load(model, settings, **options), job, lock_s=_LOCK_S)


@contextmanager
def _connected(needs: Mapping[str, int]) -> Iterator[ModuleType]:
    """Give the module `ray`, connected to a cluster with a machine that has what a worker needs."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_NUM_REDIS_GET_RETRIES"] = (
        "2"  # of 40 s, to a cluster that has gone; default: 20
    )
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
    try:
        machines = [one["Resources"] for one in ray.nodes() if one["Alive"]]
        if not any(all(one.get(name, 0) >= needs[name] for name in needs) for one in machines):
            raise DragomanError(
                f"--on ray: a worker needs {needs['CPU']} processors (--threads) and {needs['GPU']} GPUs "
                f"(--device), and no machine of the cluster at {address} has them"
            )
        # Ray prints the logs of lost machines.
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            yield ray
    finally:
        ray.shutdown()
