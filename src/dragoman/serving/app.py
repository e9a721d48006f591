"""The paths of the server and what they answer."""

import asyncio
import contextlib
import hmac
import json
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

from fastapi import FastAPI, Request
from fastapi.staticfiles import StaticFiles
from prometheus_client import generate_latest
from pydantic import ConfigDict
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from dragoman.serving.corrections import Corrections
from dragoman.serving.gate import Gate, respond
from dragoman.serving.messages import (
    CorrectionRequest,
    Limits,
    Message,
    PredictRequest,
    PredictResponse,
    RequestError,
    encode_json,
    parse_body,
)
from dragoman.serving.service import Service

_PAGE = Path(__file__).parent / "page"
_MOST_ALTERNATIVES = 16


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

    @app.exception_handler(Exception)
    async def pass_on(_: Request, error: Exception) -> Response:
        raise error  # to the gate

    @app.exception_handler(HTTPException)
    async def refuse_path(request: Request, error: HTTPException) -> Response:
        kind, message = "not_found", "there is no such path; /docs lists them"
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "GET")
            kind, message = "invalid", f"{request.method} is not for this path; send {allowed}"
        found = RequestError(error.status_code, kind, request.url.path, message)
        response = respond(found, service.metrics)
        response.headers.update(error.headers or {})
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
        text = generate_latest(service.metrics.registry)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    if libretranslate:
        _add_libretranslate(app, service, limits.token)
    # Swagger's files are in the package fastapi-offline.
    app.mount("/docs/files", StaticFiles(packages=[("fastapi_offline", "static")]))
    app.add_route("/docs", lambda _: FileResponse(_PAGE / "docs.html"))
    # As a mount of "/", it would answer for the other paths where the method is wrong.
    app.router.default = StaticFiles(directory=_PAGE, html=True)
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
