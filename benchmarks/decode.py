"""Translating a file with a trained run, against the same model in PyTorch: same hypotheses, checked before timing.

    python -m benchmarks.decode --workdir runs/mine --source-file test.de --target-file test.en

Batch 1 is one sentence after another, for its latency; of the other batch sizes, all for the throughput of the whole
file, "best" is the one that suits each peer. From text to text, without start-up and compilation, on whatever device
JAX finds; JAX_PLATFORMS=cpu keeps both on the CPU.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure, torch_search
from seq2seq_jax.config import DecodeConfig
from seq2seq_jax.cpu import keep_freed_memory, run_in_calling_thread
from seq2seq_jax.errors import UserError
from seq2seq_jax.metrics import score_hypotheses
from seq2seq_jax.run_directory import read_config
from seq2seq_jax.text_files import chunks, open_input

OURS, PEER = "seq2seq_jax", "PyTorch"
SAME_TEXTS, SAME_SCORE = 0.98, 1e-3  # float32 sums in another order: a near tie may fall the other way

Outputs = list[tuple[str, float]]  # texts and scores
Job = Callable[[], Outputs]


def main() -> None:
    arguments = _parse()
    try:
        lines = _read(arguments.source_file)
        targets = _read(arguments.target_file) if arguments.target_file else None
        torch_search.refuse_unsupported(read_config(arguments.workdir).model)
        trained = _trained(arguments.workdir)
    except UserError as error:
        measure.refuse(str(error))
    if targets is not None and len(targets) != len(lines):
        measure.refuse(f"{len(lines):,} source lines, but {len(targets):,} target lines.")
    about: dict[str, Any] = measure.print_machine() | {"sentences": len(lines)}
    device = measure.device()
    rows: list[dict[str, Any]] = []
    for beam_size in arguments.beam_sizes:
        search = "greedy" if beam_size == 1 else f"beam {beam_size}"
        seconds, outputs = {}, []  # of a sentence, by batch size and peer
        for batch_size in (1, *arguments.batch_sizes):
            given = lines[: arguments.latency_lines] if batch_size == 1 else lines
            decode = DecodeConfig(beam_size, batch_size=batch_size)
            timings = measure.in_turns(
                {OURS: (_ours, (arguments.workdir, decode, given)), PEER: (_torch, (*trained, decode, given, device))},
                warmup=0,  # the check is an untimed pass
                steps=1,
                rounds=arguments.rounds,
            )
            outputs = timings[OURS].check
            same = _same_outputs(outputs, timings[PEER].check)
            print(f"{search}, batch {batch_size}: {same:.1%} of {len(given):,} texts are the same", flush=True)
            about[f"same texts, {search}, batch {batch_size}"] = same
            seconds[batch_size] = {peer: timing.median / len(given) for peer, timing in timings.items()}
        if targets is not None:
            bleu = score_hypotheses([text for text, _ in outputs], [[text] for text in targets[: len(outputs)]])["bleu"]
            print(f"{search}: BLEU {bleu.value:.2f}, {bleu.signature}")
            about[f"BLEU, {search}"] = bleu.value
        rows += _rows(search, seconds)
    measure.print_table(rows)
    measure.write_json(arguments.output, rows, about)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="run directory of the trained model")
    parser.add_argument("--source-file", type=Path, required=True, help="a sentence a line; may end in .gz")
    parser.add_argument("--target-file", type=Path, help="its translation, for the BLEU score")
    parser.add_argument("--beam-sizes", nargs="+", type=int, default=[1, 5], help="1 is greedy search")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[16, 32, 64, 128])
    parser.add_argument("--latency-lines", type=int, default=100, help="first sentences, translated one by one")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each peer")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/decode.json"))
    return parser.parse_args()


def _read(path: Path) -> list[str]:
    with open_input(path) as file:
        return [line for lines in chunks(file, str(path)) for line in lines]


def _trained(workdir: Path) -> tuple[Path, dict[str, Any], int]:
    """What PyTorch needs of a run and only JAX can read, so that its process does without: weights as NumPy arrays."""
    import jax

    from seq2seq_jax import translator

    return workdir, jax.tree.map(np.asarray, translator.load(workdir).params), translator.EXTRA_LENGTH


def _ours(workdir: Path, decode: DecodeConfig, lines: Sequence[str]) -> tuple[Job, Job]:
    run_in_calling_thread()  # this and the next as the command line does
    keep_freed_memory()
    from seq2seq_jax import translator

    return _twice(translator.load(workdir, decode).translate, decode.batch_size, lines)


def _torch(
    workdir: Path, params: dict[str, Any], extra_length: int, decode: DecodeConfig, lines: Sequence[str], device: str
) -> tuple[Job, Job]:
    translator = torch_search.load(workdir, params, extra_length, decode, device)
    return _twice(translator.translate, decode.batch_size, lines)


def _twice(translate: Callable[[Sequence[str]], Sequence[Any]], batch_size: int, lines: Sequence[str]):
    """The same job to check and to time: everything at once, or with batches of one a line at a time."""
    calls = [[line] for line in lines] if batch_size == 1 else [lines]

    def job() -> Outputs:
        return [(found.text, found.score) for call in calls for found in translate(call)]

    return job, job


def _same_outputs(ours: Outputs, theirs: Outputs) -> float:
    """Share of texts that are the same; SystemExit where the searches differ by more than rounding."""
    same = float(np.mean([a == b for (a, _), (b, _) in zip(ours, theirs, strict=True)]))
    means = [float(np.mean([score for _, score in outputs])) for outputs in (ours, theirs)]
    if same < SAME_TEXTS or abs(means[0] - means[1]) > SAME_SCORE:
        raise SystemExit(f"the peers find different hypotheses: {same:.1%} the same, mean scores {means}")
    return same


def _rows(search: str, seconds: dict[int, dict[str, float]]) -> list[dict[str, Any]]:
    """A row for each batch size and peer, and one for the best batch size of each peer."""
    named = {str(batch_size): dict(found) for batch_size, found in seconds.items()}
    batches = {peer: min((found[peer], batch_size) for batch_size, found in seconds.items()) for peer in (OURS, PEER)}
    rows = [_row(search, name, peer, found[peer], found[OURS]) for name, found in named.items() for peer in found]
    return rows + [
        _row(search, f"best: {batch_size}", peer, best, batches[OURS][0])
        for peer, (best, batch_size) in batches.items()
    ]


def _row(search: str, batch: str, peer: str, seconds: float, ours: float) -> dict[str, Any]:
    return {
        "search": search,
        "batch": batch,
        "peer": peer,
        "sentences/s": 1 / seconds,
        "ms/sentence": 1000 * seconds,
        "ours is faster": seconds / ours,
    }


if __name__ == "__main__":
    main()
