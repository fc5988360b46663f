"""A training step against PyTorch and nnx.RNN: same weights, same batch, same loss, checked before timing.

    python -m benchmarks.train_step --models L512 L512-IF --batch-sizes 64

Every sentence has `--length` tokens on both sides, so that no peer gains or loses by padding. On whatever device JAX
finds; JAX_PLATFORMS=cpu keeps everything on the CPU. Losses are compared in float32, steps timed in `--dtype`: on a
GPU give it bfloat16, which is what its users train in. Peers that cannot run are named and left out: "PyTorch
compiled" needs a C++ compiler, and with input feeding two minutes before it begins.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure, nnx_rnn, ours, torch_models
from benchmarks.measure import Timing
from benchmarks.task import MODELS, Task, train_flops

OURS, HALF, KEPT = "seq2seq_jax", "PyTorch tuned, float16", "PyTorch memory kept"
PEERS = {
    OURS: ours.make,
    "PyTorch tuned": torch_models.make_tuned,
    HALF: torch_models.make_half,
    KEPT: torch_models.make_kept,
    "PyTorch ordinary": torch_models.make_ordinary,
    "PyTorch compiled": torch_models.make_compiled,
    "nnx.RNN": nnx_rnn.make,
}


def main() -> None:
    arguments = _parse()
    about = measure.print_machine()
    peak, device = measure.matrix_peak(arguments.dtype), measure.device()
    print(f"Matrix peak {peak / 1e9:,.0f} GFLOP/s in {arguments.dtype}")
    peers = arguments.peers or [peer for peer in PEERS if peer != (KEPT if device == "gpu" else HALF)]
    rows: list[dict[str, Any]] = []
    for name in arguments.models:
        for batch_size in arguments.batch_sizes:
            task = Task(MODELS[name], batch_size, arguments.length, arguments.dtype, device)
            timings = measure.in_turns(
                {peer: (PEERS[peer], (task,)) for peer in peers},
                warmup=arguments.warmup,
                steps=arguments.steps,
                rounds=arguments.rounds,
                optional=[peer for peer in peers if peer != OURS],
            )
            _same_losses(timings)
            rows += [_row(name, task, peer, timings, peak) for peer in timings]
    measure.print_table(rows)
    measure.write_json(arguments.output, rows, about | {"matrix_peak": peak, "dtype": arguments.dtype})


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models",
        nargs="+",
        choices=MODELS,
        default=["L512", "L512-IF"],
        help="L256 has a layer of 256 on either side, L512 two of 512, G four of 1,024; IF is input feeding; GRU512,"
        " RNN512 and MIN512 are L512 with other cells",
    )
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[64], help="sentences")
    parser.add_argument("--length", type=int, default=25, help="tokens a sentence, source and target")
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=PEERS,
        metavar="PEER",
        help=f"{OURS!r} and any of {', '.join(repr(peer) for peer in PEERS if peer != OURS)}; by default all, without"
        f" {KEPT!r} on a GPU and {HALF!r} elsewhere",
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of a timed step")
    parser.add_argument("--warmup", type=int, default=3, help="steps before the first timed one")
    parser.add_argument("--steps", type=int, default=3, help="timed steps a turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each peer")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/train_step.json"), help="JSON")
    return parser.parse_args()


def _same_losses(timings: dict[str, Timing]) -> None:
    losses = {name: timing.check for name, timing in timings.items()}
    if not np.allclose(list(losses.values()), losses[OURS], rtol=1e-4):
        raise SystemExit(f"the peers compute different losses: {losses}")


def _row(name: str, task: Task, peer: str, timings: dict[str, Timing], peak: float) -> dict[str, Any]:
    timing, tokens = timings[peer], task.batch_size * task.length
    rate = train_flops(task) / timing.median
    return {
        "model": name,
        "batch": task.batch_size,
        "peer": peer,
        "ms/step": 1000 * timing.median,
        "target tokens/s": tokens / timing.median,
        "both sides": 2 * tokens / timing.median,
        "GFLOP/s": rate / 1e9,
        "share of peak": rate / peak,
        "peak MB": timing.peak_bytes / 1e6,
        "ours is faster": timing.median / timings[OURS].median,
    }


if __name__ == "__main__":
    main()
