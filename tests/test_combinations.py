"""Every choice with every other: the equations of the papers, and a search that writes what training reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seq2seq_jax.outputs import scores
from tests.combinations import CHOICES, REGULARIZERS, drawn, model, pairs
from tests.models import COPIED_SOURCE, COPIED_TARGET, SOURCE, TARGET, Oracle, graph, random_params, run_compiled

FEW, MANY = 10, 250
WITHOUT_ATTENTION = [
    dict(decoder="plain", attention="none", output="linear", reverse_source=True, bidirectional="first", num_layers=2),
    dict(decoder="cho", attention="none", output="deep", bridge="dense", cell="gru"),
    dict(decoder="luong", attention="none", cell="slstm", decoder_cell="min_lstm", bridge="mean"),
]
ZONED_OUT = [
    dict(cell="lstm", zoneout_cell_rate=0.25, zoneout_hidden_rate=0.5, input_feeding=True),
    dict(cell="slstm", zoneout_cell_rate=0.5, decoder="gnmt", num_layers=2, output="linear"),
    dict(cell="min_gru", zoneout_hidden_rate=0.25, decoder="bahdanau"),
]


def forward_and_search(config):
    """Logits by teacher forcing, attention weights, and logits by the steps of a search that writes the target."""
    structure = graph(config)

    def run(params, source, target):
        reader = nnx.merge(structure, params)
        weights = reader(source, target.values).weights
        forced = reader.total(lambda predicted, labels, mask: scores(predicted), source, target)
        encoded = reader.encode(source)
        state = jax.tree.map(lambda leaf: leaf[:, None], encoded.state)
        tables, tokens, searched = reader.search_tables(), jnp.ones((len(target.values), 1), jnp.int32), []
        for t in range(target.values.shape[1]):
            state, now = reader.search_step(tables, encoded, state, tokens)
            searched.append(now[:, 0])
            tokens = target.values[:, t, None]
        searched = jnp.stack(searched)
        return forced.reshape(searched.shape), weights, searched

    return run


def assert_right(settings):
    config = model({"input_feeding": False} | settings)
    assert config is not None
    params = random_params(config)
    source, target = (COPIED_SOURCE, COPIED_TARGET) if config.copy else (SOURCE, TARGET)
    with jax.enable_x64(True):
        logits, weights, searched = run_compiled(forward_and_search(config), params, source, target)
    np.testing.assert_allclose(searched, logits, rtol=0, atol=1e-10)
    for row, (s, t) in enumerate(zip(source.lengths, target.lengths, strict=True)):
        expected, expected_weights = Oracle(config, params)(source.values[row, :s], target.values[row, :t])
        found = logits[:t, row, : expected.shape[1]]
        np.testing.assert_allclose(np.maximum(found, -1e29), np.maximum(expected, -1e29), rtol=0, atol=1e-10)
        assert np.all(logits[:t, row, expected.shape[1] :] < -1e29)  # of the padding there are no copies
        if expected_weights is None:
            assert weights is None
        else:
            np.testing.assert_allclose(weights[:t, row, :s], expected_weights, rtol=0, atol=1e-11)
            assert not np.any(weights[:, row, s:])


def named(settings):
    return " ".join(str(value) for value in settings.values() if not isinstance(value, bool))


@pytest.mark.parametrize("settings", [*WITHOUT_ATTENTION, *ZONED_OUT, *drawn(FEW)], ids=named)
def test_a_model_is_its_equations_and_its_search_is_the_model(settings):
    """The oracle sees one sentence at a time, and no padding."""
    assert_right(settings)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(FEW, MANY))
def test_any_model_is_its_equations_and_its_search_is_the_model(number):
    assert_right(drawn(MANY)[number])


def test_every_choice_of_every_field_is_among_those_drawn():
    some = [*WITHOUT_ATTENTION, *drawn(MANY)]
    for name, values in (CHOICES | REGULARIZERS).items():
        assert {settings.get(name) for settings in some} >= set(values)
    assert len(set().union(*map(pairs, some))) > 1450
