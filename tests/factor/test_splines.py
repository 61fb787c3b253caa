"""BSplineBasis and the knot makers: identities of B-splines, SciPy as the oracle, degenerate data, errors."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.interpolate import BSpline

import tensorfact
from tensorfact import BSplineBasis, clamped_knots, difference_penalty, quantile_knots


def basis_of(degree=3, n_basis=9, seed=0):
    inner = np.sort(np.random.default_rng(seed).uniform(0, 1, n_basis - degree - 1))
    return BSplineBasis(np.concatenate([np.zeros(degree + 1), inner, np.ones(degree + 1)]), degree)


@pytest.mark.parametrize("degree", range(6))
def test_identities(degree):
    basis = basis_of(degree, degree + 6)
    x = np.linspace(0, 1, 301)
    values, first = basis.evaluate(x)
    assert values.shape == (301, degree + 1)
    np.testing.assert_allclose(values.sum(axis=1), 1, rtol=0, atol=1e-14)
    assert (values >= 0).all()
    assert first.min() == 0
    assert first.max() == basis.n_basis - degree - 1
    if degree:
        slopes, _ = basis.evaluate(x, 1)
        np.testing.assert_allclose(slopes.sum(axis=1), 0, rtol=0, atol=1e-13 * np.abs(slopes).max())
        greville = np.array([basis.knots[j + 1 : j + degree + 1].mean() for j in range(basis.n_basis)])
        np.testing.assert_allclose(basis(x, greville), x, rtol=0, atol=1e-14)  # the spline of these is the identity
        assert np.linalg.matrix_rank(basis.design_matrix(x, 1).toarray()) == basis.n_basis - 1


def test_the_derivative_is_a_spline_of_lower_degree():
    basis = basis_of(3, 9)
    t, k, p, x = basis.knots, 9, 3, np.linspace(0, 1, 50)
    d = np.zeros((k - 1, k))
    for j in range(k - 1):
        d[j, j + 1] = p / (t[j + p + 1] - t[j + 1])
        d[j, j] = -d[j, j + 1]
    lower = BSplineBasis(t[1:-1], p - 1).design_matrix(x).toarray()
    np.testing.assert_allclose(basis.design_matrix(x, 1).toarray(), lower @ d, rtol=0, atol=1e-13 * np.abs(d).max())


def test_design_matrix_is_that_of_scipy():
    basis = basis_of()
    x = np.random.default_rng(1).uniform(0, 1, 200)
    expected = BSpline.design_matrix(x, basis.knots, 3)
    found = basis.design_matrix(x)
    assert found.nnz == 4 * 200
    np.testing.assert_allclose(found.toarray(), expected.toarray(), rtol=0, atol=1e-15)


def test_float32_stays_float32():
    basis = BSplineBasis(clamped_knots(0, 1, 8).astype(np.float32))
    assert basis.evaluate([0.5])[0].dtype == np.float32
    assert basis([0.5], np.ones(8)).dtype == np.float32
    assert BSplineBasis(np.float16([0, 0, 1, 1]), 1).dtype == np.float64
    assert "uniform knots, float32" in repr(basis)


def test_fit_recovers_a_spline_and_smooths_noise():
    basis = basis_of()
    rng = np.random.default_rng(0)
    x, c = rng.uniform(0, 1, 400), rng.standard_normal(9)
    np.testing.assert_allclose(basis.fit(x, basis(x, c)), c, rtol=0, atol=1e-9)
    noise = rng.standard_normal(400)
    rough, smooth = (np.sum(np.diff(basis.fit(x, noise, smooth=s), 2) ** 2) for s in (0.0, 10.0))
    assert smooth < 0.05 * rough
    flat = basis.fit(x, noise, smooth=1e8, order=1)
    np.testing.assert_allclose(flat, noise.mean(), rtol=0, atol=1e-5)


def test_fit_with_too_few_points():
    basis = basis_of()
    assert np.isfinite(basis.fit([0.5], [1.0])).all()
    with pytest.raises(ValueError, match="x determines too few coefficients"):
        basis.fit([0.5], [1.0], ridge=0.0)


def test_difference_penalty_is_the_square_of_differences():
    for order in range(4):
        matrix = np.diff(np.eye(7), order, axis=0).T @ np.diff(np.eye(7), order, axis=0)
        band = difference_penalty(7, order)
        for d in range(order + 1):
            np.testing.assert_array_equal(band[: 7 - d, d], np.diagonal(matrix, d))


def test_quantile_knots_follow_the_data():
    z = np.random.default_rng(0).standard_t(2, 3000)
    t = quantile_knots(z, 20)
    assert t.size == 24
    assert (t[:4] == z.min()).all()
    assert (t[-4:] == z.max()).all()
    band, _ = BSplineBasis(t).gram(z)
    assert (band[:, 0] > 0).all()  # equal spacing leaves seven functions without data here
    assert (BSplineBasis(clamped_knots(z.min(), z.max(), 20)).gram(z)[0][:, 0] == 0).any()
    share = np.quantile(z, np.linspace(0, 1, 18))
    np.testing.assert_allclose(quantile_knots(z, 20, blend=1.0)[3:-3], share, rtol=1e-12)
    np.testing.assert_allclose(quantile_knots(z, 20, blend=0.0), clamped_knots(z.min(), z.max(), 20), rtol=1e-12)


def test_ties_are_taken_apart():
    for z in (np.round(np.random.default_rng(0).standard_normal(500)), [0.0] * 99 + [1.0], [0.0, 1e-12, 1.0, 1.0]):
        t = quantile_knots(z, 16, blend=1.0)
        assert (np.diff(t[3:-3]) > 0).all()
        assert BSplineBasis(t).n_basis == 16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clamped_knots(1, 1, 5), "lo and hi must be finite and lo < hi, got 1.0 and 1.0"),
        (lambda: clamped_knots(0, 1, 3), "n_basis must be at least 4, got 3"),
        (lambda: clamped_knots(0, 1, 30, 8), "degree must be between 0 and 7, got 8"),
        (lambda: clamped_knots(1, 1 + 1e-15, 40), "is too short for 38 different breakpoints"),
        (lambda: quantile_knots([2, 2, 2], 5), "z must hold two different values, got only 2.0"),
        (lambda: quantile_knots([], 5), "z must be finite and not empty"),
        (lambda: quantile_knots([0, np.nan], 5), "z must be finite"),
        (lambda: quantile_knots([0, 1], 5, blend=2), "blend must be between 0 and 1, got 2"),
        (lambda: BSplineBasis([0, 1]), "knots must be at least 2 degree"),
        (lambda: BSplineBasis([[0, 1]], 0), "knots must have one axis"),
        (lambda: BSplineBasis([0, 2, 1, 3], 0), "must not decrease"),
        (lambda: BSplineBasis(["a", "b"], 0), "knots must be real numbers"),
        (lambda: BSplineBasis([0, 1], 0, "wrap"), "outside must be 'linear', 'clamp' or 'error', got 'wrap'"),
        (lambda: BSplineBasis([0, 1], 0, "error").evaluate([2.0]), r"x must lie in \[0.0, 1.0\], got \[2.0, 2.0\]"),
        (lambda: BSplineBasis([0, 1], 0).evaluate([np.inf]), "x must be finite"),
        (lambda: difference_penalty(3, 3), "order must be between 0 and 2, got 3"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_outside_the_domain():
    linear, clamp = (BSplineBasis(clamped_knots(0, 1, 6), 3, outside) for outside in ("linear", "clamp"))
    c = np.arange(6.0) ** 2
    end, slope = linear(1.0, c), linear(1.0, c, 1)
    assert float(linear(3.0, c)) == pytest.approx(float(end + 2 * slope))
    assert float(clamp(3.0, c)) == pytest.approx(float(end))
    assert tensorfact.BSplineBasis is BSplineBasis
