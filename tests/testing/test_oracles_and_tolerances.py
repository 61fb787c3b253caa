"""Oracles against closed forms, assertions against planted misses, strategies against what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from tensorfact.testing import (
    MatrixSpec,
    assert_close,
    assert_orthonormal,
    assert_same_span,
    effective_rank_for,
    matrices,
    matrix_with_spectrum,
    optimal_errors,
    relative_error,
    spectral_error,
    tol,
)
from tensorfact.testing.oracles import largest_principal_sine, reconstruct, singular_values
from tensorfact.testing.strategies import (
    EXACT_LOW_RANK,
    LAYOUTS,
    SPECTRA,
    dtypes,
    layouts,
    matrix_specs,
    shapes,
    spectrum_values,
    with_layout,
)

few = settings(max_examples=40, deadline=None, database=None, derandomize=True)


def test_optimal_errors_of_a_known_spectrum():
    a = matrix_with_spectrum((9, 6), [4.0, 2.0, 1.0, 1.0, 1.0, 1.0], rng=1)
    best = optimal_errors(a, 2)
    assert best.frobenius == pytest.approx(2 / np.sqrt(24), rel=1e-13)
    assert best.spectral == pytest.approx(0.25, rel=1e-13)
    assert optimal_errors(a, 6) == (0.0, 0.0)


def test_truncated_svd_reaches_the_optimal_errors():
    a = matrix_with_spectrum((12, 8), spectrum_values("i^-1", 8), rng=2)
    u, s, vh = np.linalg.svd(a, full_matrices=False)
    approx = reconstruct(u[:, :3], s[:3], vh[:3])
    best = optimal_errors(a, 3)
    assert relative_error(a, approx) == pytest.approx(best.frobenius, rel=1e-12)
    assert spectral_error(a, approx) == pytest.approx(best.spectral, rel=1e-12)


@pytest.mark.parametrize(("asked", "rank"), [(1.0, 0), (0.99, 1), (0.5, 1), (0.3, 2), (0.2, 3), (0.0, 4)])
def test_effective_rank(asked, rank):
    # relative tails of (8, 4, 2, 1) from rank 0: 1, 0.497, 0.243, 0.108
    assert effective_rank_for(np.diag([8.0, 4.0, 2.0, 1.0]), asked) == rank


def test_errors_of_the_zero_matrix():
    zero = np.zeros((3, 2))
    assert optimal_errors(zero, 1) == (0.0, 0.0)
    assert relative_error(zero, zero) == 0.0
    assert relative_error(zero, zero + 1.0) == float("inf")
    assert effective_rank_for(zero, 0.1) == 0


def test_spectral_error_of_nan_is_infinite():
    assert spectral_error(np.eye(2), np.full((2, 2), np.nan)) == float("inf")


def test_principal_sine_keeps_small_angles():
    angle = 1e-9
    x, y = np.array([[1.0], [0.0]]), np.array([[np.cos(angle)], [np.sin(angle)]])
    assert largest_principal_sine(x, y) == pytest.approx(angle, rel=1e-6)
    assert largest_principal_sine(np.eye(3, 2), np.eye(3, 1)) == 1.0


def test_tol_is_c_eps_cond():
    assert tol(np.float32, cond=10, c=3) == 30 * np.finfo(np.float32).eps
    assert tol("complex64") == tol("float32")


def test_assert_close_uses_the_dtype_of_the_answer():
    want = np.ones(50)
    assert_close(np.float32(want + 1e-6), want)
    with pytest.raises(AssertionError, match=r"relative error 1e-06 > 2.22e-14"):
        assert_close(want + 1e-6, want)
    with pytest.raises(AssertionError, match=r"shapes differ: \(50,\) against \(49,\)"):
        assert_close(want, want[1:])
    with pytest.raises(AssertionError, match="relative error nan"):
        assert_close(want * np.nan, want)


def test_assert_orthonormal_columns_and_rows():
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((40, 7)))[0]
    assert_orthonormal(q)
    assert_orthonormal(q.T, axis=0)
    assert_orthonormal(q.astype(np.float32))
    with pytest.raises(AssertionError, match="not orthonormal"):
        assert_orthonormal(q.T)
    with pytest.raises(AssertionError, match="not orthonormal"):
        assert_orthonormal(q * (1 + 1e-12))
    with pytest.raises(AssertionError, match="not orthonormal"):
        assert_orthonormal(q * np.nan)


def test_assert_same_span():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 4))
    assert_same_span(x, x @ (rng.standard_normal((4, 4)) + 3 * np.eye(4)), c=1000)
    with pytest.raises(AssertionError, match="spans differ"):
        assert_same_span(x, x + 1e-6 * rng.standard_normal(x.shape))


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("n", [1, 2, 13])
def test_spectra_are_non_increasing_and_reach_the_matrix(name, n):
    s = spectrum_values(name, n)
    assert s.shape == (n,)
    assert (s >= 0).all()
    assert (np.diff(s) <= 0).all()
    a = MatrixSpec(shape=(n + 3, n), spectrum=name).build()
    np.testing.assert_allclose(singular_values(a), s, atol=1e-14)


def test_graded_goes_down_to_eps():
    assert spectrum_values("graded", 8, "float32")[-1] == pytest.approx(np.finfo(np.float32).eps)


def test_exact_low_rank_is_exact_in_both_dtypes():
    single, double = (MatrixSpec(shape=(31, 17), dtype=d, spectrum=EXACT_LOW_RANK).build() for d in ("f4", "f8"))
    assert (single == double).all()
    assert np.linalg.matrix_rank(double) == 17 // 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_keep_the_values(layout):
    a = np.arange(12.0).reshape(4, 3)
    b = with_layout(a, layout)
    assert (a == b).all()
    seen = {
        "C": b.flags.c_contiguous,
        "F": b.flags.f_contiguous,
        "read-only": not b.flags.writeable,
        "strided": not (b.flags.c_contiguous or b.flags.f_contiguous),
        "reversed": all(stride < 0 for stride in b.strides),
    }
    assert seen[layout]


@pytest.mark.parametrize("build", [lambda: with_layout(np.eye(2), "Z"), lambda: spectrum_values("Z", 3)])
def test_unknown_names_are_refused(build):
    with pytest.raises(ValueError, match=r"must be one of .*, got 'Z'"):
        build()


@few
@given(matrix_specs(dtype=dtypes(complex_too=True), layout=layouts()))
def test_a_spec_builds_the_same_matrix_twice(spec):
    a, b = spec.build(), spec.build()
    assert a.shape == spec.shape
    assert a.dtype.name == spec.dtype
    assert a.tobytes() == b.tobytes()


@few
@given(matrices(matrix_specs(shape=shapes(min_side=2))))
def test_matrices_are_finite_and_not_zero(a):
    assert min(a.shape) >= 2
    assert np.isfinite(a).all()
    assert a.any()


def test_scale_is_applied_exactly():
    plain, scaled = (MatrixSpec(shape=(5, 4), dtype="float32", scale=scale).build() for scale in (1.0, 2.0**-66))
    assert scaled.dtype == np.float32
    assert (scaled == plain * np.float32(2.0**-66)).all()
