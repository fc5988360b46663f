"""Objectives against lists of all outputs of tiny models, and against loops over rows and positions."""

import itertools
from dataclasses import fields
from functools import partial
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seq2seq_jax.config import OBJECTIVES_OF, OF_SENTENCES, Config, MeshConfig, ObjectiveConfig, TrainConfig
from seq2seq_jax.errors import UserError
from seq2seq_jax.padded import Padded
from seq2seq_jax.symbols import BOS, EOS
from seq2seq_jax.training import objectives
from seq2seq_jax.training.objectives import (
    candidate_log_probs,
    draw_candidates,
    expected_risk,
    mixed_inputs,
    negative_log_likelihood,
    right_share,
)
from tests import models
from tests.models import VOCAB, graph, random_params, tiny_config

SOURCE, TARGET, COPIED_SOURCE, COPIED_TARGET = (
    jax.tree.map(jnp.asarray, getattr(models, name)) for name in ("SOURCE", "TARGET", "COPIED_SOURCE", "COPIED_TARGET")
)

MODELS = {
    "luong": {},
    "bahdanau": {"decoder": "bahdanau", "attention": "additive", "input_feeding": False, "cell": "gru"},
    "plain": {"decoder": "plain", "attention": "none", "bidirectional": "none", "input_feeding": False},
    "monotonic": {"attention": "hard_monotonic", "input_feeding": False},
}


def model_of(name="luong", scale=0.8, **settings):
    config = tiny_config(**MODELS[name] | settings)
    return nnx.merge(graph(config), jax.tree.map(jnp.float32, random_params(config, scale=scale)))


def keys(number=3, seed=0):
    return jax.random.split(jax.random.key(seed), number)


def mix(model, source, target, keys, share, **options):
    """`mixed_inputs`, compiled."""
    return jax.jit(lambda *args: mixed_inputs(model, *args, **options))(source, target, keys, jnp.float32(share))


def draw(model, source, target, keys, number):
    """`draw_candidates`, compiled."""
    return jax.jit(lambda *args: draw_candidates(model, *args, number))(source, target, keys)


def likelihood_of(model, source, target, inputs=None):
    """Cross-entropy without dropout, compiled."""
    return jax.jit(lambda *args: negative_log_likelihood(model, *args[:2], None, TrainConfig(), args[2]))(
        source, target, inputs
    )


def scores_of(model, source, target):
    """Logits of all positions, [T, B, V], compiled."""
    return np.array(jax.jit(lambda *args: model.each(lambda now, *_: now.logits, *args)[0])(source, target))


# ---- scheduled sampling


@pytest.mark.parametrize("decay", ["linear", "exponential", "inverse_sigmoid"])
@pytest.mark.parametrize("half", [1, 20, 3_000])
def test_the_share_of_right_tokens_falls_from_one_to_a_half_and_on(decay, half):
    share = partial(right_share, ObjectiveConfig("scheduled_sampling", decay=decay, half_right_step=half))
    assert float(share(jnp.int32(half))) == pytest.approx(0.5, abs=1e-4)
    shares = np.array([share(jnp.int32(step)) for step in np.linspace(0, 4 * half, 9).astype(int)])
    assert (np.diff(shares) <= 0).all() and shares[-1] < 0.2
    assert shares[0] == 1 if decay != "inverse_sigmoid" else shares[0] > {1: 0.6, 20: 0.9, 3_000: 0.99}[half]


