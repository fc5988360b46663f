"""What stands around every answer: who may come in, headers for browsers, counts."""

import json
import time
from collections.abc import Mapping, Set
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seq2seq_jax.serving.door import Door
from seq2seq_jax.serving.metrics import Metrics
from seq2seq_jax.serving.requests import Refusal

HEADERS = {
    # Nothing but the page's own files, and no script or style within it; nobody may put it into a frame.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """An ASGI application around another one.

    Args:
      app: answers.
      door: says who may come in.
      metrics: count.
      open_paths: that need no token.
    """

    def __init__(self, app: ASGIApp, door: Door, metrics: Metrics, open_paths: Set[str], paths: Set[str]) -> None:
        self._app, self._door, self._metrics = app, door, metrics
        self._open_paths, self._paths = open_paths, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begin, path, status = time.monotonic(), scope["path"], 500

        async def guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        app = self._app
        try:
            self._door.check(Headers(scope=scope), is_open=path in self._open_paths)
        except Refusal as refusal:
            app = refused(refusal)
        try:
            await app(scope, receive, guarded)
        finally:
            name = path if path in self._paths else "other"  # as many as clients can think of, otherwise
            self._metrics.requests.labels(name, status).inc()
            self._metrics.seconds.labels(name).observe(time.monotonic() - begin)


def answer(content: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON."""
    body = json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    return Response(body, status, headers, "application/json")


def refused(refusal: Refusal) -> Response:
    """The answer to a request that is refused."""
    headers = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return answer({"error": refusal.message}, refusal.status, headers)
