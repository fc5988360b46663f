import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seq2seq_jax.losses import cross_entropy
from seq2seq_jax.model import abstract_params, build_model, dropout, vector_size
from tests.models import (
    SOURCE,
    TARGET,
    VOCAB,
    Oracle,
    compiled,
    graph,
    random_params,
    run_compiled,
    teacher_forced,
    tiny_config,
)


def lengths(tokens):
    return (tokens != 0).sum(-1)


def float32(params):
    return jax.tree.map(np.float32, params)


@pytest.mark.parametrize(
    "settings",
    [
        dict(attention="general", num_layers=2),
        dict(attention="additive", num_layers=2, bidirectional=False, bridge="dense"),
        dict(attention="dot", bridge="zero", tied_embeddings="all"),
        dict(attention="additive", num_layers=2, input_feeding=False, tied_embeddings="source_target"),
        dict(attention="general", input_feeding=False, bidirectional=False, tied_embeddings="target_output"),
        dict(attention="none", num_layers=2, input_feeding=False),
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_model_is_the_equations_of_the_papers(settings):
    """The oracle sees one sentence at a time, and no padding."""
    config = tiny_config(**settings)
    params = random_params(config)
    with jax.enable_x64(True):
        logits, weights = run_compiled(teacher_forced(config), params, SOURCE, TARGET)
    for row, (s, t) in enumerate(zip(lengths(SOURCE), lengths(TARGET), strict=True)):
        expected_logits, expected_weights = Oracle(config, params)(SOURCE[row, :s], TARGET[row, :t])
        np.testing.assert_allclose(logits[row, :t], expected_logits, rtol=0, atol=1e-11)
        if weights is None or expected_weights is None:
            assert config.attention == "none" and weights is expected_weights is None
        else:
            np.testing.assert_allclose(weights[row, :t, :s], expected_weights, rtol=0, atol=1e-12)
            assert not np.any(weights[row, :, s:])


def test_padding_and_batch_mates_change_nothing():
    """Every real value of a sentence is the same with more padding on both sides and among other sentences."""
    config = tiny_config(attention="additive", num_layers=2)
    params, structure = random_params(config), graph(config)

    def run(params, source, target):
        model = nnx.merge(structure, params)
        encoded, logits = model.encode(source), teacher_forced(config)(params, source, target)[0]
        return encoded.memory.keys, encoded.memory.values, encoded.carry.states, logits

    wide_source = np.pad(SOURCE[[2, 1]], ((0, 1), (0, 3)))
    wide_target = np.pad(TARGET[[2, 1]], ((0, 1), (0, 2)))
    with jax.enable_x64(True):
        *memory, states, logits = run_compiled(run, params, SOURCE, TARGET)
        *wide_memory, wide_states, wide_logits = run_compiled(run, params, wide_source, wide_target)
    assert not any(np.any(leaf[2]) for leaf in jax.tree.leaves(wide_states))  # the empty row
    for row, wide_row in ((2, 0), (1, 1)):
        s, t = lengths(SOURCE)[row], lengths(TARGET)[row]
        pairs = list(zip(memory, wide_memory, strict=True))
        pairs = [(a[row, :s], b[wide_row, :s]) for a, b in pairs] + [(logits[row, :t], wide_logits[wide_row, :t])]
        pairs += [
            (a[row], b[wide_row]) for a, b in zip(jax.tree.leaves(states), jax.tree.leaves(wide_states), strict=True)
        ]
        for value, wide_value in pairs:
            np.testing.assert_allclose(wide_value, value, rtol=0, atol=1e-14)


def test_an_empty_row_leaves_no_trace():
    """A row of padding alone, as in the last batch of an epoch, has zero weights and adds nothing to any gradient."""
    config = tiny_config(attention="additive")

    def loss(params, source, target):
        logits, weights = teacher_forced(config)(params, source, target)
        return cross_entropy(logits, target, target != 0, 0.1), weights

    def run(*rows):
        real = np.isin(np.arange(3), rows)[:, None]
        return value_and_gradient(params, np.where(real, SOURCE, 0), np.where(real, TARGET, 0))

    with jax.enable_x64(True):
        params = random_params(config)
        value_and_gradient = compiled(jax.value_and_grad(loss, has_aux=True), params, SOURCE, TARGET)
        (both, weights), gradients = run(0, 2)
        (first, _), first_gradients = run(0)
        (last, _), last_gradients = run(2)
    assert not np.any(weights[1]) and np.all(np.any(weights[[0, 2]], axis=-1))
    assert float(both) == pytest.approx(float(first + last), rel=1e-12)
    # Whatever an empty row added would be there once on the left and four times on the right.
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(a, b + c, rtol=0, atol=1e-12),
        gradients,
        first_gradients,
        last_gradients,
    )


@pytest.mark.parametrize(
    "settings",
    [
        dict(attention="additive", num_layers=2),
        dict(attention="general", num_layers=2, input_feeding=False),
        dict(attention="none", input_feeding=False, tied_embeddings="all"),
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_steps_of_a_search_equal_teacher_forcing(settings):
    """Two hypotheses for each sentence, the memory held once, against a batch with each source twice."""
    config = tiny_config(**settings)
    params, structure = float32(random_params(config)), graph(config)
    hypotheses = np.random.default_rng(0).integers(3, VOCAB, (3, 2, 4)).astype(np.int32)

    def search(params, source, hypotheses):
        model = nnx.merge(structure, params)
        memory, carry = model.encode(source)
        carry = jax.tree.map(lambda leaf: jnp.repeat(leaf[:, None], 2, axis=1), carry)
        tokens, logits = jnp.ones((3, 2), jnp.int32), []
        for t in range(hypotheses.shape[-1]):
            carry, step_logits = model.decode_step(model.search_tables(), memory, carry, tokens)
            logits.append(step_logits)
            tokens = hypotheses[..., t]
        return jnp.stack(logits, axis=2)

    found = run_compiled(search, params, SOURCE, hypotheses)
    expected, _ = run_compiled(teacher_forced(config), params, SOURCE.repeat(2, axis=0), hypotheses.reshape(6, 4))
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=0, atol=1e-5)


# ---- parameters

SQUARE = dict(attention="none", input_feeding=False, bidirectional=False, hidden_size=4, embed_size=4)
TIES = {
    "source_target": ({"source_embedding"}, set()),
    "target_output": (set(), {"output_kernel"}),
    "all": ({"source_embedding"}, {"output_kernel"}),
}


@pytest.mark.parametrize("ties", TIES)
def test_tied_tables_are_one_parameter(ties):
    absent = set().union(*TIES[ties])
    untied = set(abstract_params(tiny_config(), (VOCAB, VOCAB)))
    config = tiny_config(tied_embeddings=ties)
    assert untied - set(abstract_params(config, (VOCAB, VOCAB))) == absent
    assert vector_size(config) == (config.embed_size if "output_kernel" in absent else config.hidden_size)


def test_a_tied_table_learns_from_all_its_uses():
    tied, untied = tiny_config(**SQUARE, tied_embeddings="all"), tiny_config(**SQUARE)
    params = random_params(tied)
    table = params["target_embedding"]
    copies = params | {"source_embedding": table, "output_kernel": table}

    def gradient(config, params):
        def loss(params):
            logits, _ = teacher_forced(config)(params, SOURCE, TARGET)
            return cross_entropy(logits, jnp.asarray(TARGET), jnp.asarray(TARGET != 0), 0.0)

        return run_compiled(jax.grad(loss), params)

    with jax.enable_x64(True):
        found, parts = gradient(tied, params), gradient(untied, copies)
    uses = [parts.pop(name) for name in ("target_embedding", "source_embedding", "output_kernel")]
    assert all(np.any(use) for use in uses)
    np.testing.assert_allclose(found.pop("target_embedding"), sum(uses), atol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), found, parts)


def initial_params(**settings):
    config = tiny_config(**settings)
    key = jax.random.key(0, impl="unsafe_rbg")  # the default compiles for longer
    make = lambda key: nnx.to_pure_dict(nnx.state(build_model(config, (VOCAB, VOCAB), key), nnx.Param))  # noqa: E731
    return config, run_compiled(make, key)


def split_biases(params):
    """All other parameters, and the four gates' biases of every layer, [4, H] each."""
    biases, others = [], []
    for path, leaf in jax.tree.leaves_with_path(params):
        if path[-1].key == "bias":
            biases += [row.reshape(4, -1) for row in leaf]
        elif path[-1].key != "output_bias":
            others.append(leaf)
    return others, biases


def test_uniform_parameters_fill_their_bounds():
    _, params = initial_params(attention="additive", num_layers=2, bridge="dense", init_scale=0.02)
    matrices, biases = split_biases(params)
    values = np.concatenate([matrix.ravel() for matrix in matrices])
    assert np.abs(values).max() <= 0.02 and abs(values.mean()) < 1e-3
    assert values.std() == pytest.approx(0.02 / np.sqrt(3), rel=0.05)
    assert all(np.abs(matrix).max() > 0.01 for matrix in matrices)
    assert not any(bias.any() for bias in biases) and not params["output_bias"].any()


def test_orthogonal_means_each_gate_of_each_direction():
    config, params = initial_params(initializer="orthogonal", num_layers=2, forget_bias=1.0)
    layers = [*params["encoder"]["layers"].values(), *params["decoder"]["layers"].values()]
    blocks = []
    for layer in layers:
        for kernel in layer["recurrent_kernel"]:
            size = kernel.shape[1] // 4
            blocks += np.split(kernel[-size:], 4, axis=1)  # rows above it are of the features fed in
    assert len(blocks) == 4 * (2 * 2 + 2)
    for block in blocks:
        np.testing.assert_allclose(block @ block.T, np.eye(len(block)), atol=1e-5)
    assert len({block.tobytes() for block in blocks}) == len(blocks)
    bound = np.sqrt(6 / (2 * config.hidden_size + config.hidden_size))  # Glorot and Bengio 2010
    combine = params["decoder"]["combine_kernel"]
    assert 0.8 * bound < np.abs(combine).max() <= bound


def test_forget_bias_is_that_of_the_forget_gate_alone():
    _, params = initial_params(initializer="orthogonal", num_layers=2, forget_bias=1.5)
    _, biases = split_biases(params)
    assert len(biases) == 2 * 2 + 2
    for bias in biases:
        np.testing.assert_array_equal(bias, np.full_like(bias, 1.5) * [[0], [1], [0], [0]])


def test_bfloat16_is_of_activations_and_never_of_the_cell_state():
    config = tiny_config(compute_dtype="bfloat16", bridge="dense")
    structure = graph(config)
    encoded = jax.eval_shape(
        lambda params: nnx.merge(structure, params).encode(jnp.asarray(SOURCE)), float32(random_params(config))
    )
    [(cell, hidden)] = encoded.carry.states
    assert (cell.dtype, hidden.dtype, encoded.memory.values.dtype) == (jnp.float32, jnp.bfloat16, jnp.bfloat16)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(abstract_params(config, (VOCAB, VOCAB))))


