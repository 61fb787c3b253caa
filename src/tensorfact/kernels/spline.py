"""Kernels on B-splines: many branches, each with its own knots and points, in one call."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tensorfact.kernels._array import as_contiguous, as_matrix, as_real, output
from tensorfact.kernels._dispatch import checked_threads
from tensorfact.kernels._spline_bodies import (
    _spline_basis,
    _spline_gram,
    _spline_solve,
    _spline_uniform,
    _spline_values,
)

__all__ = ["spline_basis", "spline_gram", "spline_solve", "spline_uniform", "spline_values"]

Matrix = NDArray[Any]
Tails = Literal["linear", "clamp"]

MAX_DEGREE = 7
_LINE = 64  # bytes: rows of results begin on cache lines, so that they can be written past the caches


def spline_basis(
    x: ArrayLike,
    knots: ArrayLike,
    degree: int,
    nu: int = 0,
    *,
    tails: Tails = "linear",
    out: tuple[Matrix, Matrix] | None = None,
    workers: int | None = None,
) -> tuple[Matrix, Matrix]:
    """Local B-spline values or derivatives of many points in many branches: the degree + 1 that are not zero.

    Parameters
    ----------
    x : array_like, shape (r, n) or (n,)
        Points of each branch, float32 or float64; one axis means one branch.
    knots : array_like, shape (r, k + degree + 1) or (k + degree + 1,)
        Non-decreasing knots of each branch, cast to the dtype of `x`. The basis of k functions lives on
        ``[knots[degree], knots[k]]``; at the right end it is the limit from the left.
    degree : int
        0 to 7.
    nu : int
        Order of the derivative.
    tails : {"linear", "clamp"}
        Outside: straight on with the slope at the end, or constant.
    out : (ndarray, ndarray), optional
        C-contiguous arrays for the results.
    workers : int, optional
        Threads of this call. The result has the same bits for any number.

    Returns
    -------
    values : ndarray, shape (r, degree + 1, n)
        ``values[b, q, i]`` belongs to basis function ``first[b, i] + q``. NaN where `x` is NaN.
    first : ndarray of int32, shape (r, n)

    Raises
    ------
    ValueError
        If shapes or dtypes do not fit, a branch spans no interval, or knots are not finite or decrease.

    Notes
    -----
    Bound by writing the output where the breakpoints are equally spaced, which is recognised (`spline_uniform`): the
    result is then that of exactly uniform knots, within 40 eps of the largest value. Other knots cost a few times as
    much and each value is accurate to a few eps of itself.

    References
    ----------
    de Boor, "On calculating with B-splines", J. Approximation Theory 6 (1972).

    Examples
    --------
    >>> values, first = spline_basis([0.5], [0.0, 0.0, 1.0, 1.0], 1)
    >>> values[0, :, 0], first
    (array([0.5, 0.5]), array([[0]], dtype=int32))
    """
    points, t = _checked(x, knots, degree, nu, tails)
    r, n = points.shape
    if out is None:
        values, first = _aligned((r, degree + 1, n), points.dtype), _aligned((r, n), np.dtype(np.int32))
    else:
        values, first = out
        shape = (r, degree + 1, n)
        if not isinstance(values, np.ndarray) or values.shape != shape or not values.flags.c_contiguous:
            raise ValueError(f"out must hold a C-contiguous array of shape {shape} for the values")
        output(values.reshape(r * (degree + 1), n), (r * (degree + 1), n), points.dtype, points, t)
        output(first, (r, n), np.int32, points, t)
    if points.size:
        flat = values.reshape(r * (degree + 1), n)
        _spline_basis(points, t, degree, nu, tails == "clamp", flat, first, checked_threads(workers))
    return values, first


def spline_values(
    x: ArrayLike,
    knots: ArrayLike,
    degree: int,
    coefficients: ArrayLike,
    nu: int = 0,
    *,
    tails: Tails = "linear",
    workers: int | None = None,
) -> Matrix:
    """Values or derivatives of one spline in each branch, without storing a basis.

    Parameters
    ----------
    x, knots, degree, nu, tails, workers
        As for `spline_basis`.
    coefficients : array_like, shape (r, k) or (k,)
        Cast to the dtype of `x`.

    Returns
    -------
    ndarray, shape (r, n)

    Raises
    ------
    ValueError
        As `spline_basis`, or if `coefficients` do not fit the knots.

    Notes
    -----
    Reads x once, writes the result once.

    Examples
    --------
    >>> spline_values([0.5, 2.0], [0.0, 0.0, 1.0, 1.0], 1, [1.0, 3.0])
    array([[2., 5.]])
    """
    points, t = _checked(x, knots, degree, nu, tails)
    c = as_real(_rows(coefficients, "coefficients"), points.dtype, "coefficients")
    if c.shape != (t.shape[0], t.shape[1] - degree - 1):
        expected = (t.shape[0], t.shape[1] - degree - 1)
        raise ValueError(f"coefficients must have shape {expected}, one for each basis function, got {c.shape}")
    out = np.empty(points.shape, points.dtype)
    if points.size:
        _spline_values(points, t, degree, nu, tails == "clamp", c, out, checked_threads(workers))
    if nu == 0 and tails == "linear" and points.size:
        _at_infinity(points, t, degree, c, out)
    return out


def spline_gram(
    x: ArrayLike,
    knots: ArrayLike,
    degree: int,
    y: ArrayLike | None = None,
    nu: int = 0,
    *,
    weights: ArrayLike | None = None,
    tails: Tails = "linear",
    workers: int | None = None,
) -> tuple[Matrix, Matrix]:
    """Normal equations of a (weighted) least-squares fit by splines, banded, without storing a basis.

    Parameters
    ----------
    x, knots, degree, nu, tails, workers
        As for `spline_basis`.
    y : array_like, shape (r, n), optional
        Data; without them the right-hand side is zero.
    weights : array_like, shape (r, n), optional
        Weight of each point, ones by default.

    Returns
    -------
    band : ndarray of float64, shape (r, k, degree + 1)
        ``band[b, j, d] = sum_i w_i B_j(x_i) B_{j+d}(x_i)``; zero beyond the last function.
    rhs : ndarray of float64, shape (r, k)
        ``sum_i w_i B_j(x_i) y_i``.

    Raises
    ------
    ValueError
        As `spline_basis`, or if `y` or `weights` do not have the shape of `x`.

    Notes
    -----
    About (degree + 1)^2 multiplications a point, accumulated in float64.

    Examples
    --------
    >>> band, rhs = spline_gram([0.0, 0.5], [0.0, 0.0, 1.0, 1.0], 1, [1.0, 2.0])
    >>> band[0], rhs[0]
    (array([[1.25, 0.25],
           [0.25, 0.  ]]), array([2., 1.]))
    """
    points, t = _checked(x, knots, degree, nu, tails)
    given = []
    for name, array in (("weights", weights), ("y", y)):
        rows = np.empty((0, points.shape[1]), points.dtype) if array is None else _rows(array, name)
        if array is not None and rows.shape != points.shape:
            raise ValueError(f"{name} must have the shape of x, {points.shape}, got {rows.shape}")
        given.append(as_real(rows, points.dtype, name))
    r, k = t.shape[0], t.shape[1] - degree - 1
    band, rhs = np.zeros((r * k, degree + 1)), np.zeros((r, k))
    if points.size:
        threads = checked_threads(workers)
        _spline_gram(points, t, degree, nu, tails == "clamp", given[0], given[1], band, rhs, threads)
    return band.reshape(r, k, degree + 1), rhs


def spline_solve(band: ArrayLike, rhs: ArrayLike, /, *, workers: int | None = None) -> tuple[Matrix, float]:
    """Solve banded symmetric positive definite systems, one for each branch, by Cholesky's method.

    Parameters
    ----------
    band : array_like, shape (r, k, width)
        ``band[b, j, d]`` is entry (j, j + d), as from `spline_gram`.
    rhs : array_like, shape (r, k) or (r, k, m)
        Right-hand sides.
    workers : int, optional
        Threads of this call.

    Returns
    -------
    solution : ndarray of float64
        Of the shape of `rhs`. NaN in a branch that is not positive definite to working precision.
    pivot : float
        The smallest pivot of all branches over its diagonal entry: below about 1e-10 a solution has few correct digits.

    Raises
    ------
    ValueError
        If shapes do not fit.

    Notes
    -----
    k width^2 flops and 2 k width for each right-hand side and branch.

    Examples
    --------
    >>> spline_solve([[[2.0, 1.0], [2.0, 0.0]]], [[3.0, 3.0]])
    (array([[1., 1.]]), 0.75)
    """
    a, y = (np.array(as_real(array, np.float64, name)) for name, array in (("band", band), ("rhs", rhs)))
    if a.ndim != 3 or y.ndim not in (2, 3) or y.shape[:2] != a.shape[:2] or 0 in a.shape:
        raise ValueError(f"band and rhs must have shapes (r, k, width) and (r, k, ...), got {a.shape} and {y.shape}")
    r, k, width = a.shape
    pivot = _spline_solve(a.reshape(r * k, width), y.reshape(r * k, -1), r, checked_threads(workers))
    return y, float(pivot)


def spline_uniform(knots: ArrayLike, degree: int) -> bool:
    """Whether one row of knots takes the fast path of `spline_basis`: equally spaced, ends repeated or spaced alike.

    Spacings may differ by 128 eps, which is what rounding does to 200 intervals.

    Examples
    --------
    >>> spline_uniform([0, 0, 0.5, 1, 1], 1), spline_uniform([0, 0, 0.4, 1, 1], 1)
    (True, False)
    """
    _, t = _checked(np.empty((1, 0), np.result_type(np.asarray(knots).dtype, np.float32)), knots, degree, 0, "linear")
    return bool(_spline_uniform(t, degree))


def _at_infinity(x: Matrix, t: Matrix, degree: int, c: Matrix, out: Matrix) -> None:
    """Where a straight tail leads: infinite terms of a basis would cancel to NaN. Level to rounding is level."""
    far = np.isnan(out) & np.isinf(x)
    if not far.any():
        return
    ends = np.ascontiguousarray(t[:, [degree, -degree - 1]])
    level, slope = np.empty_like(ends), np.empty_like(ends)
    for nu, found in ((0, level), (1, slope)):
        _spline_values(ends, t, degree, nu, False, c, found, 1)
    rounding = 16 * np.finfo(t.dtype).eps * np.abs(c).max(axis=1, keepdims=True)
    flat = np.abs(slope) * (ends[:, 1:] - ends[:, :1]) <= rounding
    with np.errstate(invalid="ignore"):
        limit = np.where(flat, level, slope * np.array([-np.inf, np.inf], t.dtype))
    row = np.nonzero(far)[0]
    out[far] = limit[row, (x[far] > 0).astype(np.int64)]


def _rows(a: ArrayLike, name: str) -> Matrix:
    array = np.asarray(a)
    return as_matrix(array[None, :] if array.ndim == 1 else array, name)


def _checked(x: ArrayLike, knots: ArrayLike, degree: int, nu: int, tails: str) -> tuple[Matrix, Matrix]:
    for name, value, most in (("degree", degree, MAX_DEGREE), ("nu", nu, None)):
        if isinstance(value, bool) or not hasattr(value, "__index__") or value < 0 or (most and value > most):
            raise ValueError(
                f"{name} must be an integer, at least 0{f' and at most {most}' if most else ''}, got {value!r}"
            )
    if tails not in ("linear", "clamp"):
        raise ValueError(f'tails must be "linear" or "clamp", got {tails!r}')
    points = as_contiguous(_rows(x, "x"))
    if points.dtype.kind == "c":
        raise ValueError(f"x must be real, got dtype {points.dtype}")
    t = _rows(knots, "knots")
    if t.dtype.kind == "c":
        raise ValueError(f"knots must be real, got dtype {t.dtype}")
    t = as_contiguous(t.astype(points.dtype, copy=False))
    if t.shape[1] < 2 * degree + 2:
        raise ValueError(f"knots must be at least 2 degree + 2 = {2 * degree + 2}, got {t.shape[1]}")
    if t.shape[0] != points.shape[0]:
        raise ValueError(f"x and knots must have one row for each branch, got {points.shape[0]} and {t.shape[0]} rows")
    if not np.isfinite(t).all() or (t[:, 1:] < t[:, :-1]).any():
        raise ValueError("knots must be finite and must not decrease")
    with np.errstate(over="ignore"):
        spans = t[:, -1] - t[:, 0]
    if not np.isfinite(spans).all():
        raise ValueError(f"knots must span less than the range of {t.dtype}, got {t[:, 0].min()} to {t[:, -1].max()}")
    if not (t[:, degree] < t[:, -degree - 1]).all():
        worst = int(np.argmin(t[:, -degree - 1] - t[:, degree]))
        raise ValueError(
            f"knots must span an interval, got [{t[worst, degree]}, {t[worst, -degree - 1]}] in row {worst}"
        )
    return points, t


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Matrix:
    """New array that begins on a cache line."""
    count = int(np.prod(shape))
    raw = np.empty(count * dtype.itemsize + _LINE, np.uint8)
    start = -raw.ctypes.data % _LINE
    return raw[start : start + count * dtype.itemsize].view(dtype).reshape(shape)
