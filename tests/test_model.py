import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seq2seq_jax.build import abstract_params
from seq2seq_jax.config import TrainConfig
from seq2seq_jax.losses import cross_entropy
from seq2seq_jax.padded import Padded
from seq2seq_jax.training.objectives import negative_log_likelihood
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


def float32(params):
    return jax.tree.map(np.float32, params)


def row_keys(num_rows, seed=0):
    """A key for each row of a batch."""
    return jax.random.split(jax.random.key(seed, impl="rbg"), num_rows)  # the default compiles for longer


def named(settings):
    return " ".join(map(str, settings.values()))


@pytest.mark.parametrize(
    "settings",
    [
        dict(cell="lstm", attention="general", num_layers=2),
        dict(cell="lstm", attention="additive", num_layers=2, bidirectional="none", bridge="dense"),
        dict(cell="lstm", attention="dot", bridge="zero", tied_embeddings="all"),
        dict(cell="lstm", attention="additive", num_layers=2, input_feeding=False, tied_embeddings="source_target"),
        dict(cell="lstm", input_feeding=False, bidirectional="none", tied_embeddings="target_output"),
        dict(cell="lstm", attention="none", num_layers=2, input_feeding=False),
        dict(cell="gru", attention="general", num_layers=2, bridge="dense"),
        dict(cell="gru", attention="additive", num_layers=2, input_feeding=False),
        dict(cell="rnn", attention="additive", num_layers=2, bridge="dense"),
        dict(cell="rnn", attention="none", num_layers=2, input_feeding=False),
    ],
    ids=named,
)
def test_model_is_the_equations_of_the_papers(settings):
    """The oracle sees one sentence at a time, and no padding."""
    config = tiny_config(**settings)
    params = random_params(config)
    with jax.enable_x64(True):
        logits, weights = run_compiled(teacher_forced(config), params, SOURCE, TARGET)
    for row, (s, t) in enumerate(zip(SOURCE.lengths, TARGET.lengths, strict=True)):
        expected_logits, expected_weights = Oracle(config, params)(SOURCE.values[row, :s], TARGET.values[row, :t])
        np.testing.assert_allclose(logits[row, :t], expected_logits, rtol=0, atol=1e-11)
        if weights is None or expected_weights is None:
            assert config.attention == "none" and weights is expected_weights is None
        else:
            np.testing.assert_allclose(weights[row, :t, :s], expected_weights, rtol=0, atol=1e-12)
            assert not np.any(weights[row, :, s:])


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_padding_and_batch_mates_change_nothing(cell):
    """Every real value of a sentence is the same with more padding on both sides, other tokens in it, and elsewhere."""
    config = tiny_config(cell=cell, attention="additive", num_layers=2)
    params, structure = random_params(config), graph(config)

    def run(params, source, target):
        model = nnx.merge(structure, params)
        encoded, logits = model.encode(source), teacher_forced(config)(params, source, target)[0]
        return encoded.memory.keys, encoded.memory.values, encoded.state.cells, logits

    def moved(batch, columns):
        """The last row first, and an empty one behind; wider, with other tokens in the padding."""
        values = np.pad(np.where(batch.mask, batch.values, 7)[[2, 1]], ((0, 1), (0, columns)), constant_values=6)
        return Padded(values, np.append(batch.lengths[[2, 1]], np.int32(0)))

    with jax.enable_x64(True):
        *memory, states, logits = run_compiled(run, params, SOURCE, TARGET)
        *wide_memory, wide_states, wide_logits = run_compiled(run, params, moved(SOURCE, 3), moved(TARGET, 2))
    assert not any(np.any(leaf[2]) for leaf in jax.tree.leaves(wide_states))  # the empty row
    for row, wide_row in ((2, 0), (1, 1)):
        s, t = SOURCE.lengths[row], TARGET.lengths[row]
        pairs = list(zip(memory, wide_memory, strict=True))
        pairs = [(a[row, :s], b[wide_row, :s]) for a, b in pairs] + [(logits[row, :t], wide_logits[wide_row, :t])]
        pairs += [
            (a[row], b[wide_row]) for a, b in zip(jax.tree.leaves(states), jax.tree.leaves(wide_states), strict=True)
        ]
        for value, wide_value in pairs:
            np.testing.assert_allclose(wide_value, value, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "settings",
    [
        dict(attention="additive"),
        dict(copy=True),
        dict(attention="hard_monotonic", input_feeding=False),
        dict(attention="hard_monotonic", input_feeding=False, alignment_order=1, window_size=2),
    ],
    ids=named,
)
def test_an_empty_row_leaves_no_trace(settings):
    """A row of padding alone, as in the last batch of an epoch, has zero weights and adds nothing to any gradient."""
    config = tiny_config(**settings)

    def loss(params, source, target):
        weights = teacher_forced(config)(params, source, target)[1]
        model = nnx.merge(graph(config), params)
        return negative_log_likelihood(model, source, target, None, TrainConfig(label_smoothing=0.1)), weights

    def run(*rows):
        real = np.isin(np.arange(3), rows)
        batch = (side._replace(lengths=np.where(real, side.lengths, np.int32(0))) for side in (SOURCE, TARGET))
        return value_and_gradient(params, *batch)

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
        dict(cell="lstm", attention="additive", num_layers=2),
        dict(cell="lstm", attention="general", num_layers=2, input_feeding=False),
        dict(cell="lstm", attention="none", input_feeding=False, tied_embeddings="all"),
        dict(cell="gru", attention="general", num_layers=2),
        dict(cell="rnn", attention="dot", input_feeding=False),
    ],
    ids=named,
)
def test_steps_of_a_search_equal_teacher_forcing(settings):
    """Two hypotheses for each sentence, the memory held once, against a batch with each source twice."""
    config = tiny_config(**settings)
    params, structure = float32(random_params(config)), graph(config)
    hypotheses = np.random.default_rng(0).integers(3, VOCAB, (3, 2, 4)).astype(np.int32)

    def search(params, source, hypotheses):
        model = nnx.merge(structure, params)
        encoded = model.encode(source)
        state = encoded.state
        state = jax.tree.map(lambda leaf: jnp.repeat(leaf[:, None], 2, axis=1), state)
        tokens, logits = jnp.ones((3, 2), jnp.int32), []
        for t in range(hypotheses.shape[-1]):
            state, step_logits = model.search_step(model.search_tables(), encoded, state, tokens)
            logits.append(step_logits)
            tokens = hypotheses[..., t]
        return jnp.stack(logits, axis=2)

    found = run_compiled(search, params, SOURCE, hypotheses)
    twice = Padded(SOURCE.values.repeat(2, axis=0), SOURCE.lengths.repeat(2))
    expected, _ = run_compiled(teacher_forced(config), params, twice, Padded(hypotheses.reshape(6, 4), None))
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=0, atol=1e-5)


