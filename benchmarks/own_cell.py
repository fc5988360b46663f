"""A cell of one's own over time: `seq2seq_jax.scan` against `jax.lax.scan` and Flax's `nnx.RNN`.

    python -m benchmarks.own_cell --sizes 256 512

The cell is that of docs/extending.md, a minimal gated unit (Zhou et al. 2016), with the same weights and inputs for
all. Timed is the gradient of everything: weights, inputs and first state. Results and gradients are compared first.
"""

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure

OURS = "seq2seq_jax.scan"
PEERS = {OURS: "ours", "jax.lax.scan": "lax", "nnx.RNN": "nnx"}


def make(peer: str, size: int, batch: int, length: int) -> tuple[Callable[[], Any], Callable[[], None]]:
    """Returns the sum of all gradients' absolute values, and a step that computes the gradients."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    import seq2seq_jax

    def cell(weights, hidden, x):
        gate = jax.nn.sigmoid(x @ weights["gate_x"] + hidden @ weights["gate_h"] + weights["gate_b"])
        candidate = jnp.tanh(x @ weights["new_x"] + (gate * hidden) @ weights["new_h"] + weights["new_b"])
        return (1 - gate) * hidden + gate * candidate

    class Cell(nnx.RNNCellBase):
        def __init__(self, weights):
            self.weights = nnx.data({name: nnx.Param(value) for name, value in weights.items()})

        def __call__(self, carry, inputs):
            hidden = cell({name: weight[...] for name, weight in self.weights.items()}, carry, inputs)
            return hidden, hidden

        @property
        def num_feature_axes(self):
            return 1

    def run(weights, start, xs):
        if peer == "nnx":
            outputs = nnx.RNN(Cell(weights), time_major=True)(xs, initial_carry=start)
        else:
            scan = seq2seq_jax.scan if peer == "ours" else jax.lax.scan
            _, outputs = scan(lambda hidden, x: (cell(weights, hidden, x),) * 2, start, xs)
        return jnp.sum(outputs * outputs)

    draw = np.random.default_rng(0)
    shapes = {f"{gate}_{part}": (size, size) for gate in ("gate", "new") for part in "xh"}
    shapes |= {"gate_b": (size,), "new_b": (size,)}
    weights = {name: draw.uniform(-0.05, 0.05, shape).astype(np.float32) for name, shape in shapes.items()}
    start, xs = (draw.standard_normal(shape, np.float32) for shape in ((batch, size), (length, batch, size)))
    arguments = jax.device_put((weights, start, xs))
    gradient = jax.jit(jax.grad(run, argnums=(0, 1, 2)))
    check = lambda: [float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(gradient(*arguments))]  # noqa: E731
    return check, lambda: jax.block_until_ready(gradient(*arguments))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[256, 512], help="units of the cell")
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 32, 64], help="rows")
    parser.add_argument("--length", type=int, default=50, help="steps")
    parser.add_argument("--steps", type=int, default=5, help="timed gradients a turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each peer")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/own_cell.json"), help="JSON")
    arguments = parser.parse_args()
    about = measure.print_machine()
    rows = []
    for size, batch in itertools.product(arguments.sizes, arguments.batches):
        peers = {name: (make, (peer, size, batch, arguments.length)) for name, peer in PEERS.items()}
        timings = measure.in_turns(peers, warmup=2, steps=arguments.steps, rounds=arguments.rounds)
        for name, timing in timings.items():
            if not np.allclose(timing.check, timings[OURS].check, rtol=1e-4):
                raise SystemExit(f"{name} computes other gradients: {timing.check}, {timings[OURS].check}")
            row = {"units": size, "rows": batch, "peer": name, "ms": 1000 * timing.median}
            rows.append(row | {"ours is faster": timing.median / timings[OURS].median})
    measure.print_table(rows)
    measure.write_json(arguments.output, rows, about)


if __name__ == "__main__":
    main()