def test_decays_are_the_papers():
    """Bengio et al. 2015, section 2.4, with constants found from what the share is at two steps."""
    steps, half = np.arange(0, 300, 10), 100
    share = {
        decay: [
            float(right_share(ObjectiveConfig("scheduled_sampling", decay=decay, half_right_step=half), jnp.int32(i)))
            for i in steps
        ]
        for decay in ("linear", "exponential", "inverse_sigmoid")
    }
    np.testing.assert_allclose(share["linear"], np.maximum(0, 1 - 0.005 * steps), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(share["exponential"], (0.5 ** (1 / half)) ** steps, rtol=1e-5)
    k = next(k for k in np.arange(2, 60, 1e-4) if k * np.log(k) >= half)  # so that k = exp(half / k)
    np.testing.assert_allclose(share["inverse_sigmoid"], k / (k + np.exp(steps / k)), rtol=1e-3)


def test_the_share_does_not_fall_below_the_least():
    objective = ObjectiveConfig("scheduled_sampling", decay="linear", half_right_step=10, least_right=0.25)
    assert float(right_share(objective, jnp.int32(1_000))) == 0.25
    alone = ObjectiveConfig("scheduled_sampling", decay="none", least_right=0.25)
    assert float(right_share(alone, jnp.int32(0))) == 0.25


def test_with_right_tokens_alone_it_is_the_likelihood():
    model = model_of()
    inputs = mix(model, SOURCE, TARGET, keys(), 1)
    np.testing.assert_array_equal(inputs[:, 0], BOS)
    np.testing.assert_array_equal(inputs[:, 1:], TARGET.values[:, :-1])
    expected = likelihood_of(model, SOURCE, TARGET)
    np.testing.assert_allclose(likelihood_of(model, SOURCE, TARGET, inputs), expected, rtol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_own_tokens_are_the_likeliest_after_what_was_given(name):
    """Position by position: the likeliest token after the inputs so far, by teacher forcing on just these."""
    model = model_of(name)
    inputs = np.array(mix(model, SOURCE, TARGET, keys(), 0, best=True))
    for position in range(1, inputs.shape[1]):
        # The decoder is given BOS and then what stands before in its target.
        so_far = np.concatenate([inputs[:, 1 : position + 1], np.full((len(inputs), 1), EOS, np.int32)], 1)
        target = Padded(jnp.array(so_far), jnp.full(len(so_far), so_far.shape[1], jnp.int32))
        best = 2 + scores_of(model, SOURCE, target)[position - 1, :, 2:].argmax(-1)
        np.testing.assert_array_equal(inputs[:, position], best)


def test_own_tokens_are_drawn_by_their_probability():
    """The first own token of 4,000 equal rows, within 4 sigma of what the model says."""
    model, number = model_of(), 4_000
    source = Padded(*(jnp.repeat(x[:1], number, axis=0) for x in SOURCE))
    target = Padded(*(jnp.repeat(x[:1], number, axis=0) for x in TARGET))
    inputs = mix(model, source, target, keys(number), 0.25)
    right = TARGET.values[0, 0]
    probs = np.zeros(VOCAB)
    probs[2:] = jax.nn.softmax(scores_of(model, SOURCE, TARGET)[0, 0, 2:])
    probs = 0.75 * probs + 0.25 * (np.arange(VOCAB) == right)
    found = np.bincount(inputs[:, 1], minlength=VOCAB) / number
    assert (np.abs(found - probs) <= 4 * np.sqrt(probs * (1 - probs) / number) + 1e-12).all()


def test_a_row_does_not_depend_on_the_others_nor_on_padding():
    model, share = model_of(), 0.3
    together = mix(model, SOURCE, TARGET, keys(), share)
    for row in range(len(together)):
        alone = [Padded(x.values[row : row + 1], x.lengths[row : row + 1]) for x in (SOURCE, TARGET)]
        np.testing.assert_array_equal(mix(model, *alone, keys()[row : row + 1], share)[0], together[row])
    wider = TARGET._replace(values=jnp.pad(TARGET.values, ((0, 0), (0, 3)), constant_values=7))
    again = mix(model, SOURCE, wider, keys(), share)[:, : together.shape[1]]
    np.testing.assert_array_equal(again, together)


def test_no_gradient_passes_through_what_is_drawn():
    config = tiny_config(dropout_rate=0.0)
    structure, params = graph(config), jax.tree.map(jnp.float32, random_params(config))
    train, objective = TrainConfig(), ObjectiveConfig("scheduled_sampling", decay="none", least_right=0.5)
    settings = Config(model=config, train=train, objective=objective)

    def loss(params):
        return objectives.loss(nnx.merge(structure, params), SOURCE, TARGET, keys(), jnp.int32(0), settings)

    drawing = jax.vmap(jax.random.split, out_axes=1)(keys())[1]
    inputs = mix(nnx.merge(structure, params), SOURCE, TARGET, drawing, 0.5)
    assert not np.array_equal(inputs[:, 1:], TARGET.values[:, :-1])

    def given(params):
        return negative_log_likelihood(nnx.merge(structure, params), SOURCE, TARGET, None, train, inputs)

    found, expected = (jax.jit(jax.value_and_grad(each))(params) for each in (loss, given))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found, expected)


# ---- minimum risk

SMALL = 6
"""Entries of a vocabulary of which all outputs of three tokens can be listed."""


def all_outputs(width):
    """All sequences of at most so many tokens that end with the end mark, whose other tokens can be drawn."""
    words = [token for token in range(2, SMALL) if token != EOS]
    return [[*tokens, EOS] for n in range(width) for tokens in itertools.product(words, repeat=n)]


def small_model(**settings):
    from seq2seq_jax.build import abstract_params, model_graph

    config = tiny_config(dropout_rate=0.0, **settings)
    random = np.random.default_rng(1)
    like = abstract_params(config, (VOCAB, SMALL, 0))
    params = jax.tree.map(lambda leaf: jnp.float32(random.uniform(-0.8, 0.8, leaf.shape)), like)
    return model_graph(config, (VOCAB, SMALL, 0)), params


def as_rows(outputs, width):
    rows = [tokens + [EOS] * (width - len(tokens)) for tokens in outputs]
    return Padded(jnp.array(rows, jnp.int32), jnp.array(list(map(len, outputs)), jnp.int32))


def test_log_probabilities_of_all_outputs_are_those_of_each_alone():
    structure, params = small_model()
    model, width = nnx.merge(structure, params), 3
    outputs = all_outputs(width)
    source = Padded(SOURCE.values[:2], SOURCE.lengths[:2])
    together = as_rows(outputs * 2, width)
    found = jax.jit(lambda *args: candidate_log_probs(model, *args, None))(source, together)
    assert found.shape == (2, len(outputs))
    for row, (number, tokens) in itertools.product(range(2), list(enumerate(outputs))[::7]):
        alone = Padded(source.values[row : row + 1], source.lengths[row : row + 1])
        expected = -likelihood_of(model, alone, as_rows([tokens], width))
        assert float(found[row, number]) == pytest.approx(float(expected), rel=1e-5)


def test_candidates_begin_with_the_target_and_end_in_time():
    model = model_of()
    candidates = draw(model, SOURCE, TARGET, keys(), 5)
    values, lengths = np.array(candidates.values).reshape(3, 6, -1), np.array(candidates.lengths).reshape(3, 6)
    np.testing.assert_array_equal(values[:, 0], TARGET.values)
    np.testing.assert_array_equal(lengths[:, 0], TARGET.lengths)
    for row, length in zip(values[:, 1:].reshape(15, -1), lengths[:, 1:].reshape(-1), strict=True):
        assert list(row).index(EOS) == length - 1 and (row[:length] >= 2).all()
    again = draw(model, SOURCE, TARGET, keys(), 5)
    np.testing.assert_array_equal(again.values, candidates.values)
    other = draw(model, SOURCE, TARGET, keys(seed=1), 5)
    assert not np.array_equal(other.values, candidates.values)


@pytest.mark.parametrize("reward", ["bleu", "edit_similarity", "exact_match"])
@pytest.mark.parametrize("sharpness", [0.005, 1.0])
def test_the_risk_over_all_outputs_is_that_of_their_list(reward, sharpness):
    """So many are drawn that all are there, each of them once: risk and gradient are those of the whole list."""
    structure, params = small_model()
    width, outputs = 2, all_outputs(2)
    source = Padded(SOURCE.values[:1], SOURCE.lengths[:1])
    target = as_rows([[5, EOS]], width)
    objective = ObjectiveConfig("minimum_risk", num_candidates=600, sharpness=sharpness, reward=reward)

    def risk(params):
        return expected_risk(nnx.merge(structure, params), source, target, keys(1), objective, 0)

    drawn = draw(nnx.merge(structure, params), source, target, keys(1), 600)
    there = {tuple(row[:n].tolist()) for row, n in zip(np.array(drawn.values), np.array(drawn.lengths), strict=True)}
    assert there == set(map(tuple, outputs))

    def by_definition(params):
        model, reference = nnx.merge(structure, params), [5]
        total = weighted = 0.0
        for tokens in outputs:
            log_prob = -negative_log_likelihood(model, source, as_rows([tokens], width), None, TrainConfig())
            weight = jnp.exp(sharpness * log_prob)
            total, weighted = total + weight, weighted + weight * (1 - reward_of(reward, tokens[:-1], reference))
        return weighted / total

    found, expected = (jax.jit(jax.value_and_grad(each))(params) for each in (risk, by_definition))
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-7), found[1], expected[1])
    assert any(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(found[1]))


