"""Pivot rows: exact to rounding, well conditioned, and rank^2 numbers fewer."""

from __future__ import annotations

import numpy as np
import pytest

from tensorfact.factor._pivots import pack_pivots, pivot_numbers, unpack_pivots


def factors(m, n, rank, seed=0, decay=0.0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    scale = np.exp(-decay * np.arange(rank))
    left, right = rng.standard_normal((m, rank)) * scale, scale[:, None] * rng.standard_normal((rank, n))
    return left.astype(dtype), right.astype(dtype)


@pytest.mark.parametrize(("m", "n", "rank"), [(40, 30, 7), (30, 40, 30), (40, 30, 30), (9, 5, 1), (33, 64, 20)])
@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_product_is_the_same_to_rounding(m, n, rank, decay, dtype):
    left, right = factors(m, n, rank, decay=decay, dtype=dtype)
    exact = left.astype(np.float64) @ right.astype(np.float64)
    bits, head, follow = pack_pivots(left, right)
    assert bits.nbytes == (m + 7) // 8
    assert head.shape == (rank, n)
    assert follow.shape == (m - rank, rank)
    assert head.size + follow.size == pivot_numbers((m, n), rank) == rank * (m + n) - rank**2
    assert head.dtype == follow.dtype == dtype
    first, second = (part.astype(np.float64) for part in unpack_pivots(bits, head, follow))
    # each row is a sum of `rank` rows with weights of at most 1.05
    bound = 4 * rank * np.finfo(dtype).eps * np.abs(exact).max()
    assert np.abs(first @ second - exact).max() <= bound
    mask = np.unpackbits(bits, count=m, bitorder="little").astype(bool)
    np.testing.assert_allclose(head, exact[mask], rtol=0, atol=bound)


@pytest.mark.parametrize("seed", range(4))
def test_no_row_follows_with_large_weights(seed):
    _, _, follow = pack_pivots(*factors(120, 50, 40, seed=seed, decay=0.4))
    assert np.abs(follow).max() <= 1.06


def test_a_matrix_on_which_pivoted_qr_alone_grows():
    """Kahan's matrix, the classical one: without swaps the weights double with every row."""
    r, s = 30, np.sin(0.8)
    upper = np.triu(np.full((r, r), -np.cos(0.8)), 1) + np.eye(r)
    kahan = (s ** np.arange(r))[:, None] * upper * (1 - 1e-9 * np.arange(r))
    left = np.vstack([kahan.T, np.random.default_rng(0).standard_normal((20, r)) * 1e-3])
    right = np.random.default_rng(1).standard_normal((r, 25))
    bits, head, follow = pack_pivots(left, right)
    assert np.abs(follow).max() <= 1.06
    first, second = unpack_pivots(bits, head, follow)
    np.testing.assert_allclose(first @ second, left @ right, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_numbers_must_be_finite(bad, which):
    parts = factors(20, 10, 5)
    parts[which][3, 2] = bad
    with pytest.raises(ValueError, match=f"{('left', 'right')[which]} must be finite, got NaN or infinity"):
        pack_pivots(*parts)


def test_a_damaged_mask_is_named():
    bits, head, follow = pack_pivots(*factors(20, 10, 5))
    with pytest.raises(ValueError, match="pivots must be 5 rows, got 0"):
        unpack_pivots(np.zeros_like(bits), head, follow)
