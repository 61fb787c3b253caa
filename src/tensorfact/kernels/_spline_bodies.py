"""Bodies of the spline kernels: plain NumPy that Numba compiles too, one call for all points of a branch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensorfact.kernels._dispatch import kernel

__all__ = ["_spline_basis", "_spline_gram", "_spline_solve", "_spline_uniform", "_spline_values"]

Matrix = NDArray[Any]


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