def reward_of(name, output, reference):
    from tests.training.test_rewards import bleu, edit_similarity, exact_match

    return {"bleu": bleu, "edit_similarity": edit_similarity, "exact_match": exact_match}[name](output, reference)


def test_less_risk_is_reached_by_following_the_gradient():
    structure, params = small_model()
    objective = ObjectiveConfig("minimum_risk", num_candidates=50, sharpness=1.0, reward="exact_match")
    source, target = Padded(SOURCE.values[:1], SOURCE.lengths[:1]), as_rows([[5, 4, EOS]], 3)

    @jax.jit
    def risk(params, key):
        return expected_risk(nnx.merge(structure, params), source, target, key[None], objective, 0)

    first = float(risk(params, jax.random.key(0)))
    slope = jax.jit(jax.grad(risk))
    for step in range(60):
        gradient = slope(params, jax.random.key(step))
        params = jax.tree.map(lambda param, down: param - 2 * down, params, gradient)
    assert float(risk(params, jax.random.key(99))) < 0.2 * first


def test_an_empty_row_has_no_risk_and_does_not_count():
    model, objective = model_of(), ObjectiveConfig("minimum_risk", num_candidates=3)
    source = Padded(jnp.pad(SOURCE.values, ((0, 1), (0, 0))), jnp.pad(SOURCE.lengths, (0, 1)))
    target = Padded(jnp.pad(TARGET.values, ((0, 1), (0, 0))), jnp.pad(TARGET.lengths, (0, 1)))
    risk = jax.jit(lambda *args: expected_risk(model, *args, objective, 0))
    found, expected = risk(source, target, keys(4)), risk(SOURCE, TARGET, keys(4)[:3])
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    assert objectives.num_terms(target, objective) == 3
    assert objectives.num_terms(target, ObjectiveConfig()) == TARGET.lengths.sum()