# ---- dropout


def row_keys(num_rows, seed=0, impl=None):
    """A key for each row of a batch."""
    return jax.random.split(jax.random.key(seed, impl=impl), num_rows)


def test_dropout_keeps_the_mean_and_drops_its_share():
    x = jnp.ones((500, 403))  # not a multiple of 4 features
    dropped = np.asarray(dropout(x, 0.3, row_keys(500)))
    kept = dropped != 0
    assert kept.mean() == pytest.approx(0.7, abs=0.004)  # 1/512 for whole bytes, and twice the standard deviation
    assert dropped.mean() == pytest.approx(1.0, abs=4 * np.sqrt(0.3 / 0.7 / x.size))
    assert len(set(dropped[kept])) == 1
    assert np.ptp(kept.mean(0)) < 0.2 and np.ptp(kept.mean(1)) < 0.25  # no row or feature is favoured


def test_dropout_without_keys_or_rate_is_the_identity():
    x = jnp.ones((2, 3))
    assert dropout(x, 0.3, None) is x
    assert dropout(x, 0.0, row_keys(2)) is x


def test_what_is_dropped_in_a_row_does_not_depend_on_the_rows_beside_it():
    x, keys = jnp.ones((3, 8, 37)), row_keys(8)  # [T, B, D]
    whole = np.asarray(dropout(x, 0.3, keys))
    np.testing.assert_array_equal(whole[:, 2:5], dropout(x[:, 2:5], 0.3, keys[2:5]))
    assert len({row.tobytes() for row in np.moveaxis(whole, 1, 0)}) == 8


