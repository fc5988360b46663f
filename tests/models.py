"""Tiny models, and what they compute found a second way: in NumPy, sentence by sentence, from the papers' equations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seq2seq_jax.build import abstract_params, model_graph
from seq2seq_jax.config import STATE_PARTS, WITHOUT_RECURRENT_WEIGHTS, ModelConfig
from seq2seq_jax.padded import Padded
from tests.compiler import QUICK_COMPILE

VOCAB = 11
SIZES = VOCAB, VOCAB, 2
"""Of source and target vocabulary; the last two entries of the source's are tags."""

# In the padding stand tokens like any others: nothing may look at them.
SOURCE = Padded(np.array([[3, 4, 5, 6, 2], [7, 8, 2, 9, 4], [9, 10, 4, 2, 8]], np.int32), np.int32([5, 3, 4]))
TARGET = Padded(np.array([[5, 4, 3, 2], [6, 2, 10, 3], [7, 9, 2, 5]], np.int32), np.int32([4, 2, 3]))
# A word that the vocabulary lacks stands twice in the first source and once in its target, another in the third.
COPIED_SOURCE = SOURCE._replace(values=np.array([[3, 12, 5, 12, 2], [7, 8, 2, 9, 4], [9, 10, 13, 2, 8]], np.int32))
COPIED_TARGET = TARGET._replace(values=np.array([[5, 12, 3, 2], [6, 2, 10, 3], [13, 9, 2, 5]], np.int32))


def tiny_config(**settings) -> ModelConfig:
    """Sizes that all differ, so that no axis is taken for another."""
    return ModelConfig(**{"hidden_size": 6, "embed_size": 4, "dropout_rate": 0.3} | settings)


def everything(cell: str, **settings) -> dict:
    """All regularisers that go with a cell, in two layers; the rates are such as random bytes hold exactly."""
    without_weights = cell in WITHOUT_RECURRENT_WEIGHTS
    return (
        dict(
            cell=cell,
            num_layers=2,
            dropout_rate=0.25,
            embedding_dropout_rate=0.5,
            output_dropout_rate=0.125,
            word_dropout_rate=0.25,
            state_dropout_rate=0.0 if without_weights else 0.25,
            weight_dropout_rate=0.0 if without_weights else 0.25,
            recurrent_dropout_rate=0.0 if cell == "rnn" else 0.375,
            zoneout_cell_rate=0.0 if STATE_PARTS[cell] == ("h",) else 0.25,
            zoneout_hidden_rate=0.375,
        )
        | settings
    )


def random_params(config: ModelConfig, seed: int = 0, scale: float = 0.8) -> dict:
    """Parameters in float64, uniform and large enough that every gate and score matters; biases too."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: generator.uniform(-scale, scale, leaf.shape), abstract_params(config, SIZES))


def graph(config: ModelConfig) -> nnx.GraphDef:
    """The structure of a model, for `nnx.merge` with parameters."""
    return model_graph(config, SIZES)


def teacher_forced(config: ModelConfig):
    """`(params, source, target, keys) -> (logits [B, T, V], weights [B, T, S] or None)`."""
    structure = graph(config)

    def forward(params, source, target, keys=None):
        model = nnx.merge(structure, params)
        vectors, weights, *_ = model(source, target.values, keys=keys)
        return jnp.swapaxes(model.output(vectors), 0, 1), None if weights is None else jnp.swapaxes(weights, 0, 1)

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


# `past` is a factor of h where it enters a product, `kept` one of the candidate: what dropout makes of them.


def rnn(weights: dict, inputs: np.ndarray, state: tuple, past=1, kept=1) -> tuple:
    """Elman 1990."""
    (hidden,) = state
    return (np.tanh(inputs @ weights["input"] + (past * hidden) @ weights["recurrent"] + weights["input_bias"]),)


def gru(weights: dict, inputs: np.ndarray, state: tuple, past=1, kept=1) -> tuple:
    """Cho et al. 2014, equations 5 to 8, each with a bias; the blocks of the gates' weights are reset, update."""
    (hidden,) = state
    (w_r, w_z), (u_r, u_z) = (np.split(weights[name], 2, axis=1) for name in ("input", "recurrent"))
    b_r, b_z = np.split(weights["input_bias"], 2)
    w, u = np.split(weights["candidate"], [len(inputs)])
    reset = sigmoid(inputs @ w_r + (past * hidden) @ u_r + b_r)
    update = sigmoid(inputs @ w_z + (past * hidden) @ u_z + b_z)
    candidate = np.tanh(inputs @ w + (reset * past * hidden) @ u + weights["candidate_bias"])
    return (update * hidden + (1 - update) * kept * candidate,)