def test_in_pieces_the_risk_is_the_same():
    model, objective = model_of(dropout_rate=0.0), ObjectiveConfig("minimum_risk", num_candidates=3)
    whole, in_pieces = (
        jax.jit(lambda *args, piece=piece: expected_risk(model, *args, objective, piece))(SOURCE, TARGET, keys())
        for piece in (0, 2)
    )
    assert float(in_pieces) == pytest.approx(float(whole), rel=1e-5)


@pytest.mark.parametrize("name", ["scheduled_sampling", "minimum_risk", "self_critical"])
def test_a_model_that_copies_writes_what_it_copies(name):
    settings = dict(copy=True, decoder="bahdanau", attention="additive", input_feeding=False, output="linear")
    model = model_of(**settings)
    config = Config(model=tiny_config(**settings), objective=ObjectiveConfig(name))
    loss = jax.jit(lambda *args: objectives.loss(model, *args, jnp.int32(5_000), config))
    assert np.isfinite(loss(COPIED_SOURCE, COPIED_TARGET, keys()))
    many = [Padded(*(jnp.repeat(x[:1], 50, axis=0) for x in each)) for each in (COPIED_SOURCE, COPIED_TARGET)]
    assert mix(model, *many, keys(50), 0).max() >= VOCAB


# ---- self-critical training


