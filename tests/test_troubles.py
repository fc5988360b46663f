import resource

import pytest

from seq2seq_jax import troubles
from seq2seq_jax.errors import UserError


@pytest.mark.parametrize("allowed", [10**9, 4 * 10**9 - 1])
def test_too_few_addresses_for_threads_are_told_before_any_starts(monkeypatch, allowed):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (allowed, resource.RLIM_INFINITY))
    with pytest.raises(UserError, match=rf"\(ulimit -v {allowed // 1024}\), and JAX with its threads needs 4.0"):
        troubles.check_address_space(4 * 10**9)


@pytest.mark.parametrize("allowed", [4 * 10**9, resource.RLIM_INFINITY])
def test_enough_addresses_are_enough(monkeypatch, allowed):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (allowed, allowed))
    troubles.check_address_space(4 * 10**9)
