"""The model of version 0.1 in NumPy, sentence by sentence, on parameters as that version laid them out."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from typing import Any

import numpy as np

from seq2seq_jax.config import ModelConfig
from seq2seq_jax.errors import UserError
from seq2seq_jax.symbols import BOS

Tree = dict[Any, Any]

FIELDS = {
    "attention": ("none", "dot", "general", "additive"),
    "input_feeding": (False, True),
    "bidirectional": ("none", "all"),
    "bridge": ("copy", "dense", "zero"),
    "tied_embeddings": ("none", "source_target", "target_output", "all"),
    "num_layers": (1, 2),
}


def _every_model() -> Iterator[ModelConfig]:
    for values in product(*FIELDS.values()):
        with suppress(UserError):  # of choices that go with no other
            yield ModelConfig(embed_size=6, hidden_size=4, **dict(zip(FIELDS, values, strict=True)))


EVERY = tuple(_every_model())
"""All models of 0.1, of sizes that are told apart by their shapes."""


def old_shapes(config: ModelConfig, vocab_sizes: tuple[int, int]) -> Tree:
    """Shapes of the parameters."""
    embed, hidden = config.embed_size, config.hidden_size
    shapes: Tree = {"target_embedding": (vocab_sizes[1], embed), "output_bias": (vocab_sizes[1],)}
    if config.tied_embeddings in ("none", "target_output"):
        shapes["source_embedding"] = vocab_sizes[0], embed
    vector = embed
    if config.tied_embeddings in ("none", "source_target"):
        shapes["output_kernel"], vector = (vocab_sizes[1], hidden), hidden
    if config.bridge == "dense":
        shapes["bridge_kernel"] = config.num_layers, 2, hidden, hidden

    def layer(directions: int, inputs: int, others: int, size: int) -> Tree:
        kernels = {"recurrent_kernel": (directions, others + size, 4 * size), "bias": (directions, 4 * size)}
        return kernels | ({"input_kernel": (directions, inputs, 4 * size)} if inputs else {})

    directions, deeper = (2 if config.bidirectional == "all" else 1), range(1, config.num_layers)
    sizes = [embed, *(hidden for _ in deeper)]
    encoder = {depth: layer(directions, size, 0, hidden // directions) for depth, size in enumerate(sizes)}
    decoder: Tree = {"combine_kernel": (hidden if config.attention == "none" else 2 * hidden, vector)}
    if config.input_feeding:
        layers = {0: layer(1, embed, vector, hidden)} | {depth: layer(1, 0, hidden, hidden) for depth in deeper}
    else:
        layers = {depth: layer(1, size, 0, hidden) for depth, size in enumerate(sizes)}
    if config.attention in ("general", "additive"):
        decoder["key_kernel"] = hidden, hidden
    if config.attention == "additive":
        decoder |= {"query_kernel": (hidden, hidden), "score_kernel": (hidden, 1)}
    return shapes | {"encoder": {"layers": encoder}, "decoder": decoder | {"layers": layers}}


def old_parameters(config: ModelConfig, vocab_sizes: tuple[int, int], seed: int = 0, scale: float = 0.7) -> Tree:
    """Random parameters of which no two numbers are alike."""
    random = np.random.default_rng(seed)

    def draw(shapes: Any) -> Any:
        if isinstance(shapes, dict):
            return {name: draw(inner) for name, inner in shapes.items()}
        return random.uniform(-scale, scale, shapes)

    return draw(old_shapes(config, vocab_sizes))


def old_logits(config: ModelConfig, params: Tree, source: list[int], target: list[int]) -> np.ndarray:
    """Logits at every position of `target`, [T, V], by teacher forcing."""
    target_table = params["target_embedding"]
    outputs, states = _encode(config, params, params.get("source_embedding", target_table)[source])
    if config.bridge == "zero":
        states = [(np.zeros_like(cell), np.zeros_like(hidden)) for cell, hidden in states]
    if config.bridge == "dense":
        pairs = zip(params["bridge_kernel"], states, strict=True)
        states = [tuple(np.tanh(part @ kernel) for kernel, part in zip(*pair, strict=True)) for pair in pairs]
    vector = np.zeros(params["decoder"]["combine_kernel"].shape[1])
    logits = []
    for token in [BOS, *target[:-1]]:
        states, vector = _decode(config, params["decoder"], target_table[token], vector, states, outputs)
        logits.append(params.get("output_kernel", target_table) @ vector + params["output_bias"])
    return np.stack(logits)


def old_log_prob(config: ModelConfig, params: Tree, source: list[int], target: list[int]) -> float:
    """Log-probability of `target`, nats."""
    logits = old_logits(config, params, source, target)
    totals = np.log(np.exp(logits).sum(1))
    return float((logits[range(len(target)), target] - totals).sum())


def _encode(config: ModelConfig, params: Tree, outputs: np.ndarray) -> tuple[np.ndarray, list]:
    """The top layer's outputs, [S, H], and every layer's last (cell, hidden)."""
    states = []
    for depth in range(config.num_layers):
        layer = params["encoder"]["layers"][depth]
        runs, lasts = [], []
        for direction, bias in enumerate(layer["bias"]):
            state, hiddens = (np.zeros(len(bias) // 4), np.zeros(len(bias) // 4)), []
            for x in outputs[:: -1 if direction else 1]:
                gates = x @ layer["input_kernel"][direction] + state[1] @ layer["recurrent_kernel"][direction] + bias
                state = _lstm(gates, state[0])
                hiddens.append(state[1])
            runs.append(hiddens[:: -1 if direction else 1])
            lasts.append(state)
        outputs = np.concatenate(runs, axis=1)
        states.append(tuple(np.concatenate(parts) for parts in zip(*lasts, strict=True)))
    return outputs, states


def _decode(
    config: ModelConfig, decoder: Tree, x: np.ndarray, vector: np.ndarray, states: list, outputs: np.ndarray
) -> tuple[list, np.ndarray]:
    """One step: the new states and the new attentional vector."""
    new: list = []
    for depth, (cell, hidden) in enumerate(states):
        layer = decoder["layers"][depth]
        if not config.input_feeding:
            below = new[-1][1] if depth else x
            gates = below @ layer["input_kernel"][0] + hidden @ layer["recurrent_kernel"][0]
        elif depth:
            gates = np.concatenate([new[-1][1], hidden]) @ layer["recurrent_kernel"][0]
        else:
            gates = x @ layer["input_kernel"][0] + np.concatenate([vector, hidden]) @ layer["recurrent_kernel"][0]
        new.append(_lstm(gates + layer["bias"][0], cell))
    top = new[-1][1]
    if config.attention != "none":
        top = np.concatenate([_context(config, decoder, top, outputs), top])
    return new, np.tanh(top @ decoder["combine_kernel"])


def _context(config: ModelConfig, decoder: Tree, query: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    keys = outputs if config.attention == "dot" else outputs @ decoder["key_kernel"]
    if config.attention == "additive":
        scores = (np.tanh(query @ decoder["query_kernel"] + keys) @ decoder["score_kernel"])[:, 0]
    else:
        scores = keys @ query
    weights = np.exp(scores - scores.max())
    return weights / weights.sum() @ outputs


def _lstm(gates: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    i, f, g, o = np.split(gates, 4)
    cell = _sigmoid(f) * cell + _sigmoid(i) * np.tanh(g)
    return cell, _sigmoid(o) * np.tanh(cell)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