# ---- one step, scheduled

ATTENTIONS = [("none", False), *itertools.product(["dot", "general", "additive"], [True, False])]
# Each attention once, each cell with and without feeding, and every pair of the other choices among them.
COVERING = [
    ("lstm", *ATTENTIONS[0], "all", 2, "all"),
    ("gru", *ATTENTIONS[1], "none", 2, "none"),
    ("rnn", *ATTENTIONS[2], "all", 1, "none"),
    ("lstm", *ATTENTIONS[3], "all", 2, "all"),
    ("gru", *ATTENTIONS[4], "none", 2, "target_output"),
    ("rnn", *ATTENTIONS[5], "none", 1, "all"),
    ("lstm", *ATTENTIONS[6], "all", 2, "source_target"),
]
EVERY = [
    (cell, *attention, *others)
    for cell in ("rnn", "gru", "lstm")
    for attention in ATTENTIONS
    for others in itertools.product(["none", "all"], [1, 2], ["none", "source_target", "target_output", "all"])
]


@pytest.fixture
def plainly(monkeypatch):
    """What a function gives when nothing is scheduled: every step runs as it is written, in a loop of JAX's own."""

    def run(function, *arguments):
        with monkeypatch.context() as patch:
            for module in ("seq2seq", "encoders"):
                patch.setattr(f"seq2seq_jax.{module}.scan", jax.lax.scan)
            return function(*arguments)

    return run


