import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax import losses
from seq2seq_jax.outputs import Copying, Predicted, scores

STEPS, BATCH, VOCAB = 4, 3, 7

cross_entropy = jax.jit(losses.cross_entropy, static_argnums=3)
loss_and_gradient = jax.jit(jax.value_and_grad(losses.cross_entropy), static_argnums=3)
token_losses = jax.jit(losses.token_losses)
correct_tokens = jax.jit(losses.correct_tokens)


@pytest.fixture
def batch():
    """Logits, labels and mask; the last sentence is shorter, the first has a hole."""
    generator = np.random.default_rng(0)
    logits = 3 * generator.standard_normal((STEPS, BATCH, VOCAB))
    labels = generator.integers(0, VOCAB, (STEPS, BATCH))
    mask = np.ones((STEPS, BATCH), bool)
    mask[2:, 2] = mask[1, 0] = False
    return np.float32(logits), np.int32(labels), mask


def log_softmax(logits):
    logits = np.float64(logits)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def expected_losses(logits, labels, smoothing):
    """Cross-entropy of each token with (1 - s) onehot + s / V, the distribution written out."""
    target = (1 - smoothing) * np.eye(VOCAB)[labels] + smoothing / VOCAB
    return -(target * log_softmax(logits)).sum(-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_that_of_the_smoothed_distribution(batch, smoothing):
    logits, labels, mask = batch
    expected = expected_losses(logits, labels, smoothing)[mask].sum()
    assert float(cross_entropy(*batch, smoothing)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradient_is_that_of_automatic_differentiation(batch, smoothing):
    def plain(logits, labels, mask):
        target = (1 - smoothing) * jax.nn.one_hot(labels, VOCAB) + smoothing / VOCAB
        return -jnp.sum((target * jax.nn.log_softmax(logits)).sum(-1), where=mask)

    # A cotangent other than 1 shows that it is not dropped.
    gradient = jax.grad(lambda logits: 2.5 * cross_entropy(logits, *batch[1:], smoothing))(batch[0])
    np.testing.assert_allclose(gradient, 2.5 * jax.jit(jax.grad(plain))(*batch), atol=1e-6)


def test_masked_tokens_count_for_nothing(batch):
    logits, labels, mask = batch
    other_logits = np.where(mask[..., None], logits, 50.0)
    other_labels = np.where(mask, labels, 0)
    assert cross_entropy(other_logits, other_labels, mask, 0.1) == cross_entropy(*batch, 0.1)
    gradient = np.asarray(loss_and_gradient(*batch, 0.1)[1])
    assert not gradient[~mask].any() and gradient[mask].any(-1).all()


def test_no_real_token_gives_zero_loss_and_gradient(batch):
    logits, labels, mask = batch
    loss, gradient = loss_and_gradient(logits, labels, np.zeros_like(mask), 0.1)
    assert loss == 0 and not gradient.any()


def test_losses_are_sums_over_tokens(batch):
    rows = [cross_entropy(*(np.asarray(part)[:, n] for part in batch), 0.1) for n in range(BATCH)]
    assert float(cross_entropy(*batch, 0.1)) == pytest.approx(float(sum(rows)), rel=1e-6)


def test_bfloat16_logits_are_summed_in_float32(batch):
    logits, labels, mask = batch
    rounded = jnp.asarray(logits, jnp.bfloat16)
    loss, gradient = loss_and_gradient(rounded, labels, mask, 0.1)
    expected = expected_losses(np.asarray(rounded, np.float64), labels, 0.1)[mask].sum()
    assert (loss.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_large_logits_stay_finite():
    logits, labels, mask = jnp.asarray([[1e4, -1e4, 0.0]]), jnp.asarray([1]), jnp.asarray([True])
    loss, gradient = loss_and_gradient(logits, labels, mask, 0.0)
    assert float(loss) == pytest.approx(2e4)
    np.testing.assert_allclose(gradient, [[1.0, -1.0, 0.0]])


def test_token_losses_are_those_of_each_token(batch):
    logits, labels, mask = batch
    found = token_losses(logits, labels)
    np.testing.assert_allclose(found, expected_losses(logits, labels, 0.0), rtol=1e-5)
    assert float(found[mask].sum()) == pytest.approx(float(cross_entropy(*batch, 0.0)), rel=1e-6)
    assert token_losses(jnp.asarray(logits, jnp.bfloat16), labels).dtype == jnp.float32


def test_a_token_is_correct_where_its_logit_is_the_largest(batch):
    logits, labels, _ = batch
    labels[:3] = logits[:3].argmax(-1)  # right at three steps, ...
    labels[3] = logits[3].argmin(-1)  # ... wrong at the last
    np.testing.assert_array_equal(correct_tokens(logits, labels), [[True] * BATCH] * 3 + [[False] * BATCH])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_with_copies_is_that_of_the_mixture(smoothing):
    """Against the whole distribution in NumPy, and every gradient against differences."""
    draw = np.random.default_rng(0)
    vocab_size, num_positions, number = 6, 4, 5
    logits, gate = draw.normal(size=(number, vocab_size)), draw.normal(size=number)
    weights = draw.dirichlet(np.ones(num_positions), size=number)
    tokens = np.array([[3, 3, 9, 0], [2, 6, 5, 6], [1, 2, 3, 4], [7, 7, 7, 7], [5, 4, 9, 9]])
    labels, mask = np.array([3, 6, 5, 2, 9]), np.array([True, True, True, True, False])

    def by_hand(logits, gate, weights):
        total = 0.0
        for n in range(number):
            probabilities = np.exp(logits[n]) / np.exp(logits[n]).sum()
            p_gen = 1 / (1 + np.exp(-gate[n]))
            mixture = np.concatenate([p_gen * probabilities, np.zeros(num_positions)])
            for token, weight in zip(tokens[n], weights[n], strict=True):
                mixture[token] += (1 - p_gen) * weight
            if mask[n]:
                total -= (1 - smoothing) * np.log(mixture[labels[n]]) + smoothing * np.log(mixture[:vocab_size]).mean()
        return total

    def loss(logits, gate, weights):
        return losses.copying_cross_entropy(
            logits, Copying(gate, weights, jnp.array(tokens)), jnp.array(labels), jnp.array(mask), smoothing
        )

    with jax.enable_x64(True):
        found, gradients = jax.value_and_grad(loss, (0, 1, 2))(*map(jnp.asarray, (logits, gate, weights)))
    assert float(found) == pytest.approx(by_hand(logits, gate, weights), rel=1e-12)
    for place, gradient in enumerate(gradients):
        for index in np.ndindex(gradient.shape):
            values = [np.array(value) for value in (logits, gate, weights)]
            values[place][index] += 1e-6
            more = by_hand(*values)
            values[place][index] -= 2e-6
            assert float(gradient[index]) == pytest.approx((more - by_hand(*values)) / 2e-6, abs=1e-7)


def test_what_can_come_next_is_a_distribution():
    draw = np.random.default_rng(1)
    gate, weights, logits = draw.normal(size=3), draw.dirichlet(np.ones(4), size=3), draw.normal(size=(3, 6))
    copying = Copying(jnp.asarray(gate), jnp.asarray(weights), jnp.array([[3, 3, 9, 2]] * 3))
    found = np.asarray(scores(Predicted(jnp.asarray(logits), copying)))
    assert found.shape == (3, 10)
    np.testing.assert_allclose(np.exp(found).sum(-1), 1, rtol=1e-6)
    assert np.all(np.exp(found[:, [6, 7, 8]]) == 0)  # no source position has these


def test_a_label_that_nothing_can_be_has_a_finite_gradient():
    copying = Copying(jnp.zeros(1), jnp.array([[1.0, 0.0]]), jnp.array([[3, 4]]))
    logits, labels, mask = jnp.zeros((1, 6)), jnp.array([7]), jnp.array([True])
    gradients = jax.grad(
        lambda *x: losses.copying_cross_entropy(x[0], copying._replace(gate=x[1]), labels, mask, 0.0), (0, 1)
    )(logits, copying.gate)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
