"""What a request passes, and what it gets: the gate (host, origin, token, size, time), the paths, corrections."""

import asyncio
import contextlib
import hmac
import ipaddress
import json
import os
import time
from collections.abc import AsyncIterator, Collection
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

from fastapi import FastAPI, Request
from fastapi.staticfiles import StaticFiles
from pydantic import ConfigDict
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as Event

from dragoman.errors import SettingsError
from dragoman.predictor import Predictor
from dragoman.reading.pairs import write_target
from dragoman.reading.row_errors import RowError, find_side_error, find_value_error
from dragoman.serving.batching import Metrics
from dragoman.serving.messages import (
    CorrectionRequest,
    Limits,
    Message,
    PredictRequest,
    PredictResponse,
    RequestError,
    encode_json,
    make_row,
    parse_body,
)
from dragoman.serving.served_models import Service

_PAGE = Path(__file__).parent / "page"
_MOST_ALTERNATIVES = 16
# Without it: the files of the page and of /docs, /health and /ready; /translate has it in its body.
_TOKEN_PATHS = ("/v1/", "/metrics")
_COUNTED = ("/v1/predict", "/v1/models", "/v1/corrections", "/translate")  # each by itself
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'"
)
_HEADERS = ((b"content-security-policy", _POLICY), (b"x-content-type-options", b"nosniff"))


class Gate:
    """The app, with these limits before it."""

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics
        self._is_own = lru_cache(maxsize=64)(partial(_is_own, names=limits.hosts))
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start_s, status = time.perf_counter(), 0
        failure: RequestError | None = None

        async def send_first(message: Event) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        self._running += 1
        try:
            self._check(scope)
            async with asyncio.timeout(self._limits.timeout_s):
                await self._app(scope, self._bound(receive), send_first)
        except RequestError as error:
            failure = error
        except TimeoutError:
            message = f"no answer within {self._limits.timeout_s:g} s; send less, or try later"
            failure = RequestError(504, "timeout", "time", message)
        except ClientDisconnect:
            status = 499  # nobody reads an answer
        except Exception as error:
            message = f"internal error: {type(error).__name__}"
            failure = RequestError(500, "internal", "server", message)
            raise  # the server logs it
        finally:
            if failure and not status:
                await respond(failure, self._metrics)(scope, receive, send_first)
            self._running -= 1
            path = scope["path"] if scope["path"] in _COUNTED else "other"
            elapsed_s = time.perf_counter() - start_s
            self._metrics.find(self._metrics.seconds, path, status).observe(elapsed_s)

    def _check(self, scope: Scope) -> None:
        """Raise the error of a request that is refused by its head."""
        headers, limits = dict(scope["headers"]), self._limits
        if self._running > limits.concurrent:
            raise RequestError(503, "queue_full", "server", "too many requests; try later")
        host, origin = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
        if not self._is_own(host):
            message = "this is not a name of this server; --allow-host adds it"
            raise RequestError(403, "forbidden", "Host", message)
        is_known = not origin or origin.partition("://")[2] == host
        if not is_known and not {origin, "*"} & {*limits.origins}:
            message = "pages elsewhere may not ask; --allow-origin adds them"
            raise RequestError(403, "forbidden", "Origin", message)
        if limits.token and scope["path"].startswith(_TOKEN_PATHS):
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, f"Bearer {limits.token}".encode()):
                message = "give the token: Authorization: Bearer TOKEN"
                raise RequestError(401, "forbidden", "Authorization", message)

    def _bound(self, receive: Receive) -> Receive:
        """Return `receive`, which raises the error of a body that is too large as it is read."""
        size, most = 0, self._limits.body_bytes

        async def receive_bounded() -> Event:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > most:
                text = f"larger than {most:,} bytes; send several requests"
                raise RequestError(413, "too_large", "body", text)
            return message

        return receive_bounded


def respond(error: RequestError, metrics: Metrics) -> JSONResponse:
    """Return the response of an error, counted."""
    metrics.errors.labels(error.kind).inc()
    headers = {503: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}.get(error.status)
    return JSONResponse(error.to_dict(), error.status, headers)


