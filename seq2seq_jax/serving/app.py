"""What a server answers: translations, a page, and how it is doing."""

import asyncio
import contextlib
import json
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from seq2seq_jax import __version__
from seq2seq_jax.data.encoded import Rows
from seq2seq_jax.errors import UserError, did_you_mean, shortened
from seq2seq_jax.serving.admission import Admission
from seq2seq_jax.serving.batching import Batcher
from seq2seq_jax.serving.door import Door
from seq2seq_jax.serving.guard import Guard, answer, refused
from seq2seq_jax.serving.limits import Limits
from seq2seq_jax.serving.metrics import CONTENT_TYPE, Metrics
from seq2seq_jax.serving.model import Model
from seq2seq_jax.serving.programs import Kind
from seq2seq_jax.serving.requests import Asked, Refusal, read_request
from seq2seq_jax.translator import Details, Hypothesis

GRACE = 5.0  # seconds beyond its time that a stream has to tell that it is over
FAILED = "The server failed to answer; its log says why."
CLIENT_GONE = 499  # what nginx logs for a client that did not wait; nobody reads it
PAGES = {
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/translate.js": ("translate.js", "text/javascript; charset=utf-8"),
    "/chat.js": ("chat.js", "text/javascript; charset=utf-8"),
}
"""The files of the page, by where they are asked for. No path of a request reaches the disk."""
_EMPTY = Hypothesis("", 0.0, details=Details((), (), (), ()))


