"""`dragoman serve`: models behind HTTP, until SIGTERM."""

import os
import select
import signal
import socket
import stat
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

from dragoman.engines.ctranslate2_engine import count_cores
from dragoman.engines.engine import QuantizationChoice
from dragoman.engines.load import EngineName
from dragoman.errors import DragomanError, SettingsError
from dragoman.predictor import Predictor
from dragoman.serving.messages import Limits
from dragoman.settings import Settings

_LONGEST_TOKEN = 1000
_LARGEST_PORT = 65_535
_WORKER_STARTED = b"started"
_RETRY_S = 5  # after a worker that could not load the models


def serve(
    models: Sequence[str],
    settings: Settings | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    limits: Limits | None = None,
    token_file: Path | None = None,
    corrections: Path | None = None,
    libretranslate: bool = False,
    engine: EngineName = "auto",
    device: str = "auto",
    threads: int | None = None,
    quantization: QuantizationChoice = "auto",
) -> None:
    """Serve models over HTTP; runs in the main thread until SIGTERM, which exits with code 0.

    Args:
        models: Folders, or NAME=FOLDER, or NAME=FOLDER,FOLDER for an ensemble.
        settings: Its data and decoding sections override the settings of the models.
        port: 0: a free one.
        workers: Processes at the same port, each with the models, the limits and a queue of its
            own; one that dies is started again.
        corrections: TSV that gets the corrections of outputs.
        threads: Of each worker; None: its share of the cores.

    Raises:
        DragomanError: A model cannot be loaded, the port is in use, a package is missing, ...
    """
    import uvicorn

    if workers > 1 and not hasattr(os, "fork"):
        raise SettingsError(f"--workers {workers}: this system cannot fork; serve with one")
    limits = limits or Limits()
    if token_file is not None:
        limits = replace(limits, token=_read_token(token_file))
    share = threads or max(1, count_cores() // workers)
    load = partial(
        Predictor.load,
        settings=settings,
        engine=engine,
        device=device,
        threads=threads if workers == 1 else share,
        quantization=quantization,
    )
    named = _name_models(models)
    with _listen(host, port) as listener:
        address, used_port = listener.getsockname()[:2]

        def announce() -> None:
            shown = f"[{address}]" if ":" in address else address
            _say(f"serving {', '.join(named)} at http://{shown}:{used_port}")
            if not limits.token and address not in ("127.0.0.1", "::1"):
                _say("without --token-file, whoever reaches this address may use it")

        def run(started: Callable[[], None]) -> None:
            from dragoman.serving.app import Corrections, build_app
            from dragoman.serving.served_models import ServedModels, Service

            # Until the server runs, and after it has ended: uvicorn then raises the signal again.
            # Not sys.exit, which would wait for searches whose requests were given up.
            signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
            served = ServedModels(named, load)
            predictors = [one.predictor for one in served.by_name.values()]
            app = build_app(
                Service(served, limits, workers=share),
                limits,
                corrections=None if corrections is None else Corrections(corrections, predictors),
                libretranslate=libretranslate,
            )
            config = uvicorn.Config(
                app,
                loop="asyncio",  # uvloop was no faster here
                http="httptools",
                ws="none",
                log_level="warning",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=4 * limits.concurrent,  # connections
                timeout_graceful_shutdown=int(limits.timeout_s) + 1,
            )
            started()
            uvicorn.Server(config).run(sockets=[listener])

        if workers == 1:
            run(announce)
        else:
            _Workers(run, workers).supervise(announce)


class _Workers:
    """Forked processes that run the server, each with what it loads itself.

    uvicorn's own supervisor (0.54) keeps silent about a worker that dies, starts one that cannot
    load its models again and again, and restarts all on SIGHUP.

    Args:
        run: Serves until SIGTERM; calls its argument when the models are loaded.
    """

    def __init__(self, run: Callable[[Callable[[], None]], None], count: int) -> None:
        self._run, self._count = run, count
        self._pids: set[int] = set()
        self._stops = {signal.SIGTERM, signal.SIGINT}
        self._signals = {*self._stops, signal.SIGHUP, signal.SIGCHLD, signal.SIGALRM}

    def supervise(self, started: Callable[[], None]) -> None:
        """Start the workers, and others for those that die, until SIGTERM or SIGINT ends all.

        Raises: DragomanError, when one cannot be started at first.
        """
        for number in (signal.SIGCHLD, signal.SIGALRM):  # macOS drops what is ignored
            signal.signal(number, lambda *_: None)
        # Signals wait until sigwait takes them: none comes between a fork and its note.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        self._alive = os.pipe()  # the workers read its end when this process has died
        with tempfile.TemporaryDirectory(prefix="dragoman-metrics-") as folder:
            try:
                for _ in range(self._count):  # the first alone: it makes the file of corrections
                    problem = self._start(folder)
                    if self._is_stopped():
                        return
                    if problem:
                        raise DragomanError(problem)
                started()
                while (caught := signal.sigwait(self._signals)) not in self._stops:
                    if caught == signal.SIGHUP:
                        self._send(signal.SIGHUP)
                    died = self._reap(Path(folder))
                    if died or caught == signal.SIGALRM:
                        self._fill(folder)
            finally:
                self._send(signal.SIGTERM)
                for pid in self._pids:
                    os.waitpid(pid, 0)
                for end in self._alive:
                    os.close(end)
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _start(self, folder: str) -> str:
        """Start a worker, wait until it has loaded the models, and return what went wrong."""
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(read)
            self._work(write, folder)
        os.close(write)
        self._pids.add(pid)
        with os.fdopen(read, "rb") as report:
            while not select.select([report], [], [], 0.1)[0]:
                if self._is_stopped():
                    return ""
            said = report.read()
        if said == _WORKER_STARTED:
            return ""
        self._pids.remove(pid)
        end = _describe_end(os.waitpid(pid, 0)[1])
        return said.decode() or f"a worker {end} as it started"

    def _work(self, report: int, folder: str) -> NoReturn:
        """Run the server in this process, a worker, and end the process."""

        def follow() -> None:
            os.read(self._alive[0], 1)  # nothing comes, but the end
            os.kill(os.getpid(), signal.SIGTERM)

        def say(text: bytes) -> None:
            os.write(report, text)
            os.close(report)

        code = 1
        try:
            os.close(self._alive[1])
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the parent sends SIGTERM
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the server listens to it
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)
            threading.Thread(target=follow, daemon=True).start()
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # before prometheus_client is imported
            self._run(partial(say, _WORKER_STARTED))
            code = 0
        except DragomanError as error:
            say(str(error).encode())
            code = 2
        except BaseException:  # no further: what follows is the parent's
            traceback.print_exc()
        finally:
            os._exit(code)

    def _reap(self, folder: Path) -> bool:
        """Say which workers have died; return whether one has."""
        died = False
        for pid in [*self._pids]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                died = True
                self._pids.remove(pid)
                for file in folder.glob(f"gauge_live*_{pid}.db"):  # what waited in its queue
                    file.unlink()
                _say(f"worker {pid} {_describe_end(status)}")
        return died

    def _fill(self, folder: str) -> None:
        """Start as many workers as are missing; where one cannot be, try again later."""
        while len(self._pids) < self._count and not self._is_stopped():
            if problem := self._start(folder):
                _say(f"no worker started, next attempt in {_RETRY_S} s: {problem}")
                signal.alarm(_RETRY_S)
                return
            _say("another worker started")

    def _send(self, number: signal.Signals) -> None:
        for pid in self._pids:  # one that has died is still there until it is reaped
            os.kill(pid, number)

    def _is_stopped(self) -> bool:
        return not self._stops.isdisjoint(signal.sigpending())