@pytest.mark.parametrize("feeding", [True, False])
def test_dropout_of_the_model_is_a_function_of_its_keys(feeding):
    config = tiny_config(num_layers=2, input_feeding=feeding)
    params = float32(random_params(config))
    none = teacher_forced(dataclasses.replace(config, dropout_rate=0.0))

    def run(params, keys, other_keys):
        forward = teacher_forced(config)
        dropped = [forward(params, SOURCE, TARGET, k)[0] for k in (keys, keys, other_keys)]
        return *dropped, forward(params, SOURCE, TARGET)[0], none(params, SOURCE, TARGET, keys)[0]

    keys = (row_keys(len(SOURCE), seed, impl="rbg") for seed in (1, 2))  # the default compiles for longer
    first, again, other, without_keys, without_rate = run_compiled(run, params, *keys)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(without_keys, without_rate)
    assert not np.allclose(first, other) and not np.allclose(first, without_keys)


def summed_loss(config, segment, keys=None):
    """`(params) -> loss` over the small batch, decoded and read in pieces of `segment` positions."""
    structure = graph(config)

    def read(logits, labels):
        return cross_entropy(logits, labels, labels != 0, 0.1), (labels != 0).sum()

    def loss(params):
        model = nnx.merge(structure, params)
        return model.total(read, jnp.asarray(SOURCE), jnp.asarray(TARGET), keys=keys, segment=segment)

    return loss


