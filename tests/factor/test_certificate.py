"""The spectral certificate and the softmax bound hold with the probability that they state."""

from __future__ import annotations

import numpy as np
import pytest

import tensorfact
from tensorfact.factor._operand import Dense
from tensorfact.factor._ops import NumpyOps
from tensorfact.factor.certificate import residual_certificate


def certificate(a, rng, **kwargs):
    ops = NumpyOps(a.dtype)
    u, s, vh = np.zeros((a.shape[0], 1)), np.zeros(1), np.zeros((1, a.shape[1]))
    return residual_certificate(Dense(a, ops), u, s, vh, rng, **kwargs)


@pytest.mark.parametrize("powers", [0, 2])
def test_the_failure_rate_of_one_probe_is_one_in_ten(powers):
    """Rank one is the worst case: theory says exactly 10 % below, 10^4 trials see 0.10 +- 0.003."""
    rng = np.random.default_rng(0)
    a = np.outer(np.ones(3), np.ones(4))
    truth = np.linalg.norm(a, 2)
    failures = sum(certificate(a, rng, probes=1, powers=powers) < truth for _ in range(10_000))
    assert 0.08 <= failures / 10_000 <= 0.11


def test_the_default_is_never_below_and_rarely_far_above():
    rng = np.random.default_rng(1)
    for seed in range(200):
        a = np.random.default_rng(seed).standard_normal((60, 40)) @ np.diag(np.arange(1, 41.0) ** -0.5)
        result = tensorfact.randomized_svd(a, rank=int(rng.integers(1, 30)), certify=True, rng=seed)
        truth = np.linalg.norm(a - result.reconstruct(), 2)
        assert 1.0 <= result.spectral_bound / truth <= 1.5


def test_the_bound_survives_a_residual_of_round_off_size():
    a = np.random.default_rng(0).standard_normal((50, 40)).astype(np.float32)
    result = tensorfact.randomized_svd(a, rank=40, certify=True, rng=0)
    exact = a.astype(float) - (result.u.astype(float) * result.s.astype(float)) @ result.vh.astype(float)
    assert result.spectral_bound >= np.linalg.norm(exact, 2)


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_softmax_bound_holds_for_every_norm_and_is_nearly_reached():
    rng = np.random.default_rng(0)
    worst = np.zeros(3)
    for _ in range(2000):
        classes = int(rng.integers(2, 6))
        w, e, x = rng.standard_normal((classes, 5)), rng.standard_normal((classes, 5)), rng.standard_normal(5)
        e *= 10.0 ** rng.uniform(-3, 0)
        change = softmax(w @ x) - softmax((w + e) @ x)
        bound = tensorfact.softmax_bound(np.linalg.norm(e, 2), np.linalg.norm(x))
        seen = np.array([np.abs(change).max(), np.linalg.norm(change), np.abs(change).sum() / 2])
        if bound == 1.0:  # clipped: it holds for probabilities, of which norms of differences know nothing
            continue
        assert (seen <= bound + 1e-12).all()
        worst = np.maximum(worst, seen / bound)
    two = softmax(np.array([1e-3, -1e-3])) - softmax(np.array([-1e-3, 1e-3]))
    gap = np.outer([1.0, -1.0], [2e-3])  # x = 1: the direction in which the bound on ||P - Q||_2 is sharp
    assert np.linalg.norm(two) >= 0.99 * tensorfact.softmax_bound(np.linalg.norm(gap, 2), 1.0)
    assert (worst > 0.3).all()


@pytest.mark.parametrize(
    ("error", "norm", "message"), [(-1, 1, "spectral_error"), (np.nan, 1, "spectral_error"), (1, -2, "x_norm")]
)
def test_softmax_bound_refuses_nonsense(error, norm, message):
    with pytest.raises(ValueError, match=message):
        tensorfact.softmax_bound(error, norm)


def test_softmax_bound_takes_arrays_and_is_clipped():
    assert tensorfact.softmax_bound(0.1, np.array([1.0, 100.0])).tolist() == [0.05, 1.0]
