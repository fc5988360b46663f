"""This package's own training step."""

from collections.abc import Callable

from benchmarks.task import Task


def make(task: Task) -> tuple[Callable[[], float], Callable[[], None]]:
    """Returns the loss of the first weights without dropout, in nats per token, and a training step."""
    from seq2seq_jax.cpu import keep_freed_memory, run_in_calling_thread

    run_in_calling_thread()  # as the command line does
    import jax
    from flax import nnx

    from seq2seq_jax.build import model_graph
    from seq2seq_jax.config import MeshConfig
    from seq2seq_jax.data.batching import BatchShape
    from seq2seq_jax.sharding import by_rows, make_mesh
    from seq2seq_jax.training.objectives import negative_log_likelihood, num_tokens
    from seq2seq_jax.training.setup import compile_step
    from seq2seq_jax.training.step import abstract_state, initial_state, jit_train_step

    config, sizes, mesh = task.train_config(), task.vocab_sizes, make_mesh(MeshConfig())
    params = task.params()
    source, target = jax.device_put(task.batch(), by_rows(mesh))
    train_step, shape = jit_train_step(config, sizes, mesh), BatchShape(task.batch_size, task.length, task.length)
    update = compile_step(train_step, abstract_state(config, sizes, mesh), shape, mesh).update
    keep_freed_memory()  # as training does
    state = [initial_state(config, sizes, mesh)._replace(params=jax.device_put(params))]

    @jax.jit
    def loss(params, source, target):
        model = nnx.merge(model_graph(task.config, sizes), params)
        return negative_log_likelihood(model, source, target, None, config.train) / num_tokens(target)

    def step() -> None:
        state[0] = update(state[0], source, target)
        jax.block_until_ready(state[0])

    return lambda: float(loss(params, source, target)), step
