"""Requests to a service in this process, and to a server in one of its own."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from pathlib import Path
from typing import Any

import httpx

from seq2seq_jax.serving.app import Service
from seq2seq_jax.serving.door import Door
from seq2seq_jax.serving.limits import Limits

HERE = "http://127.0.0.1"


@contextlib.asynccontextmanager
async def talking_to(service: Service) -> AsyncGenerator[httpx.AsyncClient]:
    """A client of a service whose queue is worked on meanwhile."""
    search = asyncio.create_task(service.batcher.run())
    transport = httpx.ASGITransport(service.app, raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url=HERE) as client:
            yield client
    finally:
        search.cancel()


def converse(
    model: Any,
    talk: Callable[[httpx.AsyncClient, Service], Coroutine[Any, Any, Any]],
    door: Door | None = None,
    **limits: Any,
) -> Any:
    """Returns what becomes of a conversation with a new service."""

    async def run() -> Any:
        service = Service(model, door or Door("127.0.0.1"), Limits(**limits))
        async with talking_to(service) as client:
            return await talk(client, service)

    return asyncio.run(run())


def ask(model: Any, content: dict[str, Any], **limits: Any) -> Any:
    """Returns the answer to one request for translations, which must be given."""

    async def talk(client: httpx.AsyncClient, _: Service) -> Any:
        answer = await client.post("/translate", json=content)
        assert answer.status_code == 200, answer.text
        return answer.json()

    return converse(model, talk, **limits)


def events(text: str) -> list[dict[str, Any]]:
    """The events of a stream."""
    assert text.endswith("\n\n")
    return [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n")[:-1]]


class Process:
    """A server in a process of its own, at `url`."""

    def __init__(self, process: subprocess.Popen[str], url: str):
        self.process, self.url = process, url

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal, and returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


@contextlib.contextmanager
def started(workdir: Path, *options: str, **environment: str) -> Generator[Process]:
    """A server that answers by now."""
    command = [sys.executable, "-m", "seq2seq_jax", "serve", "--workdir", str(workdir), "--port", "0", *options]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        env=os.environ | environment,
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        for line in process.stdout:
            if found := re.match(r"Serving +(http://\S+)", line):
                yield Process(process, found[1])
                break
        else:
            raise AssertionError(process.stderr.read())
    finally:
        process.kill()
        process.communicate()
