"""Every kernel against a float64 oracle: layouts, dtypes, empty and degenerate input, NaN, errors."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from tensorfact import kernels

DTYPES = [np.float32, np.float64, np.complex64, np.complex128]
SHAPES = [(1, 1), (1, 7), (7, 1), (5, 3), (3, 5), (130, 37), (37, 130), (700, 33)]
LAYOUTS = ["C", "F", "wide rows", "wide columns", "reversed", "strided", "transposed view", "unaligned"]
C = 100  # house rule: tolerance C eps cond

pytestmark = pytest.mark.usefixtures("rung")


def layouts(rung):
    """All of them, but only the extremes for Numba, which compiles for every one anew."""
    return ["C", "strided"] if rung == "numba" else LAYOUTS


def wide(dtype):
    return np.complex128 if np.dtype(dtype).kind == "c" else np.float64


def eps(dtype):
    return float(np.finfo(dtype).eps)


def sample(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape)
    return (a + 1j * rng.standard_normal(shape) if np.dtype(dtype).kind == "c" else a).astype(dtype)


def laid_out(a, layout, writeable=False):
    """The same numbers in another memory layout."""
    m, n = a.shape
    if layout == "C":
        out = a.copy(order="C")
    elif layout == "F":
        out = a.copy(order="F")
    elif layout == "wide rows":
        out = np.full((m, n + 3), np.nan, a.dtype)[:, 1 : n + 1]
    elif layout == "wide columns":
        out = np.full((m + 3, n), np.nan, a.dtype, order="F")[2 : m + 2]
    elif layout == "reversed":
        out = np.empty_like(a)[::-1, ::-1]
    elif layout == "strided":
        out = np.full((2 * m, 3 * n), np.nan, a.dtype)[::2, ::3]
    elif layout == "transposed view":
        out = np.empty((n, m), a.dtype).T
    else:
        out = np.frombuffer(bytearray(a.nbytes + 1), np.uint8)[1:].view(a.dtype).reshape(m, n)
    out[...] = a
    out.flags.writeable = writeable
    return out


def close(actual, expected, dtype, cond=1.0):
    scale = max(float(np.abs(expected).max(initial=0.0)), np.finfo(dtype).tiny)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=C * eps(dtype) * cond * scale)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sum_squares_agrees_with_float64(rung, dtype):
    for layout, shape in product(layouts(rung), SHAPES):
        a = laid_out(sample(shape, dtype), layout, writeable=rung == "numba")
        expected = float(np.sum(np.abs(a.astype(wide(dtype))) ** 2))
        # Products of float32 are exact in float64, so only the summation rounds, for every dtype.
        assert kernels.sum_squares(a) == pytest.approx(expected, rel=C * eps(np.float64))


@pytest.mark.parametrize("dtype", DTYPES)
def test_normal_apply_agrees_with_float64(rung, dtype):
    for layout, shape in product(layouts(rung), SHAPES):
        a = laid_out(sample(shape, dtype), layout, writeable=rung == "numba")
        exact = a.astype(wide(dtype))
        for width in (1, 5):
            x = sample((shape[1], width), dtype, seed=1)
            expected = exact.conj().T @ (exact @ x)
            scale = np.linalg.norm(exact) ** 2 / max(np.abs(expected).max(), 1e-300)
            for block_rows in (None, 1, 3, 10_000):
                got = kernels.normal_apply(a, x, block_rows=block_rows)
                assert got.dtype == dtype
                assert got.flags.c_contiguous
                close(got, expected, dtype, scale)


@pytest.mark.parametrize("accumulate", ["native", "double"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gram_agrees_with_float64_and_is_hermitian(rung, dtype, accumulate):
    for layout, shape in product(layouts(rung), SHAPES):
        a = laid_out(sample(shape, dtype), layout, writeable=rung == "numba")
        exact = a.astype(wide(dtype))
        got = kernels.gram(a, accumulate=accumulate)
        result = wide(dtype) if accumulate == "double" else dtype
        assert got.dtype == result
        np.testing.assert_array_equal(got, got.conj().T)
        close(got, exact.conj().T @ exact, result)


def test_gram_in_double_keeps_what_float32_loses():
    # Two columns that differ by 1e-5: their difference is in the 10th digit of the Gram matrix.
    column = np.linspace(1.0, 2.0, 500, dtype=np.float32)
    a = np.stack([column, column * np.float32(1 + 1e-5)], axis=1)
    exact = np.linalg.det(a.astype(np.float64).T @ a.astype(np.float64))
    assert np.linalg.det(kernels.gram(a, accumulate="double")) == pytest.approx(exact, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("accumulate", ["native", "double"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (5, 3), (37, 37), (130, 37), (2100, 33)])
def test_cholesky_qr_factorises(rung, dtype, shape, accumulate):
    y = sample(shape, dtype)
    y.flags.writeable = rung == "numba"  # Numba would compile a second version for read-only arrays
    q, r, spread = kernels.cholesky_qr(y, accumulate=accumulate)
    cond = np.linalg.cond(y.astype(wide(dtype)))
    assert q.dtype == r.dtype == dtype
    assert q.flags.c_contiguous
    assert 0.0 < spread <= 1.0
    np.testing.assert_array_equal(r, np.triu(r))
    assert (np.diagonal(r).real > 0).all()
    close(q @ r, y.astype(wide(dtype)), dtype, cond)
    # Gram matrix: eps cond^2 in the precision that accumulates; storing R and Q: eps cond in the dtype.
    inner = wide(dtype) if accumulate == "double" else dtype
    defect = np.abs(q.astype(wide(dtype)).conj().T @ q - np.eye(shape[1])).max()
    assert defect <= C * (eps(inner) * cond**2 + eps(dtype) * cond)


@pytest.mark.parametrize("dtype", DTYPES)
def test_spread_is_the_least_new_part_of_a_column(dtype):
    y = sample((200, 6), dtype)
    y[:, 4] = y[:, 1] + np.asarray(1e-2, dtype) * y[:, 4]
    exact = y.astype(wide(dtype))
    expected = (np.abs(np.diagonal(np.linalg.qr(exact)[1])) / np.linalg.norm(exact, axis=0)).min()
    assert kernels.cholesky_qr(y)[2] == pytest.approx(expected, rel=C * eps(dtype) / expected**2)
    # Graded columns are harmless: the spread does not depend on their lengths.
    graded = (y * np.asarray(10.0 ** -np.arange(6.0), dtype)).astype(dtype)
    assert kernels.cholesky_qr(graded)[2] == pytest.approx(expected, rel=C * eps(dtype) / expected**2)


@pytest.mark.parametrize("accumulate", ["native", "double"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dependent_columns_have_no_spread(dtype, accumulate):
    y = sample((60, 5), dtype)
    y[:, 3] = y[:, 0] - y[:, 2]
    inner = wide(dtype) if accumulate == "double" else dtype
    # The difference was rounded to the dtype, so in double the column is new by eps of the dtype.
    assert kernels.cholesky_qr(y, accumulate=accumulate)[2] <= C * max(eps(inner) ** 0.5, eps(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("why", ["zero column", "fewer rows than columns", "nan", "inf", "overflow"])
def test_a_failed_cholesky_leaves_y_alone(dtype, why):
    y = sample((3, 5) if why == "fewer rows than columns" else (40, 5), dtype)
    if why == "zero column":
        y[:, 2] = 0
    elif why in ("nan", "inf"):
        y[7, 2] = float(why)
    elif why == "overflow":
        y[:, 1] *= np.asarray(np.finfo(dtype).max / 100, y.real.dtype)
    before = y.copy()
    q, _, spread = kernels.cholesky_qr(y, overwrite=True)
    assert spread == 0.0
    assert q is y
    np.testing.assert_array_equal(y, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_overwrite_gives_the_same_factors(dtype):
    y = sample((90, 8), dtype)
    q, r, spread = kernels.cholesky_qr(y)
    again = y.copy()
    q2, r2, spread2 = kernels.cholesky_qr(again, overwrite=True)
    assert q2 is again
    close(q2, q, dtype)
    close(r2, r, dtype)
    assert spread2 == pytest.approx(spread, rel=C * eps(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_arrays(dtype):
    for shape in [(0, 0), (0, 4), (4, 0)]:
        a = np.empty(shape, dtype)
        n = shape[1]
        assert kernels.sum_squares(a) == 0.0
        for width in (0, 3):
            np.testing.assert_array_equal(kernels.normal_apply(a, np.ones((n, width), dtype)), np.zeros((n, width)))
        np.testing.assert_array_equal(kernels.gram(a), np.zeros((n, n)))
        np.testing.assert_array_equal(kernels.gram(a, accumulate="double"), np.zeros((n, n)))
        q, r, spread = kernels.cholesky_qr(a)
        assert q.shape == shape
        assert r.shape == (n, n)
        assert spread == (1.0 if n == 0 else 0.0)
    assert kernels.normal_apply(np.ones((3, 4), dtype), np.ones((4, 0), dtype)).shape == (4, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_propagate(dtype, bad):
    a = sample((300, 40), dtype)
    a[271, 33] = bad
    assert not np.isfinite(kernels.sum_squares(a))
    assert not np.isfinite(kernels.normal_apply(a, sample((40, 3), dtype))).all(axis=0).any()
    for accumulate in ("native", "double"):
        g = kernels.gram(a, accumulate=accumulate)
        assert not np.isfinite(g[33]).any()
        assert np.isfinite(np.delete(np.delete(g, 33, 0), 33, 1)).all()


def test_output_arrays_are_used():
    a, x = sample((50, 6), np.float32), sample((6, 2), np.float32)
    out = np.full((6, 2), np.nan, np.float32)
    assert kernels.normal_apply(a, x, out=out) is out
    np.testing.assert_array_equal(out, kernels.normal_apply(a, x))
    g = np.full((6, 6), np.nan, np.float64)
    assert kernels.gram(a, accumulate="double", out=g) is g
    np.testing.assert_array_equal(g, kernels.gram(a, accumulate="double"))


def test_other_number_types_are_converted():
    ints = np.arange(12, dtype=np.int16).reshape(4, 3)
    assert kernels.sum_squares(ints) == 506.0
    assert kernels.gram(ints).dtype == np.float64
    assert kernels.gram(ints.astype(np.float16)).dtype == np.float32
    assert kernels.gram(ints.astype(">f4")).dtype == np.float32
    np.testing.assert_array_equal(kernels.gram(ints.astype(">f4")), ints.T @ ints)
    np.testing.assert_array_equal(kernels.gram(ints.tolist()), ints.T @ ints)


def test_large_float32_numbers_do_not_overflow_the_sum():
    assert kernels.sum_squares(np.full((2, 2), 1e30, np.float32)) == pytest.approx(4e60, rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernels.sum_squares(np.ones(3)), r"a must have 2 axes, got shape \(3,\)"),
        (lambda: kernels.sum_squares(np.array([["x"]])), "a must be of a real or complex number type .* got dtype <U1"),
        (lambda: kernels.gram(np.array([[None]])), "a must be of a real or complex number type .* got dtype object"),
        (lambda: kernels.gram(np.ones((2, 2)), accumulate="half"), "accumulate must be .* got 'half'"),
        (
            lambda: kernels.gram(np.ones((2, 2)), out=np.ones((3, 3))),
            r"out must be an array of float64 with shape \(2, 2\)",
        ),
        (lambda: kernels.gram(np.ones((2, 2)), out=np.ones((2, 2), np.float32)), r"got float32 \(2, 2\)"),
        (lambda: kernels.gram(np.ones((2, 2)), out=np.ones((2, 2), order="F")[::-1]), "out must be C-contiguous"),
        (lambda: kernels.normal_apply(np.ones((2, 3)), np.ones((2, 1))), r"x must have 3 rows, .* got shape \(2, 1\)"),
        (lambda: kernels.normal_apply(np.ones((2, 3)), 1j * np.ones((3, 1))), "x must be real when a is real"),
        (lambda: kernels.normal_apply(np.ones((2, 3)), np.ones((3, 1)), block_rows=0), "block_rows must be .* got 0"),
        (lambda: kernels.sum_squares(np.ones((2, 3)), workers=0), "workers must be a positive integer or None, got 0"),
        (lambda: kernels.cholesky_qr(np.ones((3, 2), order="F"), overwrite=True), "y must be a writeable C-contiguous"),
        (lambda: kernels.set_num_threads(-1), "n must be a positive integer or None, got -1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_overlapping_output_is_refused():
    a = np.ones((3, 3))
    with pytest.raises(ValueError, match="out must not share memory"):
        kernels.gram(a, out=a)
    with pytest.raises(ValueError, match="out must not share memory"):
        kernels.normal_apply(np.ones((3, 3)), a, out=a)