@pytest.mark.parametrize(
    "settings",
    [dict(attention="general", num_layers=2), dict(attention="additive", num_layers=2, input_feeding=False)],
    ids=["fed", "unfed"],
)
def test_pieces_computed_again_change_neither_loss_nor_gradient(settings):
    """Of the 5 source and 4 target positions the last piece has fewer, or none are left over."""
    config = tiny_config(**settings)
    params = random_params(config)
    with jax.enable_x64(True):
        (whole, tokens), gradient = run_compiled(jax.value_and_grad(summed_loss(config, 0), has_aux=True), params)
        for segment in (2, 3):
            function = jax.value_and_grad(summed_loss(config, segment), has_aux=True)
            (loss, same_tokens), same_gradient = run_compiled(function, params)
            np.testing.assert_allclose(loss, whole, rtol=1e-13)
            assert tokens == same_tokens == (TARGET != 0).sum()
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), gradient, same_gradient)


def test_what_is_computed_again_is_dropped_again():
    """The gradient is that of the loss that was returned: a difference quotient along a random direction says so."""
    config = tiny_config(attention="general", num_layers=2)
    params = random_params(config)
    direction = random_params(config, seed=1)

    def slope(params, direction):
        function = lambda params: summed_loss(config, 2, row_keys(len(SOURCE), 5))(params)[0]  # noqa: E731
        move = lambda size: jax.tree.map(lambda p, d: p + size * d, params, direction)  # noqa: E731
        gradient = jax.grad(function)(params)
        exact = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, direction)))
        return exact, (function(move(1e-6)) - function(move(-1e-6))) / 2e-6

    with jax.enable_x64(True):
        exact, quotient = run_compiled(slope, params, direction)
    np.testing.assert_allclose(exact, quotient, rtol=1e-7)