def loss_and_gradients(config, dtype):
    """Smoothed loss of the padded batch with dropout, and the gradient of every parameter."""
    structure = graph(config)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), random_params(config))

    def loss(params, source, target):
        model = nnx.merge(structure, params)
        vectors = model(source, target.values, keys=row_keys(len(source.lengths), 1)).vector
        return cross_entropy(model.output(vectors), target.values.T, target.mask.T, 0.1)

    return run_compiled(jax.value_and_grad(loss), params, SOURCE, TARGET)


def assert_trees_close(found, expected, atol):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, value), other in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(value, other, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))


def assert_schedule_changes_nothing(plainly, cell, attention, feeding, bidirectional, num_layers, ties):
    config = tiny_config(
        cell=cell,
        attention=attention,
        input_feeding=feeding,
        bidirectional=bidirectional,
        num_layers=num_layers,
        tied_embeddings=ties,
    )
    with jax.enable_x64(True):
        found, expected = loss_and_gradients(config, np.float64), plainly(loss_and_gradients, config, np.float64)
    assert_trees_close(found, expected, 1e-10)
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(expected))  # no parameter is left out


@pytest.mark.parametrize("cell, attention, feeding, bidirectional, num_layers, ties", COVERING)
def test_what_runs_where_changes_nothing(plainly, cell, attention, feeding, bidirectional, num_layers, ties):
    assert_schedule_changes_nothing(plainly, cell, attention, feeding, bidirectional, num_layers, ties)


@pytest.mark.slow
@pytest.mark.parametrize("cell, attention, feeding, bidirectional, num_layers, ties", EVERY)
def test_what_runs_where_changes_nothing_for_any_choice(
    plainly, cell, attention, feeding, bidirectional, num_layers, ties
):
    assert_schedule_changes_nothing(plainly, cell, attention, feeding, bidirectional, num_layers, ties)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 0.05)])
def test_what_runs_where_is_lost_among_the_roundings_of_training(plainly, cell, dtype, tolerance):
    """Relative to a gradient's largest entry: some hundred roundings of float32, a dozen of bfloat16."""
    config = tiny_config(cell=cell, attention="dot", bidirectional="none", compute_dtype=dtype)
    found_loss, found = loss_and_gradients(config, np.float32)
    loss, expected = plainly(loss_and_gradients, config, np.float32)
    assert float(found_loss) == pytest.approx(float(loss), rel=tolerance / 10)
    scaled = jax.tree.map(lambda value, other: value / np.abs(other).max(), found, expected)
    assert_trees_close(scaled, jax.tree.map(lambda leaf: leaf / np.abs(leaf).max(), expected), tolerance)


def test_sources_without_a_target_are_told():
    few = jax.tree.map(lambda leaf: leaf[:2], TARGET)
    with pytest.raises(ValueError, match="3 sources and 2 targets; there must be one for each"):
        jax.eval_shape(teacher_forced(tiny_config()), random_params(tiny_config()), SOURCE, few)


def test_a_tied_table_learns_from_all_its_uses():
    square = dict(attention="none", input_feeding=False, bidirectional="none", hidden_size=4, embed_size=4)
    tied, untied = tiny_config(**square, tied_embeddings="all"), tiny_config(**square)
    params = random_params(tied)
    table = params["output"]["table"]
    copies = params | {"source_table": table, "target_table": table}

    def gradient(config, params):
        def loss(params, source, target):
            logits, _ = teacher_forced(config)(params, source, target)
            return cross_entropy(logits, target.values, target.mask, 0.0)

        return run_compiled(jax.grad(loss), params, SOURCE, TARGET)

    with jax.enable_x64(True):
        found, parts = gradient(tied, params), gradient(untied, copies)
    uses = [parts.pop("source_table"), parts.pop("target_table"), parts["output"].pop("table")]
    assert all(np.any(use) for use in uses)
    np.testing.assert_allclose(found["output"].pop("table"), sum(uses), atol=1e-12)
    assert_trees_close(found, parts, 1e-12)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_bfloat16_is_of_activations_and_never_of_the_cell_state(cell):
    config = tiny_config(cell=cell, compute_dtype="bfloat16", bridge="dense")
    structure = graph(config)
    encode = lambda params, source: nnx.merge(structure, params).encode(source)  # noqa: E731
    encoded = jax.eval_shape(encode, float32(random_params(config)), SOURCE)
    [(*cell_state, hidden)] = encoded.state.cells
    assert (hidden.dtype, encoded.memory.values.dtype) == (jnp.bfloat16, jnp.bfloat16)
    assert [part.dtype for part in cell_state] == ([jnp.float32] if cell == "lstm" else [])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(abstract_params(config, (VOCAB, VOCAB))))