@pytest.mark.parametrize("number", [1, 3])
def test_the_self_critical_gradient_is_that_of_its_candidates_one_by_one(number):
    structure, params = small_model()
    objective = ObjectiveConfig("self_critical", num_candidates=number, reward="edit_similarity")
    source = Padded(SOURCE.values[:2], SOURCE.lengths[:2])
    target = as_rows([[5, 4, EOS], [3, EOS]], 3)

    def loss(params):
        return objectives.self_critical(nnx.merge(structure, params), source, target, keys(2), objective, 0)

    model = nnx.merge(structure, params)
    drawing = jax.vmap(jax.random.split, out_axes=1)(keys(2))[1]
    drawn = draw(model, source, target, drawing, number)
    best = [[], []]
    for row in range(2):  # greedy search by teacher forcing
        for position in range(3):
            so_far = as_rows([[*best[row], EOS]], 4)
            alone = Padded(source.values[row : row + 1], source.lengths[row : row + 1])
            token = 2 + int(scores_of(model, alone, so_far)[position, 0, 2:].argmax())
            best[row].append(EOS if position == 2 else token)
            if best[row][-1] == EOS:
                break

    outputs, targets = (
        [values[:length].tolist() for values, length in zip(*map(np.array, rows), strict=True)]
        for rows in (drawn, target)
    )

    def by_definition(params):
        model, total = nnx.merge(structure, params), 0.0
        for row, n in itertools.product(range(2), range(number)):
            place = row * (number + 1) + 1 + n
            tokens, right = outputs[place], targets[row]
            alone = Padded(source.values[row : row + 1], source.lengths[row : row + 1])
            log_prob = -negative_log_likelihood(model, alone, as_rows([tokens], 3), None, TrainConfig())
            reward, baseline = (reward_of("edit_similarity", each[:-1], right[:-1]) for each in (tokens, best[row]))
            total -= (reward - baseline) * log_prob / number
        return total

    found, expected = (jax.jit(jax.value_and_grad(each))(params) for each in (loss, by_definition))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6), found, expected)
    assert any(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(found[1]))


# ---- unlikelihood


@pytest.mark.parametrize("settings", [{}, {"copy": True}], ids=["softmax", "copying"])
def test_unlikelihood_is_that_of_a_loop_over_positions(settings):
    if settings:
        settings |= dict(decoder="bahdanau", attention="additive", input_feeding=False, output="linear")
    model = model_of(**settings)
    source, target = (COPIED_SOURCE, COPIED_TARGET) if settings else (SOURCE, TARGET)
    target = target._replace(values=target.values.at[0, 2].set(target.values[0, 0]))  # one comes twice

    def total(weight, piece):
        train = TrainConfig(rematerialize_every=piece)
        return jax.jit(lambda *args: negative_log_likelihood(model, *args, None, train, None, weight))(source, target)

    log_probs = jax.jit(lambda *args: model.each(lambda now, *_: jax.nn.log_softmax(objectives.scores(now)), *args)[0])(
        source, target
    )
    expected = 0.0
    for row, length in enumerate(np.array(target.lengths)):
        tokens = np.array(target.values)[row, :length].tolist()
        for position, token in enumerate(tokens):
            for wrong in set(tokens[:position]) - {token}:
                expected -= np.log1p(-np.exp(float(log_probs[position, row, wrong])))
    plain = total(0.0, 0)
    for piece in (0, 2):
        np.testing.assert_allclose(total(0.7, piece), plain + 0.7 * expected, rtol=1e-5)
    assert expected > 0.1


# ---- the door


def test_every_name_of_a_setting_has_its_function():
    choices = {name: set(get_args(hint)) for name, hint in get_type_hints(ObjectiveConfig).items()}
    assert set(OF_SENTENCES) == objectives.SENTENCES.keys() and set(OF_SENTENCES) < choices["name"]
    assert choices["reward"] == objectives.REWARDS.keys()
    assert {field.name for field in fields(ObjectiveConfig)} == {"name", *OBJECTIVES_OF}


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"reward": "bleu", "num_candidates": 5},
            "num_candidates 5 is of objective.name minimum_risk or self_critical, which is likelihood",
        ),
        ({"name": "minimum_risk", "unlikelihood": 1.0}, "unlikelihood 1.0 is of objective.name likelihood or"),
        ({"name": "minimum_risk", "decay": "linear"}, "decay linear is of objective.name scheduled_sampling"),
        (
            {"name": "scheduled_sampling", "decay": "none", "half_right_step": 5},
            "half_right_step 5 is of a decay, and objective.decay is none",
        ),
        ({"name": "minimum_risc"}, "Did you mean minimum_risk?"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, message):
    with pytest.raises(UserError) as error:
        ObjectiveConfig(**fields)
    assert message in str(error.value)


def test_cross_entropy_settings_do_not_go_with_risk():
    with pytest.raises(UserError, match="train.label_smoothing 0.1 is of cross-entropy"):
        Config(objective=ObjectiveConfig("minimum_risk"), train=TrainConfig(label_smoothing=0.1))
    for objective in (ObjectiveConfig("scheduled_sampling"), ObjectiveConfig(unlikelihood=1.0)):
        with pytest.raises(UserError, match="set mesh.model 1"):
            Config(objective=objective, mesh=MeshConfig(model=2))
