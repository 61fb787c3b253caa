"""Kernels on tall matrices against float64 oracles: both layouts, all types, odd sizes, threads, NaN, errors."""

from __future__ import annotations

import numpy as np
import pytest

from tensorfact import kernels
from tensorfact.testing.oracles import as_double

DTYPES = [np.float32, np.float64, np.complex64, np.complex128]
SHAPES = [(1, 1), (5, 3), (3, 5), (130, 37), (700, 16), (3000, 9), (900, 130), (40, 200)]
C = 100  # house rule: tolerance C eps

pytestmark = pytest.mark.usefixtures("rung")


def eps(dtype):
    return float(np.finfo(dtype).eps)


def sample(shape, dtype, order="C", seed=0):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape)
    a = (a + 1j * rng.standard_normal(shape) if np.dtype(dtype).kind == "c" else a).astype(dtype)
    return np.array(a, order=order)


def cases(rung):
    """All shapes in both layouts, but a few for the rungs that are slow or compile for every layout anew."""
    shapes = SHAPES if rung == "cpp" else [(5, 3), (3, 5), (130, 37)]
    return [(shape, order) for shape in shapes for order in ("CF" if rung == "cpp" else "C")]


@pytest.mark.parametrize("dtype", DTYPES)
def test_triangle_has_the_gram_matrix_of_the_data(rung, dtype):
    for shape, order in cases(rung):
        y = sample(shape, dtype, order)
        before = y.copy()
        r = kernels.tall_triangle(y)
        np.testing.assert_array_equal(y, before)
        assert r.dtype == dtype
        np.testing.assert_array_equal(r, np.triu(r))
        exact, wide = as_double(y), as_double(r)
        gram = exact.conj().T @ exact
        assert np.linalg.norm(wide.conj().T @ wide - gram) <= C * eps(dtype) * np.linalg.norm(gram)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_triangle_keeps_small_singular_values(rung, dtype, order):
    # A Gram matrix would lose everything below the root of eps.
    rng = np.random.default_rng(0)
    s = np.logspace(0, -12, 24)
    left, right = (np.linalg.qr(rng.standard_normal((m, 24)))[0] for m in (2000, 24))
    y = np.array((left * s) @ right.T, dtype=dtype, order=order)
    expected = np.linalg.svd(as_double(y), compute_uv=False)
    found = np.linalg.svd(as_double(kernels.tall_triangle(y)), compute_uv=False)
    np.testing.assert_allclose(found, expected, rtol=0, atol=C * eps(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gram_matrix_of_tall_rows(rung, dtype):
    for shape, order in cases(rung):
        y = sample(shape, dtype, order)
        before = y.copy()
        g = kernels.tall_gram(y)
        np.testing.assert_array_equal(y, before)
        assert g.dtype == np.result_type(dtype, np.float64)
        np.testing.assert_array_equal(g, g.conj().T)
        exact = as_double(y)
        gram = exact.conj().T @ exact
        assert np.linalg.norm(g - gram) <= C * eps(dtype) * np.linalg.norm(gram)


def test_gram_of_single_precision_is_summed_in_double(rung):
    # 0.1 squared, 2e6 times: in single precision the sum would stop growing long before
    g = kernels.tall_gram(np.full((2_000_000, 1), 0.1, np.float32))
    assert g[0, 0] == pytest.approx(2e6 * np.float64(np.float32(0.1)) ** 2, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sketch_adds_signed_rows(rung, dtype):
    for (m, n), order in cases(rung):
        y = sample((m, n), dtype, order)
        for buckets in (1, 7):
            codes = np.random.default_rng(1).integers(0, 2 * buckets, size=m, dtype=np.uint32)
            s = np.zeros((buckets, m))
            s[codes >> 1, np.arange(m)] = 1.0 - 2.0 * (codes & 1)
            z, sum2 = kernels.row_sketch(y, codes, buckets)
            exact = as_double(y)
            assert np.linalg.norm(z - s @ exact) <= C * eps(dtype) * np.linalg.norm(exact)
            assert sum2 == pytest.approx(np.sum(np.abs(exact) ** 2), rel=C * eps(np.float64))


@pytest.mark.parametrize("dtype", DTYPES)
def test_product_and_its_norms(rung, dtype):
    for (m, n), order in cases(rung):
        y = sample((m, n), dtype, order)
        exact = as_double(y)
        norm = np.linalg.norm(exact)
        for k in {1, min(n, 5), min(n, 23), n}:
            v = np.linalg.qr(sample((n, k), dtype, seed=1))[0]
            image = exact @ as_double(v)
            rest = np.linalg.norm(exact - image @ as_double(v).conj().T)
            w, sum2, residual2 = kernels.tall_product(y, v, residual=True)
            assert w.flags.c_contiguous if order == "C" else w.flags.f_contiguous
            assert np.linalg.norm(w - image) <= C * eps(dtype) * norm
            assert abs(np.sqrt(sum2) - np.linalg.norm(image)) <= C * eps(dtype) * norm
            assert abs(np.sqrt(residual2) - rest) <= C * eps(dtype) * norm
            plain, again, none = kernels.tall_product(y, v)
            np.testing.assert_array_equal(plain, w)
            assert again == sum2
            assert np.isnan(none)


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_any_number_of_threads(rung, dtype):
    if rung != "cpp":
        pytest.skip("one thread")
    v = np.linalg.qr(sample((40, 7), dtype, seed=1))[0]
    codes = np.random.default_rng(1).integers(0, 16, size=9000, dtype=np.uint32)
    for order in "CF":
        y = sample((9000, 40), dtype, order)
        triangles = [kernels.tall_triangle(y, workers=workers) for workers in (1, 2, 7)]
        sketches = [kernels.row_sketch(y, codes, 8, workers=workers) for workers in (1, 2, 7)]
        grams = [kernels.tall_gram(y, workers=workers) for workers in (1, 2, 7)]
        products = [kernels.tall_product(y, v, residual=True, workers=workers) for workers in (1, 2, 7)]
        for k in (1, 2):
            np.testing.assert_array_equal(triangles[k], triangles[0])
            np.testing.assert_array_equal(grams[k], grams[0])
            np.testing.assert_array_equal(sketches[k][0], sketches[0][0])
            np.testing.assert_array_equal(products[k][0], products[0][0])
            assert sketches[k][1] == sketches[0][1]
            assert products[k][1:] == products[0][1:]


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_at_a_distance_are_read_in_place(rung, dtype):
    if rung == "numba":
        pytest.skip("another layout is another compilation")
    wide = sample((300, 20), dtype)
    y = wide[:, 3:15]
    r, copied = kernels.tall_triangle(y), kernels.tall_triangle(np.ascontiguousarray(y))
    np.testing.assert_array_equal(r, copied)
    np.testing.assert_array_equal(kernels.tall_gram(y), kernels.tall_gram(np.ascontiguousarray(y)))
    v = np.linalg.qr(sample((12, 3), dtype, seed=1))[0]
    np.testing.assert_array_equal(kernels.tall_product(y, v)[0], kernels.tall_product(np.ascontiguousarray(y), v)[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_shows(rung, dtype, bad):
    y = sample((300, 12), dtype)
    y[271, 7] = bad
    assert not np.isfinite(kernels.tall_triangle(y)).all()
    assert not np.isfinite(np.trace(kernels.tall_gram(y)))
    assert not np.isfinite(kernels.row_sketch(y, np.zeros(300), 1)[1])
    assert not np.isfinite(kernels.tall_product(y, np.ones((12, 1), dtype))[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_and_dependent_columns(rung, dtype):
    assert not kernels.tall_triangle(np.zeros((50, 4), dtype)).any()
    y = sample((200, 6), dtype)
    y[:, 3] = y[:, 0]
    s = np.linalg.svd(as_double(kernels.tall_triangle(y)), compute_uv=False)
    assert s[-1] <= C * eps(dtype) * s[0]


def test_empty_matrices():
    assert kernels.tall_triangle(np.empty((0, 3))).shape == (3, 3)
    np.testing.assert_array_equal(kernels.tall_gram(np.empty((0, 3))), np.zeros((3, 3)))
    assert kernels.tall_product(np.empty((0, 3)), np.ones((3, 2)))[0].shape == (0, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernels.row_sketch(np.ones((3, 2)), [0, 1], 1), "codes must have 3 entries, .* got 2"),
        (lambda: kernels.row_sketch(np.ones((2, 2)), [0, 2], 1), "codes must be below 2 \\* buckets = 2, got 2"),
        (lambda: kernels.tall_product(np.ones((3, 2)), np.ones((3, 1))), r"v must have 2 rows, .* got shape \(3, 1\)"),
        (lambda: kernels.tall_product(np.ones((3, 2)), np.ones((2, 1), np.float32)), "v must be of the dtype of y"),
        (
            lambda: kernels.tall_product(np.ones((3, 2)), np.ones((2, 1)), out=np.ones((2, 1))),
            r"out must be an array of float64 with shape \(3, 1\)",
        ),
        (lambda: kernels.tall_triangle(np.ones(3)), r"y must have 2 axes, got shape \(3,\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("dtype", "scale"), [(np.float64, 1e-162), (np.complex128, 1e-162), (np.float32, 3e-23)])
def test_triangle_of_a_column_whose_squares_are_denormal(rung, dtype, scale):
    y = np.random.default_rng(0).standard_normal((600, 8)).astype(dtype)
    y[:, 0] *= scale
    r = kernels.tall_triangle(y).astype(np.complex128)
    gram = y.astype(np.complex128).conj().T @ y
    assert np.linalg.norm(gram - r.conj().T @ r) <= 100 * np.finfo(dtype).eps * np.linalg.norm(gram)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
def test_triangle_does_not_depend_on_the_scale(rung, dtype):
    powers = (-20, 0, 10, 30) if dtype in (np.float32, np.complex64) else (-300, 0, 300)
    y = np.random.default_rng(0).standard_normal((700, 30)).astype(dtype)
    exact = y.astype(np.result_type(dtype, np.float64))
    exact = exact.conj().T @ exact
    for power in powers:
        scale = np.finfo(dtype).dtype.type(2.0) ** power
        r = kernels.tall_triangle(y * scale) / scale
        found = r.astype(exact.dtype)
        defect = np.abs(found.conj().T @ found - exact).max() / np.abs(exact).max()
        assert defect <= 100 * np.finfo(dtype).eps, power