def lstm(weights: dict, inputs: np.ndarray, state: tuple, past=1, kept=1) -> tuple:
    """Gers et al. 2000; the blocks of the weights are input, forget, candidate, output."""
    cell, hidden = state
    gates = inputs @ weights["input"] + (past * hidden) @ weights["recurrent"] + weights["input_bias"]
    i, f, g, o = np.split(gates, 4)
    cell = sigmoid(f) * cell + sigmoid(i) * kept * np.tanh(g)
    return cell, sigmoid(o) * np.tanh(cell)


def gru_v2(weights: dict, inputs: np.ndarray, state: tuple, past=1, kept=1) -> tuple:
    """cuDNN's: the reset gate after the product; blocks are reset, update, candidate."""
    (hidden,) = state
    given = np.split(inputs @ weights["input"] + weights["input_bias"], 3)
    of_state = np.split((past * hidden) @ weights["recurrent"], 3)
    reset, update = sigmoid(given[0] + of_state[0]), sigmoid(given[1] + of_state[1])
    candidate = np.tanh(given[2] + reset * (of_state[2] + weights["bias"]))
    return (update * hidden + (1 - update) * kept * candidate,)


def layer_norm(x: np.ndarray, gain: np.ndarray, num_blocks: int) -> np.ndarray:
    """Ba et al. 2016, equation 4, of each block of features."""
    blocks = [(block - block.mean()) / np.sqrt(block.var() + 1e-5) for block in np.split(x, num_blocks)]
    return gain * np.concatenate(blocks)


def layer_norm_lstm(weights: dict, inputs: np.ndarray, state: tuple, past=1, kept=1) -> tuple:
    """Ba et al. 2016, equations 20 to 22; each gate normalised by itself."""
    cell, hidden = state
    given = layer_norm(inputs @ weights["input"], weights["norms"][0]["gain"], 4)
    of_state = layer_norm((past * hidden) @ weights["recurrent"], weights["norms"][1]["gain"], 4)
    i, f, g, o = np.split(given + of_state + weights["bias"], 4)
    cell = sigmoid(f) * cell + sigmoid(i) * kept * np.tanh(g)
    return cell, sigmoid(o) * np.tanh(layer_norm(cell, weights["norms"][2]["gain"], 1) + weights["cell_bias"])


def layer_norm_gru(weights: dict, inputs: np.ndarray, state: tuple, past=1, kept=1) -> tuple:
    """Ba et al. 2016, equations 26 to 29; blocks are update, reset, candidate."""
    (hidden,) = state
    given = layer_norm(inputs @ weights["input"], weights["norms"][0]["gain"], 3) + weights["bias"]
    of_state = layer_norm((past * hidden) @ weights["recurrent"], weights["norms"][1]["gain"], 3)
    (z, r, c), (past_z, past_r, past_c) = np.split(given, 3), np.split(of_state, 3)
    update, candidate = sigmoid(z + past_z), np.tanh(c + sigmoid(r + past_r) * past_c)
    return ((1 - update) * hidden + update * kept * candidate,)


def min_gru(weights: dict, inputs: np.ndarray, state: tuple, past=1, kept=1) -> tuple:
    """Feng et al. 2024, section 3.1."""
    update, candidate = np.split(inputs @ weights["input"] + weights["input_bias"], 2)
    return ((1 - sigmoid(update)) * state[0] + sigmoid(update) * kept * candidate,)


def min_lstm(weights: dict, inputs: np.ndarray, state: tuple, past=1, kept=1) -> tuple:
    """Feng et al. 2024, section 3.2."""
    forget, new, candidate = np.split(inputs @ weights["input"] + weights["input_bias"], 3)
    forget, new = sigmoid(forget), sigmoid(new)
    return (forget / (forget + new) * state[0] + new / (forget + new) * kept * candidate,)


def slstm(weights: dict, inputs: np.ndarray, state: tuple, past=1, kept=1) -> tuple:
    """Beck et al. 2024, equations 8 to 14, without the state that only keeps numbers small: exp(m) is divided out."""
    cell, normalizer, largest, hidden = state
    gates = inputs @ weights["input"] + (past * hidden) @ weights["recurrent"] + weights["input_bias"]
    i, f, z, o = np.split(gates, 4)
    scale = np.exp(largest)
    true_cell = sigmoid(f) * scale * cell + np.exp(i) * kept * np.tanh(z)
    true_normalizer = sigmoid(f) * scale * normalizer + np.exp(i)
    largest = np.maximum(np.log(sigmoid(f)) + largest, i)
    cell, normalizer = true_cell / np.exp(largest), true_normalizer / np.exp(largest)
    return cell, normalizer, largest, sigmoid(o) * true_cell / true_normalizer