def _say(message: str) -> None:
    print(f"dragoman: {message}", file=sys.stderr, flush=True)


def _describe_end(status: int) -> str:
    """Return how a process has ended, by the status of `os.waitpid`."""
    code = os.waitstatus_to_exitcode(status)
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _name_models(typed: Sequence[str]) -> dict[str, list[Path]]:
    """Return the folders of each model by its name: that of its folder, unless one is given."""
    named: dict[str, list[Path]] = {}
    for word in typed:
        name, _, rest = word.rpartition("=")
        whole = Path(word).exists()
        folders = [Path(word)] if whole else [Path(one) for one in rest.split(",")]
        name = folders[0].resolve().name if whole or not name else name
        if name in named:
            raise SettingsError(f"{word}: two models are named {name}; give NAME={word}")
        named[name] = folders
    return named


def _read_token(path: Path) -> str:
    """Return the token in a file that only its owner can read."""
    try:
        mode, token = path.stat().st_mode, path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--token-file {path}: cannot be read: {error}") from error
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):  # Windows has other rights
        raise SettingsError(f"--token-file {path}: others can read it; run chmod 600 {path}")
    if not token.isascii() or not token.isprintable() or not 0 < len(token) <= _LONGEST_TOKEN:
        raise SettingsError(f"--token-file {path}: expected one line of letters and digits")
    return token


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens: before the models are loaded, so that a used port shows."""
    if not 0 <= port <= _LARGEST_PORT:
        raise SettingsError(f"--port {port}: give a number from 0 to {_LARGEST_PORT}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
        # Its connections inherit it. Without, the second part of each response waits 40 ms for the
        # client's delayed acknowledgement; asyncio sets it only where the protocol is not 0.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        raise DragomanError(
            f"--host {host} --port {port}: cannot be used: "
            f"{error.strerror or error}; choose another"
        ) from error
