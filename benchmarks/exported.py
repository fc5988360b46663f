"""A trained run against its exports as ONNX, float32 and 8 bits: speed, latency on one core, size, and BLEU.

    python -m benchmarks.exported --workdir runs/mine --source-file test.de --target-file test.en

Throughput is that of the whole file on all cores, latency that of one sentence after another on one core. From text to
text, without start-up and compilation, in turns, each in a process of its own. On a CPU: JAX_PLATFORMS=cpu.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks import measure
from seq2seq_jax.config import DecodeConfig
from seq2seq_jax.cpu import keep_freed_memory, run_in_calling_thread
from seq2seq_jax.errors import UserError
from seq2seq_jax.metrics import score_hypotheses
from seq2seq_jax.text_files import chunks, open_input

OURS = "JAX, float32"
EXPORTS: dict[str, Literal["int8"] | None] = {"ONNX, float32": None, "ONNX, int8": "int8"}

Job = Callable[[], list[str]]


def main() -> None:
    arguments = _parse()
    try:
        lines, targets = _read(arguments.source_file), _read(arguments.target_file)
        if len(targets) != len(lines):
            raise UserError(f"{len(lines):,} source lines, but {len(targets):,} target lines.")
        about: dict[str, Any] = measure.print_machine() | {"sentences": len(lines)}
        rows: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory() as folder:
            for beam_size in arguments.beam_sizes:
                decode = DecodeConfig(beam_size, batch_size=arguments.batch_size)
                rows += _compare(arguments, decode, lines, targets, Path(folder))
    except UserError as error:
        measure.refuse(str(error))
    measure.print_table(rows)
    measure.write_json(arguments.output, rows, about)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="run directory of the trained model")
    parser.add_argument("--source-file", type=Path, required=True, help="a sentence a line; may end in .gz")
    parser.add_argument("--target-file", type=Path, required=True, help="its translation")
    parser.add_argument("--beam-sizes", nargs="+", type=int, default=[1, 5], help="1 is greedy search")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--latency-lines", type=int, default=100, help="first sentences, translated one by one")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/exported.json"))
    return parser.parse_args()


def _read(path: Path) -> list[str]:
    with open_input(path) as file:
        return [line for lines in chunks(file, str(path)) for line in lines]


def _compare(
    arguments: argparse.Namespace, decode: DecodeConfig, lines: list[str], targets: list[str], folder: Path
) -> list[dict[str, Any]]:
    """A row for the run and each export of it, of one search."""
    from seq2seq_jax import translator
    from seq2seq_jax.exporting import export

    trained = translator.load(arguments.workdir, decode)
    paths = {name: folder / f"{decode.beam_size} {name}.pyz" for name in EXPORTS}
    sizes = {name: export(trained, path, "onnx", EXPORTS[name]) for name, path in paths.items()}
    seconds: dict[str, dict[str, float]] = {}
    outputs: dict[str, list[str]] = {}
    for what, given in (("throughput", lines), ("latency", lines[: arguments.latency_lines])):
        alone = what == "latency"
        peers: dict[str, tuple[Callable, tuple]] = {OURS: (_ours, (arguments.workdir, decode, given, alone))}
        peers |= {name: (_exported, (str(path), given, alone)) for name, path in paths.items()}
        timings = measure.in_turns(peers, warmup=0, steps=1, rounds=arguments.rounds)  # the check is an untimed pass
        seconds[what] = {name: timing.median / len(given) for name, timing in timings.items()}
        if not alone:
            outputs = {name: timing.check for name, timing in timings.items()}
    return [
        {
            "search": "greedy" if decode.beam_size == 1 else f"beam {decode.beam_size}",
            "by": name,
            "sentences/s": 1 / each,
            "speed-up": seconds["throughput"][OURS] / each,
            "ms a sentence, one core": 1e3 * seconds["latency"][name],
            "MB": sizes[name] / 1e6 if name in sizes else None,
            "BLEU": score_hypotheses(outputs[name], [[target] for target in targets])["bleu"].value,
            "same texts": sum(map(str.__eq__, outputs[name], outputs[OURS])) / len(lines),
        }
        for name, each in seconds["throughput"].items()
    ]


def _ours(workdir: Path, decode: DecodeConfig, lines: Sequence[str], alone: bool) -> tuple[Job, Job]:
    _use_cores(alone)
    run_in_calling_thread()  # this and the next as the command line does
    keep_freed_memory()
    from seq2seq_jax import translator

    trained = translator.load(workdir, decode)
    return _twice(lambda lines: [found.text for found in trained.translate(lines)], lines, alone)


def _exported(path: str, lines: Sequence[str], alone: bool) -> tuple[Job, Job]:
    _use_cores(alone)
    from seq2seq_jax.runner import Model

    return _twice(Model(path).translate, lines, alone)


def _use_cores(alone: bool) -> None:
    if alone:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def _twice(translate: Callable[[Sequence[str]], list[str]], lines: Sequence[str], alone: bool) -> tuple[Job, Job]:
    """The same job to check and to time: one line at a time, or everything at once."""
    calls = [[line] for line in lines] if alone else [lines]

    def job() -> list[str]:
        return [text for call in calls for text in translate(call)]

    return job, job


if __name__ == "__main__":
    main()
