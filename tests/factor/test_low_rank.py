"""randomized_svd: accuracy at defaults, tolerances, fallbacks and threads, beyond what the property checks reach."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

import tensorfact
from matrices import power_law, ratios
from tensorfact.factor._ops import NumpyOps
from tensorfact.testing import assert_orthonormal, relative_error, spectral_error


@pytest.mark.parametrize("slope", [0.5, 0.25])
@pytest.mark.parametrize("share", [0.05, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("shape", [(384, 1536), (768, 1024)])
def test_defaults_are_within_two_percent_where_an_exact_route_is_cheap(shape, share, slope):
    a, s = power_law(*shape, slope)
    frobenius, spectral = ratios(a, s, tensorfact.randomized_svd(a, rank=int(share * shape[0]), rng=1))
    assert frobenius <= 1.005
    assert spectral <= 1.02


@pytest.mark.parametrize(("share", "path"), [(0.05, "shifted"), (0.25, "gram-subspace")])
def test_defaults_are_near_optimal_on_larger_matrices(share, path):
    a, s = power_law(1600, 1800)
    result = tensorfact.randomized_svd(a, rank=int(share * 1600), rng=1)
    frobenius, spectral = ratios(a, s, result)
    assert frobenius <= 1.005
    assert spectral <= 1.05
    assert result.info.path == path


def test_tol_is_never_missed_in_500_random_cases():
    rng = np.random.default_rng(5)
    for case in range(500):
        m, n = rng.integers(2, 90, size=2)
        s = rng.random(min(m, n)) ** rng.integers(1, 12)
        u = np.linalg.qr(rng.standard_normal((m, min(m, n))))[0]
        v = np.linalg.qr(rng.standard_normal((n, min(m, n))))[0]
        a = ((u * s) @ v.T).astype([np.float32, np.float64][case % 2])
        tol = float(10.0 ** rng.uniform(-5 if case % 2 == 0 else -13, -0.05))
        result = tensorfact.randomized_svd(a, tol=tol, rng=case)
        exact = relative_error(a, result.u.astype(float) * result.s.astype(float) @ result.vh.astype(float))
        assert exact <= tol, (case, m, n, tol, result)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
@pytest.mark.parametrize("tol", [0.5, 0.1, 0.02])
def test_the_blocked_route_keeps_tol_with_nearly_the_smallest_rank(dtype, tol):
    a, s = power_law(1700, 1650, 1.5, np.float64)
    if dtype == np.complex128:  # genuinely complex singular vectors
        phases = np.exp(2j * np.pi * np.random.default_rng(0).random(a.shape[1]))
        a = np.fft.fft(a, axis=0, norm="ortho") * phases
    a = a.astype(dtype)
    result = tensorfact.randomized_svd(a, tol=tol, rng=0)
    assert result.info.path == "adaptive"
    assert relative_error(a, result.reconstruct()) <= tol
    tail = np.sqrt(np.cumsum(s[::-1] ** 2)[::-1] / np.sum(s**2))
    best = int(np.flatnonzero(tail <= tol)[0]) if (tail <= tol).any() else len(s)
    assert best <= result.rank <= best * 1.05 + 2


def test_max_rank_that_bites_is_told():
    a, _ = power_law(300, 200)
    result = tensorfact.randomized_svd(a, tol=0.01, max_rank=7, rng=0)
    assert result.rank == 7
    assert not result.info.converged
    assert_allclose(result.error, relative_error(a, result.reconstruct()), rtol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ill_conditioned_blocks_fall_back_and_say_so(dtype):
    """Geometric spectrum of condition 1e6 and beyond: only Householder QR keeps the small directions."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((size, 60)))[0] for size in (200, 150))
    s = 10.0 ** np.linspace(0, -6 if dtype == np.float32 else -14, 60)
    a = ((u * s) @ v.T).astype(dtype)
    result = tensorfact.randomized_svd(a, rank=40, n_iter=2, rng=0)
    assert "householder" in result.info.notes
    assert spectral_error(a, result.reconstruct()) * s[0] <= 1.05 * s[40] + 100 * np.finfo(dtype).eps
    assert_orthonormal(result.u)


@pytest.mark.parametrize("method", ["subspace", "shifted", "krylov"])
def test_exactly_low_rank_input_is_exact_at_any_rank(method):
    a = np.outer(np.arange(1.0, 41.0), np.ones(30)) + np.outer(np.ones(40), np.arange(30.0))
    result = tensorfact.randomized_svd(a, rank=6, method=method, n_iter=2, rng=0)
    assert result.error <= 1e-13
    assert np.all(result.s[2:] <= 1e-13 * result.s[0])


def test_integers_are_obeyed_and_recorded():
    a, _ = power_law(300, 200)
    result = tensorfact.randomized_svd(a, rank=10, n_iter=3, n_oversamples=4, rng=0)
    assert (result.info.path, result.info.n_iter, result.info.n_oversamples) == ("subspace", 3, 4)
    assert result.info.matrix_reads == 5


def test_a_tol_that_sits_on_the_error_of_a_rank_is_kept():
    for seed in range(40):
        a = np.random.default_rng(seed).standard_normal((12, 8)).astype(np.float32)
        edge = tensorfact.randomized_svd(a, rank=6, rng=0)
        exact = relative_error(a, edge.u.astype(float) * edge.s.astype(float) @ edge.vh.astype(float))
        result = tensorfact.randomized_svd(a, tol=exact, rng=0)
        assert result.info.converged
        assert result.error <= exact


def test_a_triangle_worse_than_its_diagonal_tells_is_orthonormalised():
    """Kahan's matrix: every column keeps a fair part of its own, and yet the block is nearly singular."""
    n, c = 100, 0.2
    kahan = np.diag(np.sqrt(1 - c * c) ** np.arange(n)) @ (np.eye(n) - c * np.triu(np.ones((n, n)), 1))
    y = np.linalg.qr(np.random.default_rng(0).standard_normal((140, n)))[0] @ kahan
    ops = NumpyOps(np.float64)
    q, r = ops.orth(y)
    assert_orthonormal(q)
    assert_allclose(q @ r, y, atol=1e-13)
    assert ops.notes == ["householder"]


def test_explicit_iterations_are_obeyed_where_the_gram_matrix_cannot_resolve():
    a = power_law(1300, 300, 1.5)[0]
    result = tensorfact.randomized_svd(a, rank=100, n_iter=3, rng=0)
    assert (result.info.path, result.info.n_iter) == ("subspace", 3)
    assert "gram-unresolved" in result.info.notes


def test_the_same_bits_for_any_number_of_our_threads():
    a, _ = power_law(900, 1100)
    before = tensorfact.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 7):
            tensorfact.set_num_threads(threads)
            results.append(tensorfact.randomized_svd(a, rank=50, n_iter=2, certify=True, rng=0))
    finally:
        tensorfact.set_num_threads(before)
    for other in results[1:]:
        assert other.error == results[0].error
        assert other.spectral_bound == results[0].spectral_bound
        for x, y in zip(results[0], other, strict=True):
            assert np.array_equal(x, y)
