"""The process of a server: it compiles, answers, and ends when it is told to, with nobody left without an answer."""

import asyncio
import contextlib
import logging
import socket
import threading
import time
import warnings
from collections.abc import Generator, Sequence
from typing import NoReturn

import uvicorn

from seq2seq_jax import signals
from seq2seq_jax.data.progress import progress_bar
from seq2seq_jax.errors import UserError
from seq2seq_jax.serving.app import GRACE, Service
from seq2seq_jax.serving.door import Door, listen
from seq2seq_jax.serving.limits import Limits
from seq2seq_jax.serving.model import Model
from seq2seq_jax.serving.programs import Programs
from seq2seq_jax.translator import Translator
from seq2seq_jax.wording import duration

_TICK = 0.05  # seconds between two looks at what has changed
_IDLE = 75  # seconds that a connection may be silent; longer than most proxies keep theirs


def serve(translator: Translator, door: Door, place: socket.socket, limits: Limits) -> NoReturn:
    """Answers requests until a signal comes, then finishes what it has taken and ends the process.

    With exit code 0 where all that was taken is answered: a server has no other end
    than to be stopped, and whoever watches over it (systemd, Kubernetes) takes
    another code for a failure. Where something was not, with that of the signal.

    Raises:
      UserError: the address was taken meanwhile, or `limits.max_tokens` are more than are translated.
    """
    if limits.max_tokens is not None and limits.max_tokens > translator.longest_source:
        raise UserError(
            f"--max-tokens {limits.max_tokens:,} is more than the {translator.longest_source:,} that are translated."
        )
    warnings.simplefilter("ignore", UserWarning)  # of lines of requests: who sent them is told
    model = Model(translator, limits.max_tokens)
    programs, stop = model.programs, threading.Event()
    _compile_first(programs)
    with signals.noted("Answering what was asked before") as notes:
        listen(place, door.host, place.getsockname()[1])
        print(f"Serving     {_url(door.host, place)}", flush=True)
        threading.Thread(target=_compile_rest, args=(programs, stop), daemon=True).start()
        unanswered = asyncio.run(answer(Service(model, door, limits), place, notes))
        stop.set()
        # Here, within the block: after it the signal would end the process by its own code.
        signals.end(signals.EXIT_CODES[notes[0]] if unanswered else 0)


def _url(host: str, place: socket.socket) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{place.getsockname()[1]}"


def _compile_first(programs: Programs) -> None:
    begin = time.monotonic()
    with progress_bar(logged=True) as progress:
        programs.compile_first(lambda: progress("compiling", programs.num_compiled, programs.num_planned))
    spent = duration(time.monotonic() - begin)
    print(f"Compiled    {programs.num_compiled} of {programs.num_planned} programs in {spent}, the others meanwhile")


def _compile_rest(programs: Programs, stop: threading.Event) -> None:
    """Compiles while requests are answered; where that fails, the programs that are there do."""
    begin = time.monotonic()
    try:
        programs.compile_rest(stop)
    except Exception:
        logging.exception("a program was not compiled; larger ones do its work")
    with contextlib.suppress(OSError):  # whoever read it has gone
        spent = duration(time.monotonic() - begin)
        print(f"Compiled    {programs.num_compiled} of {programs.num_planned} programs in {spent} more", flush=True)


class _Server(uvicorn.Server):
    """Leaves signals to this package."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


async def answer(service: Service, place: socket.socket, notes: Sequence[int]) -> int:
    """Answers until a signal is noted, and then what was taken before; returns how many texts were left without."""
    config = uvicorn.Config(
        service.app,
        loop="asyncio",
        http="h11",  # which refuses heads without an end
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=logging.ERROR,
        access_log=False,
        proxy_headers=False,  # whoever sends X-Forwarded-For says what they like
        server_header=False,
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=round(GRACE),
    )
    server = _Server(config)
    search = asyncio.create_task(service.batcher.run())
    answering = asyncio.create_task(server.serve([place]))
    while not notes and not answering.done() and not search.done():
        await asyncio.sleep(_TICK)
    if search.done():
        search.result()  # an error of ours: nobody would be answered any more
    service.stopping = True
    last = time.monotonic() + service.limits.timeout + 2 * GRACE
    while service.admission.total and time.monotonic() < last:
        await asyncio.sleep(_TICK)
    unanswered = service.admission.total
    server.should_exit = True
    await answering
    search.cancel()
    return unanswered
