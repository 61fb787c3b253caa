"""B-spline kernels against SciPy in float64, on every rung: degrees, derivatives, ends, ties, tails, errors."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.interpolate import BSpline

from tensorfact import kernels

pytestmark = pytest.mark.usefixtures("rung")

KINDS = ["uniform", "open", "general", "repeated"]


def make_knots(kind, degree, n_basis, seed=0):
    rng = np.random.default_rng(seed)
    if kind == "open":
        return np.linspace(-1.0, 2.0, n_basis + degree + 1)
    breaks = np.linspace(-1.0, 2.0, n_basis - degree + 1)
    if kind != "uniform":
        breaks[1:-1] = np.sort(rng.uniform(-1, 2, breaks.size - 2))
    if kind == "repeated":
        breaks[2 : 2 + min(degree, 3)] = breaks[2]
    return np.pad(breaks, degree, mode="edge")


def points(t, degree, count, seed=0):
    """Random points, the ends, and every knot inside."""
    lo, hi = t[degree], t[-degree - 1]
    inside = np.random.default_rng(seed).uniform(lo, hi, count)
    return np.concatenate([inside, np.unique(t[(t >= lo) & (t <= hi)])])


def dense(values, first, n_basis):
    matrix = np.zeros((values.shape[2], n_basis))
    for q in range(values.shape[1]):
        matrix[np.arange(values.shape[2]), first[0] + q] += values[0, q]
    return matrix


def oracle(x, t, degree, nu):
    """Each basis function as a SciPy spline. At the right end the limit from the left: SciPy's own convention."""
    n_basis = t.size - degree - 1
    if nu > degree:
        return np.zeros((x.size, n_basis))
    x = np.where(x == t[-degree - 1], np.nextafter(x, -np.inf), x) if degree - nu == 0 else x
    return np.stack([BSpline(t, row, degree)(x, nu) for row in np.eye(n_basis)], axis=1)


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_derivatives_agree_with_scipy(rung, kind):
    for degree in range(6):
        t = make_knots(kind, degree, degree + 6)
        x = points(t, degree, 300)
        for nu in range(4):
            values, first = kernels.spline_basis(x, t, degree, nu)
            expected = oracle(x, t, degree, nu)
            # the bar: 1e-14 of the largest value
            atol = 1e-14 * max(np.abs(expected).max(), 1e-300)
            np.testing.assert_allclose(dense(values, first, degree + 6), expected, rtol=0, atol=atol)


