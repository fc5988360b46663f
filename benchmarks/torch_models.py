"""The same model in PyTorch: as its best users write it, compiled or not, and as most do."""

from collections.abc import Callable

import numpy as np

from benchmarks.task import CLIP_NORM, DROPOUT, LABEL_SMOOTHING, LEARNING_RATE, Task
from seq2seq_jax.cpu import keep_freed_memory


def make_tuned(task: Task) -> tuple[Callable[[], float], Callable[[], None]]:
    """One `nn.LSTM` a layer, time-major, unpacked; fused Adam."""
    return _make(task, packed=False)


def make_kept(task: Task) -> tuple[Callable[[], float], Callable[[], None]]:
    """The tuned one with this package's settings of the C library's allocator, which PyTorch leaves to its users."""
    keep_freed_memory()
    return _make(task, packed=False)


def make_compiled(task: Task) -> tuple[Callable[[], float], Callable[[], None]]:
    """The tuned one through torch.compile, which leaves `nn.LSTM` as it is and compiles what lies between."""
    return _make(task, packed=False, compiled=True)


def make_ordinary(task: Task) -> tuple[Callable[[], float], Callable[[], None]]:
    """One packed `nn.LSTM` of several layers, batch-major."""
    return _make(task, packed=True)


def _make(task: Task, packed: bool, compiled: bool = False) -> tuple[Callable[[], float], Callable[[], None]]:
    import torch

    model = _Seq2Seq(task, packed)
    model.load(task.params())
    source, target = (torch.from_numpy(rows).long() for rows in task.batch())
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=not packed)
    if compiled:
        model = torch.compile(model)

    def check() -> float:
        model.eval()
        with torch.no_grad():
            value = model(source, target).item()
        model.train()
        return value

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(source, target).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()

    return check, step


def _Seq2Seq(task: Task, packed: bool):  # noqa: N802 - a class that needs PyTorch to be defined
    import torch
    from torch import nn
    from torch.nn import functional
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    config, vocab_size = task.config, task.model.vocab_size
    size, depth = config.hidden_size, config.num_layers

    class Seq2Seq(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.source_embedding = nn.Embedding(vocab_size, config.embed_size)
            self.target_embedding = nn.Embedding(vocab_size, config.embed_size)
            self.encoder = self._stack()
            if config.input_feeding:
                sizes = [config.embed_size + size] + [size] * (depth - 1)
                self.decoder = nn.ModuleList([nn.LSTMCell(n, size) for n in sizes])
            else:
                self.decoder = self._stack()
            self.key = nn.Linear(size, size, bias=False)
            self.combine = nn.Linear(2 * size, size, bias=False)
            self.output = nn.Linear(size, vocab_size)
            self.dropout = nn.Dropout(DROPOUT)

        def _stack(self) -> nn.ModuleList:
            if packed:
                return nn.ModuleList([nn.LSTM(config.embed_size, size, depth, batch_first=True, dropout=DROPOUT)])
            return nn.ModuleList([nn.LSTM(config.embed_size if n == 0 else size, size) for n in range(depth)])

        def forward(self, source, target):
            shifted = functional.pad(target[:, :-1], (1, 0), value=1)
            if not packed:
                source, shifted, target = source.T, shifted.T, target.T
            memory, states = self._encode(source)
            embedded = self.dropout(self.target_embedding(shifted))
            vectors = (self._decode_fed if config.input_feeding else self._decode)(embedded, memory, states)
            logits = self.output(self.dropout(vectors))
            total = functional.cross_entropy(
                logits.flatten(0, 1),
                target.flatten(),
                ignore_index=0,
                label_smoothing=LABEL_SMOOTHING,
                reduction="sum",
            )
            return total / target.numel()

        def _encode(self, source):
            embedded = self.dropout(self.source_embedding(source))
            if packed:
                lengths = torch.full((source.shape[0],), source.shape[1])
                outputs, states = self.encoder[0](pack_padded_sequence(embedded, lengths, batch_first=True))
                return pad_packed_sequence(outputs, batch_first=True)[0], states
            outputs, states = embedded, []
            for n, layer in enumerate(self.encoder):
                outputs, state = layer(self.dropout(outputs) if n else outputs)
                states.append(state)
            return outputs.transpose(0, 1), states

        def _decode(self, embedded, memory, states):
            if packed:
                hidden, _ = self.decoder[0](embedded, states)
                return self._attend(hidden, memory, self.key(memory))
            hidden = embedded
            for n, (layer, state) in enumerate(zip(self.decoder, states, strict=True)):
                hidden, _ = layer(self.dropout(hidden) if n else hidden, state)
            return self._attend(hidden.transpose(0, 1), memory, self.key(memory)).transpose(0, 1)

        def _attend(self, hidden, memory, keys):
            weights = torch.bmm(hidden, keys.transpose(1, 2)).softmax(-1)
            return torch.tanh(self.combine(torch.cat([torch.bmm(weights, memory), hidden], -1)))

        def _decode_fed(self, embedded, memory, states):
            axis = 1 if packed else 0
            if packed:
                states = list(zip(*states, strict=True))
            states = [(h.reshape(-1, size), c.reshape(-1, size)) for h, c in states]
            feed, keys, vectors = torch.zeros_like(states[0][0]), self.key(memory), []
            for now in embedded.unbind(axis):
                hidden = torch.cat([now, feed], -1)
                for n, cell in enumerate(self.decoder):
                    states[n] = cell(self.dropout(hidden) if n else hidden, states[n])
                    hidden = states[n][0]
                feed = self._attend(hidden[:, None], memory, keys)[:, 0]
                vectors.append(feed)
            return torch.stack(vectors, axis)

        def load(self, params) -> None:
            """Takes the weights as the package names them."""

            def put(parameter, value) -> None:
                with torch.no_grad():
                    parameter.copy_(torch.from_numpy(np.array(value)))

            def put_layers(stack, layers) -> None:
                for n, layer in layers.items():
                    owner, suffix = (stack[0], f"_l{n}") if packed and len(stack) == 1 else (stack[n], "_l0")
                    if isinstance(owner, nn.LSTMCell):
                        suffix = ""
                    recurrent = layer["recurrent_kernel"][0]
                    inside, state = recurrent[:-size], recurrent[-size:]
                    known = [layer["input_kernel"][0]] if "input_kernel" in layer else []
                    put(getattr(owner, f"weight_ih{suffix}"), np.concatenate([*known, inside]).T)
                    put(getattr(owner, f"weight_hh{suffix}"), state.T)
                    put(getattr(owner, f"bias_ih{suffix}"), layer["bias"][0])
                    put(getattr(owner, f"bias_hh{suffix}"), np.zeros_like(layer["bias"][0]))

            put(self.source_embedding.weight, params["source_embedding"])
            put(self.target_embedding.weight, params["target_embedding"])
            put_layers(self.encoder, params["encoder"]["layers"])
            put_layers(self.decoder, params["decoder"]["layers"])
            put(self.key.weight, params["decoder"]["key_kernel"].T)
            put(self.combine.weight, params["decoder"]["combine_kernel"].T)
            put(self.output.weight, params["output_kernel"])
            put(self.output.bias, params["output_bias"])

    return Seq2Seq()