# ---- dropout and pieces


@pytest.mark.parametrize("feeding", [True, False])
def test_dropout_of_the_model_is_a_function_of_its_keys(feeding):
    config = tiny_config(num_layers=2, input_feeding=feeding)
    params = float32(random_params(config))
    none = teacher_forced(dataclasses.replace(config, dropout_rate=0.0))

    def run(params, source, target, keys, other_keys):
        forward = teacher_forced(config)
        dropped = [forward(params, source, target, k)[0] for k in (keys, keys, other_keys)]
        return *dropped, forward(params, source, target)[0], none(params, source, target, keys)[0]

    keys = (row_keys(len(SOURCE.lengths), seed) for seed in (1, 2))
    first, again, other, without_keys, without_rate = run_compiled(run, params, SOURCE, TARGET, *keys)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(without_keys, without_rate)
    assert not np.allclose(first, other) and not np.allclose(first, without_keys)


def summed_loss(config, piece, keys=None):
    """`(params) -> (loss, tokens)` over the small batch, decoded and read in pieces of some positions."""
    structure = graph(config)

    def read(predicted, labels, mask):
        return cross_entropy(predicted.logits, labels, mask, 0.1), mask.sum()

    def loss(params):
        source, target = jax.tree.map(jnp.asarray, (SOURCE, TARGET))
        return nnx.merge(structure, params).total(read, source, target, keys=keys, piece=piece)

    return loss


@pytest.mark.parametrize(
    "settings",
    [
        dict(cell="lstm", attention="general", num_layers=2),
        dict(cell="lstm", attention="additive", num_layers=2, input_feeding=False),
        dict(cell="gru", attention="dot", num_layers=2),
        dict(cell="rnn", attention="none", input_feeding=False),
    ],
    ids=named,
)
def test_pieces_computed_again_change_neither_loss_nor_gradient(settings):
    """Of the 5 source and 4 target positions the last piece has fewer, or none are left over."""
    config = tiny_config(**settings)
    params = random_params(config)
    with jax.enable_x64(True):
        (whole, tokens), gradient = run_compiled(jax.value_and_grad(summed_loss(config, 0), has_aux=True), params)
        for piece in (2, 3):
            function = jax.value_and_grad(summed_loss(config, piece), has_aux=True)
            (loss, same_tokens), same_gradient = run_compiled(function, params)
            np.testing.assert_allclose(loss, whole, rtol=1e-13)
            assert tokens == same_tokens == TARGET.lengths.sum()
            assert_trees_close(same_gradient, gradient, 1e-12)


def test_what_is_computed_again_is_dropped_again():
    """The gradient is that of the loss that was returned: a difference quotient along a random direction says so."""
    config = tiny_config(attention="general", num_layers=2)
    params = random_params(config)
    direction = random_params(config, seed=1)

    def slope(params, direction):
        function = lambda params: summed_loss(config, 2, row_keys(len(SOURCE.lengths), 5))(params)[0]  # noqa: E731
        move = lambda size: jax.tree.map(lambda p, d: p + size * d, params, direction)  # noqa: E731
        gradient = jax.grad(function)(params)
        exact = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, direction)))
        return exact, (function(move(1e-6)) - function(move(-1e-6))) / 2e-6

    with jax.enable_x64(True):
        exact, quotient = run_compiled(slope, params, direction)
    np.testing.assert_allclose(exact, quotient, rtol=1e-7)
