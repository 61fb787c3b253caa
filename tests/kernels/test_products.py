"""matmul and eigh on each rung: every layout and dtype against NumPy in double precision."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tensorfact import kernels

DTYPES = [np.float32, np.complex128]


def draw(rng, shape, dtype):
    real = rng.standard_normal(shape)
    return (real + 1j * rng.standard_normal(shape) if np.dtype(dtype).kind == "c" else real).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(5, 7, 3), (1, 4, 1), (6, 1, 6), (4, 0, 3), (0, 3, 2), (130, 70, 90)])
def test_matmul_takes_every_layout(rung, dtype, sizes):
    m, k, n = sizes
    rng = np.random.default_rng(0)
    a, b = draw(rng, (m, k), dtype), draw(rng, (k, n), dtype)
    exact = a.astype(np.complex128) @ b.astype(np.complex128)
    for left in (a, np.asfortranarray(a), np.hstack([a, a])[:, :k], a[::-1][::-1]):
        for right in (b, np.asfortranarray(b)):
            found = kernels.matmul(left, right)
            assert found.dtype == dtype
            assert_allclose(found, exact, atol=100 * np.finfo(dtype).eps * max(1, k))


def test_matmul_names_what_does_not_fit(rung):
    with pytest.raises(ValueError, match="b must have 3 rows, the columns of a, got shape"):
        kernels.matmul(np.ones((2, 3)), np.ones((2, 3)))
    with pytest.raises(ValueError, match="b must be of the dtype of a, float64, got float32"):
        kernels.matmul(np.ones((2, 3)), np.ones((3, 2), np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 2, 41])
def test_eigh_reads_the_upper_triangle(rung, dtype, n):
    h = draw(np.random.default_rng(1), (n, n), dtype)
    h = h + h.conj().T
    given = np.triu(h) + 99 * np.tril(np.ones((n, n)), -1).astype(dtype)
    values, vectors = kernels.eigh(given)
    tol = 100 * np.finfo(dtype).eps * max(1, n)
    assert_allclose(h @ vectors, vectors * values, atol=tol)
    assert_allclose(vectors.conj().T @ vectors, np.eye(n), atol=tol)
    assert (np.diff(values) >= 0).all()


def test_eigh_refuses_nonsense(rung):
    with pytest.raises(ValueError, match="h must be square, got shape"):
        kernels.eigh(np.ones((2, 3)))
    with pytest.raises(np.linalg.LinAlgError, match="h must be finite"):
        kernels.eigh(np.full((2, 2), np.nan))
