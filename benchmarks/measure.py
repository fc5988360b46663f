"""Timing in turns, each peer in a process of its own; what is compiled; what machine this is; tables and JSON.

JAX takes most of a GPU's memory at once unless told otherwise; the peers' processes share it, so they are told.
"""

import contextlib
import datetime
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # before JAX looks for devices

Step = Callable[[], Any]  # what it returns is not looked at


class Timing(NamedTuple):
    """Of one peer: seconds of each timed step, what it returned when asked to check itself, and its largest memory,
    which is the accelerator's where there is one."""

    seconds: list[float]
    check: Any
    peak_bytes: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class _Failure(NamedTuple):
    """What a peer that cannot run answers."""

    reason: str


def in_turns(
    peers: Mapping[str, tuple[Callable[..., tuple[Callable[[], Any], Step]], tuple]],
    *,
    warmup: int,
    steps: int,
    rounds: int,
    optional: Collection[str] = (),
) -> dict[str, Timing]:
    """Times every peer's step; rounds alternate, so that a machine that slows down slows all.

    Args:
      peers: by name, a function that returns (check, step), and its arguments;
        it is called in a process of its own, which imports what it needs.
      warmup: steps before the first timed one.
      steps: timed steps a round.
      rounds: times every peer has its turn.
      optional: peers that are left out, and told of, where they cannot run.

    Raises:
      SystemExit: another peer cannot run.
    """
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name, (make, arguments) in peers.items():
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=_serve, args=(theirs, make, arguments), daemon=True))
        processes[-1].start()
        theirs.close()

    def ask(name: str, *request: Any) -> Any:
        with contextlib.suppress(OSError):  # it may have ended, and said why
            pipes[name].send(request)
        try:
            answer = pipes[name].recv()
        except (EOFError, OSError):
            answer = _Failure("its process died")
        if isinstance(answer, _Failure):
            message = f"{name} cannot run: {answer.reason}"
            if name not in optional:
                raise SystemExit(f"error: {message}")
            print(message, flush=True)
            pipes.pop(name).close()
        return answer

    checks = {name: ask(name, "check") for name in peers}
    for name in list(pipes):
        ask(name, "time", warmup)
    seconds: dict[str, list[float]] = {name: [] for name in pipes}
    for _ in range(rounds):
        for name in seconds:
            seconds[name] += ask(name, "time", steps)
    memory = {name: ask(name, "memory") for name in seconds}
    for pipe in pipes.values():
        pipe.close()
    for process in processes:
        process.join()
    return {name: Timing(seconds[name], checks[name], memory[name]) for name in seconds}


def _serve(pipe: Any, make: Callable, arguments: tuple) -> None:
    try:
        check, step = make(*arguments)
        while request := _next(pipe):
            match request:
                case ["check"]:
                    pipe.send(check())
                case ["time", steps]:
                    pipe.send([_timed(step) for _ in range(steps)])
                case ["memory"]:
                    pipe.send(_peak_bytes())
    except Exception as error:  # whatever it is, the other peers can be measured
        pipe.send(_Failure(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"))


def _next(pipe: Any) -> tuple | None:
    """The next request, or None when there will be no more."""
    try:
        return pipe.recv()
    except EOFError:
        return None


def _peak_bytes() -> int:
    """The most memory that arrays held at once on the accelerator that this process uses; on a CPU, the process."""
    jax, torch = sys.modules.get("jax"), sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():  # JAX only drew the weights
        return torch.cuda.max_memory_allocated()
    if jax is not None and (statistics := jax.local_devices()[0].memory_stats()):
        return statistics["peak_bytes_in_use"]
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _timed(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def busy_cores(seconds: float = 1.0) -> float:
    """Cores that other processes keep busy while this one sleeps."""
    before = _ticks()
    time.sleep(seconds)
    return (_ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds


def _ticks() -> int:
    user, nice, system, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return user + nice + system


@contextlib.contextmanager
def compilations() -> Generator[list[str]]:
    """Gives a list that grows with every program that JAX compiles, or finds compiled in its cache."""
    from jax import monitoring

    found: list[str] = []

    def listen(event: str, *_: Any, **__: Any) -> None:
        if "backend_compile" in event:
            found.append(event)

    monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        monitoring.unregister_event_duration_listener(listen)


def device() -> str:
    """What JAX computes on: cpu, gpu or tpu."""
    import jax

    return jax.default_backend()


def machine() -> dict[str, Any]:
    """What the figures belong to."""
    import jax

    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        **{name: _version(name) for name in ("jax", "jaxlib", "flax", "torch")},
        "busy_cores": round(busy_cores(), 2),
    }


def refuse(message: str) -> NoReturn:
    """Ends the process for a mistake that its user can mend, as the package's commands do."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def print_machine() -> dict[str, Any]:
    """Prints and returns what `machine` says, and a warning where it is not idle."""
    about = machine()
    print(about)
    if about["busy_cores"] > 0.1:
        print("This machine is not idle: compare ratios only.")
    return about


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def matrix_peak(dtype: str, repeats: int = 20) -> float:
    """FLOP/s of a square product, the best of several: what this machine can do at most."""
    import jax

    size = 2048 if jax.default_backend() == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    multiply = jax.jit(lambda a: a @ a)
    step = lambda: multiply(a).block_until_ready()  # noqa: E731
    step()
    return 2 * size**3 / min(_timed(step) for _ in range(repeats))


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Prints dictionaries with the same keys as a Markdown table."""
    cells = [list(rows[0])] + [[_shown(value) for value in row.values()] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for number, row in enumerate(cells):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def write_json(
    path: Path, rows: Sequence[dict[str, Any]] | Mapping[str, Sequence[dict[str, Any]]], about: dict[str, Any]
) -> None:
    """Writes the rows, of one table or of several by name, and the machine they were measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": about, "rows": rows}, indent=2) + "\n")
