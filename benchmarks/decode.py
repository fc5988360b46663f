"""Translating a file with a trained run, against the same model in PyTorch: same hypotheses, checked before timing.

    python -m benchmarks.decode --workdir runs/mine --source-file test.de --target-file test.en

Latency is that of single sentences, one after another; throughput that of the whole file, at the batch size that suits
each peer best. From text to text, float32 on a CPU, without start-up and compilation.
"""

import argparse
from collections.abc import Callable
from typing import Any

from benchmarks import measure, torch_search
from seq2seq_jax.config import DecodeConfig
from seq2seq_jax.run_directory import read_config

OURS, PEER = "seq2seq_jax", "PyTorch"
SAME_TEXTS, SAME_SCORE = 0.98, 1e-3  # float32 sums in another order: a near tie may fall the other way

Job = Callable[[], list[tuple[str, float]]]


def main() -> None:
    arguments = _parse()
    torch_search.refuse_unsupported(read_config(arguments.workdir).model)
    lines = _read(arguments.source_file)
    targets = _read(arguments.target_file) if arguments.target_file else None
    params, extra_length = _trained(arguments.workdir)
    about = measure.machine() | {"sentences": len(lines), "same_texts": {}, "bleu": {}}
    print(about)
    if about["busy_cores"] > 0.1:
        print("This machine is not idle: compare ratios only.")
    rows: list[dict[str, Any]] = []
    for beam_size in arguments.beam_sizes:
        search, timings = f"beam {beam_size}" if beam_size > 1 else "greedy", {}
        for batch_size in [1, *arguments.batch_sizes]:
            given = lines[: arguments.latency_lines] if batch_size == 1 else lines
            decode = DecodeConfig(beam_size, arguments.length_penalty, batch_size=batch_size)
            peers = {
                OURS: (_ours, (arguments.workdir, decode, given)),
                PEER: (_torch, (arguments.workdir, params, extra_length, decode, given)),
            }
            found = measure.in_turns(peers, check=_same_hypotheses, warmup=0, steps=1, rounds=arguments.rounds)
            timings[batch_size] = {peer: timing.median / len(given) for peer, timing in found.items()}
            rows += _rows(search, str(batch_size), timings[batch_size])
    measure.print_table(rows)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    return parser.parse_args()
