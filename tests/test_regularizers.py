"""Dropout, zoneout and their like in whole models: the equations of the papers, given the same masks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from seq2seq_jax.build import CELLS, build_model
from seq2seq_jax.cells import Cell, Keep, Regularizers, drop_weights, step
from seq2seq_jax.config import WITHOUT_RECURRENT_WEIGHTS, ModelConfig
from seq2seq_jax.dropout import Mask, split_keys
from seq2seq_jax.encoders import Layers
from seq2seq_jax.linear import uniform
from seq2seq_jax.padded import Padded
from seq2seq_jax.seq2seq import Seq2Seq, reverse
from seq2seq_jax.symbols import BOS
from tests.combinations import drawn, model
from tests.models import (
    SOURCE,
    TARGET,
    VOCAB,
    Oracle,
    everything,
    graph,
    random_params,
    run_compiled,
    teacher_forced,
    tiny_config,
)
from tests.test_dropout import row_keys


def of_layer(keep: dict[str, Mask | None], row: int) -> dict[str, np.ndarray]:
    """Of a row, over time: factors, and booleans of zoneout."""
    found = {}
    for name, mask in keep.items():
        if mask is not None:
            kept = np.asarray(mask.keep)[..., row, :]
            found[name] = kept if name in ("memory", "hidden") else kept / (1 - mask.rate)
    return found


def masks(reader: Seq2Seq, keys, source: Padded, target: Padded) -> dict:
    """All that a model draws for a batch; of embeddings the factors, in the order in which they are read."""
    of_encoder, of_decoder = split_keys(keys, 2)
    of_source, of_layers = split_keys(of_encoder, 2)
    of_target, of_steps = split_keys(of_decoder, 2)
    batch, width = source.values.shape
    read = reverse(source).values if reader.reverse_source else source.values
    fed = jnp.pad(target.values[:, :-1], ((0, 0), (1, 0)), constant_values=BOS)
    ones = nnx.Param(jnp.ones(reader.target_table.shape))
    assert isinstance(reader.encoder, Layers)
    encoder, layers = reader.encoder, reader.encoder.layers
    sizes = [0, *(sum(cell.size for cell in cells) for cells in layers)]
    return {
        "source": reader._embed(ones, len(ones[...]), jnp.asarray(read).T, of_source),
        "target": reader._embed(ones, len(ones[...]), fed.T, of_target),
        "encoder": [
            encoder.keep(depth, key, (width, batch, sizes[depth]))
            for depth, key in enumerate(split_keys(of_layers, len(layers)))
        ],
        "decoder": reader.decoder.keep(of_steps, target.values.shape[1]),
    }


def of_row(drawn: dict, row: int) -> dict:
    """What the oracle is given for one sentence."""
    layers = {"encoder": drawn["encoder"], "decoder": drawn["decoder"].between}
    kept: dict[str, Any] = {
        name: dict(enumerate(of_layer(keep._asdict(), row) for keep in layers[name])) for name in layers
    }
    kept |= {name: np.asarray(drawn[name])[:, row] for name in ("source", "target")}
    return kept | of_layer({"vector": drawn["decoder"].vector}, row)


def assert_trains_by_its_equations(config: ModelConfig):
    """The loss of a training step is made of these logits."""
    params, keys = random_params(config), row_keys(len(SOURCE.lengths), seed=3)
    with jax.enable_x64(True):
        logits, _ = run_compiled(teacher_forced(config), params, SOURCE, TARGET, keys)
        reader = nnx.merge(graph(config), jax.tree.map(jnp.asarray, params))
        drawn = masks(reader, keys, SOURCE, TARGET)
    for row, (s, t) in enumerate(zip(SOURCE.lengths, TARGET.lengths, strict=True)):
        oracle = Oracle(config, params, of_row(drawn, row))
        expected, _ = oracle(SOURCE.values[row, :s], TARGET.values[row, :t])
        np.testing.assert_allclose(logits[row, :t], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("cell, variational", [*((cell, cell == "slstm") for cell in CELLS), ("gru", True)])
def test_training_is_the_equations_given_the_same_masks(cell, variational):
    assert_trains_by_its_equations(tiny_config(**everything(cell, variational_dropout=variational)))


OTHERS = [
    everything("lstm", decoder="gnmt", output="linear", input_feeding=False, residual_from=2, bidirectional="first"),
    everything("gru", decoder="bahdanau", attention="additive", output="deep", input_feeding=False),
    everything("gru_v2", decoder="plain", attention="none", input_feeding=False, bidirectional="none"),
]


@pytest.mark.parametrize("settings", OTHERS, ids=lambda settings: settings["decoder"])
def test_training_of_each_decoder_is_the_equations_given_the_same_masks(settings):
    assert_trains_by_its_equations(tiny_config(**settings))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(60))
def test_training_of_any_model_is_the_equations_given_the_same_masks(number):
    plain = dict(features="prepend", copy=False)  # which are read and written in other ways
    config = model(drawn(60)[number] | plain | dict(dropout_rate=0.25))  # which random bytes hold exactly
    assert config is not None
    assert_trains_by_its_equations(config)


def test_once_for_a_sequence_every_mask_is_the_same_at_all_steps_but_those_of_zoneout():
    """And of words the same everywhere in a sentence."""
    config = tiny_config(**everything("lstm", variational_dropout=True))
    reader = build_model(config, (VOCAB, VOCAB), jax.random.key(0))
    repeated = [Padded(jnp.full((3, 4), 5), sequences.lengths) for sequences in (SOURCE, TARGET)]
    drawn = masks(reader, row_keys(3), *repeated)
    np.testing.assert_array_equal(drawn["source"], np.broadcast_to(drawn["source"][:1], drawn["source"].shape))
    for keep in (*drawn["encoder"], *drawn["decoder"].between):
        for name, mask in keep._asdict().items():
            if mask is not None:
                same = np.all(np.asarray(mask.keep) == np.asarray(mask.keep)[:1])
                assert same == (name not in ("memory", "hidden")), name


@pytest.mark.parametrize("settings", [everything("lstm"), everything("lstm", variational_dropout=True)])
def test_padding_changes_no_value_of_training(settings):
    """Not even what is dropped: of the second direction neither."""
    config = tiny_config(**settings)
    params, keys = random_params(config), row_keys(len(SOURCE.lengths))
    wider = [Padded(np.pad(ids.values, ((0, 0), (0, 3))), ids.lengths) for ids in (SOURCE, TARGET)]
    with jax.enable_x64(True):
        logits, _ = run_compiled(teacher_forced(config), params, SOURCE, TARGET, keys)
        same, _ = run_compiled(teacher_forced(config), params, *wider, keys)
    for row, length in enumerate(TARGET.lengths):
        np.testing.assert_allclose(same[row, :length], logits[row, :length], rtol=0, atol=1e-12)


def summed(config, piece, keys):
    """`(params) -> loss` over the small batch, in pieces of some positions."""
    structure = graph(config)

    def loss(params):
        source, target = jax.tree.map(jnp.asarray, (SOURCE, TARGET))
        read = lambda found, labels, mask: (jax.nn.log_softmax(found.logits).max(-1) * mask).sum()  # noqa: E731
        return nnx.merge(structure, params).total(read, source, target, keys=keys, piece=piece)

    return loss


def test_pieces_of_a_sequence_have_the_masks_of_the_whole():
    """All that is drawn once for a sequence is the same whether it is taken whole or in pieces."""
    rates = dict(state_dropout_rate=0.25, recurrent_dropout_rate=0.25, word_dropout_rate=0.25)
    config = tiny_config(num_layers=2, variational_dropout=True, **rates)
    params, keys = random_params(config), row_keys(len(SOURCE.lengths))
    with jax.enable_x64(True):
        whole, *pieces = (run_compiled(jax.value_and_grad(summed(config, n, keys)), params) for n in (0, 2, 3))
    for found in pieces:
        jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=0, atol=1e-11), found, whole)


def test_gradients_of_a_model_agree_with_finite_differences():
    config = tiny_config(**everything("lstm", hidden_size=4, embed_size=2))
    loss = summed(config, 0, row_keys(len(SOURCE.lengths)))
    with jax.enable_x64(True):
        check_grads(jax.jit(loss), (random_params(config),), order=1, modes=["rev"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cell", ["gru", "lstm", "slstm"])
def test_bfloat16_trains_and_its_masks_are_those_of_float32(cell):
    settings = everything(cell)
    keys = row_keys(len(SOURCE.lengths))
    found = []
    for dtype in ("float32", "bfloat16"):
        config = tiny_config(**settings, compute_dtype=dtype)
        params = jax.tree.map(np.float32, random_params(config, scale=0.3))
        found.append(run_compiled(teacher_forced(config), params, SOURCE, TARGET, keys)[0].astype(np.float32))
    assert np.all(np.isfinite(found[1]))
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=0.05)


# ---- zoneout


def test_zoneout_without_chance_is_the_mean_of_zoneout_with_it():
    """Of one step, over many rows; Krueger et al. 2017, section 3.2."""
    cell, regularizers = (
        CELLS["lstm"]([2], 3, uniform(0.8, nnx.Rngs(0))),
        Regularizers(zoneout_cell=0.25, zoneout_hidden=0.5),
    )
    rows = 20_000
    state = tuple(jnp.broadcast_to(part, (rows, 3)) for part in jnp.array([[0.3, -1, 2], [0.5, 0.1, -0.7]]))
    x = jnp.broadcast_to(jnp.float32([0.4, -0.2]), (rows, 2))
    keep = jax.tree.map(lambda kept: kept[0], regularizers.draw(row_keys(rows), (1, 3)))
    drawn = step(cell, state, x, regularizers=regularizers, keep=keep)
    expected = step(cell, state, x, regularizers=regularizers)
    for part, old, mean, rate in zip(drawn, state, expected, (0.25, 0.5), strict=True):
        np.testing.assert_allclose(np.mean(part, 0), mean[0], atol=0.02)  # some four standard deviations
        assert np.mean(part == old) == pytest.approx(rate, abs=0.01)


def test_what_is_expected_of_two_memories_of_slstm_is_no_matter_of_their_scales():
    """exp(m) c and exp(m) n are what a memory stands for."""
    cell = CELLS["slstm"]([2], 4, uniform(0.8, nnx.Rngs(0)))
    old, new = (np.random.default_rng(seed).standard_normal((3, 4)) for seed in (0, 1))
    with jax.enable_x64(True):
        mean = jax.device_get(cell.between(tuple(jnp.asarray(old)), tuple(jnp.asarray(new)), 0.25))
    for n in (0, 1):
        expected = 0.25 * np.exp(old[2]) * old[n] + 0.75 * np.exp(new[2]) * new[n]
        np.testing.assert_allclose(np.exp(mean[2]) * mean[n], expected, rtol=1e-13)


def test_a_cell_of_ones_own_is_zoned_out_as_it_is():
    """It need not know of it: `(state, *inputs) -> state` is all that is asked of it."""

    class Sum(Cell):
        def __call__(self, state, *inputs):
            return (state[0] + sum(inputs),)

    cell, x = Sum([3], 3, uniform(0.8, nnx.Rngs(0))), jnp.ones((2, 3))
    (hidden,) = step(cell, (x,), x, regularizers=Regularizers(zoneout_hidden=0.25))
    np.testing.assert_allclose(hidden, 1.75)
    with pytest.raises(TypeError, match="keep"):
        step(cell, (x,), x, keep=Keep(state=Mask(x > 0, 0.5)))


# ---- weights


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell not in WITHOUT_RECURRENT_WEIGHTS])
def test_of_all_cells_recurrent_weights_are_dropped_and_no_others(cell):
    """Merity et al. 2018, section 2. Of gru's candidate it is the last kernel."""
    reader = build_model(tiny_config(cell=cell, num_layers=2), (VOCAB, VOCAB), jax.random.key(0))
    before = named(reader)
    drop_weights(reader, 0.25, jax.random.key(1))
    changed, shares = [], []
    for name, new in named(reader).items():
        if np.any(new != before[name]):
            changed.append(name)
            shares.append(np.mean(new != 0))
            np.testing.assert_allclose(new, np.where(new != 0, before[name] / 0.75, 0), rtol=1e-6)
    assert np.mean(shares) == pytest.approx(0.75, abs=0.1)
    assert sum(name[-3] == "recurrent" for name in changed) == 2 * 2 + 2  # both directions of two layers; the decoder's
    candidates = [name for name in changed if name[-3] == "candidate"]
    assert len(candidates) == (6 if cell == "gru" else 0) and len(changed) == 6 + len(candidates)
    assert all((*name[:-1], name[-1] + 1) not in before for name in candidates)


def named(reader: Seq2Seq) -> dict[tuple, np.ndarray]:
    """Parameters by their paths."""
    flat = nnx.to_flat_state(nnx.state(reader, nnx.Param))
    return {path: np.asarray(variable[...]) for path, variable in flat}
