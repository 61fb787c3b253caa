"""LowRank: a frozen result that unpacks, reconstructs, splits and travels as arrays."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse.linalg import aslinearoperator

import tensorfact


@pytest.fixture
def result():
    a = np.random.default_rng(0).standard_normal((9, 7))
    return tensorfact.randomized_svd(a, rank=4, certify=True, rng=0)


def test_it_unpacks_like_numpy_and_counts_what_is_stored(result):
    u, s, vh = result
    assert (u.shape, s.shape, vh.shape) == ((9, 4), (4,), (4, 7))
    assert (result.shape, result.rank, result.size, result.dense_size) == ((9, 7), 4, 64, 63)
    assert result.nbytes == 64 * 8
    assert_allclose(result.reconstruct(), (u * s) @ vh)


@pytest.mark.parametrize("split", ["sqrt", "left", "right"])
def test_factors_multiply_to_the_reconstruction(result, split):
    left, right = result.factors(split)
    assert_allclose(left @ right, result.reconstruct(), atol=1e-14)


def test_sqrt_is_balanced_and_an_unknown_split_is_named(result):
    left, right = result.factors("sqrt")
    assert_allclose(left.T @ left, right @ right.T, atol=1e-14)
    with pytest.raises(ValueError, match="split must be 'sqrt', 'left' or 'right', got 'both'"):
        result.factors("both")


def test_it_is_frozen(result):
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.error = 0.0
    with pytest.raises(ValueError, match="read-only"):
        result.u[0, 0] = 1.0


def test_arrays_round_trip_through_a_file(result, tmp_path):
    np.savez(tmp_path / "result.npz", **result.to_arrays())
    with np.load(tmp_path / "result.npz") as stored:
        again = tensorfact.LowRank.from_arrays(stored)
    assert (again.error, again.spectral_bound) == (result.error, result.spectral_bound)
    assert_array_equal(again.reconstruct(), result.reconstruct())
    with pytest.raises(ValueError, match=r"missing \['vh'\]"):
        tensorfact.LowRank.from_arrays({"u": 0, "s": 0, "error": 0})


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="share one rank"):
        tensorfact.LowRank(u=np.ones((3, 2)), s=np.ones(1), vh=np.ones((2, 3)), error=0.0)
    with pytest.raises(ValueError, match="2, 1, 2 axes"):
        tensorfact.LowRank(u=np.ones(3), s=np.ones(1), vh=np.ones((2, 3)), error=0.0)


def test_repr_says_what_matters(result):
    assert repr(result).startswith("LowRank(9x7, rank=4, 0.984x smaller, error=0.")
    assert "spectral error <= " in repr(result)


def test_singular_values_match_lapack():
    a = np.random.default_rng(0).standard_normal((40, 60))
    truth = np.linalg.svd(a, compute_uv=False)
    assert_allclose(tensorfact.singular_values(a), truth, rtol=1e-13)
    assert_allclose(tensorfact.singular_values(a.astype(np.float32) * np.float32(1e-20)) * 1e20, truth, rtol=1e-5)
    with pytest.raises(ValueError, match="no Gram matrix"):
        tensorfact.singular_values(aslinearoperator(a))
