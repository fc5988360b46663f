"""Tiny models, and what they compute found a second way: in NumPy, sentence by sentence, from the papers' equations."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seq2seq_jax.config import ModelConfig
from seq2seq_jax.model import Seq2Seq, abstract_params

VOCAB = 11

# A model this small costs nothing to run and everything to compile: leave out what only makes code faster.
QUICK_COMPILE = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}

SOURCE = np.array([[3, 4, 5, 6, 2], [7, 8, 2, 0, 0], [9, 10, 4, 2, 0]], np.int32)
TARGET = np.array([[5, 4, 3, 2], [6, 2, 0, 0], [7, 9, 2, 0]], np.int32)


def tiny_config(**settings) -> ModelConfig:
    """Sizes that all differ, so that no axis is taken for another."""
    return ModelConfig(**{"hidden_size": 6, "embed_size": 4, "dropout_rate": 0.3} | settings)


def random_params(config: ModelConfig, seed: int = 0, scale: float = 0.8) -> dict:
    """Parameters in float64, uniform and large enough that every gate and score matters; biases too."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: generator.uniform(-scale, scale, leaf.shape), abstract_params(config, (VOCAB, VOCAB))
    )


def graph(config: ModelConfig, engine="fast"):
    """The structure of a model, for `nnx.merge` with parameters."""
    make = lambda: Seq2Seq(config, VOCAB, VOCAB, rngs=nnx.Rngs(0), engine=engine)  # noqa: E731
    return nnx.graphdef(nnx.eval_shape(make))


def teacher_forced(config: ModelConfig, engine="fast"):
    """`(params, source, target, keys) -> (logits [B, T, V], weights [B, T, S] or None)`."""
    structure = graph(config, engine)

    def forward(params, source, target, keys=None):
        model = nnx.merge(structure, params)
        vectors, weights = model(jnp.asarray(source), jnp.asarray(target), keys=keys)
        return jnp.swapaxes(model.logits(vectors), 0, 1), None if weights is None else jnp.swapaxes(weights, 0, 1)

    return forward


def compiled(function, *arguments):
    """`jax.jit(function)` for arguments like these, compiled with less care; gives NumPy arrays."""
    executable = jax.jit(function).lower(*arguments).compile(compiler_options=QUICK_COMPILE)
    return lambda *arguments: jax.device_get(executable(*arguments))


def run_compiled(function, *arguments):
    """`jax.jit(function)(*arguments)`, compiled with less care, as NumPy arrays."""
    return compiled(function, *arguments)(*arguments)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Oracle:
    """What `Seq2Seq` computes for one sentence without padding, in float64."""

    def __init__(self, config: ModelConfig, params: dict):
        self.config, self.params = config, params

    def table(self, name: str) -> np.ndarray:
        return self.params.get(name, self.params["target_embedding"])

    def lstm(self, layer: dict, direction: int, inputs: list, state: tuple) -> tuple:
        """Gers et al. 2000: new (cell, hidden) from everything that comes in, the own hidden state last."""
        cell, hidden = state
        parts = [layer[name][direction] for name in ("input_kernel", "recurrent_kernel") if name in layer]
        gates = np.concatenate([*inputs, hidden]) @ np.concatenate(parts) + layer["bias"][direction]
        i, f, g, o = np.split(gates, 4)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        return cell, sigmoid(o) * np.tanh(cell)

    def encode(self, source) -> tuple[np.ndarray, list]:
        """Outputs of the top layer, [S, E], and every layer's last state."""
        sequence, lasts = self.table("source_embedding")[source], []
        for depth in range(self.config.num_layers):
            layer = self.params["encoder"]["layers"][depth]
            outputs, last = [], []
            for direction in range(len(layer["bias"])):
                size = layer["bias"].shape[1] // 4
                state, hiddens = (np.zeros(size), np.zeros(size)), []
                for x in sequence[:: -1 if direction else 1]:
                    state = self.lstm(layer, direction, [x], state)
                    hiddens.append(state[1])
                outputs.append(np.array(hiddens)[:: -1 if direction else 1])
                last.append(state)
            sequence = np.concatenate(outputs, axis=-1)
            lasts.append(tuple(np.concatenate(parts) for parts in zip(*last, strict=True)))
        return sequence, lasts

    def bridge(self, lasts: list) -> list:
        if self.config.bridge == "zero":
            return [(0 * cell, 0 * hidden) for cell, hidden in lasts]
        if self.config.bridge == "dense":
            kernels = self.params["bridge_kernel"]
            return [(np.tanh(c @ kernels[n, 0]), np.tanh(h @ kernels[n, 1])) for n, (c, h) in enumerate(lasts)]
        return lasts

    def attend(self, hidden, outputs) -> tuple[np.ndarray, np.ndarray]:
        """Luong et al. 2015, equations 7 and 8, or Bahdanau et al. 2015, appendix A.1.2."""
        decoder = self.params["decoder"]
        if self.config.attention == "dot":
            scores = [hidden @ m for m in outputs]
        elif self.config.attention == "general":
            scores = [m @ decoder["key_kernel"] @ hidden for m in outputs]
        else:
            summed = [hidden @ decoder["query_kernel"] + m @ decoder["key_kernel"] for m in outputs]
            scores = [np.tanh(s) @ decoder["score_kernel"][:, 0] for s in summed]
        weights = np.exp(scores) / np.exp(scores).sum()
        return weights @ outputs, weights

    def __call__(self, source, target) -> tuple[np.ndarray, np.ndarray | None]:
        """Logits [T, V] and attention weights [T, S] under teacher forcing."""
        decoder, attention = self.params["decoder"], self.config.attention != "none"
        outputs, lasts = self.encode(source)
        states = self.bridge(lasts)
        vector = np.zeros(decoder["combine_kernel"].shape[1])
        all_logits, all_weights = [], []
        for token in [1, *target[:-1]]:
            below = [self.params["target_embedding"][token]] + ([vector] if self.config.input_feeding else [])
            for depth in range(len(states)):
                states[depth] = self.lstm(decoder["layers"][depth], 0, below, states[depth])
                below = [states[depth][1]]
            context, weights = self.attend(below[0], outputs) if attention else (np.zeros(0), None)
            vector = np.tanh(np.concatenate([context, below[0]]) @ decoder["combine_kernel"])
            all_logits.append(self.table("output_kernel") @ vector + self.params["output_bias"])
            all_weights.append(weights)
        return np.array(all_logits), np.array(all_weights) if attention else None
