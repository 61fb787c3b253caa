"""Right singular vectors of small matrices by either way, and unfoldings of wide modes."""

from __future__ import annotations

import numpy as np
import pytest

from tensorfact import tt_svd
from tensorfact.factor import _tt_cores
from tensorfact.factor._tt_cores import right_vectors
from tensorfact.factor._tt_plan import Plan, choose_group
from tensorfact.factor._tt_tall import HostTensor
from tensorfact.kernels import _dispatch
from trains import tensor, true_error


def matrix(rows, cols, s, dtype, seed=0):
    """Singular values `s`, random vectors."""
    rng = np.random.default_rng(seed)

    def columns(n):
        a = rng.standard_normal((n, len(s)))
        return np.linalg.qr(a + 1j * rng.standard_normal(a.shape) if dtype == np.complex128 else a)[0]

    return ((columns(rows) * s) @ columns(cols).conj().T).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize("shape", [(100, 300), (100, 120), (250, 100)])
def test_gram_and_svd_find_the_same_vectors(dtype, shape, monkeypatch):
    keep, least = 20, min(shape)
    s = np.concatenate([0.8 ** np.arange(keep), np.full(least - keep, 1e-3)])
    a = matrix(*shape, s, dtype)
    exact = np.linalg.svd(a)[2][:keep].conj().T
    monkeypatch.setattr(np.linalg, "svd", None)  # the way of the Gram matrix needs none
    values, v = right_vectors(a, keep)
    np.testing.assert_allclose(values, s, rtol=1e-8)
    assert v.shape == (shape[1], keep)
    assert np.linalg.norm(v.conj().T @ v - np.eye(keep)) < 100 * 2.2e-16 * np.sqrt(keep)
    assert np.linalg.norm(v @ v.conj().T - exact @ exact.conj().T) < 1e-9


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize("shape", [(150, 200), (300, 120)])
def test_few_vectors_by_iteration_keep_nearly_as_much(dtype, shape, monkeypatch):
    # a slowly falling spectrum: the hard case of an iteration
    keep, s = 20, 0.95 ** np.arange(min(shape))
    a = matrix(*shape, s, dtype)
    monkeypatch.setattr(np.linalg, "svd", None)
    values, v = right_vectors(a, keep, nearly=True)
    kept2 = np.linalg.norm(a @ v) ** 2
    best2 = np.sum(s[:keep] ** 2)
    assert best2 - kept2 <= 0.02 * (np.sum(s**2) - best2)
    assert len(values) == len(s)
    assert kept2 >= np.sum(values[:keep] ** 2) * (1 - 1e-12)  # what is foretold is never more than what is kept
    assert np.sum(values[:keep] ** 2) == pytest.approx(kept2, rel=1e-3)
    assert np.sum(values**2) == pytest.approx(np.sum(s**2), rel=1e-10)
    assert np.linalg.norm(v.conj().T @ v - np.eye(keep)) < 100 * 2.2e-16 * np.sqrt(keep)


@pytest.mark.parametrize("empty", [32, 64, 192])
def test_few_vectors_are_found_behind_empty_columns(empty):
    # an iteration that starts from columns of the matrix never leaves them
    a = matrix(400, 256, np.concatenate([0.9 ** np.arange(20), np.full(236, 1e-4)]), np.float64)
    a[:, :empty] = 0.0
    s = np.linalg.svd(a, compute_uv=False)
    for b in (a, a.T):
        _, v = right_vectors(b, 20, nearly=True)
        lost2 = np.linalg.norm(b) ** 2 - np.linalg.norm(b @ v) ** 2
        assert lost2 <= 1.05 * np.sum(s[20:] ** 2)


@pytest.mark.parametrize("floor", [0.0, 1e-13, 1e-7])
def test_what_a_gram_matrix_cannot_tell_goes_to_the_svd(floor):
    s = np.concatenate([0.8 ** np.arange(20), np.full(80, floor)])
    values, v = right_vectors(matrix(100, 150, s, np.float64), 20)
    np.testing.assert_allclose(values[:20], s[:20], rtol=1e-12)
    assert np.linalg.norm(values[20:]) == pytest.approx(np.linalg.norm(s[20:]), rel=1e-3, abs=1e-14)
    assert v.shape == (150, 20)
    assert _tt_cores._by_gram(matrix(100, 150, s, np.float64), 20) is None


def test_infinity_is_not_hidden():
    assert _tt_cores._by_gram(np.full((100, 120), np.inf), 10) is None


@pytest.mark.parametrize("rank", [5, 20, 50])
def test_the_unfolding_of_wide_modes(rank):
    """Three modes of ten, where two would leave a sixth or half of the data to write and read again."""
    data = HostTensor(np.broadcast_to(np.float32(0), (*(10,) * 8, 1)), np.float32, None)
    plan = Plan((rank,) * 7, True, "sketch", 1)
    assert choose_group(data, plan, 0) == 3
    bits = HostTensor(np.broadcast_to(np.float32(0), (*(2,) * 27, 1)), np.float32, None)
    assert 2 ** choose_group(bits, Plan((rank,) * 26, True, "sketch", 1), 0) in (128, 256)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_sketch_of_wide_modes_is_nearly_as_good(dtype):
    a = tensor((10,) * 6, 12, dtype, np.random.default_rng(3), noise=0.3)
    optimum = tt_svd(a, rank=8, method="tsqr")
    train = tt_svd(a, rank=8, method="sketch", rng=0)
    assert train.error == pytest.approx(true_error(a, train), rel=1e-3)
    assert train.error <= 1.05 * optimum.error
    assert _dispatch.active() != "cpp" or train.info.path == "sketch"
