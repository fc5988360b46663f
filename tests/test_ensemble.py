"""Several models as one, against NumPy's mean of what their papers' equations give."""

import itertools
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seq2seq_jax import cli
from seq2seq_jax.build import build_model, ensemble_graph
from seq2seq_jax.config import Config, Mixture, to_json
from seq2seq_jax.data.encoded import encode_lines
from seq2seq_jax.data.vocabulary import load_vocabularies, save_vocabularies
from seq2seq_jax.decoding.beam import beam_search
from seq2seq_jax.ensemble import mixture, together
from seq2seq_jax.errors import UserError
from seq2seq_jax.evaluation import teacher_forced
from seq2seq_jax.losses import token_losses
from seq2seq_jax.outputs import scores
from seq2seq_jax.run_directory import read_config
from seq2seq_jax.symbols import EOS, PAD
from seq2seq_jax.translator import Translator, load, vocab_sizes
from tests.models import (
    COPIED_SOURCE,
    COPIED_TARGET,
    SIZES,
    SOURCE,
    TARGET,
    VOCAB,
    Oracle,
    random_params,
    run_compiled,
    tiny_config,
)
from tests.tiny import sentences

KINDS = get_args(Mixture)
LINES = sentences(20, seed=6)
REFERENCES = [line.upper() for line in LINES]

LUONG = tiny_config(cell="lstm", attention="general", num_layers=2)
BAHDANAU = tiny_config(
    cell="gru", decoder="bahdanau", attention="additive", output="deep", input_feeding=False, hidden_size=8
)
PLAIN = tiny_config(cell="slstm", decoder="plain", attention="none", output="linear", input_feeding=False)
MONOTONIC = tiny_config(attention="hard_monotonic", input_feeding=False, embed_size=6)
COPYING = [replace(LUONG, copy=True, embed_size=3), tiny_config(copy=True, attention="additive", coverage=True)]


def mean(each: list[np.ndarray], kind: str) -> np.ndarray:
    """Log-probabilities of the mean of distributions, given by unnormalised log-probabilities."""
    probabilities = [np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in each]
    with np.errstate(divide="ignore"):
        if kind == "linear":
            return np.log(np.mean(probabilities, axis=0))
        products = np.prod(probabilities, axis=0) ** (1 / len(each))
        return np.log(products / products.sum(-1, keepdims=True))


def ensemble_of(configs, kind, params):
    return nnx.merge(ensemble_graph(configs, SIZES, kind), together(params))


def parameters(configs) -> list[dict]:
    return [random_params(config, seed) for seed, config in enumerate(configs)]


# the models


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixture_is_the_mean_of_distributions(kind):
    each = [np.random.default_rng(seed).standard_normal((4, 7)) for seed in range(3)]
    found = jax.nn.log_softmax(mixture([jnp.float32(x) for x in each], kind))
    np.testing.assert_allclose(found, mean(each, kind), rtol=1e-5)


def test_what_one_model_rules_out_all_rule_out_by_the_product_and_not_by_the_sum():
    never, even = jnp.array([0.0, 0.0, -1e30]), jnp.zeros(3)
    np.testing.assert_allclose(jax.nn.softmax(mixture([never, even], "linear")), [5 / 12, 5 / 12, 1 / 6], rtol=1e-6)
    np.testing.assert_allclose(jax.nn.softmax(mixture([never, even], "log_linear")), [0.5, 0.5, 0], rtol=1e-6)


