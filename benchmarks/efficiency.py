"""How long a training step of GNMT v2 takes on 8 to 1,024 chips, on paper: counted parts over makers' speeds.

    python -m benchmarks.efficiency

Counted: operations and bytes of products, off the step's jaxpr for the sentences of one chip; rounds of loops one after
another, likewise; bytes of the gradients' sum. Taken from makers: operations, bytes and links a second
(`training/costs/targets.py`). Assumed: the microseconds of a round, and that products and links run at full speed, one
after another. So it says how efficiency falls with the number of chips, rather than how high it starts.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from seq2seq_jax.config import MeshConfig
from seq2seq_jax.config_file import load_config
from seq2seq_jax.data.batching import BatchShape
from seq2seq_jax.sharding import make_mesh
from seq2seq_jax.training.costs.counts import Products, loop_rounds, products, size
from seq2seq_jax.training.costs.targets import CHIPS, links
from seq2seq_jax.training.setup import make_step, trace_step
from seq2seq_jax.training.step import abstract_state

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "gnmt_v2_en_de.py"
VOCAB_SIZES = (32_000, 32_000, 0)
SENTENCES = {8: 3_072, 32: 6_144, 64: 8_192, 256: 8_192, 1_024: 8_192}
"""Of a step, by the number of chips: no more than MLPerf's entry with 256 GPUs."""


class Counts(NamedTuple):
    """What is counted of a step of one chip."""

    products: Products
    rounds: int
    gradient_bytes: int


def count(sentences: int, length: int) -> Counts:
    """Of a step of one chip on so many sentences, as long on both sides."""
    config, mesh = load_config(CONFIG), make_mesh(MeshConfig(data=1))
    config = replace(config, model=replace(config.model, compute_dtype="bfloat16"))
    state = abstract_state(config, VOCAB_SIZES, mesh)
    shape = BatchShape(sentences, length, length)
    jaxpr = trace_step(make_step(config, VOCAB_SIZES, mesh, None), state, shape, mesh).jaxpr
    return Counts(products(jaxpr), loop_rounds(jaxpr.jaxpr), size(state.params).bytes)


def seconds(counts: Counts, chip: str, chips: int, round_seconds: float) -> tuple[float, float, float]:
    """Of a step: products, rounds, and the sum of gradients, which a ring passes twice."""
    found = CHIPS[chip]
    passed = 2 * counts.gradient_bytes * (chips - 1) / chips
    return (
        max(counts.products.flops / found.flops["bfloat16"], counts.products.bytes / found.bandwidth),
        counts.rounds * round_seconds,
        passed / links(found, chips),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--chip", choices=CHIPS, default="h100")
    parser.add_argument("--length", type=int, default=30, help="tokens of a sentence on either side, 30 by default")
    parser.add_argument("--round-us", type=float, default=5.0, help="microseconds of a round of a loop, 5 by default")
    arguments = parser.parse_args()
    print("| chips | sentences | of each | products, ms | rounds, ms | gradients, ms | tokens/s of each | efficiency |")
    print("|---|---|---|---|---|---|---|---|")
    best = 0.0
    for chips, sentences in SENTENCES.items():
        own = sentences // chips
        parts = seconds(count(own, arguments.length), arguments.chip, chips, arguments.round_us * 1e-6)
        rate = 2 * arguments.length * own / sum(parts)
        best = best or rate
        times = " | ".join(f"{1e3 * part:.1f}" for part in parts)
        print(f"| {chips:,} | {sentences:,} | {own} | {times} | {rate:,.0f} | {rate / best:.0%} |")


if __name__ == "__main__":
    main()
