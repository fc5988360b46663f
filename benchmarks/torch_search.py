"""A trained model in PyTorch, with greedy and beam search as its best users would write them.

Sentences of like length share a batch, and leave it as soon as their result is settled; the attention's memory is held
once for all hypotheses of a sentence; a step is few products, and the embeddings' part of the first of them is a table.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seq2seq_jax import run_directory
from seq2seq_jax.config import DecodeConfig, ModelConfig
from seq2seq_jax.data.encoded import encode_lines
from seq2seq_jax.data.vocabulary import Vocabularies, load_vocabularies
from seq2seq_jax.errors import UserError
from seq2seq_jax.padded import Padded
from seq2seq_jax.symbols import BOS, EOS

SUPPORTED = {"cell": ("lstm",), "attention": ("general", "dot"), "bridge": ("copy",), "compute_dtype": ("float32",)}

Tensor = Any


class Hypothesis(NamedTuple):
    """One output line, and its log-probability over the length penalty, in nats."""

    text: str
    score: float


def refuse_unsupported(config: ModelConfig) -> None:
    """Raises UserError for a model that this file does not know."""
    for name, known in SUPPORTED.items():
        if getattr(config, name) not in known:
            raise UserError(f"The PyTorch side knows model.{name} {' and '.join(known)}, not {getattr(config, name)}.")


def load(workdir: Path, params: dict[str, Any], extra_length: int, decode: DecodeConfig, device: str) -> "Translator":
    """Returns the translator of a run directory.

    Args:
      workdir: for the configuration and the vocabularies.
      params: as the package names them; NumPy arrays.
      extra_length: output positions allowed beyond the ratio.
      decode: search settings.
      device: as JAX calls its platforms.
    """
    model = Model(run_directory.read_config(workdir).model, params, {"gpu": "cuda"}.get(device, device))
    return Translator(model, load_vocabularies(workdir / "vocabulary"), extra_length, decode)


class Translator:
    """Lines in, hypotheses out, by the rules of `seq2seq_jax.translator.Translator`."""

    def __init__(self, model: "Model", vocabularies: Vocabularies, extra_length: int, decode: DecodeConfig) -> None:
        self.model, self.vocabularies, self.extra_length, self.decode = model, vocabularies, extra_length, decode

    def translate(self, lines: Sequence[str]) -> list[Hypothesis]:
        """Returns the best hypothesis for each line, in order; an empty line gives an empty one."""
        import torch

        encoded, decode = encode_lines(self.vocabularies, lines), self.decode
        lengths = encoded.source_lengths
        order = np.argsort(-lengths, kind="stable")
        order = order[lengths[order] > 1]
        hypotheses = [Hypothesis("", 0.0)] * len(lines)
        for start in range(0, len(order), decode.batch_size):
            indices = order[start : start + decode.batch_size]
            limits = np.ceil(lengths[indices] * decode.max_length_ratio).astype(np.int64) + self.extra_length
            source = encoded.sources.padded(indices, len(indices), lengths[indices[0]])
            with torch.inference_mode(), torch.device(self.model.device):
                ids, limits = (torch.from_numpy(array).to(self.model.device) for array in (source.values, limits))
                rows, scores = self._search(Padded(ids.long(), torch.from_numpy(source.lengths)), limits)
            for index, text, score in zip(indices, self.vocabularies.target.decode(rows), scores, strict=True):
                hypotheses[index] = Hypothesis(text, score)
        return hypotheses

    def _search(self, source: Padded, limits: Tensor) -> tuple[list[np.ndarray], list[float]]:
        if self.decode.beam_size == 1:
            return greedy_search(self.model, source, limits, self.decode.length_penalty)
        return beam_search(self.model, source, limits, self.decode.length_penalty, self.decode.beam_size)


class Model:
    """The weights, and what a search needs of the model: `encode` and `step`.

    The state of the decoder is a list of tensors [N, ...], (h, c) of every layer
    and the attentional vector; the memory is one of tensors [B, ...]: keys
    [B, H, S], values [B, S, H], and what is added to the scores [B, 1, S].
    """

    def __init__(self, config: ModelConfig, params: dict[str, Any], device: str) -> None:
        refuse_unsupported(config)
        self.config, self.device = config, device
        params = _tensors(params, device)
        decoder, self.output_bias = params["decoder"], params["output"]["bias"]
        self.source_embedding, embedding, self.output_kernel = _tables(config, params)
        self.key_kernel = decoder.get("attention", {}).get("key_kernel")
        self.combine_kernel = _joined(decoder["combine"])
        self.encoder = _encoder(config, params["encoder"]["layers"])
        layers = [decoder["stack"]["cells"][depth] for depth in range(config.num_layers)]
        self.biases = [layer["input"]["bias"] for layer in layers]
        self.kernels = [_joined(layer["input"], layer["recurrent"]) for layer in layers]
        size = config.embed_size
        self.first_gates = embedding @ self.kernels[0][:size] + self.biases[0]  # of every target token
        self.kernels[0] = self.kernels[0][size:]

    def encode(self, source: Padded) -> tuple[list[Tensor], list[Tensor]]:
        """Returns memory and first state; the longest source comes first. Its lengths are on the CPU."""
        import torch
        from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

        (ids, lengths), config = source, self.config
        mask = torch.arange(ids.shape[1]) < lengths.to(self.device)[:, None]
        embedded = torch.nn.functional.embedding(ids.T, self.source_embedding)
        outputs, last = self.encoder(pack_padded_sequence(embedded, lengths))
        values = pad_packed_sequence(outputs)[0].transpose(0, 1).contiguous()
        keys = values if self.key_kernel is None else values @ self.key_kernel
        added = torch.zeros_like(mask, dtype=values.dtype).masked_fill(~mask, -torch.inf)[:, None]
        # [layers * directions, B, size] to [B, H] for each layer
        hidden, cell = (x.unflatten(0, (config.num_layers, -1)).transpose(1, 2).flatten(2) for x in last)
        vector = values.new_zeros(len(ids), self.combine_kernel.shape[1])
        states = [x for layer in zip(hidden, cell, strict=True) for x in layer]
        return [keys.transpose(1, 2), values, added], [*states, vector]

    def step(self, memory: list[Tensor], state: list[Tensor], tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        """From the last tokens [N] to logits [N, V] of the next and the next state; N is a multiple of B."""
        import torch

        keys, values, added = memory
        *states, vector = state
        inputs = [vector] if self.config.input_feeding else []
        known, new = self.first_gates[tokens], []
        for kernel, bias, hidden, cell in zip(self.kernels, self.biases, states[::2], states[1::2], strict=True):
            gates = torch.addmm(bias if new else known, torch.cat([*inputs, hidden], 1), kernel)
            i, f, g, o = gates.chunk(4, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
            new += [hidden, cell]
            inputs = [hidden]
        query = hidden.view(len(values), -1, hidden.shape[1])  # [B, K, H]
        weights = torch.baddbmm(added, query, keys).softmax(-1)
        context = torch.bmm(weights, values).view_as(hidden)
        vector = torch.mm(torch.cat([context, hidden], 1), self.combine_kernel).tanh_()
        return torch.nn.functional.linear(vector, self.output_kernel, self.output_bias), [*new, vector]


def greedy_search(
    model: Model, source: Padded, limits: Tensor, length_penalty: float
) -> tuple[list[np.ndarray], list[float]]:
    """Returns the likeliest token at every position, sentence by sentence, and their scores."""
    import torch

    memory, state = model.encode(source)
    sentences = torch.arange(len(limits))
    found, scores = [np.empty(0)] * len(limits), [0.0] * len(limits)
    tokens, log_probs = torch.full((len(limits), 1), BOS), torch.zeros(len(limits))
    for length in range(1, int(limits.max()) + 1):
        logits, state = model.step(memory, state, tokens[:, -1])
        log_norms = logits.logsumexp(1)
        best, token = _writable(logits[:, None], length >= limits).squeeze(1).max(1)
        log_probs = log_probs + (best - log_norms)
        tokens = torch.cat([tokens, token[:, None]], 1)
        ends = token == EOS
        if not ends.any():
            continue
        rows, now = tokens[:, 1:].cpu().numpy(), (log_probs / _penalty(length, length_penalty)).tolist()
        for row in ends.nonzero().flatten().tolist():
            found[sentences[row]], scores[sentences[row]] = rows[row], now[row]
        kept = (~ends).nonzero().flatten()
        if not len(kept):
            break
        sentences, limits, tokens, log_probs = (x[kept] for x in (sentences, limits, tokens, log_probs))
        memory, state = ([x[kept] for x in xs] for xs in (memory, state))
    return found, scores


def beam_search(
    model: Model, source: Padded, limits: Tensor, length_penalty: float, beam_size: int
) -> tuple[list[np.ndarray], list[float]]:
    """Returns the best sequence of each sentence and its score.

    Ended hypotheses leave the beam; a sentence is settled when no open one of its
    own can beat the best ended one, whatever follows.
    """
    import torch

    memory, state = model.encode(source)
    sentences = torch.arange(len(limits))
    found, scores = [np.empty(0)] * len(limits), torch.full((len(limits),), -torch.inf)
    best_ended, last_penalty = scores.clone(), _penalty(limits, length_penalty)
    tokens, log_probs = torch.full((len(limits), 1), BOS), torch.zeros(len(limits), 1)  # the first beam is of one
    for length in range(1, int(limits.max()) + 1):
        logits, state = model.step(memory, state, tokens[:, -1])
        offsets = log_probs - logits.logsumexp(1).view_as(log_probs)
        logits = _writable(logits.view(*log_probs.shape, -1), length >= limits)
        # The K best of each hypothesis, and of these the K best: sooner found than those of K * V.
        values, columns = logits.topk(beam_size)
        log_probs, index = (values + offsets[..., None]).flatten(1).topk(beam_size)
        token = columns.flatten(1).gather(1, index)
        place = torch.arange(len(sentences))[:, None] * offsets.shape[1] + index // beam_size
        ends = token == EOS
        if ends.any():
            ended, which = (log_probs.masked_fill(~ends, -torch.inf) / _penalty(length, length_penalty)).max(1)
            rows = tokens[place.gather(1, which[:, None])[:, 0], 1:].cpu().numpy()  # before their ends
            better = ended > best_ended
            scores[sentences[better]] = ended[better]
            for row in better.nonzero().flatten().tolist():
                found[sentences[row]] = np.append(rows[row], EOS)
            best_ended = torch.maximum(best_ended, ended)
            log_probs = log_probs.masked_fill(ends, -torch.inf)
        settled = log_probs.amax(1) / last_penalty <= best_ended
        if settled.any():
            kept = (~settled).nonzero().flatten()
            if not len(kept):
                break
            memory = [x[kept] for x in memory]
            sentences, limits, last_penalty, best_ended, log_probs, token, place = (
                x[kept] for x in (sentences, limits, last_penalty, best_ended, log_probs, token, place)
            )
        place = place.flatten()
        tokens, state = torch.cat([tokens[place], token.view(-1, 1)], 1), [x[place] for x in state]
    return found, scores.tolist()


def _writable(logits: Tensor, at_end: Tensor) -> Tensor:
    """Takes from logits [B, K, V], in place, PAD and BOS, and where `at_end` [B] whatever is not EOS."""
    logits[..., :EOS] = -np.inf
    if at_end.any():
        logits[at_end, :, EOS + 1 :] = -np.inf
    return logits


def _penalty(length: Any, length_penalty: float) -> Any:
    return ((5 + length) / 6) ** length_penalty


def _tensors(tree: Any, device: str) -> Any:
    import torch

    if isinstance(tree, dict):
        return {name: _tensors(branch, device) for name, branch in tree.items()}
    return torch.from_numpy(np.array(tree)).to(device)


def _tables(config: ModelConfig, params: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Source and target embeddings, and the output layer's; of tables that are one, `params` has the first by name."""
    output = params["output"]["table"]
    source = params.get("source_table", output)
    return source, params.get("target_table", source if config.tied_embeddings == "source_target" else output), output


def _encoder(config: ModelConfig, layers: dict[int, dict[int, Any]]) -> Callable:
    from torch import nn

    num_directions = 1 if config.bidirectional == "none" else 2
    sizes = config.embed_size, config.hidden_size // num_directions
    encoder = nn.LSTM(*sizes, num_layers=config.num_layers, bidirectional=num_directions == 2)
    weights = {}
    for depth, layer in layers.items():
        for direction, suffix in enumerate(("", "_reverse")[:num_directions]):
            bias = layer[direction]["input"]["bias"]
            weights |= {
                f"weight_ih_l{depth}{suffix}": _joined(layer[direction]["input"]).T,
                f"weight_hh_l{depth}{suffix}": _joined(layer[direction]["recurrent"]).T,
                f"bias_ih_l{depth}{suffix}": bias,
                f"bias_hh_l{depth}{suffix}": 0 * bias,
            }
    encoder.load_state_dict(weights)
    return encoder.to(layers[0][0]["input"]["bias"].device)


def _joined(*linears: dict[str, Any]) -> Tensor:
    """One kernel for the inputs of several `Linear` side by side."""
    import torch

    kernels = [linear["kernels"] for linear in linears]
    return torch.cat([parts[part] for parts in kernels for part in range(len(parts))])