def test_probabilities_in_half_precision_are_averaged_in_single():
    logits = jnp.array([0.0, 1.0], jnp.bfloat16)
    assert mixture([logits, logits], "linear").dtype == jnp.float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "configs", [[LUONG, BAHDANAU], [PLAIN, LUONG, MONOTONIC], COPYING], ids=["two", "three", "copying"]
)
def test_an_ensemble_is_the_mean_of_its_models_equations(configs, kind):
    """By the steps of a search, and by teacher forcing, whose losses are sums of those of the tokens."""
    source, target = (COPIED_SOURCE, COPIED_TARGET) if configs[0].copy else (SOURCE, TARGET)

    def run(params, source, target):
        ensemble = ensemble_of(configs, kind, params)

        def read(predicted, labels, mask):
            return jnp.where(mask, token_losses(scores(predicted), labels), 0).reshape(-1, len(source.lengths)).sum(0)

        losses = [ensemble.total(read, source, target, piece=piece) for piece in (0, 2)]
        encoded = ensemble.encode(source)
        state = jax.tree.map(lambda leaf: leaf[:, None], encoded.state)
        tables, tokens, searched = ensemble.search_tables(), jnp.ones((len(target.values), 1), jnp.int32), []
        for t in range(target.values.shape[1]):
            state, now = ensemble.search_step(tables, encoded, state, tokens)
            searched.append(jax.nn.log_softmax(now[:, 0]))
            tokens = target.values[:, t, None]
        return losses, ensemble.each(read, source, target)[1], jnp.stack(searched, 1)

    params = parameters(configs)
    with jax.enable_x64(True):
        losses, weights, searched = run_compiled(run, params, source, target)
    for row, (s, t) in enumerate(zip(source.lengths, target.lengths, strict=True)):
        tokens = target.values[row, :t]
        oracles = [
            Oracle(config, own)(source.values[row, :s], tokens) for config, own in zip(configs, params, strict=True)
        ]
        expected = mean([logits for logits, _ in oracles], kind)
        found = searched[row, :t, : expected.shape[1]]
        np.testing.assert_allclose(np.maximum(found, -1e29), np.maximum(expected, -1e29), rtol=0, atol=1e-10)
        for loss in losses:
            np.testing.assert_allclose(loss[row], -expected[np.arange(t), tokens].sum(), rtol=1e-11)
        if any(own is None for _, own in oracles):
            assert weights is None
        else:
            np.testing.assert_allclose(
                weights[:t, row, :s], np.mean([own for _, own in oracles], axis=0), rtol=0, atol=1e-11
            )


@pytest.mark.parametrize("kind", KINDS)
def test_a_wide_beam_finds_the_best_of_all_sequences(kind):
    configs, most, alpha = [LUONG, BAHDANAU], 3, 0.6
    params = parameters(configs)

    def run(params, source):
        ensemble = ensemble_of(configs, kind, params)
        encoded = ensemble.encode(source)
        memory, carry = encoded._replace(state=None), jax.tree.map(lambda leaf: leaf[:, None], encoded.state)
        step, limits = partial(ensemble.search_step, ensemble.search_tables()), jnp.full(len(source.lengths), most)
        found = beam_search(
            step, memory, carry, beam_size=80, max_lengths=limits, max_length=most, length_penalty=alpha, num_best=73
        )
        return found.tokens, found.scores

    tokens, found = run_compiled(run, jax.tree.map(np.float32, params), SOURCE)
    every = [(*words, EOS) for n in range(most) for words in itertools.product(range(EOS + 1, VOCAB), repeat=n)]
    for row, s in enumerate(SOURCE.lengths):
        source = SOURCE.values[row, :s]
        each = [Oracle(config, own) for config, own in zip(configs, params, strict=True)]
        expected = []
        for sequence in every:
            rows = mean([oracle(source, np.array(sequence))[0] for oracle in each], kind)
            log_prob = rows[np.arange(len(sequence)), sequence].sum()
            expected.append((log_prob / ((5 + len(sequence)) / 6) ** alpha, sequence))
        expected.sort(reverse=True)
        assert tuple(tokens[row, 0][tokens[row, 0] != PAD].tolist()) == expected[0][1]
        np.testing.assert_allclose(found[row], [score for score, _ in expected], rtol=1e-4)


# run directories


@pytest.fixture(scope="module")
def other(trained, tmp_path_factory) -> Path:
    """A run on the same text, of another model."""
    from seq2seq_jax.training.loop import train

    config = read_config(trained)
    model = dict(cell="gru", hidden_size=12, attention="additive", decoder="bahdanau", output="deep")
    model = replace(config.model, **model, input_feeding=False)
    length = replace(config.train, num_steps=60, evaluate_every=60, seed=1)
    workdir = tmp_path_factory.mktemp("ensemble") / "other"
    train(replace(config, model=model, train=length), workdir)
    return workdir


