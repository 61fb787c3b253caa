"""Kernels on B-splines: many branches, each with its own knots and points, in one call."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tensorfact.kernels._array import as_contiguous, as_matrix, output
from tensorfact.kernels._dispatch import checked_threads, kernel

__all__ = ["spline_basis", "spline_gram", "spline_solve", "spline_uniform", "spline_values"]

Matrix = NDArray[Any]
Tails = Literal["linear", "clamp"]

MAX_DEGREE = 7
_LINE = 64  # bytes: rows of results begin on cache lines, so that they can be written past the caches


@kernel()
def _spline_basis(
    x: Matrix, knots: Matrix, degree: int, nu: int, clamp: bool, values: Matrix, first: Matrix, nthreads: int
) -> None:
    p = degree
    for b in range(x.shape[0]):
        t, z = knots[b], x[b]
        begin, end = p, t.size - p - 2
        while not t[begin] < t[begin + 1]:
            begin += 1
        while not t[end] < t[end + 1]:
            end -= 1
        lo, hi = t[begin], t[end + 1]
        inside = np.where(z > lo, np.where(z < hi, z, hi), lo)  # NaN goes to lo
        k = np.minimum(np.searchsorted(t, inside, side="right") - 1, end)
        # The second pass takes the slopes at the ends, for linear tails.
        for tails in range(2 if nu == 0 and not clamp and p > 0 else 1):
            local = np.zeros((p + 1, z.size), x.dtype)
            local[0] = 1
            for d in range(1, p + 1):
                carry = np.zeros_like(inside)
                for q in range(d):
                    left, right = t[k + 1 - d + q], t[k + 1 + q]
                    u = local[q] / (right - left)
                    if d <= p - max(nu, tails):
                        local[q] = carry + (right - inside) * u
                        carry = (inside - left) * u
                    else:
                        u = u * x.dtype.type(d)
                        local[q] = carry - u
                        carry = u
                local[d] = carry
            for q in range(p + 1):
                if tails == 0:
                    values[b * (p + 1) + q] = local[q]
                else:
                    values[b * (p + 1) + q] += np.where(z == inside, x.dtype.type(0), local[q] * (z - inside))
        for q in range(p + 1):
            row = values[b * (p + 1) + q]
            if nu > p:
                row[:] = 0
            if nu >= 2 or (nu == 1 and clamp):
                row[z != inside] = 0
            row[np.isnan(z)] = np.nan
        first[b] = k - p


@kernel()
def _spline_values(
    x: Matrix, knots: Matrix, degree: int, nu: int, clamp: bool, coefficients: Matrix, out: Matrix, nthreads: int
) -> None:
    values = np.empty((x.shape[0] * (degree + 1), x.shape[1]), x.dtype)
    first = np.empty(x.shape, np.int32)
    _spline_basis(x, knots, degree, nu, clamp, values, first, nthreads)
    for b in range(x.shape[0]):
        out[b] = 0
        for q in range(degree + 1):
            out[b] += values[b * (degree + 1) + q] * coefficients[b][first[b] + q]


@kernel()
def _spline_gram(
    x: Matrix,
    knots: Matrix,
    degree: int,
    nu: int,
    clamp: bool,
    weights: Matrix,
    y: Matrix,
    band: Matrix,
    rhs: Matrix,
    nthreads: int,
) -> None:
    p, n = degree, knots.shape[1] - degree - 1
    values = np.empty((x.shape[0] * (p + 1), x.shape[1]), x.dtype)
    first = np.empty(x.shape, np.int32)
    _spline_basis(x, knots, p, nu, clamp, values, first, nthreads)
    band[:, :] = 0
    rhs[:, :] = 0
    for b in range(x.shape[0]):
        at = first[b].astype(np.int64)
        for q in range(p + 1):
            left = values[b * (p + 1) + q].astype(np.float64)
            if weights.shape[0] > 0:
                left = left * weights[b]
            for s in range(q, p + 1):
                right = values[b * (p + 1) + s].astype(np.float64)
                band[b * n : (b + 1) * n, s - q] += np.bincount(at + q, left * right, n)
            if y.shape[0] > 0:
                rhs[b] += np.bincount(at + q, left * y[b], n)


@kernel()
def _spline_solve(band: Matrix, rhs: Matrix, branches: int, nthreads: int) -> float:
    n, width = band.shape[0] // branches, band.shape[1]
    smallest = 1.0
    for b in range(branches):
        a, y = band[b * n : (b + 1) * n], rhs[b * n : (b + 1) * n]
        for j in range(n):
            before = a[j, 0]
            for d in range(1, min(width, j + 1)):
                for s in range(d, width):
                    a[j, s - d] -= a[j - d, d] * a[j - d, s]
            share = a[j, 0] / before if before > 0 else 0.0
            smallest = min(smallest, share if share > 0 else 0.0)
            a[j, 0] = np.sqrt(a[j, 0]) if share > 2.220446049250313e-16 else np.nan
            for s in range(1, width):
                a[j, s] = a[j, s] / a[j, 0] if j + s < n else 0.0
            for d in range(1, min(width, j + 1)):
                y[j] -= a[j - d, d] * y[j - d]
            y[j] /= a[j, 0]
        for j in range(n - 1, -1, -1):
            for d in range(1, min(width, n - j)):
                y[j] -= a[j, d] * y[j + d]
            y[j] /= a[j, 0]
    return smallest


@kernel()
def _spline_uniform(knots: Matrix, degree: int) -> bool:
    t, p, allowed = knots[0], degree, 128 * np.finfo(knots.dtype).eps
    n = t.size - p - 1
    step = (t[n] - t[p]) / (n - p)
    if p == 0 or not step > 0 or 1024 * (n - p) * np.finfo(knots.dtype).eps > 0.5:
        return False
    steady = np.abs(t[1:] - t[:-1] - step) <= allowed * step
    repeated = np.all(t[:p] == t[p]) and np.all(t[n + 1 :] == t[n])
    return bool(np.all(steady[p:n]) and (repeated or np.all(steady)))


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
    c = as_contiguous(_rows(coefficients, "coefficients").astype(points.dtype, copy=False))
    if c.shape != (t.shape[0], t.shape[1] - degree - 1):
        expected = (t.shape[0], t.shape[1] - degree - 1)
        raise ValueError(f"coefficients must have shape {expected}, one for each basis function, got {c.shape}")
    out = np.empty(points.shape, points.dtype)
    if points.size:
        _spline_values(points, t, degree, nu, tails == "clamp", c, out, checked_threads(workers))
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
        given.append(as_contiguous(rows.astype(points.dtype, copy=False)))
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
    a, y = np.array(band, np.float64, order="C"), np.array(rhs, np.float64, order="C")
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
    if not np.isfinite(t).all() or (np.diff(t, axis=1) < 0).any():
        raise ValueError("knots must be finite and must not decrease")
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
