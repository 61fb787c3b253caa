"""One start in full: error, gradient in all parameters, and the exact coefficients of both data blocks together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tensorfact import kernels
from tensorfact.factor._branches import Branches, Problem, centred

__all__ = ["Point", "coefficient_matrix", "coupled_coefficients", "dense_basis", "evaluate", "pinned"]

Array = NDArray[np.float64]
_REFINEMENTS = 3  # of the coupled normal equations by their residual: they square the condition number
_COEFFICIENT_RIDGE = 1e-12


@dataclass(frozen=True, slots=True)
class Point:
    """Errors and gradient at one start; `half` is half the sum of squares that the gradient belongs to."""

    half: float
    objective: float
    jac_error2: float
    f_error2: float
    z: Array  # (r, N)
    h: Array  # slopes of the branches
    bend: Array  # their second derivatives
    r: Array  # their centred values
    grad_w: Array
    grad_v: Array
    grad_c: Array

    @property
    def gradient(self) -> Array:
        """All of it, in the order w, v, c."""
        return np.concatenate([self.grad_w.ravel(), self.grad_v.ravel(), self.grad_c.ravel()])


def evaluate(problem: Problem, state: Branches) -> Point:
    """Errors of a start and their gradient; z depends on v, so the splines' slopes and bends take part.

    With Q the residual of the Jacobians along w_i and v_i and P that of the values along w_i:
    ``dV = E2(W, H) + (Q * g'' + lam P * g') X`` and ``dc_i = B'_i^T Q_i + lam B_i^T P_i``.
    """
    z = state.v @ problem.x.T
    args = z, state.knots, problem.degree, state.c
    h, bend = kernels.spline_values(*args, 1), kernels.spline_values(*args, 2)
    r = centred(kernels.spline_values(*args))
    jac_error2, grad_w, grad_v, along = problem.jac.residual(state.w, state.v, h)
    rest = r.T @ state.w - problem.f
    f_error2 = float(np.vdot(rest, rest))
    lam = problem.lam
    value_along = state.w @ rest.T
    grad_w = grad_w + lam * (r @ rest)
    grad_v = grad_v + (along * bend + lam * value_along * h) @ problem.x
    grad_c = _adjoint(problem, state, z, along, 1) + lam * _adjoint(problem, state, z, value_along, 0)
    return Point(
        half=0.5 * (jac_error2 + lam * f_error2),
        objective=float(problem.objective(jac_error2, f_error2)),
        jac_error2=jac_error2,
        f_error2=f_error2,
        z=z,
        h=h,
        bend=bend,
        r=r,
        grad_w=grad_w,
        grad_v=grad_v,
        grad_c=grad_c,
    )


def _adjoint(problem: Problem, state: Branches, z: Array, y: Array, nu: int) -> Array:
    found: Array = kernels.spline_gram(z, state.knots, problem.degree, y, nu)[1]
    return found


def dense_basis(problem: Problem, z: Array, knots: Array, nu: int) -> Array:
    """All basis functions at all samples, (r, k, N): for normal matrices across branches, which are dense anyway."""
    local, first = kernels.spline_basis(z, knots, problem.degree, nu)
    basis = np.zeros((z.shape[0], problem.n_basis, z.shape[1]))
    rows = first[:, None, :] + np.arange(problem.degree + 1)[:, None]
    np.put_along_axis(basis, rows, local, axis=1)
    return basis


def coefficient_matrix(problem: Problem, state: Branches, slopes: Array, values: Array) -> Array:
    """Normal matrix of all coefficients (r k, r k) from basis slopes and values (r, k, N).

    The data leave the mean of each branch free. A penalty on it takes nothing from the fit and keeps the coefficients
    small: large ones lose the digits of their differences.
    """
    r, k, _ = slopes.shape
    plain = centred(values)
    ww, vv = state.w @ state.w.T, state.v @ state.v.T
    flat, flat_plain = slopes.reshape(r * k, -1), plain.reshape(r * k, -1)
    matrix = np.kron(ww * vv, np.ones((k, k))) * (flat @ flat.T)
    if problem.lam > 0:
        matrix += problem.lam * np.kron(ww, np.ones((k, k))) * (flat_plain @ flat_plain.T)
    mean = values.mean(axis=-1)
    size = np.trace(matrix) / max(1, matrix.shape[0])
    blocks = matrix.reshape(r, k, r, k)
    blocks[np.arange(r), :, np.arange(r), :] += size * k * mean[:, :, None] * mean[:, None, :]
    return matrix


def coupled_coefficients(problem: Problem, state: Branches) -> Array:
    """Least-squares coefficients of all branches together, at fixed w, v and knots.

    Notes
    -----
    ``A_ij = [(V V^T) * (W W^T)]_ij B'_i^T B'_j + lam (W W^T)_ij B_i^T B_j``. Constants, and linear terms where the
    ``w_i v_i^T`` depend on each other, are invisible: a ridge of 1e-12 decides them. O(N (r k)^2 + (r k)^3).
    """
    z = state.v @ problem.x.T
    slopes = dense_basis(problem, z, state.knots, 1)
    full = dense_basis(problem, z, state.knots, 0)
    plain, matrix = centred(full), coefficient_matrix(problem, state, slopes, full)
    size = matrix.shape[0]
    scale = float(np.trace(matrix)) / size
    if not np.isfinite(scale) or scale <= 0:
        return np.zeros(state.c.shape)
    matrix[np.diag_indices(size)] += _COEFFICIENT_RIDGE * scale
    inverse = np.linalg.inv(matrix)
    r, k, _ = slopes.shape
    c = np.zeros((r, k))
    best, best_half = c, np.inf
    for _ in range(1 + _REFINEMENTS):
        h, values = np.einsum("rk,rkn->rn", c, slopes), np.einsum("rk,rkn->rn", c, plain)
        jac_error2, _, _, along = problem.jac.residual(state.w, state.v, h)
        rest = values.T @ state.w - problem.f
        half = 0.5 * (jac_error2 + problem.lam * float(np.vdot(rest, rest)))
        if not half < best_half:
            break
        best, best_half = c, half
        gradient = np.einsum("rkn,rn->rk", slopes, along) + problem.lam * np.einsum(
            "rkn,rn->rk", plain, state.w @ rest.T
        )
        c = pinned(c - (inverse @ gradient.ravel()).reshape(r, k), full)
    return best


def pinned(c: Array, values: Array) -> Array:
    """Coefficients (r, k) less a constant each, so that the branches have zero mean over the samples."""
    means: Array = np.einsum("rk,rk->r", c, values.mean(axis=-1))
    return c - means[:, None]