def averaged(workdirs, kind: str = "linear") -> Translator:
    return load(workdirs, replace(read_config(Path(workdirs[0])).decode, ensemble=kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_and_its_copy_are_that_run(trained, tmp_path, kind):
    alone, twice = load(trained), averaged([trained, shutil.copytree(trained, tmp_path / "again")], kind)
    for found, expected in zip(twice.translate(LINES, details=True), alone.translate(LINES, details=True), strict=True):
        assert (found.text, found.cut, found.alignment) == (expected.text, expected.cut, expected.alignment)
        assert found.details and expected.details
        assert found.details.log_probs == pytest.approx(expected.details.log_probs, rel=1e-4, abs=1e-5)
        assert found.score == pytest.approx(expected.score, rel=1e-4, abs=1e-5)
    np.testing.assert_allclose(twice.score(LINES, REFERENCES), alone.score(LINES, REFERENCES), rtol=1e-4, atol=1e-5)
    encoded = encode_lines(alone.vocabularies, LINES, REFERENCES)
    assert teacher_forced(twice, encoded) == pytest.approx(teacher_forced(alone, encoded), rel=1e-4)
    assert twice.step == (alone.step, alone.step)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_an_ensemble_is_that_of_its_tokens_and_no_more_than_the_mean_of_its_models(trained, other, kind):
    """No more by Jensen's inequality for the mean, and by that of the means for the geometric one."""
    ensemble = averaged([str(trained), other], kind)
    encoded = encode_lines(ensemble.vocabularies, LINES, REFERENCES)
    loss = teacher_forced(ensemble, encoded)["loss"]
    num_tokens = sum(len(reference.split()) + 1 for reference in REFERENCES)
    assert loss == pytest.approx(-sum(ensemble.score(LINES, REFERENCES)) / num_tokens, rel=1e-4)
    alone = [teacher_forced(load(workdir), encoded)["loss"] for workdir in (trained, other)]
    assert loss < np.mean(alone) and abs(alone[0] - alone[1]) > 0.01


def test_greedy_search_and_beam_search_score_as_the_ensemble_does(trained, other):
    for kind, beam_size in itertools.product(KINDS, (1, 3)):
        decode = replace(read_config(trained).decode, ensemble=kind, beam_size=beam_size, length_penalty=0.0)
        ensemble = load([trained, other], decode)
        found = ensemble.translate(LINES)
        expected = ensemble.score(LINES, [hypothesis.text for hypothesis in found])
        np.testing.assert_allclose([hypothesis.score for hypothesis in found], expected, rtol=1e-3, atol=1e-5)


def test_without_attention_in_one_model_there_are_no_alignments(trained, other):
    ensemble, without = load([trained, other]), replace(PLAIN, hidden_size=16)
    params = nnx.to_pure_dict(nnx.state(build_model(without, vocab_sizes(ensemble.vocabularies), jax.random.key(0))))
    params = together([load(trained).params, params])
    models = [ensemble.config.model, without]
    mixed = Translator(ensemble.config, ensemble.vocabularies, params, ensemble=models)
    assert len(mixed.translate(LINES)) == len(LINES)
    for found in mixed.translate(LINES, details=True):
        assert (
            found.alignment is None
            and found.details
            and found.details.weights is None
            and len(found.details.log_probs) > 0
        )


def test_settings_of_the_search_are_those_of_the_first_run(trained, other):
    assert load([other, trained]).decode == read_config(other).decode
    assert load([other, trained]).config == read_config(other)


# what makes no ensemble


def changed(workdir: Path, folder: Path, **model) -> Path:
    """A copy of a run whose configuration says something else."""
    shutil.copytree(workdir, folder)
    config = read_config(workdir)
    config = replace(config, data=replace(config.data, joint_vocabulary=True), model=replace(config.model, **model))
    (folder / "config.json").write_text(to_json(config))
    return folder


def test_runs_of_different_vocabularies_are_refused(trained, tmp_path):
    for side in ("source", "target"):
        folder = tmp_path / side
        shutil.copytree(trained, folder)
        both = load_vocabularies(trained / "vocabulary")
        kept = getattr(both, "target" if side == "source" else "source")
        save_vocabularies(replace(both, **{side: kept}), tmp_path / "swapped" / side)
        for path in (tmp_path / "swapped" / side).iterdir():
            shutil.copy(path, folder / "vocabulary")
        with pytest.raises(UserError, match=f"{folder} has another {side} vocabulary than {trained}; .* Train them on"):
            load([trained, folder])


def test_a_run_that_copies_and_one_that_does_not_are_refused(trained, tmp_path):
    folder = changed(trained, tmp_path / "copies", copy=True)
    with pytest.raises(UserError, match=f"model.copy is True in {folder} and False in {trained}"):
        load([trained, folder])


def test_one_run_twice_is_refused_however_it_is_spelled(trained):
    with pytest.raises(UserError, match="run is given twice; an ensemble is of different runs"):
        load([trained, trained / ".." / trained.name])


def test_no_run_and_one_that_is_none_are_refused(trained):
    with pytest.raises(UserError, match="names no run directory"):
        load([])
    with pytest.raises(UserError, match="rnu is not a run directory: .* Did you mean"):
        load([trained, trained.parent / "rnu"])


def test_a_mean_of_another_kind_is_refused():
    with pytest.raises(UserError, match="decode.ensemble must be one of linear, log_linear, got 'log-linear'. Did you"):
        Config(decode=replace(Config().decode, ensemble="log-linear"))


# the command line


@pytest.fixture
def pair(trained, other, tmp_path) -> list[Path]:
    """Copies of two runs, to be written in."""
    return [Path(shutil.copytree(run, tmp_path / name)) for run, name in ((trained, "one"), (other, "two"))]


@pytest.fixture
def call(capfd):
    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return call


def test_the_commands_do_what_python_does(call, pair, tmp_path):
    files = tmp_path / "sources", tmp_path / "targets"
    for path, lines in zip(files, (LINES, REFERENCES), strict=True):
        path.write_text("".join(f"{line}\n" for line in lines))
    ensemble = averaged(pair, "log_linear")
    code, out, _ = call("translate", "--workdir", *pair, "--input", files[0], "--decode.ensemble", "log_linear")
    assert (code, out.splitlines()) == (0, [hypothesis.text for hypothesis in ensemble.translate(LINES)])
    code, out, _ = call(
        "score", "--workdir", *pair, "--source-file", files[0], "--target-file", files[1], "--ensemble", "log_linear"
    )
    assert code == 0
    np.testing.assert_allclose([float(line) for line in out.split()], ensemble.score(LINES, REFERENCES), atol=1e-4)


def test_an_evaluation_says_what_it_is_of_and_touches_no_other(call, pair):
    before = {path: path.read_bytes() for run in pair for path in run.rglob("*") if path.is_file()}
    assert call("evaluate", "--workdir", *pair, "--decode.ensemble", "log_linear")[0] == 0
    made = {path for run in pair for path in run.rglob("*") if path.is_file()} - before.keys()
    (folder,) = {path.parent for path in made}
    assert folder.parent == pair[0] / "evaluations" / "ensembles" and folder.name.startswith("one+two-")
    assert {path.name for path in made} == {"test.json", "test.hypotheses.txt"}
    assert all(path.read_bytes() == content for path, content in before.items())
    written, ensemble = json.loads((folder / "test.json").read_text()), averaged(pair, "log_linear")
    assert written["workdirs"] == [str(run) for run in pair]
    assert written["step"] == list(ensemble.step) and written["decode"]["ensemble"] == "log_linear"
    lines, references = (Path(path).read_text().splitlines() for path in ensemble.config.data.test_files or ())
    forced = teacher_forced(ensemble, encode_lines(ensemble.vocabularies, lines, references))
    assert {name: written[name] for name in forced} == pytest.approx(forced, rel=1e-6)


def test_an_evaluation_of_one_run_says_nothing_of_ensembles(call, pair):
    assert call("evaluate", "--workdir", pair[0])[0] == 0
    assert "ensemble" not in (pair[0] / "evaluations" / "test.json").read_text()
    assert not (pair[0] / "evaluations" / "ensembles").exists()
