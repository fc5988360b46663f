import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seq2seq_jax.build import abstract_params, model_graph
from seq2seq_jax.config import ModelConfig
from seq2seq_jax.old_parameters import from_version_0_1
from seq2seq_jax.padded import Padded
from tests.old_layout import EVERY, FIELDS, old_logits, old_parameters

SOURCE, TARGET = [5, 4, 8, 3, 6], [7, 4, 9, 4, 2]


def sizes(config: ModelConfig) -> tuple[int, int]:
    """Source and target vocabularies are one where their tables are."""
    return (11 if config.tied_embeddings in ("source_target", "all") else 9), 11


def covering() -> list[ModelConfig]:
    """Models among which every two values of two fields meet: each next one has the most pairs that are new."""

    def pairs(config: ModelConfig) -> set:
        values = [(name, getattr(config, name)) for name in FIELDS]
        return {(one, other) for one in values for other in values if one < other}

    missing, chosen = set().union(*map(pairs, EVERY)), []
    while missing:
        chosen.append(max(EVERY, key=lambda config: len(missing & pairs(config))))
        missing -= pairs(chosen[-1])
    return chosen


def named(config: ModelConfig) -> str:
    return "-".join(str(getattr(config, name)) for name in FIELDS)


def test_every_model_of_0_1_gets_parameters_of_todays_shapes_and_keeps_each_number_once():
    with_most = [config for config in EVERY if config.bridge != "zero" and config.num_layers == 2]
    for config in with_most:
        old = old_parameters(config, sizes(config))
        new = from_version_0_1(old)
        assert jax.tree.map(np.shape, new) == jax.tree.map(np.shape, abstract_params(config, sizes(config))), config
        numbers = (np.sort(np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])) for tree in (old, new))
        np.testing.assert_array_equal(*numbers)


@pytest.mark.parametrize("config", covering(), ids=named)
def test_the_model_computes_what_0_1_computed(config):
    old = old_parameters(config, sizes(config))
    with jax.enable_x64(True):
        model = nnx.merge(model_graph(config, sizes(config)), jax.tree.map(jnp.asarray, from_version_0_1(old)))
        source = Padded(jnp.array([SOURCE]), jnp.array([len(SOURCE)], jnp.int32))
        logits = np.asarray(jax.jit(lambda: model.output(model(source, jnp.array([TARGET])).vector))())
    assert logits.dtype == np.float64
    np.testing.assert_allclose(logits[:, 0], old_logits(config, old, SOURCE, TARGET), rtol=0, atol=1e-12)


def test_ten_layers_and_more_keep_their_order():
    config = ModelConfig(embed_size=6, hidden_size=4, num_layers=12)
    old = old_parameters(config, (9, 11))
    shuffled = {str(depth): old["decoder"]["layers"][depth] for depth in range(12)}
    old["decoder"]["layers"] = {int(depth): shuffled[depth] for depth in sorted(shuffled)}
    cells = from_version_0_1(old)["decoder"]["stack"]["cells"]
    for depth in range(12):
        np.testing.assert_array_equal(cells[depth]["input"]["bias"], old["decoder"]["layers"][depth]["bias"][0])


def test_a_tree_of_another_kind_is_refused():
    with pytest.raises(KeyError, match="target_embedding|encoder"):
        from_version_0_1({"output_bias": np.zeros(3)})
