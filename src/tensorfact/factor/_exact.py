"""Exact routes: eigenvectors of the small Gram matrix, or the full SVD."""

from __future__ import annotations

from typing import Any

import numpy as np

from tensorfact import kernels
from tensorfact.factor._operand import Operand
from tensorfact.factor._ops import NumpyOps

__all__ = ["full_svd", "gram_exact", "gram_spectrum", "resolvable"]


def resolvable(ops: NumpyOps) -> float:
    """Smallest ``(sigma / sigma_1)^2`` that a Gram matrix accumulated in double precision resolves to 0.1 %."""
    return max(1e-9 if ops.eps < 1e-10 else 1e-12, 1e3 * ops.wide_eps)


def gram_spectrum(op: Operand, *, double: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (float64, non-increasing, clipped at zero) and eigenvectors (n, n) of ``A^H A``.

    ``double`` accumulates in float64 or complex128; otherwise working precision, twice as fast in float32.
    Cost: ``m n^2`` flop for the product, about ``9 n^3`` for ``syevd``.
    """
    values, w = kernels.eigh(op.ops.to_numpy(op.gram(double=double)))
    return np.maximum(values[::-1].astype(np.float64), 0.0), w[:, ::-1]


def gram_exact(op: Operand, w: np.ndarray, rank: int) -> tuple[Any, np.ndarray, Any]:
    """Leading triplets from eigenvectors ``w`` of the Gram matrix: left (m, k), s float64 (k,), right (n, k)."""
    ops = op.ops
    eps = float(np.finfo(w.dtype).eps)
    right = ops.from_numpy(np.ascontiguousarray(w[:, :rank]))
    left = op.apply(right)
    s = ops.column_norms(left)
    left = left / ops.from_numpy(np.where(s > 0, s, 1.0))[None, :]
    left = ops.settle(left, s, eps)
    order = np.argsort(-s, kind="stable")
    if np.any(order[1:] < order[:-1]):  # neighbours that agree to round-off may come out exchanged
        s, left, right = s[order], ops.take(left, order), ops.take(right, order)
    return left, s, right


def full_svd(op: Operand, a: Any) -> tuple[Any, np.ndarray, Any]:
    """All triplets of an array ``a`` by LAPACK: left (m, r), s float64 (r,), right (n, r)."""
    u, s, vh = op.ops.svd(a)
    op.ops.reads += 1
    return u, op.ops.to_numpy(s).astype(np.float64), op.ops.adjoint(vh)