class Corrections:
    """The file; its columns are named as in the training data of the models.

    Raises:
        SettingsError: The models have different columns, the file has others, or it cannot be
            written.
    """

    def __init__(self, path: Path, models: Collection[Predictor]) -> None:
        self._path, self._lock = path, Lock()
        columns = {_name_columns(one) for one in models}
        if len(columns) > 1:
            raise SettingsError(
                "--corrections: the models have different columns; serve them apart"
            )
        self._names = names = columns.pop()
        if positions := [name for name in names if name.isdecimal()]:
            raise SettingsError(
                f"--corrections: the model was trained on column {positions[0]}, without a name; "
                "corrections need the names of columns"
            )
        head = "\t".join(names)
        try:
            with path.open("ab+") as file:
                file.seek(0)
                found = file.readline().decode("utf-8-sig", "replace").strip()
                if not found:
                    file.write(f"{head}\n".encode())
                elif found != head:
                    raise SettingsError(
                        f"--corrections {path}:1: other columns than {', '.join(names)}, which the "
                        "models have; give another file"
                    )
                else:
                    file.seek(-1, os.SEEK_END)
                    if file.read() != b"\n":  # a last row that was cut, or typed
                        file.write(b"\n")
        except OSError as error:
            reason = f"--corrections {path}: cannot be written: {error.strerror}"
            raise SettingsError(reason) from error

    def add(self, asked: CorrectionRequest, model: Predictor) -> None:
        """Append a row.

        Raises: RequestError, when a side is empty, too long or no text, or the features do not fit.
        """
        if _name_columns(model) != self._names:  # it was replaced
            raise RequestError.invalid("model", "its columns have changed: start the server again")
        make_row(asked.source, asked.features, model, "source", "features")
        error = find_value_error("", 0, "the target", asked.target)
        error = error or find_side_error(
            "", 0, "target", asked.target, model.settings.data.max_characters
        )
        if error is None and model.settings.data.records == "json":
            written = write_target("", 0, asked.target, model.settings.data)
            error = written if isinstance(written, RowError) else None
        if error is not None:
            raise RequestError.invalid("target", error.detail)
        cells = {"source": asked.source, "target": asked.target}
        cells |= {f"features[{i}]": value for i, value in enumerate(asked.features)}
        for where, text in cells.items():
            if {*"\t\r\n"} & {*text}:
                raise RequestError.invalid(where, "a tab or a line break has no place in a TSV")
        row = "\t".join(cells.values()) + "\n"
        if '""' in row and any(text.startswith('"') for text in cells.values()):
            message = 'a text that begins with ", and "" in the row, would be read as quoted cells'
            raise RequestError.invalid("source", message)
        with self._lock, self._path.open("ab") as file:  # one write, so that no row is cut
            file.write(row.encode())


def build_app(
    service: Service,
    limits: Limits,
    *,
    corrections: Corrections | None = None,
    libretranslate: bool = False,
) -> ASGIApp:
    """Return the server as an ASGI app.

    Args:
        corrections: Where POST /v1/corrections writes; None: it refuses.
        libretranslate: Whether /translate and /languages are there.
    """

    @contextlib.asynccontextmanager
    async def run(_: FastAPI) -> AsyncIterator[None]:
        watch = asyncio.create_task(service.watch())
        yield
        watch.cancel()

    app = FastAPI(title="dragoman", version=version("dragoman"), docs_url=None, redoc_url=None,
                  lifespan=run)  # fmt: skip
    files = StaticFiles(directory=_PAGE, html=True)

    @app.exception_handler(Exception)
    async def pass_on(_: Request, error: Exception) -> Response:
        raise error  # to the gate

    @app.exception_handler(HTTPException)
    async def refuse_path(request: Request, error: HTTPException) -> Response:
        path, headers = request.url.path, dict(error.headers or {})
        found = RequestError(404, "not_found", path, "there is no such path; /docs lists them")
        allowed = headers.get("Allow", "GET")
        # StaticFiles refuses other methods before it looks for a file.
        if error.status_code == 405 and ("HEAD" not in allowed or files.lookup_path(path[1:])[1]):
            message = f"{request.method} is not for this path; send {allowed}"
            found = RequestError(405, "invalid", path, message)
        response = respond(found, service.metrics)
        response.headers.update(headers if found.status == error.status_code else {})
        return response

    @app.post(
        "/v1/predict", response_model=PredictResponse, openapi_extra=_describe_body(PredictRequest)
    )
    async def predict(request: Request) -> Response:
        """Predict the output of each source."""
        content = await service.predict(parse_body(PredictRequest, await request.body()))
        return Response(encode_json(content), media_type="application/json")

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope["path"], scope["method"]) == ("/v1/predict", "POST"):
            # FastAPI's own layers would take 0.03 ms more of the processor.
            response = await predict(Request(scope, receive))
            await response(scope, receive, send)
        else:
            if scope.get("method") == "HEAD":  # sent by load balancers; uvicorn leaves the body out
                scope = {**scope, "method": "GET"}
            await app(scope, receive, send)

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """Return the models by name, their features, examples and decoding settings."""
        return {"models": [one.describe() for one in service.models.by_name.values()]}

    @app.post("/v1/corrections", openapi_extra=_describe_body(CorrectionRequest))
    async def correct(request: Request) -> dict[str, int]:
        """Keep what a model should have written, to train on."""
        if corrections is None:
            message = "this server keeps none; start it with --corrections FILE"
            raise RequestError(404, "not_found", "corrections", message)
        asked = parse_body(CorrectionRequest, await request.body())
        model = service.models.find(asked.model).predictor
        await asyncio.to_thread(corrections.add, asked, model)
        return {"rows": 1}

    @app.get("/health")
    async def show_health() -> dict[str, str]:
        """Answer that the process lives."""
        return {"status": "alive"}

    @app.get("/ready")
    async def show_ready() -> dict[str, str]:
        """Answer that requests are taken; 503 while the queue is full."""
        service.check_queue()
        return {"status": "ready"}

    @app.get("/metrics")
    async def show_metrics() -> Response:
        """Return the figures for Prometheus."""
        text = service.metrics.describe()
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    if libretranslate:
        _add_libretranslate(app, service, limits.token)
    # Swagger's files are in the package fastapi-offline.
    app.mount("/docs/files", StaticFiles(packages=[("fastapi_offline", "static")]))
    app.add_route("/docs", lambda _: FileResponse(_PAGE / "docs.html"))
    # As a mount of "/", it would answer for the other paths where the method is wrong.
    app.router.default = files
    gate: ASGIApp = Gate(answer, limits, service.metrics)
    if limits.origins:
        headers = ["Authorization", "Content-Type"]
        gate = CORSMiddleware(gate, limits.origins, allow_methods=["*"], allow_headers=headers)
    return gate


