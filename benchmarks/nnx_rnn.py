"""The same model with Flax's own `nnx.RNN`, as people write it."""

from collections.abc import Callable

from benchmarks.task import CLIP_NORM, DROPOUT, LABEL_SMOOTHING, LEARNING_RATE, Task, joined


def make(task: Task) -> tuple[Callable[[], float], Callable[[], None]]:
    """Returns the loss of the first weights without dropout, in nats per token, and a training step."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    config, vocab_size = task.config, task.model.vocab_size
    if config.input_feeding:
        raise ValueError("nnx.RNN feeds nothing back between its steps")
    if config.cell != "lstm":
        raise ValueError("written for LSTMs alone")
    size, depth = config.hidden_size, config.num_layers

    class Seq2Seq(nnx.Module):
        def __init__(self, dtype: str) -> None:
            rngs = nnx.Rngs(0)

            def stack() -> nnx.List:
                cells = [
                    nnx.OptimizedLSTMCell(config.embed_size if n == 0 else size, size, dtype=dtype, rngs=rngs)
                    for n in range(depth)
                ]
                return nnx.List([nnx.RNN(cell, return_carry=True) for cell in cells])

            self.source_embedding = nnx.Embed(vocab_size, config.embed_size, dtype=dtype, rngs=rngs)
            self.target_embedding = nnx.Embed(vocab_size, config.embed_size, dtype=dtype, rngs=rngs)
            self.encoder, self.decoder = stack(), stack()
            self.key = nnx.Linear(size, size, use_bias=False, dtype=dtype, rngs=rngs)
            self.combine = nnx.Linear(2 * size, size, use_bias=False, dtype=dtype, rngs=rngs)
            self.output = nnx.Linear(size, vocab_size, dtype=dtype, rngs=rngs)
            self.dropout = nnx.Dropout(DROPOUT, rngs=rngs)

        def __call__(self, source, target):
            outputs, states = self.dropout(self.source_embedding(source)), []
            for n, layer in enumerate(self.encoder):
                state, outputs = layer(self.dropout(outputs) if n else outputs)
                states.append(state)
            shifted = jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=1)
            hidden = self.dropout(self.target_embedding(shifted))
            for n, (layer, state) in enumerate(zip(self.decoder, states, strict=True)):
                _, hidden = layer(self.dropout(hidden) if n else hidden, initial_carry=state)
            weights = jax.nn.softmax(hidden @ self.key(outputs).swapaxes(1, 2))
            vectors = jnp.tanh(self.combine(jnp.concatenate([weights @ outputs, hidden], -1)))
            logits = self.output(self.dropout(vectors)).astype(jnp.float32)
            labels = optax.smooth_labels(jax.nn.one_hot(target, vocab_size), LABEL_SMOOTHING)
            losses = optax.softmax_cross_entropy(logits, labels)
            return jnp.sum(losses, where=target != 0) / target.size

    params = task.params()
    model = Seq2Seq(task.dtype)
    _load(model, params, size)
    optimizer = nnx.Optimizer(
        model, optax.chain(optax.clip_by_global_norm(CLIP_NORM), optax.adam(LEARNING_RATE)), wrt=nnx.Param
    )
    source, target = (jnp.asarray(batch.values) for batch in task.batch())

    @nnx.jit
    def update(model, optimizer, source, target):
        _, gradients = nnx.value_and_grad(lambda model: model(source, target))(model)
        optimizer.update(model, gradients)

    def check() -> float:
        exact = Seq2Seq("float32")
        _load(exact, params, size)
        exact.eval()
        return float(nnx.jit(lambda model: model(source, target))(exact))

    def step() -> None:
        update(model, optimizer, source, target)
        jax.block_until_ready(nnx.state(model, nnx.Param))

    return check, step


def _load(model, params, size: int) -> None:
    """Takes the weights as the package names them."""
    import jax.numpy as jnp

    def put(parameter, value) -> None:
        parameter.set_value(jnp.asarray(value))

    def put_layers(stack, layers) -> None:
        for n, layer in layers.items():
            cell = stack[n].cell
            put(cell.dense_i.kernel, joined(layer["input"]))
            put(cell.dense_h.kernel, joined(layer["recurrent"]))
            put(cell.dense_h.bias, layer["input"]["bias"])

    decoder, output = params["decoder"], params["output"]
    put(model.source_embedding.embedding, params["source_table"])
    put(model.target_embedding.embedding, params["target_table"])
    put_layers(model.encoder, {n: directions[0] for n, directions in params["encoder"]["layers"].items()})
    put_layers(model.decoder, decoder["stack"]["cells"])
    put(model.key.kernel, decoder["attention"]["key_kernel"])
    put(model.combine.kernel, joined(decoder["combine"]))
    put(model.output.kernel, output["table"].T)
    put(model.output.bias, output["bias"])
