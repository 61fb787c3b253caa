"""What decoupling asks of the Jacobians: products with factors, never their entries.

Factors are stored one branch a row: W (c, n), V (c, m), H (c, N). A fit of several starts puts their branches below
each other, so that one product with the Jacobians serves all of them. All products go through NumPy's BLAS.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["DenseJacobian", "Jacobian", "MLPJacobian"]

Array = NDArray[np.float64]


class Jacobian(Protocol):
    """A stack of N Jacobians J_s (n, m) and its products with ``sum_i w_i o v_i o h_i``."""

    norm2: float
    # Smallest relative error that `residual` can tell from zero.
    floor: float

    def summed(self, h: Array) -> Array:
        """Whatever of ``sum_s J_s h_si`` the next two products can share."""
        ...

    def outputs(self, summed: Array, v: Array) -> Array:
        """``sum_s J_s v_i h_si``, shape (c, n)."""
        ...

    def inputs(self, summed: Array, w: Array) -> Array:
        """``sum_s J_s^T w_i h_si``, shape (c, m)."""
        ...

    def samples(self, w: Array, v: Array) -> Array:
        """``w_i^T J_s v_i``, shape (c, N)."""
        ...

    def residual(self, w: Array, v: Array, h: Array) -> tuple[float, Array, Array, Array]:
        """For E = model - J of one start: ||E||^2 and its products with all but one of the factors."""
        ...


class DenseJacobian:
    """Jacobians in memory, (N, n, m) float64; one pass over them for `summed` and one for `samples`."""

    floor = 0.0

    def __init__(self, jac: Array) -> None:
        self.jac = np.ascontiguousarray(jac)
        self.count, self.n, self.m = jac.shape
        self.flat = self.jac.reshape(self.count, self.n * self.m)
        self.norm2 = float(np.vdot(self.jac, self.jac))

    def summed(self, h: Array) -> Array:
        """``sum_s J_s h_si`` as (c, n, m)."""
        return (h @ self.flat).reshape(-1, self.n, self.m)

    def outputs(self, summed: Array, v: Array) -> Array:
        """See `Jacobian`."""
        found: Array = np.matmul(summed, v[:, :, None])[:, :, 0]
        return found

    def inputs(self, summed: Array, w: Array) -> Array:
        """See `Jacobian`."""
        found: Array = np.matmul(w[:, None, :], summed)[:, 0]
        return found

    def samples(self, w: Array, v: Array) -> Array:
        """See `Jacobian`."""
        return _pairs(w, v) @ self.flat.T

    def residual(self, w: Array, v: Array, h: Array) -> tuple[float, Array, Array, Array]:
        """See `Jacobian`. The entries are formed, so that errors down to round-off are right."""
        pairs = _pairs(w, v)
        error = h.T @ pairs
        error -= self.flat
        summed = (h @ error).reshape(-1, self.n, self.m)
        return float(np.vdot(error, error)), self.outputs(summed, v), self.inputs(summed, w), pairs @ error.T


def _pairs(w: Array, v: Array) -> Array:
    """``w_i o v_i``, one row a branch."""
    found: Array = (w[:, :, None] * v[:, None, :]).reshape(w.shape[0], -1)
    return found


class MLPJacobian:
    """Jacobians ``W2 diag(s_s) W1`` of a two-layer network, held as their factors.

    Parameters
    ----------
    w1 : (h, m), w2 : (n, h), slopes : (N, h)
        Weights, and the derivative of the activation at each hidden unit and sample.

    Notes
    -----
    O(c h (n + m + N)) a product instead of O(c n m N). The norm of a residual is a difference of two large numbers:
    relative errors below about 1e-7 cannot be told from zero.
    """

    floor = 1e-7

    def __init__(self, w1: Array, w2: Array, slopes: Array) -> None:
        self.w1, self.w2, self.slopes = w1, w2, slopes
        self.n, self.m, self.count = w2.shape[0], w1.shape[1], slopes.shape[0]
        total = (w2.T @ w2) * (w1 @ w1.T)
        total *= slopes.T @ slopes
        self.norm2 = float(total.sum())

    def summed(self, h: Array) -> Array:
        """``sum_s h_si s_s`` as (c, h)."""
        return h @ self.slopes

    def outputs(self, summed: Array, v: Array) -> Array:
        """See `Jacobian`."""
        return (summed * (v @ self.w1.T)) @ self.w2.T

    def inputs(self, summed: Array, w: Array) -> Array:
        """See `Jacobian`."""
        return ((w @ self.w2) * summed) @ self.w1

    def samples(self, w: Array, v: Array) -> Array:
        """See `Jacobian`."""
        return ((w @ self.w2) * (v @ self.w1.T)) @ self.slopes.T

    def residual(self, w: Array, v: Array, h: Array) -> tuple[float, Array, Array, Array]:
        """See `Jacobian`."""
        summed = self.summed(h)
        by_output, by_input, by_sample = self.outputs(summed, v), self.inputs(summed, w), self.samples(w, v)
        ww, vv, hh = w @ w.T, v @ v.T, h @ h.T
        norm2 = self.norm2 - 2 * float(np.vdot(w, by_output)) + float(np.sum(ww * vv * hh))
        return (
            max(norm2, 0.0),
            (vv * hh) @ w - by_output,
            (ww * hh) @ v - by_input,
            (ww * vv) @ h - by_sample,
        )
