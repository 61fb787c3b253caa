"""Bases for the dominant right singular subspace of an operand (m, n): power, shifted and block Krylov iteration.

Everything here works on the ``n`` side, so callers transpose until ``n`` is the side that is cheaper to orthonormalise.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tensorfact import kernels
from tensorfact.factor._operand import Operand
from tensorfact.factor._ops import NumpyOps

__all__ = ["gram_basis", "krylov_basis", "power_basis", "rayleigh_ritz"]


class _Shift:
    """The dynamic shift of Feng and Yu (dashSVD, ACM TOMS 2024, Algorithm 4): half of sigma_l^2, from below.

    With ``X`` orthonormal, the smallest singular value of ``(A^H A - alpha I) X`` is at most ``sigma_l^2 - alpha``, so
    the average of the two never exceeds ``sigma_l^2 / 2`` and the order of the directions is kept.
    """

    def __init__(self, ops: NumpyOps) -> None:
        self.ops = ops
        self.value = 0.0

    def update(self, r: Any) -> None:
        """Learn from the triangle of ``q r = (A^H A - alpha I) x``."""
        smallest = self.ops.smallest_singular_value(r)
        if smallest > self.value:
            self.value = (self.value + smallest) / 2


def _iterate(ops: NumpyOps, multiply: Any, x: Any, n_iter: int, *, shifted: bool) -> Any:
    """``n_iter`` times ``multiply(x, alpha) = (A^H A - alpha I) x``, each normalised once; the last one fully."""
    shift = _Shift(ops)
    for i in range(n_iter):
        last = i == n_iter - 1
        x, r = ops.orth(multiply(x, shift.value), passes=2 if last else 1)
        if shifted and not last:
            shift.update(r)
    return x


def power_basis(
    op: Operand, width: int, n_iter: int, rng: np.random.Generator, *, shifted: bool, start: Any | None = None
) -> Any:
    """Orthonormal (n, width): ``orth((A^H A)^n_iter A^H Omega)``, Halko et al. (2011, Alg. 4.4).

    With ``shifted`` each product uses ``A^H A - alpha I``.  Cost: ``n_iter`` normal products and one sketch.
    """
    ops = op.ops

    def multiply(x: Any, alpha: float) -> Any:
        return ops.subtract(op.normal(x), alpha, x)

    x = op.sketch(width, rng) if start is None else start
    x, _ = ops.orth(x, passes=2 if n_iter == 0 else 1)
    return _iterate(ops, multiply, x, n_iter, shifted=shifted)


def gram_basis(op: Operand, width: int, n_iter: int, rng: np.random.Generator, *, shifted: bool) -> Any:
    """The same on a Gram matrix (n, n) that is formed once, so that a step costs ``2 n^2 width``.

    The shifted iteration starts from a block on the short side: after one product it spans as much as a sketch does.
    """
    ops = op.ops
    gram = op.gram(double=False)
    applied = 0.0

    def multiply(x: Any, alpha: float) -> Any:
        nonlocal gram, applied
        if alpha != applied:
            gram = ops.add_diagonal(gram, applied - alpha)
            applied = alpha
        return ops.matmul(gram, x)

    x = multiply(ops.draw(op.shape[1], width, rng), 0.0) if shifted else op.sketch(width, rng)
    x, _ = ops.orth(x, passes=2 if n_iter == 0 else 1)
    return _iterate(ops, multiply, x, n_iter, shifted=shifted)


def krylov_basis(op: Operand, width: int, n_iter: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Block Krylov basis (n, l) and ``A`` times it (m, l), ``l <= (n_iter + 1) * width`` (Musco and Musco, 2015).

    Full orthogonalisation, twice.  Directions that the earlier blocks already hold are dropped, so breakdown (the rank
    is reached) ends the expansion instead of adding round-off.
    """
    ops = op.ops
    x, _ = ops.orth(op.sketch(width, rng))
    basis, image = [x], [op.apply(x)]
    for _ in range(n_iter):
        y = op.adjoint(image[-1])
        floor = 10 * ops.eps * float(ops.column_norms(y).max(initial=0.0))
        for _ in range(2):
            for q in basis:
                y = y - ops.matmul(q, ops.matmul(ops.adjoint(q), y))
        keep = ops.column_norms(y) > floor
        if not keep.any():
            break
        if not keep.all():
            ops.notes.append("krylov-breakdown")
            y = ops.take(y, np.flatnonzero(keep))
        x, _ = ops.orth(y)
        for q in basis:  # normalising a small remainder brings back what round-off left along the basis
            x = x - ops.matmul(q, ops.matmul(ops.adjoint(q), x))
        x, _ = ops.orth(x)
        basis.append(x)
        image.append(op.apply(x))
    return ops.hstack(basis), ops.hstack(image)


def rayleigh_ritz(ops: NumpyOps, x: Any, z: Any, rank: int) -> tuple[Any, np.ndarray, Any]:
    """Leading triplets of ``z x^H`` for orthonormal ``x`` (n, l) and ``z = A x`` (m, l): left (m, k), s, right (n, k).

    Through the Gram matrix of ``z`` in float64 where its squared condition allows, else through a QR and an SVD of the
    triangle.  ``s`` is float64.
    """
    values, w = kernels.eigh(ops.gram64(z))
    values, w = values[::-1][:rank], w[:, ::-1][:, :rank]
    # what the accumulation resolves, with a margin: single precision data never gets there
    limit = 1e-6 if ops.eps < 1e-10 else 1e-12
    if not values[-1] > max(limit, 1e3 * ops.wide_eps) * values[0]:
        return _triangle_svd(ops, x, z, rank)
    w = ops.from_numpy(np.ascontiguousarray(w))
    left, right = ops.matmul(z, w), ops.matmul(x, w)
    s = ops.column_norms(left)
    left = left / ops.from_numpy(s)[None, :]
    left = ops.settle(left, s, float(np.finfo(np.float64).eps))
    order = np.argsort(-s, kind="stable")
    if np.any(order[1:] < order[:-1]):
        s = np.sort(s)[::-1]
        left, right = ops.take(left, order), ops.take(right, order)
    return left, s, right


def _triangle_svd(ops: NumpyOps, x: Any, z: Any, rank: int) -> tuple[Any, np.ndarray, Any]:
    q, r = ops.orth(z)
    uw, s, wh = np.linalg.svd(np.asarray(r), full_matrices=False)
    left = ops.matmul(q, ops.from_numpy(np.ascontiguousarray(uw[:, :rank])))
    right = ops.matmul(x, ops.from_numpy(np.ascontiguousarray(wh[:rank].conj().T)))
    return left, s[:rank].astype(np.float64), right
