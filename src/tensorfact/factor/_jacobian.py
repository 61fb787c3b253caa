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

    def project(self, v: Array) -> Array:
        """Whatever of ``J_s v_i`` the next two products can share."""
        ...

    def outputs(self, projected: Array, h: Array) -> Array:
        """``sum_s J_s v_i h_si``, shape (c, n)."""
        ...

    def samples(self, projected: Array, w: Array) -> Array:
        """``w_i^T J_s v_i``, shape (c, N)."""
        ...

    def inputs(self, w: Array, h: Array) -> Array:
        """``sum_s J_s^T w_i h_si``, shape (c, m)."""
        ...

    def residual(self, w: Array, v: Array, h: Array) -> tuple[float, Array, Array, Array]:
        """For E = model - J of one start: ||E||^2 and its products with all but one of the factors."""
        ...


class DenseJacobian:
    """Jacobians in memory, (N, n, m) float64."""

    floor = 0.0

    def __init__(self, jac: Array) -> None:
        self.jac = np.ascontiguousarray(jac)
        self.count, self.n, self.m = jac.shape
        self.flat = self.jac.reshape(self.count * self.n, self.m)
        self.norm2 = float(np.vdot(self.jac, self.jac))

    def project(self, v: Array) -> Array:
        """``J_s v_i`` as (c, N, n)."""
        return (v @ self.flat.T).reshape(v.shape[0], self.count, self.n)

    def outputs(self, projected: Array, h: Array) -> Array:
        """See `Jacobian`."""
        found: Array = np.matmul(h[:, None, :], projected)[:, 0]
        return found

    def samples(self, projected: Array, w: Array) -> Array:
        """See `Jacobian`."""
        found: Array = np.matmul(projected, w[:, :, None])[:, :, 0]
        return found

    def inputs(self, w: Array, h: Array) -> Array:
        """See `Jacobian`."""
        pairs = h[:, :, None] * w[:, None, :]  # as small as the smaller passes over the Jacobians allow
        return pairs.reshape(w.shape[0], -1) @ self.flat

    def residual(self, w: Array, v: Array, h: Array) -> tuple[float, Array, Array, Array]:
        """See `Jacobian`. The entries are formed, so that errors down to round-off are right."""
        pairs = (h[:, :, None] * w[:, None, :]).reshape(w.shape[0], -1)
        error = pairs.T @ v
        error -= self.flat
        projected = (v @ error.T).reshape(v.shape[0], self.count, self.n)
        by_input = pairs @ error
        return float(np.vdot(error, error)), self.outputs(projected, h), by_input, self.samples(projected, w)


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

    def project(self, v: Array) -> Array:
        """``W1 v_i`` as (c, h)."""
        return v @ self.w1.T

    def outputs(self, projected: Array, h: Array) -> Array:
        """See `Jacobian`."""
        return ((h @ self.slopes) * projected) @ self.w2.T

    def samples(self, projected: Array, w: Array) -> Array:
        """See `Jacobian`."""
        return ((w @ self.w2) * projected) @ self.slopes.T

    def inputs(self, w: Array, h: Array) -> Array:
        """See `Jacobian`."""
        return ((w @ self.w2) * (h @ self.slopes)) @ self.w1

    def residual(self, w: Array, v: Array, h: Array) -> tuple[float, Array, Array, Array]:
        """See `Jacobian`."""
        projected = self.project(v)
        by_output, by_sample, by_input = self.outputs(projected, h), self.samples(projected, w), self.inputs(w, h)
        ww, vv, hh = w @ w.T, v @ v.T, h @ h.T
        norm2 = self.norm2 - 2 * float(np.vdot(w, by_output)) + float(np.sum(ww * vv * hh))
        return (
            max(norm2, 0.0),
            (vv * hh) @ w - by_output,
            (ww * hh) @ v - by_input,
            (ww * vv) @ h - by_sample,
        )
