"""`dragoman serve`: models behind HTTP, until SIGTERM."""

import os
import signal
import socket
import stat
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from dragoman.engines.ctranslate2_engine import count_cores
from dragoman.engines.engine import QuantizationChoice
from dragoman.engines.load import EngineName
from dragoman.errors import DragomanError, SettingsError
from dragoman.predictor import Predictor
from dragoman.serving.messages import Limits
from dragoman.settings import Settings

_LONGEST_TOKEN = 1000
_LARGEST_PORT = 65_535


def serve(
    models: Sequence[str],
    settings: Settings | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
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
        corrections: TSV that gets the corrections of outputs.

    Raises:
        DragomanError: A model cannot be loaded, the port is in use, a package is missing, ...
    """
    import uvicorn

    from dragoman.serving.app import Corrections, build_app
    from dragoman.serving.served_models import ServedModels, Service

    # Until the server runs, and after it has ended: uvicorn then raises the signal again. Not
    # sys.exit, which would wait for searches whose requests were given up.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    limits = limits or Limits()
    if token_file is not None:
        limits = replace(limits, token=_read_token(token_file))
    with _listen(host, port) as listener:
        load = partial(
            Predictor.load,
            settings=settings,
            engine=engine,
            device=device,
            threads=threads,
            quantization=quantization,
        )
        served = ServedModels(_name_models(models), load)
        predictors = [one.predictor for one in served.by_name.values()]
        app = build_app(
            Service(served, limits, workers=threads or count_cores()),
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
        address, used_port = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        print(f"dragoman: serving {', '.join(served.by_name)} at http://{shown}:{used_port}",
              file=sys.stderr, flush=True)  # fmt: skip
        if not limits.token and address not in ("127.0.0.1", "::1"):
            print("dragoman: without --token-file, whoever reaches this address may use it",
                  file=sys.stderr, flush=True)  # fmt: skip
        uvicorn.Server(config).run(sockets=[listener])


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