CELLS = {
    "rnn": (rnn, 1),
    "gru": (gru, 1),
    "gru_v2": (gru_v2, 1),
    "lstm": (lstm, 2),
    "layer_norm_lstm": (layer_norm_lstm, 2),
    "layer_norm_gru": (layer_norm_gru, 1),
    "min_lstm": (min_lstm, 1),
    "min_gru": (min_gru, 1),
    "slstm": (slstm, 4),
}
"""For every cell a step, `(weights, inputs, state) -> state`, and the number of vectors in its state."""


def first_state(kind: str, size: int) -> tuple:
    """Zeros; of sLSTM's scale the logarithm of next to nothing."""
    zeros = np.zeros(size)
    return (zeros, zeros, np.full(size, -1e30), zeros) if kind == "slstm" else (zeros,) * CELLS[kind][1]


def joined(linear: dict) -> np.ndarray:
    """The kernel of a `Linear` for the concatenation of its parts."""
    return np.concatenate([linear["kernels"][part] for part in range(len(linear["kernels"]))])


def weights_of(cell: dict) -> dict:
    """A cell's parameters as the functions above name them."""
    linears = {name: part for name, part in cell.items() if isinstance(part, dict) and "kernels" in part}
    biases = {f"{name}_bias": linear["bias"] for name, linear in linears.items() if "bias" in linear}
    return cell | {name: joined(linear) for name, linear in linears.items()} | biases


def regularized(kind: str, config: ModelConfig, weights: dict, inputs: np.ndarray, state: tuple, keep: dict) -> tuple:
    """A step with the masks of one row, or without: Krueger et al. 2017, section 3.2, or what it has as expectation."""
    past, kept = keep.get("state", 1), keep.get("candidate", 1)
    new = CELLS[kind][0](weights, inputs, state, past, kept)
    memory, (hidden,) = new[:-1], new[-1:]
    if "memory" in keep:
        memory = tuple(np.where(keep["memory"], now, old) for now, old in zip(memory, state, strict=False))
    elif kind == "slstm":
        scale, old_scale = np.exp(new[2]), np.exp(state[2])
        rate, largest = config.zoneout_cell_rate, np.maximum(new[2], state[2])
        expected = [rate * old_scale * state[n] + (1 - rate) * scale * new[n] for n in (0, 1)]
        memory = (*(part / np.exp(largest) for part in expected), largest)
    else:
        rate = config.zoneout_cell_rate
        memory = tuple(rate * old + (1 - rate) * now for now, old in zip(memory, state, strict=False))
    if "hidden" in keep:
        hidden = np.where(keep["hidden"], hidden, state[-1])
    else:
        hidden = config.zoneout_hidden_rate * state[-1] + (1 - config.zoneout_hidden_rate) * hidden
    return *memory, hidden


def is_tag(token: int) -> bool:
    return SIZES[0] - SIZES[2] <= token < SIZES[0]