class Service:
    """A model, and those who wait for it.

    Attributes:
      app: answers requests, by the interface of ASGI.
      batcher: to be run beside it.
      admission: says how many texts are worked on.
      stopping: whether new requests are refused, because the server ends.
    """

    def __init__(self, model: Model, door: Door, limits: Limits) -> None:
        self.model, self.limits, self.metrics = model, limits, Metrics()
        self.batcher = Batcher(model.search, model.programs, self.metrics.batch)
        self.admission = Admission(limits, lambda: self.batcher.seconds_of_a_line)
        self.metrics.lines.set_function(lambda: self.admission.total)
        self.metrics.programs.set_function(lambda: model.programs.num_compiled)
        self.stopping = False
        config = model.translator.config
        self._context_turns, self._has_tags = config.data.context_turns, bool(config.data.features)
        self._steps = ThreadPoolExecutor(1, "stream")
        routes = self._routes()
        paths = {route.path for route in routes}
        self.app = Guard(_starlette(routes), door, self.metrics, {"/", "/healthz", *PAGES}, paths)

    def _routes(self) -> list[Route]:
        page = "chat.html" if self._context_turns else "translate.html"
        files = {"/": (page, "text/html; charset=utf-8")} | PAGES
        routes = [Route(path, _file(*file)) for path, file in files.items()]
        return routes + [
            Route("/translate", self._translate, methods=["POST"]),
            Route("/model", self._about),
            Route("/healthz", self._health),
            Route("/metrics", self._counted),
        ]

    async def _about(self, _: Request) -> Response:
        model, config, limits = self.model, self.model.translator.config, self.limits
        return answer(
            {
                "version": __version__,
                "source": config.data.source,
                "target": config.data.target,
                "context_turns": self._context_turns,
                "beam_size": model.beam_size,
                "max_tokens": model.max_tokens,
                "max_texts": limits.max_texts,
                "max_body": limits.max_body,
            }
        )

    async def _health(self, _: Request) -> Response:
        programs = self.model.programs
        state = {"compiled": programs.num_compiled, "planned": programs.num_planned}
        return answer(
            {"status": "stopping" if self.stopping else "ok", "programs": state}, 503 if self.stopping else 200
        )

    async def _counted(self, _: Request) -> Response:
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def _translate(self, request: Request) -> Response:
        if self.stopping:
            raise Refusal(503, "The server is about to end.", 1)
        deadline = time.monotonic() + self.limits.timeout
        asked = read_request(
            await self._body(request),
            self.limits,
            beam_size=self.model.beam_size,
            context_turns=self._context_turns,
            has_tags=self._has_tags,
        )
        sources = self._encoded(asked)
        client = request.client.host if request.client else ""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.admission.taken(client, len(asked.lines)))
            self.metrics.tokens.labels("source").inc(int(sources.lengths.sum()))
            if asked.stream:
                held = stack.pop_all()
                return _Events(self._written(asked, sources, deadline), held, self.limits.timeout + GRACE)
            found = await self._found(request, asked, sources, deadline)
        self.metrics.tokens.labels("target").inc(self.model.num_tokens([each[0] for each in found]))
        rendered = [
            _translation(each, asked, warnings) for each, warnings in zip(found, _warnings(sources), strict=True)
        ]
        return answer(rendered[0] if asked.alone else {"translations": rendered})

    async def _body(self, request: Request) -> bytes:
        """Returns the body of a request, or refuses it as soon as it is too large."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            got = f"got {shortened(kind)}" if kind else "and there is none"
            raise Refusal(415, f"The Content-Type of a request must be application/json, {got}.")
        most, body = self.limits.max_body, bytearray()
        too_large = Refusal(413, f"A request has at most {most:,} bytes; send fewer texts at a time.")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > most:
            raise too_large
        try:
            async with asyncio.timeout(self.limits.timeout):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > most:
                        raise too_large
        except TimeoutError:
            raise Refusal(408, f"The body did not come within {self.limits.timeout:g} seconds.") from None
        except ClientDisconnect:
            raise Refusal(CLIENT_GONE, "The client has gone.") from None
        return bytes(body)

    def _encoded(self, asked: Asked) -> Rows:
        """Returns the ids of what is asked for, none of it too long."""
        try:
            sources = self.model.encode(asked.lines)
        except UserError as error:
            raise Refusal(422, str(error)) from None
        if asked.alone and sources.lengths[0] == 1:  # the end mark alone, as of symbols that are dropped
            raise Refusal(422, "text is empty.")
        most = self.model.max_tokens
        for index, length in enumerate(sources.lengths):
            if length > most:
                name = "text" if asked.alone else f"texts[{index}]"
                raise Refusal(422, f"{name} has {length:,} tokens, and at most {most:,} are read; split it.")
        return sources

    async def _found(self, request: Request, asked: Asked, sources: Rows, deadline: float) -> list[list[Hypothesis]]:
        """Waits for the hypotheses of all lines, as long as somebody waits for them."""
        found = [[_EMPTY] for _ in asked.lines]
        filled = [index for index, length in enumerate(sources.lengths) if length > 1]
        lines, lengths = [asked.lines[index] for index in filled], [int(sources.lengths[index]) for index in filled]
        search = asyncio.gather(*self.batcher.put(lines, lengths, _kind(asked)))
        gone = asyncio.ensure_future(_gone(request))
        try:
            left = max(deadline - time.monotonic(), 0)
            await asyncio.wait((search, gone), timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if search.done():
                for index, each in zip(filled, search.result(), strict=True):
                    found[index] = each
                return found
            if gone.done():
                raise Refusal(CLIENT_GONE, "The client has gone.")
            raise Refusal(503, f"There was no answer within {self.limits.timeout:g} seconds.", 1)
        finally:
            search.cancel()
            gone.cancel()

    async def _written(self, asked: Asked, sources: Rows, deadline: float) -> AsyncGenerator[bytes]:
        """Yields the tokens of a line as events, and at last all of it."""
        loop, (line,), sent = asyncio.get_running_loop(), asked.lines, ""
        try:
            stream = await loop.run_in_executor(self._steps, self.model.stream, line, int(sources.lengths[0]))
            while not stream.done:
                if time.monotonic() > deadline:
                    message = f"The end was not reached within {self.limits.timeout:g} seconds."
                    yield _event({"error": message})
                    return
                text = await loop.run_in_executor(self._steps, stream.advance)  # one of each stream in turn
                if not stream.done and text.startswith(sent):
                    yield _event({"delta": text[len(sent) :]})
                    sent = text
            found, (warnings,) = await loop.run_in_executor(self._steps, stream.hypothesis), _warnings(sources)
            self.metrics.tokens.labels("target").inc(len(stream.tokens))
            yield _event(_translation([found], asked, warnings))
        except Exception:
            logging.exception("a stream failed")
            yield _event({"error": FAILED})


class _Events(StreamingResponse):
    """Server-sent events, and what is held as long as they are sent."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], held: contextlib.ExitStack, timeout: float) -> None:
        super().__init__(events)
        self._held, self._timeout = held, timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held, contextlib.suppress(TimeoutError):  # of a client that does not read
            async with asyncio.timeout(self._timeout):
                await super().__call__(scope, receive, send)


