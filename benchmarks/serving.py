"""A server under load: latency and throughput by number of clients, nothing lost or crossed, memory.

    python -m benchmarks.serving --workdir runs/mine --source-file test.de

Starts `seq2seq_jax serve` on this machine and asks it, a line a request, from 1 to 64 clients at once, each of which
waits for its answer before it asks again. Then from more clients than its limits allow; then the many requests over
which memory is watched. Every answer is compared with the translation of its own line by `Translator.translate`: the
same text, or, where sums in another order decided a near tie, another one of the same score. The clients run on the
same cores as the server.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import measure
from seq2seq_jax.errors import UserError
from seq2seq_jax.run_directory import read_config
from seq2seq_jax.text_files import read_lines

SAME_SCORE = 1e-3  # nats: float32 sums in another order
_RESIDENT = re.compile(r"^process_resident_memory_bytes (\S+)", re.M)


class Load(NamedTuple):
    """What became of some requests.

    Attributes:
      seconds: from the first request to the last answer.
      latencies: of requests that were answered, seconds.
      statuses: how many answers there were of each.
      near_ties: answers with another text of the same score.
    """

    seconds: float
    latencies: list[float]
    statuses: Counter[int]
    near_ties: int


class Expected(NamedTuple):
    """The translation of a line."""

    text: str
    score: float


def main() -> None:
    arguments = _parse()
    try:
        lines = [line for line in read_lines(arguments.source_file) if line.strip()]
        decode = read_config(arguments.workdir).decode
    except UserError as error:
        measure.refuse(str(error))
    beam_size = arguments.beam_size or decode.beam_size
    expected = _offline(arguments.workdir, beam_size, lines)
    options = ["--decode.beam-size", str(beam_size), "--max-client-lines", str(max(*arguments.clients, 64))]
    with _server(arguments.workdir, options) as (host, port):
        about: dict[str, Any] = measure.print_machine() | {"lines": len(lines), "beam": beam_size}
        rows: list[dict[str, Any]] = []
        for clients in arguments.clients:
            load = _under_load(host, port, expected, clients, arguments.requests)
            _refuse_errors(load)
            rows.append(_row(clients, load, rows))
            print(rows[-1], flush=True)
        about["streams"] = _streams(host, port, list(expected)[:100])
        about["above the limits"] = _above(host, port, expected, 2 * max(*arguments.clients, 64))
        about["memory"] = _memory(host, port, expected, arguments.many)
    measure.print_table(rows)
    print({name: about[name] for name in ("streams", "above the limits", "memory")})
    measure.write_json(arguments.output, rows, about)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="run directory of the trained model")
    parser.add_argument("--source-file", type=Path, required=True, help="a sentence a line; may end in .gz")
    parser.add_argument("--beam-size", type=int, help="by default that of the run; 1 is greedy search")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--requests", type=int, default=1_000, help="for each number of clients")
    parser.add_argument("--many", type=int, default=10_000, help="requests over which memory is watched")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/serving.json"))
    return parser.parse_args()


def _offline(workdir: Path, beam_size: int, lines: Sequence[str]) -> dict[str, Expected]:
    """The translation of each line, by a process that has ended when the server begins."""
    program = (
        "import sys, json, dataclasses, warnings; warnings.simplefilter('ignore');"
        " from seq2seq_jax.translator import load; from seq2seq_jax.run_directory import read_config;"
        " workdir, beam = sys.argv[1:];"
        " decode = dataclasses.replace(read_config(__import__('pathlib').Path(workdir)).decode, beam_size=int(beam));"
        " found = load(workdir, decode).translate(json.load(sys.stdin));"
        " json.dump([[each.text, each.score] for each in found], sys.stdout)"
    )
    command = [sys.executable, "-c", program, str(workdir), str(beam_size)]
    done = subprocess.run(command, input=json.dumps(lines), capture_output=True, text=True, check=True)
    return {line: Expected(*each) for line, each in zip(lines, json.loads(done.stdout), strict=True)}


@contextlib.contextmanager
def _server(workdir: Path, options: Sequence[str]) -> Generator[tuple[str, int]]:
    """A server that has compiled all of its programs; it has to end well."""
    command = [sys.executable, "-m", "seq2seq_jax", "serve", "--workdir", str(workdir), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            if found := re.match(r"Serving +http://([^:]+):(\d+)", line):
                break
        else:
            raise SystemExit("the server has ended")
        while "Compiled" not in (line := process.stdout.readline()):
            pass
        print(line, end="", flush=True)
        yield found[1], int(found[2])
    finally:
        process.terminate()
        if (code := process.wait()) != 0:
            print(f"the server ended with exit code {code}", file=sys.stderr)


def _under_load(host: str, port: int, expected: dict[str, Expected], clients: int, requests: int) -> Load:
    """Has so many clients ask, one request after another each, until there were `requests` in all."""
    numbers, lines, wrong = itertools.count(), list(expected), list[str]()
    latencies, statuses, near_ties = list[float](), Counter[int](), 0
    order = np.random.default_rng(clients).integers(len(lines), size=requests)
    lock = threading.Lock()

    def client() -> None:
        nonlocal near_ties
        connection = http.client.HTTPConnection(host, port, timeout=120)
        while (number := next(numbers)) < requests:
            line, begin = lines[order[number]], time.perf_counter()
            body = json.dumps({"text": line})
            connection.request("POST", "/translate", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = json.loads(answer.read())
            spent = time.perf_counter() - begin
            with lock:
                statuses[answer.status] += 1
                if answer.status != 200:
                    if "error" not in content or answer.headers["Retry-After"] is None:
                        wrong.append(f"{answer.status} {content}")
                    continue
                latencies.append(spent)
                text, score = expected[line]
                if content["text"] != text:
                    near_ties += 1
                    if abs(content["score"] - score) > SAME_SCORE:
                        wrong.append(f"{line!r} gives {content}, and offline {text!r}, {score}")
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begin
    if wrong or sum(statuses.values()) != requests:
        raise SystemExit(f"{sum(statuses.values())} of {requests} requests have an answer; wrong: {wrong[:3]}")
    return Load(seconds, latencies, statuses, near_ties)


def _refuse_errors(load: Load) -> None:
    if set(load.statuses) != {200}:
        raise SystemExit(f"within the limits there were other answers than 200: {load.statuses}")


def _row(clients: int, load: Load, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    speed = len(load.latencies) / load.seconds
    p50, p99 = np.percentile(load.latencies, [50, 99]) * 1000
    return {
        "clients": clients,
        "requests/s": speed,
        "times one client": speed / rows[0]["requests/s"] if rows else 1.0,
        "p50 ms": float(p50),
        "p99 ms": float(p99),
        "near ties": load.near_ties,
        "busy cores": measure.busy_cores(),
    }


def _streams(host: str, port: int, lines: Sequence[str]) -> dict[str, float]:
    """Medians over lines, ms, of one client: to the first token, and for each further one."""
    first, between = list[float](), list[float]()
    connection = http.client.HTTPConnection(host, port, timeout=60)
    for line in lines:
        body, begin = json.dumps({"text": line, "stream": True}), time.perf_counter()
        connection.request("POST", "/translate", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        times = [time.perf_counter() for event in iter(answer.readline, b"") if event.startswith(b"data: ")]
        first.append(times[0] - begin)
        between.append((times[-1] - times[0]) / (len(times) - 1))
    return {"first token": float(np.median(first)) * 1000, "next token": float(np.median(between)) * 1000}


def _above(host: str, port: int, expected: dict[str, Expected], clients: int) -> dict[str, int]:
    """The answers by status where there are twice as many clients as one address may have."""
    load = _under_load(host, port, expected, clients, 4 * clients)
    if set(load.statuses) - {200, 429, 503} or load.statuses[429] + load.statuses[503] == 0:
        raise SystemExit(f"above the limits: {load.statuses}")
    return {str(status): number for status, number in sorted(load.statuses.items())}


def _memory(host: str, port: int, expected: dict[str, Expected], requests: int) -> dict[str, float]:
    """MB that the server holds before and after many requests, and at the middle."""
    held = {0: _resident(host, port)}
    for part in (1, 2):
        _refuse_errors(_under_load(host, port, expected, 32, requests // 2))
        held[part * (requests // 2)] = _resident(host, port)
    return {f"after {number:,}": value for number, value in held.items()}


def _resident(host: str, port: int) -> float:
    connection = http.client.HTTPConnection(host, port, timeout=60)
    connection.request("GET", "/metrics")
    found = _RESIDENT.search(connection.getresponse().read().decode())
    assert found is not None
    return float(found[1]) / 1e6


if __name__ == "__main__":
    main()