def test_small_values_of_general_knots_are_accurate_too(rung):
    t = make_knots("general", 3, 9)
    x = points(t, 3, 500)
    found, expected = dense(*kernels.spline_basis(x, t, 3), 9), oracle(x, t, 3, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("intervals", [1, 5, 200])
def test_uniform_knots_are_recognised_and_lose_nothing(rung, dtype, intervals):
    for degree in (1, 2, 3, 5):
        t = np.pad(np.linspace(0, 1, intervals + 1), degree, mode="edge").astype(dtype)
        assert kernels.spline_uniform(t, degree)
        x = points(t, degree, 2000).astype(dtype)
        values, first = kernels.spline_basis(x, t, degree)
        assert values.dtype == dtype
        assert (values >= 0).all()
        eps = float(np.finfo(dtype).eps)
        np.testing.assert_allclose(values.sum(axis=1), 1, rtol=0, atol=16 * eps)
        expected = oracle(x.astype(float), t.astype(float), degree, 0)
        found = dense(values.astype(float), first, expected.shape[1])
        assert np.abs(found - expected).max() <= 45 * eps  # 1e-14 in float64
    if intervals > 1:
        bent = t.copy()
        bent[t.size // 2] += dtype(1e-3 / intervals)
        assert not kernels.spline_uniform(bent, degree)


@pytest.mark.parametrize("degree", [6, 7])
def test_high_degrees(rung, degree):
    t = make_knots("general", degree, degree + 5)
    x = points(t, degree, 100)
    for nu in (0, 1, 4):
        expected = oracle(x, t, degree, nu)
        found = dense(*kernels.spline_basis(x, t, degree, nu), degree + 5)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


def test_knots_at_the_ends_may_repeat_more_often(rung):
    t = np.array([0, 0, 0, 0, 0, 0.5, 1, 1, 1, 1, 1.0])  # degree 2: the first and last functions have no support
    values, first = kernels.spline_basis([0.0, 0.25, 1.0], t, 2)
    np.testing.assert_allclose(values.sum(axis=1), 1, rtol=0, atol=1e-15)
    assert (first >= 0).all()
    assert (first <= 5).all()


def test_knots_that_cluster_are_found(rung):
    breaks = np.concatenate([[0.0], 1e-9 * np.arange(1, 40), [0.5, 1.0]])
    t = np.pad(breaks, 3, mode="edge")
    x = np.concatenate([np.linspace(0, 5e-8, 200), breaks, [0.7]])
    found = dense(*kernels.spline_basis(x, t, 3), t.size - 4)
    np.testing.assert_allclose(found, oracle(x, t, 3, 0), rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", ["uniform", "general"])
def test_tails_are_straight_or_constant(rung, kind):
    t = make_knots(kind, 3, 8)
    c = np.random.default_rng(0).standard_normal(8)
    spline = BSpline(t, c, 3)
    for end, outside in ((t[3], np.array([-1.5, -40.0])), (t[-4], np.array([2.25, 1e6]))):
        straight = spline(end) + spline(end, 1) * (outside - end)
        np.testing.assert_allclose(kernels.spline_values(outside, t, 3, c)[0], straight, rtol=1e-13)
        np.testing.assert_allclose(kernels.spline_values(outside, t, 3, c, 1)[0], [spline(end, 1)] * 2, rtol=1e-13)
        assert not kernels.spline_values(outside, t, 3, c, 2).any()
        clamped = kernels.spline_values(outside, t, 3, c, tails="clamp")[0]
        np.testing.assert_allclose(clamped, [spline(end)] * 2, rtol=1e-13)
        assert not kernels.spline_values(outside, t, 3, c, 1, tails="clamp").any()


def test_nan_stays_nan(rung):
    t = make_knots("uniform", 3, 8)
    values, first = kernels.spline_basis([np.nan, 0.5], t, 3)
    assert np.isnan(values[0, :, 0]).all()
    assert np.isfinite(values[0, :, 1]).all()
    assert first[0, 0] == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_branches_have_their_own_knots(rung, dtype):
    rng = np.random.default_rng(0)
    t = np.stack([make_knots(kind, 3, 9) for kind in ("uniform", "general", "repeated")]).astype(dtype)
    x = rng.uniform(-1.2, 2.2, (3, 700)).astype(dtype)
    c, y, w = (rng.standard_normal(shape).astype(dtype) for shape in ((3, 9), (3, 700), (3, 700)))
    w = np.abs(w)
    values, first = kernels.spline_basis(x, t, 3)
    assert values.shape == (3, 4, 700)
    band, rhs = kernels.spline_gram(x, t, 3, y, weights=w)
    eps = float(np.finfo(dtype).eps)
    for b in range(3):
        one, one_first = kernels.spline_basis(x[b], t[b], 3)
        np.testing.assert_array_equal(one[0], values[b])
        np.testing.assert_array_equal(one_first[0], first[b])
        basis = dense(one, one_first, 9).astype(float)
        fused = kernels.spline_values(x[b], t[b], 3, c[b])[0]
        np.testing.assert_allclose(fused, basis @ c[b], rtol=0, atol=30 * eps)
        gram = (basis * w[b][:, None]).T @ basis
        for d in range(4):
            np.testing.assert_allclose(band[b, : 9 - d, d], np.diagonal(gram, d), rtol=0, atol=1e-13 * gram.max())
            assert not band[b, 9 - d :, d].any()
        np.testing.assert_allclose(rhs[b], (basis * w[b][:, None]).T @ y[b], rtol=0, atol=1e-12)


def test_banded_systems_are_solved(rung):
    rng = np.random.default_rng(0)
    full = np.zeros((3, 12, 12))
    band = np.zeros((3, 12, 4))
    for b in range(3):
        factor = np.triu(np.tril(rng.standard_normal((12, 12)), 3)) + 3 * np.eye(12)
        full[b] = factor.T @ factor
        for d in range(4):
            band[b, : 12 - d, d] = np.diagonal(full[b], d)
    rhs = rng.standard_normal((3, 12, 2))
    solution, pivot = kernels.spline_solve(band, rhs)
    np.testing.assert_allclose(solution, np.linalg.solve(full, rhs), rtol=1e-10)
    assert 0 < pivot <= 1
    np.testing.assert_allclose(kernels.spline_solve(band, rhs[:, :, 0])[0], solution[:, :, 0], rtol=1e-13)
    band[1, 4] = 0
    solution, pivot = kernels.spline_solve(band, rhs)
    assert pivot == 0
    assert np.isnan(solution[1]).any()
    assert np.isfinite(solution[[0, 2]]).all()


def test_same_bits_for_any_number_of_threads(rung):
    rng = np.random.default_rng(0)
    t = np.stack([make_knots("uniform", 3, 20), make_knots("general", 3, 20)])
    x, c, y = rng.uniform(-1.1, 2.1, (2, 30_001)), rng.standard_normal((2, 20)), rng.standard_normal((2, 30_001))
    calls = [
        lambda workers: kernels.spline_basis(x, t, 3, workers=workers),
        lambda workers: (kernels.spline_values(x, t, 3, c, workers=workers),),
        lambda workers: kernels.spline_gram(x, t, 3, y, workers=workers),
    ]
    for call in calls:
        one = call(1)
        for workers in (2, 7):
            for expected, found in zip(one, call(workers), strict=True):
                np.testing.assert_array_equal(found, expected)


def test_large_results_are_streamed_and_equal(rung):
    if rung != "cpp":
        pytest.skip("only the compiled kernels stream")
    t = make_knots("uniform", 3, 11)
    x = np.random.default_rng(0).uniform(-1, 2, 600_007)
    values, first = kernels.spline_basis(x, t, 3)  # 19 MB
    for part in (slice(0, 1000), slice(599_000, None)):
        small, small_first = kernels.spline_basis(x[part], t, 3)
        np.testing.assert_array_equal(values[:, :, part], small)
        np.testing.assert_array_equal(first[:, part], small_first)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("degree", [2, 3])
def test_rows_on_cache_lines_are_written_from_registers(rung, kind, degree):
    if rung != "cpp":
        pytest.skip("only the compiled kernels stream")
    t = make_knots("uniform", degree, 11)
    x = np.random.default_rng(0).uniform(0, 1, 600_000).astype(kind)
    x[[300, 700, 400_000, 400_001]] = -0.5, 1.5, np.nan, 0.25  # tails and NaN in some blocks
    values, first = kernels.spline_basis(x, t, degree)
    for part in (slice(0, 2001), slice(399_999, 402_000), slice(599_000, None)):
        small, small_first = kernels.spline_basis(x[part], t, degree)
        np.testing.assert_array_equal(values[:, :, part], small)
        np.testing.assert_array_equal(first[:, part], small_first)


@pytest.mark.parametrize("degree", [0, 1, 3, 6])
def test_splines_at_infinity_follow_their_tails(rung, degree):
    t = make_knots("uniform", degree, 9)
    rising, level = np.arange(9.0), np.full(9, 3.0)
    x = np.array([-np.inf, 0.5, np.inf, np.nan])
    found = kernels.spline_values(x, t, degree, level)[0]
    np.testing.assert_allclose(found[:3], 3.0, rtol=1e-14)
    assert np.isnan(found[3])
    found = kernels.spline_values(x, t, degree, rising)[0]
    expected = [0.0, 8.0] if degree == 0 else [-np.inf, np.inf]
    np.testing.assert_array_equal(found[[0, 2]], expected)
    assert np.isfinite(found[1])
    assert not np.isinf(kernels.spline_values(x, t, degree, rising, tails="clamp")[0, :3]).any()


def test_results_go_to_out(rung):
    t = make_knots("uniform", 3, 8)
    out = np.empty((1, 4, 3)), np.empty((1, 3), np.int32)
    values, first = kernels.spline_basis([0.0, 0.5, 1.0], t, 3, out=out)
    assert values is out[0]
    assert first is out[1]
    with pytest.raises(ValueError, match=r"out must hold a C-contiguous array of shape \(1, 4, 3\)"):
        kernels.spline_basis([0.0, 0.5, 1.0], t, 3, out=(np.empty((4, 3)), out[1]))


def test_no_points(rung):
    t = make_knots("uniform", 2, 6)
    values, first = kernels.spline_basis(np.empty((1, 0)), t, 2)
    assert values.shape == (1, 3, 0)
    assert first.shape == (1, 0)
    band, rhs = kernels.spline_gram(np.empty((1, 0)), t, 2)
    assert not band.any()
    assert not rhs.any()


T = [0, 0, 0.5, 1, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernels.spline_basis([0.5], T, 8), "degree must be an integer, at least 0 and at most 7, got 8"),
        (lambda: kernels.spline_basis([0.5], T, 1, -1), "nu must be an integer, at least 0, got -1"),
        (lambda: kernels.spline_basis([0.5], T, 2), "knots must be at least 2 degree \\+ 2 = 6, got 5"),
        (lambda: kernels.spline_basis([0.5], [0, 0, 1, 0.5, 1], 1), "knots must be finite and must not decrease"),
        (lambda: kernels.spline_basis([0.5], [0, 0, np.nan, 1, 1], 1), "knots must be finite"),
        (
            lambda: kernels.spline_basis([0.5], [1, 1, 1, 1], 1),
            r"knots must span an interval, got \[1.0, 1.0\] in row 0",
        ),
        (lambda: kernels.spline_basis([[0.5], [1]], T, 1), "one row for each branch, got 2 and 1 rows"),
        (lambda: kernels.spline_basis([0.5j], T, 1), "x must be real, got dtype complex128"),
        (lambda: kernels.spline_basis([0.5], T, 1, tails="zero"), 'tails must be "linear" or "clamp", got \'zero\''),
        (lambda: kernels.spline_values([0.5], T, 1, [1, 2]), r"coefficients must have shape \(1, 3\)"),
        (lambda: kernels.spline_gram([0.5], T, 1, [1, 2]), r"y must have the shape of x, \(1, 1\), got \(1, 2\)"),
        (lambda: kernels.spline_solve(np.ones((1, 3, 2)), np.ones((1, 2))), "band and rhs must have shapes"),
    ],
)
def test_bad_input_is_named(rung, call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("degree", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "inner", "points"),
    [
        (np.float32, [0, 1e-39], [0, 1e-39, 1]),
        (np.float64, [0, 1e-310], [0, 1e-310, 1]),
        (np.float64, [0, 5e-311, 1e-310], [0, 7e-311]),
        (np.float64, [-8e307, 0, 8e307], [-1e308, 0, 7e307, 1e308]),
        (np.float64, [-8e307, 1e307, 8e307], [-8e307, 0, 7e307]),
    ],
)
def test_knots_at_the_ends_of_the_range(rung, degree, dtype, inner, points):
    knots = np.array([inner[0]] * degree + inner + [inner[-1]] * degree, dtype)
    values, first = kernels.spline_basis(np.array(points, dtype), knots, degree)
    assert (first >= 0).all()
    assert (first < len(knots) - degree - 1).all()
    within = (np.array(points) >= inner[0]) & (np.array(points) <= inner[-1])
    found = values.reshape(len(points), degree + 1)[within]
    assert np.isfinite(found).all() or np.abs(np.diff(inner)).max() < np.finfo(dtype).tiny


def test_knots_that_span_more_than_the_range_and_complex_arguments_are_refused(rung):
    with pytest.raises(ValueError, match="knots must span less than the range of float64"):
        kernels.spline_values([0.0], [-1e308, -1e308, 1e308, 1e308], 1, [1.0, 2.0])
    with pytest.raises(ValueError, match="coefficients must be real"):
        kernels.spline_values([0.5], [0.0, 0.0, 1.0, 1.0], 1, [1j, 2])