def _starlette(routes: Sequence[Route]) -> ASGIApp:
    """What answers at these paths, and says what is wrong in JSON."""
    paths = [route.path for route in routes]

    async def refuse(_: Request, refusal: Any) -> Response:
        return refused(refusal)

    async def no_such(request: Request, error: Any) -> Response:
        path = request.url.path
        message = f"{request.method} is not for {shortened(path)}." if error.status_code == 405 else error.detail
        if error.status_code == 404:
            message = f"There is no {shortened(path)}.{did_you_mean(path, paths)}"
        return answer({"error": message}, error.status_code, error.headers)

    async def failed(_: Request, error: Exception) -> Response:
        return answer({"error": FAILED}, 500)  # the error goes on to the log

    app = Starlette(routes=routes, exception_handlers={Refusal: refuse, HTTPException: no_such, Exception: failed})
    app.router.redirect_slashes = False
    return app


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False, allow_nan=False).encode() + b"\n\n"


def _file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    """Returns what answers with a file of the package, read once."""
    content = resources.files("seq2seq_jax.serving").joinpath("pages", name).read_bytes()

    async def page(_: Request) -> Response:
        return Response(content, headers={"Content-Type": kind})

    return page


def _kind(asked: Asked) -> Kind:
    if asked.num_best in (None, 1):
        return "details" if asked.details else "best"
    return "several with details" if asked.details else "several"


async def _gone(request: Request) -> None:
    """Ends when the client, whose body is read, has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _warnings(sources: Rows) -> list[list[str]]:
    """Returns for each source what its reader should know."""
    found: list[list[str]] = [[] for _ in range(len(sources))]
    for index in sources.with_unknown():
        found[index].append("The text has symbols that the vocabulary lacks; they are read as unknown.")
    for index in sources.with_turns_left_out():
        found[index].append("The oldest turns are left out, to fit what the model reads.")
    return found


def _translation(found: Sequence[Hypothesis], asked: Asked, warnings: Sequence[str]) -> dict[str, Any]:
    """The hypotheses of a line as JSON."""
    rendered = _hypothesis(found[0], asked.details)
    if found[0].score == -math.inf:
        warnings = [*warnings, "The search came to no output that its settings allow."]
    if asked.num_best is not None:
        rendered["hypotheses"] = [_hypothesis(each, asked.details) for each in found[: asked.num_best]]
    return rendered | ({"warnings": list(warnings)} if warnings else {})


def _hypothesis(hypothesis: Hypothesis, with_details: bool) -> dict[str, Any]:
    rendered: dict[str, Any] = {"text": hypothesis.text, "score": _number(hypothesis.score), "cut": hypothesis.cut}
    details = hypothesis.details
    if not with_details or details is None:
        return rendered
    weights = details.weights
    return rendered | {
        "source_tokens": details.source_tokens,
        "tokens": details.tokens,
        "log_probs": [*map(_number, details.log_probs)],
        "attention": weights and [[round(weight, 5) for weight in row] for row in weights],
    }


def _number(value: float) -> float | None:
    """A number as JSON has it: minus infinity, of what cannot be, is null."""
    return value if math.isfinite(value) else None
