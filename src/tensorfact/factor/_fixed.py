"""Leading triplets at a fixed rank: run the chosen route, check that it was accurate, fall back where it was not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorfact.factor import _exact, _range
from tensorfact.factor._input import Source
from tensorfact.factor._operand import Operand, Streamed
from tensorfact.factor._ops import NumpyOps
from tensorfact.factor._route import STEPS, Route, choose_route

__all__ = ["Triplets", "fixed_rank", "oriented"]


@dataclass(slots=True)
class Triplets:
    """``A ~ (left * s) right^H``, with the record of how it was found."""

    left: Any
    s: np.ndarray
    right: Any
    path: str
    n_iter: int = 0
    n_oversamples: int = 0
    converged: bool = True

    def flipped(self) -> Triplets:
        """The triplets of ``A^H``."""
        self.left, self.right = self.right, self.left
        return self

    def truncated(self, rank: int) -> Triplets:
        """The first ``rank`` triplets."""
        if rank < self.s.shape[0]:
            self.left, self.s, self.right = self.left[:, :rank], self.s[:rank], self.right[:, :rank]
        return self


def oriented(op: Operand) -> tuple[Operand, bool]:
    """``op`` or its adjoint, so that its second side is the one to iterate on, and whether it was turned.

    The short side, where a block is cheaper to orthonormalise; but a file is walked by its rows, one read a step.
    """
    flip = op.shape[1] > op.shape[0] and not isinstance(op, Streamed)
    return (op.transposed(), True) if flip else (op, False)


def fixed_rank(
    source: Source, rank: int, extra: int | None, steps: int | None, method: str, rng: np.random.Generator
) -> Triplets:
    """Triplets of ``source.op`` at ``rank``; ``extra`` oversamples and ``steps`` power iterations, None for "auto"."""
    op, flip = oriented(source.op)
    if extra is None:
        extra = max(10, math.ceil(0.05 * rank))
    width = min(rank + extra, min(op.shape))
    route = choose_route(op, rank, width, steps, method)
    found = _run(source, op, route, rank, width, rng)
    found.n_oversamples = 0 if found.path in ("gram-exact", "full-svd") else width - rank
    return found.flipped() if flip else found


def _run(source: Source, op: Operand, route: Route, rank: int, width: int, rng: np.random.Generator) -> Triplets:
    ops = op.ops
    if route.path == "gram-exact":
        return _exact_route(source, op, rank)
    if route.path == "krylov":
        x, z = _range.krylov_basis(op, width, route.n_iter, rng)
        return Triplets(*_range.rayleigh_ritz(ops, x, z, rank), path="krylov", n_iter=route.n_iter)
    start, shifted, n_iter = None, route.shifted, route.n_iter
    if route.path == "gram-subspace":
        x = _range.gram_basis(op, width, n_iter, rng, shifted=shifted)
        found = Triplets(*_range.rayleigh_ritz(ops, x, op.apply(x), rank), path="gram-subspace", n_iter=n_iter)
        if _resolved(ops, found.s):
            return found
        ops.notes.append("gram-unresolved")
        if shifted:  # "auto": go on from here; iterations that were asked for start again, from a sketch
            start, n_iter = x, STEPS
    x = _range.power_basis(op, width, n_iter, rng, shifted=shifted, start=start)
    path = "shifted" if shifted else "subspace"
    return Triplets(*_range.rayleigh_ritz(ops, x, op.apply(x), rank), path=path, n_iter=n_iter)


def _resolved(ops: NumpyOps, s: np.ndarray) -> bool:
    """Whether round-off of a Gram matrix in working precision, about eps sigma_1^2, is far below sigma_k^2."""
    return bool(s[-1] ** 2 > 250 * ops.eps * s[0] ** 2)


def _exact_route(source: Source, op: Operand, rank: int) -> Triplets:
    """Gram matrix in working precision, then in double, then a full SVD: the first that resolves the rank."""
    ops = op.ops
    if ops.eps > 1e-10:
        found = Triplets(*_exact.gram_exact(op, _exact.gram_spectrum(op, double=False)[1], rank), path="gram-exact")
        if _resolved(ops, found.s):
            return found
        ops.notes.append("gram-in-double")
    values, w = _exact.gram_spectrum(op)
    if values[rank - 1] > _exact.resolvable(ops) * values[0]:
        return Triplets(*_exact.gram_exact(op, w, rank), path="gram-exact")
    array = source.array if op is source.op else ops.adjoint(source.array)
    return Triplets(*_exact.full_svd(op, array), path="full-svd").truncated(rank)