class Oracle:
    """What `Seq2Seq` computes for one sentence without padding, in float64.

    `keep` is what is left of it in training: by the part of the model an array that
    begins with time, of factors, or of booleans for zoneout.
    """

    def __init__(self, config: ModelConfig, params: dict, keep: dict | None = None):
        self.config, self.params = config, params
        self.keep = {} if keep is None else keep
        # Of tables that are one, the parameters have the one whose name comes first.
        hard = config.attention == "hard_monotonic"
        self.output_table = (params["decoder"] if hard else params)["output"]["table"]
        self.source_table = params.get("source_table", self.output_table)
        shared = self.source_table if config.tied_embeddings == "source_target" else self.output_table
        self.target_table = params.get("target_table", shared)

    def encode(self, source) -> tuple[np.ndarray, list]:
        """Outputs of the top layer, [S, E], in the order of the source, and every layer's last state."""
        encoder = self.params["encoder"]
        if self.config.features == "prepend":
            return self.read(source, encoder["layers"])
        num_tags = sum(map(is_tag, source))
        layers = encoder["text" if "text" in encoder else "tags"]["layers"]  # "tags" where they are one
        outputs, lasts = self.read(source[num_tags:], layers)
        if not num_tags:
            return outputs, lasts
        if self.config.features == "linear":
            linear = encoder["tags"]["linear"]
            tags = self.source_table[source[:num_tags]] @ joined(linear) + linear["bias"]
        else:
            tags = self.read(source[:num_tags], encoder["tags"]["layers"])[0]
        return np.concatenate([tags, outputs]), lasts

    def read(self, source, layers) -> tuple[np.ndarray, list]:
        config, lasts = self.config, []
        size = config.hidden_size
        order = [*range(len(source) - 2, -1, -1), len(source) - 1] if config.reverse_source else range(len(source))
        sequence = self.embedded(self.source_table, source[list(order)]) * self.kept("source", slice(len(source)))
        for depth in range(config.num_layers):
            directions = layers[depth]
            assert len(directions) == 1 + (
                config.bidirectional == "all" or (config.bidirectional, depth) == ("first", 0)
            )
            outputs, last = [], []
            keep = self.keep.get("encoder", {}).get(depth, {})
            given = sequence * keep.get("inputs", np.ones(len(source)))[: len(source)].reshape(len(source), -1)
            for direction in range(len(directions)):
                weights = weights_of(directions[direction])
                each = config.direction_size or size // 2
                state = first_state(config.cell, each if len(directions) == 2 else size)
                way, hiddens = slice(None, None, -1 if direction else 1), []
                for position in range(len(source))[way]:
                    now = {name: kept[position, direction] for name, kept in keep.items() if name != "inputs"}
                    state = regularized(config.cell, config, weights, given[position], state, now)
                    hiddens.append(state[-1])
                outputs.append(np.array(hiddens)[way])
                last.append(state)
            below, sequence = sequence, np.concatenate(outputs, axis=-1)
            if self.is_residual(depth):
                sequence = sequence + below
            lasts.append(tuple(np.concatenate(parts) for parts in zip(*last, strict=True)))
        return sequence[np.argsort(order)], lasts

    def kept(self, part: str, steps: int | slice) -> np.ndarray | int:
        """Factors of some steps."""
        return self.keep[part][steps] if part in self.keep else 1

    def embedded(self, table: np.ndarray, tokens) -> np.ndarray:
        """A token that the vocabulary lacks is read as the unknown symbol."""
        return table[np.where(np.asarray(tokens) < VOCAB, tokens, 3)]

    def mixture(self, logits, weights, source, parts) -> np.ndarray:
        """Log-probabilities of the vocabulary and of copies, See et al. 2017, equations 8 and 9."""
        pointer = self.params["decoder"]["pointer"]
        p_gen = sigmoid(np.concatenate(parts) @ joined(pointer) + pointer["bias"])[0]
        probabilities = np.concatenate([p_gen * np.exp(logits) / np.exp(logits).sum(), np.zeros(len(source))])
        text = [(token, w) for token, w in zip(source, weights, strict=False) if not is_tag(token)]
        for token, weight in text:  # location attention has no weights for the last, a window may see tags alone
            probabilities[token] += (1 - p_gen) * weight / (sum(w for _, w in text) or 1)
        with np.errstate(divide="ignore"):
            return np.log(probabilities)

    def is_residual(self, depth: int) -> bool:
        return bool(self.config.residual_from) and depth + 1 >= self.config.residual_from

    def bridge(self, outputs: np.ndarray, lasts: list) -> list:
        config = self.config
        empty = first_state(config.decoder_cell or config.cell, config.hidden_size)
        layers = self.params.get("bridge", {}).get("layers")
        if config.bridge == "zero":
            return [empty for _ in range(config.decoder_layers or config.num_layers)]
        if config.bridge == "mean":
            mean = outputs.mean(axis=0)
            return [(*empty[:-1], np.tanh(mean @ joined(layers[depth]))) for depth in range(len(layers))]
        if config.bridge == "dense":
            given = [state if len(state) == len(empty) else state[-1:] * len(empty) for state in lasts]
            return [
                tuple(np.tanh(part @ joined(layers[depth][n])) for n, part in enumerate(state))
                for depth, state in enumerate(given)
            ]
        return lasts

    def scores(self, query, outputs, coverage) -> list:
        """Luong et al. 2015, equations 7 to 9; Bahdanau et al. 2015, A.1.2; See et al. 2017, equation 11."""
        kind, parts = self.config.attention, self.params["decoder"].get("attention", {})
        if kind in ("dot", "scaled_dot"):
            return [query @ m / (np.sqrt(len(query)) if kind == "scaled_dot" else 1) for m in outputs]
        if kind == "general":
            return [m @ parts["key_kernel"] @ query for m in outputs]
        if kind == "location":
            return list((query @ joined(parts["positions"]))[: len(outputs)])
        v = parts["score"]
        if kind == "normed_additive":
            v = parts["length"] * v / np.sqrt((v**2).sum())
        summed = [query @ joined(parts["query"]) + m @ parts["key_kernel"] + parts.get("bias", 0) for m in outputs]
        if self.config.coverage:
            summed = [total + c * parts["coverage"] for total, c in zip(summed, coverage, strict=True)]
        return [np.tanh(total) @ v for total in summed]

    def weights(self, scores, query, step: int) -> np.ndarray:
        """Softmax over a window (Luong et al. 2015, section 3.2)."""
        config, num = self.config, len(scores)
        place, looked_at, factor = np.arange(num), np.full(num, True), np.ones(num)
        if config.attention_window == "local_m":
            looked_at = np.abs(place - min(step, num - 1)) <= config.window_size
        if config.attention_window == "local_p":
            window = self.params["decoder"]["attention"]["window"]
            middle = num * sigmoid(np.tanh(query @ joined(window["query"])) @ window["position"])
            looked_at = np.abs(place - middle) <= config.window_size
            factor = np.exp(-((place - middle) ** 2) / (2 * (config.window_size / 2) ** 2))
        if config.attention == "location":
            looked_at &= place < config.attention_positions
        exponentials = np.where(looked_at, np.exp(scores), 0)
        return exponentials / exponentials.sum() * factor

    def attend(self, query, outputs, past: dict) -> tuple[np.ndarray, np.ndarray]:
        """Context and weights; `past` is written anew."""
        config = self.config
        if config.attention == "none":
            return np.zeros(0), np.zeros(0)
        if config.attention == "location" and len(outputs) > config.attention_positions:
            outputs = outputs[: config.attention_positions]
        if config.attention_heads > 1:
            context, weights = self.attend_by_heads(query, outputs, past["step"])
        else:
            weights = self.weights(self.scores(query, outputs, past["coverage"]), query, past["step"])
            context = weights @ outputs
        past["step"] += 1
        past["coverage"] = past["coverage"] + weights
        return context, weights

    def attend_by_heads(self, query, outputs, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Vaswani et al. 2017, section 3.2.2; additive as in RNMT+."""
        config, parts = self.config, self.params["decoder"]["attention"]
        split = lambda x: np.split(x, config.attention_heads, axis=-1)  # noqa: E731
        contexts, all_weights = [], []
        queries, keys = split(query @ joined(parts["query"])), split(outputs @ parts["key_kernel"])
        for n, values in enumerate(split(outputs @ parts["value_kernel"])):
            if config.attention == "additive":
                scores = [np.tanh(queries[n] + k) @ split(parts["score"])[n] for k in keys[n]]
            else:
                scale = np.sqrt(len(queries[n])) if config.attention == "scaled_dot" else 1
                scores = [queries[n] @ k / scale for k in keys[n]]
            all_weights.append(self.weights(scores, query, step))
            contexts.append(all_weights[-1] @ values)
        return np.concatenate(contexts) @ joined(parts["context"]), np.mean(all_weights, axis=0)

    def vector(self, hidden, context, x) -> np.ndarray:
        """What the output layer reads."""
        config, decoder = self.config, self.params["decoder"]
        if config.output == "linear":
            return np.concatenate([context, hidden]) if config.decoder == "luong" else hidden
        if config.output == "luong":
            return np.tanh(np.concatenate([context, hidden]) @ joined(decoder["combine"]))
        total = np.concatenate([hidden, x, context]) @ joined(decoder["combine"]) + decoder["combine"]["bias"]
        return np.maximum(total[::2], total[1::2])

    def layer(self, depth: int, step: int, state, *inputs) -> tuple[tuple, np.ndarray]:
        """State and output of one of the decoder's layers."""
        weights = weights_of(self.params["decoder"]["stack"]["cells"][depth])
        keep = {name: kept[step] for name, kept in self.keep.get("decoder", {}).get(depth, {}).items()}
        given = np.concatenate([inputs[0] * keep.pop("inputs", 1), *inputs[1:]])
        new = regularized(self.config.decoder_cell or self.config.cell, self.config, weights, given, state, keep)
        return new, new[-1] + inputs[0] if self.is_residual(depth) else new[-1]

    def __call__(self, source, target) -> tuple[np.ndarray, np.ndarray | None]:
        """Logits [T, V] and attention weights [T, S] under teacher forcing."""
        config = self.config
        if config.attention == "hard_monotonic":
            return self.sum_over_alignments(source, target)
        outputs, lasts = self.encode(source)
        states, vector = list(self.bridge(outputs, lasts)), np.zeros(self.output_table.shape[1])
        past = {"step": 0, "coverage": np.zeros(min(len(outputs), self.seen(len(outputs))))}
        attends_first = config.decoder in ("bahdanau", "cho") or config.context_feedback
        all_logits, all_weights = [], []
        for step, token in enumerate([1, *target[:-1]]):
            below = x = self.embedded(self.target_table, token) * self.kept("target", step)
            context, weights = np.zeros(0), None
            if attends_first:
                asks = states[0 if config.decoder == "gnmt" else -1][-1]
                context, weights = self.attend(asks, outputs, past)
                if config.decoder == "cho" and config.attention == "none":
                    context = lasts[-1][-1]
            for depth in range(len(states)):
                inputs = [below]
                if depth == 0 and attends_first:
                    inputs.append(context)
                if depth == 0 and config.input_feeding:
                    inputs.append(vector)
                if depth and config.decoder == "gnmt":
                    inputs.append(context)
                states[depth], below = self.layer(depth, step, states[depth], *inputs)
                if depth == 0 and config.decoder == "gnmt" and not config.context_feedback:
                    context, weights = self.attend(below, outputs, past)
            if config.decoder == "luong":
                context, weights = self.attend(below, outputs, past)
            vector = self.vector(below, context, x) * self.kept("vector", step)
            logits = self.output_table @ vector + self.params["output"]["bias"]
            all_logits.append(self.mixture(logits, weights, source, [context, below, x]) if config.copy else logits)
            all_weights.append(weights)
        if config.attention == "none":
            return np.array(all_logits), None
        unseen = len(outputs) - self.seen(len(outputs))
        return np.array(all_logits), np.pad(np.array(all_weights), ((0, 0), (0, unseen)))

    def sum_over_alignments(self, source, target) -> tuple[np.ndarray, np.ndarray]:
        """Wu and Cotterell 2019, every alignment by itself: log-probabilities [T, V], and of each position [T, S]."""
        decoder, (outputs, lasts) = self.params["decoder"], self.encode(source)
        keys = outputs @ joined(decoder["keys"])
        states, all_moves, all_tokens = list(self.bridge(outputs, lasts)), [], []
        for step, token in enumerate([1, *target[:-1]]):
            below = x = self.embedded(self.target_table, token) * self.kept("target", step)
            for depth in range(len(states)):
                states[depth], below = self.layer(depth, step, states[depth], below)
            vectors = [self.vector(below, m, x) * self.kept("vector", step) for m in outputs]
            logits = np.array(vectors) @ decoder["output"]["table"].T + decoder["output"]["bias"]
            all_tokens.append(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
            all_moves.append(self.moves(below, keys))
        found, positions, length = [], [], range(len(source))
        for step in range(len(target)):
            by_position = np.zeros((len(source), len(self.output_table)))
            for alignment in itertools.product(length, repeat=step + 1):
                probability, before = 1.0, 0
                for t, position in enumerate(alignment):
                    probability *= all_moves[t][before, position]
                    probability *= all_tokens[t][position, target[t]] if t < step else 1
                    before = position
                by_position[alignment[-1]] += probability * all_tokens[step][alignment[-1]]
            found.append(np.log(by_position.sum(0) / by_position.sum()))
            positions.append(by_position.sum(1) / by_position.sum())
        return np.array(found), np.array(positions)

    def moves(self, hidden, keys) -> np.ndarray:
        """Probability of each position after each other one,"""
        number, decoder = len(keys), self.params["decoder"]
        scores = np.full((number, number), -np.inf)
        for before, after in itertools.combinations_with_replacement(range(number), 2):
            if self.config.alignment_order == 0:
                scores[before, after] = hidden @ keys[after]
            elif after - before <= self.config.window_size:
                jumps = np.concatenate([hidden, keys[before]]) @ joined(decoder["jumps"]) + decoder["jumps"]["bias"]
                scores[before, after] = jumps[after - before]
        return np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)

    def seen(self, num_positions: int) -> int:
        """Positions that can be attended to."""
        return (
            min(num_positions, self.config.attention_positions)
            if self.config.attention == "location"
            else num_positions
        )
