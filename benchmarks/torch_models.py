"""The same model in PyTorch: as its best users write it, and as most do, compiled or not.

In mixed precision the weights stay float32 and autocast casts them; float16 has its loss scaled.
"""

import functools
from collections.abc import Callable

import numpy as np

from benchmarks.task import CLIP_NORM, DROPOUT, LABEL_SMOOTHING, LEARNING_RATE, Task, joined
from seq2seq_jax.cpu import keep_freed_memory

Peer = tuple[Callable[[], float], Callable[[], None]]


def make_tuned(task: Task) -> Peer:
    """One `nn.LSTM` a layer, time-major, unpacked; fused Adam; on a GPU the whole step is one CUDA graph."""
    return _make(task, task.dtype, packed=False)


def make_half(task: Task) -> Peer:
    """The tuned one in float16, for which alone cuDNN has kernels that keep the weights on the chip."""
    return _make(task, "float16", packed=False)


def make_kept(task: Task) -> Peer:
    """The tuned one with this package's settings of the C library's allocator, which PyTorch leaves to its users."""
    keep_freed_memory()
    return _make(task, task.dtype, packed=False)


def make_ordinary(task: Task) -> Peer:
    """One packed `nn.LSTM` of several layers, batch-major."""
    return _make(task, task.dtype, packed=True)


def make_compiled(task: Task) -> Peer:
    """The ordinary one through torch.compile, which leaves `nn.LSTM` as it is and compiles what lies between."""
    return _make(task, task.dtype, packed=True, compiled=True)


def _make(task: Task, dtype: str, packed: bool, compiled: bool = False) -> Peer:
    import torch

    on_gpu = task.device == "gpu"
    device, number = "cuda" if on_gpu else task.device, getattr(torch, dtype)
    captured = on_gpu and not packed
    if not packed:
        torch.set_float32_matmul_precision("high")  # TensorFloat-32 where there is such a thing, as JAX has it
    model = _Seq2Seq(task, packed)
    model.load(task.params())
    model.to(device)
    source, target = (torch.from_numpy(batch.values).long().to(device) for batch in task.batch())
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=not packed, capturable=captured)
    autocast = functools.partial(torch.autocast, device, number, enabled=number != torch.float32)
    scaler = torch.amp.GradScaler(device, enabled=number == torch.float16)
    run = torch.compile(model) if compiled else model

    def check() -> float:
        model.eval()
        with torch.no_grad():
            value = model(source, target).item()
        model.train()
        return value

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            loss = run(source, target)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        scaler.step(optimizer)
        scaler.update()

    if not on_gpu:
        return check, step
    first = functools.cache(lambda: _graph_of(step) if captured else step)  # after `check`: capturing trains

    def finished_step() -> None:
        first()()
        torch.cuda.synchronize()

    return check, finished_step


def _graph_of(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph; before it is captured it runs on a stream of its own, as PyTorch asks."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _Seq2Seq(task: Task, packed: bool):  # noqa: N802 - a class that needs PyTorch to be defined
    import torch
    from torch import nn
    from torch.nn import functional
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    config, vocab_size = task.config, task.model.vocab_size
    size, depth = config.hidden_size, config.num_layers
    kind = {"lstm": nn.LSTM, "gru_v2": nn.GRU, "rnn": nn.RNN}[config.cell]

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
                return nn.ModuleList(
                    [kind(config.embed_size, size, depth, batch_first=True, dropout=DROPOUT if depth > 1 else 0)]
                )
            return nn.ModuleList([kind(config.embed_size if n == 0 else size, size) for n in range(depth)])

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
                    put(getattr(owner, f"weight_ih{suffix}"), joined(layer["input"]).T)
                    put(getattr(owner, f"weight_hh{suffix}"), joined(layer["recurrent"]).T)
                    put(getattr(owner, f"bias_ih{suffix}"), layer["input"]["bias"])
                    of_state = np.zeros_like(layer["input"]["bias"])
                    if config.cell == "gru_v2":  # the candidate's, which its reset gate multiplies
                        of_state[2 * size :] = layer["bias"]
                    put(getattr(owner, f"bias_hh{suffix}"), of_state)

            decoder, output = params["decoder"], params["output"]
            put(self.source_embedding.weight, params["source_table"])
            put(self.target_embedding.weight, params["target_table"])
            put_layers(self.encoder, {n: directions[0] for n, directions in params["encoder"]["layers"].items()})
            put_layers(self.decoder, decoder["stack"]["cells"])
            put(self.key.weight, decoder["attention"]["key_kernel"].T)
            put(self.combine.weight, joined(decoder["combine"]).T)
            put(self.output.weight, output["table"])
            put(self.output.bias, output["bias"])

    return Seq2Seq()