def _describe_body(kind: type[Message]) -> dict[str, Any]:
    """Return the part of the API's description that says what a path takes."""
    schema = {"schema": kind.model_json_schema()}
    return {"requestBody": {"required": True, "content": {"application/json": schema}}}


class _TranslateRequest(Message):
    """What LibreTranslate's clients send, as JSON or as a form."""

    model_config = ConfigDict(extra="ignore")

    q: str | list[str]
    source: str = "auto"
    target: str = ""
    format: Literal["text"] = "text"
    alternatives: int = 0
    api_key: str = ""


def _add_libretranslate(app: FastAPI, service: Service, token: str) -> None:
    """Add LibreTranslate's paths; clients give the token as api_key.

    The model of a pair of languages is the one with its name, such as de-en. If there is only one
    model, it answers for every pair.
    """
    by_name = service.models.by_name

    @app.post("/translate", openapi_extra=_describe_body(_TranslateRequest))
    async def translate(request: Request) -> Response:
        """Translate a text, or each of a list."""
        try:
            body = await request.body()
            if not body.lstrip().startswith(b"{"):
                form = parse_qsl(body.decode(errors="surrogateescape"), keep_blank_values=True)
                body = json.dumps({**request.query_params, **dict(form)}).encode()
            asked = parse_body(_TranslateRequest, body)
            if token and not hmac.compare_digest(asked.api_key.encode(), token.encode()):
                raise RequestError(403, "forbidden", "api_key", "this is not the token")
            pair, end = f"{asked.source}-{asked.target}", f"-{asked.target}"
            fits = [n for n in by_name if n == pair or (asked.source == "auto" and n.endswith(end))]
            count = min(max(asked.alternatives, 0), _MOST_ALTERNATIVES)
            model = fits[0] if fits else None
            found = await service.predict(
                PredictRequest(model=model, source=asked.q, nbest=count + 1 if count else None)
            )
        except RequestError as error:  # its clients read this form of errors
            service.metrics.errors.labels(error.kind).inc()
            return JSONResponse({"error": f"{error.where}: {error}"}, error.status)
        texts = [one["output"] for one in found["predictions"]]
        answer = {"translatedText": texts[0] if isinstance(asked.q, str) else texts}
        if count:
            others = [[o["output"] for o in one["nbest"][1:]] for one in found["predictions"]]
            answer["alternatives"] = others[0] if isinstance(asked.q, str) else others
        return JSONResponse(answer)

    @app.get("/languages")
    async def list_languages() -> list[dict[str, Any]]:
        """Return the languages of the models whose names are pairs."""
        targets: dict[str, list[str]] = {}
        for name in by_name:
            source, _, target = name.partition("-")
            targets.setdefault(source, []).append(target)
        return [{"code": code, "name": code, "targets": to} for code, to in targets.items()]


def _is_own(host: str, names: Collection[str]) -> bool:
    """Return whether a Host header names this server: an address cannot be bound to another."""
    name = ""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        ipaddress.ip_address(name)
    except ValueError:
        return not {name, host.lower()}.isdisjoint(["localhost", *map(str.lower, names)])
    return True


def _name_columns(model: Predictor) -> tuple[str, ...]:
    """Return the names of the columns of a file that the model's settings of data read."""
    data = model.settings.data
    source = "source" if data.source == "auto" else data.source
    target = "target" if data.target == "auto" else data.target
    return (source, target, *model.feature_labels)
