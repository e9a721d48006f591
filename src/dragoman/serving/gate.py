"""What every request passes before the app: host, origin, token, size of the body, time, number."""

import asyncio
import hmac
import ipaddress
import time
from collections.abc import Collection
from functools import lru_cache, partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from dragoman.serving.messages import Limits, RequestError
from dragoman.serving.prometheus import Metrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

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

    def __init__(self, app: "ASGIApp", limits: Limits, metrics: Metrics) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics
        self._is_own = lru_cache(maxsize=64)(partial(_is_own, names=limits.hosts))
        self._running = 0

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start_s, status = time.perf_counter(), 0

        async def send_first(message: "Message") -> None:
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
            await respond(error, self._metrics)(scope, receive, send_first)
        except TimeoutError:
            message = f"no answer within {self._limits.timeout_s:g} s; send less, or try later"
            late = RequestError(504, "timeout", "time", message)
            if not status:
                await respond(late, self._metrics)(scope, receive, send_first)
        except ClientDisconnect:
            status = 499  # nobody reads an answer
        except Exception as error:  # the server logs it
            message = f"internal error: {type(error).__name__}"
            failed = RequestError(500, "internal", "server", message)
            if not status:
                await respond(failed, self._metrics)(scope, receive, send_first)
            raise
        finally:
            self._running -= 1
            path = scope["path"] if scope["path"] in _COUNTED else "other"
            elapsed_s = time.perf_counter() - start_s
            self._metrics.find(self._metrics.seconds, path, status).observe(elapsed_s)

    def _check(self, scope: "Scope") -> None:
        """Raise the error of a request that is refused by its head."""
        headers, limits = dict(scope["headers"]), self._limits
        if self._running > limits.concurrent:
            raise RequestError(503, "queue_full", "server", "too many requests; try later")
        host = headers.get(b"host", b"").decode("latin-1")
        if not self._is_own(host):
            raise RequestError(
                403, "forbidden", "Host", "this is not a name of this server; --allow-host adds it"
            )
        origin = headers.get(b"origin", b"").decode("latin-1")
        is_known = not origin or origin.partition("://")[2] == host
        if not is_known and not {origin, "*"} & {*limits.origins}:
            raise RequestError(
                403, "forbidden", "Origin", "pages elsewhere may not ask; --allow-origin adds them"
            )
        if limits.token and scope["path"].startswith(_TOKEN_PATHS):
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, f"Bearer {limits.token}".encode()):
                raise RequestError(
                    401, "forbidden", "Authorization", "give the token: Authorization: Bearer TOKEN"
                )

    def _bound(self, receive: "Receive") -> "Receive":
        """Return `receive`, which raises the error of a body that is too large as it is read."""
        size, most = 0, self._limits.body_bytes

        async def receive_bounded() -> "Message":
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > most:
                raise RequestError(
                    413, "too_large", "body", f"larger than {most:,} bytes; send several requests"
                )
            return message

        return receive_bounded


def respond(error: RequestError, metrics: Metrics) -> JSONResponse:
    """Return the response of an error, counted."""
    metrics.errors.labels(error.kind).inc()
    headers = {503: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}.get(error.status)
    return JSONResponse(error.to_dict(), error.status, headers)


def _is_own(host: str, names: Collection[str]) -> bool:
    """Return whether a Host header names this server: an address cannot be bound to another."""
    name = ""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        ipaddress.ip_address(name)
    except ValueError:
        return not {name, host.lower()}.isdisjoint(["localhost", *map(str.lower, names)])
    return True
