"""The smallest rank that keeps a relative Frobenius error: a promise, checked before the result is handed out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tensorfact.factor import _exact, _range
from tensorfact.factor._fixed import Triplets, oriented
from tensorfact.factor._input import Source
from tensorfact.factor._operand import Dense, Operand, Portable
from tensorfact.factor._ops import NumpyOps
from tensorfact.factor._route import SMALL_SIDE

__all__ = ["achieved_error", "smallest_tol", "to_tolerance"]

# What a full SVD in working precision still reconstructs, with room for the rounding of the factors.
_FLOOR = 32.0
# Where the blocked basis has grown to this share of the short side, an exact answer is cheaper.
_GIVE_UP = 0.35


def smallest_tol(eps: float) -> float:
    """Smallest ``tol`` that is accepted for working precision ``eps``."""
    return _FLOOR * eps


def achieved_error(op: Operand, left: Any, s: np.ndarray, right: Any, limit: float = math.inf) -> float:
    """Relative Frobenius error of ``(left * s) right^H``.

    From ``||A||^2 - sum s_i^2``, exact for an orthogonal projection; where that cancels to its last digits, or where
    its round-off could decide whether ``limit`` is kept, the residual is formed block by block instead (one more read,
    ``2 m n r`` flop).
    """
    norm2, eps = op.norm2(), op.ops.eps
    if norm2 == 0.0:
        return 0.0
    tail = (norm2 - float(np.sum(s**2))) / norm2
    if tail < 1e4 * eps or abs(tail - limit**2) < 100 * eps:
        ops = op.ops
        tail = op.residual2(left, ops.from_numpy(s), ops.adjoint(right)) / norm2
    return math.sqrt(max(0.0, tail))


def rank_for(values2: np.ndarray, rest: float, limit2: float) -> int:
    """Smallest k >= 1 for which ``rest`` and the squared singular values after the k-th sum to at most ``limit2``."""
    tails = rest + np.append(np.cumsum(values2[::-1])[::-1][1:], 0.0)
    below = np.flatnonzero(tails <= limit2)
    return int(below[0]) + 1 if below.size else int(values2.size)


def to_tolerance(
    source: Source,
    tol: float,
    cap: int | None,
    extra: int | None,
    steps: int | None,
    rng: np.random.Generator,
) -> Triplets:
    """Triplets with error at most ``tol``, or the best of rank ``cap`` with ``converged=False``."""
    op, flip = oriented(source.op)
    found = None
    if not (isinstance(op, Dense | Portable) and min(op.shape) <= SMALL_SIDE):
        found = _blocked(op, tol, cap, extra, steps, rng)
    if found is None:
        found = _exactly(source, op, tol, cap)
    return found.flipped() if flip else found


def _trim(op: Operand, found: Triplets, tol: float, cap: int | None) -> Triplets | None:
    """Cut ``found`` to the smallest rank whose achieved error is at most ``tol``; None if even all of it misses.

    A ``cap`` of the user's that is reached ends the search with ``converged=False``.
    """
    norm2 = op.norm2()
    available = int(found.s.shape[0]) if cap is None else min(cap, int(found.s.shape[0]))
    rest = norm2 * achieved_error(op, found.left, found.s, found.right) ** 2
    rank = min(available, rank_for(found.s**2, rest, tol**2 * norm2))
    step = 1
    while True:  # identity and residual differ by round-off only: a step or two at most, then doubling to be finite
        left, s, right = found.left[:, :rank], found.s[:rank], found.right[:, :rank]
        if achieved_error(op, left, s, right, tol) <= tol:
            return found.truncated(rank)
        if rank >= available:
            break
        rank, step = min(available, rank + step), 2 * step
    if available == cap:
        found.converged = False
        return found.truncated(available)
    return None


def _exactly(source: Source, op: Operand, tol: float, cap: int | None) -> Triplets:
    """From the Gram spectrum, or from a full SVD where the tolerance is finer than a Gram matrix resolves."""
    ops = op.ops
    if source.array is None:
        raise ValueError(
            f"tol={tol:.3g} needs a rank near min(m, n)={min(op.shape)}, which a streamed or matrix-free input does "
            "not offer; load the matrix, loosen tol or set max_rank"
        )
    values, w = _exact.gram_spectrum(op)
    most = min(op.shape) if cap is None else cap
    rank = min(most, rank_for(values, 0.0, tol**2 * op.norm2()))
    if tol**2 > 100 * min(op.shape) * _exact.resolvable(ops) and values[rank - 1] > _exact.resolvable(ops) * values[0]:
        some = min(most, rank + 2)
        found = Triplets(*_exact.gram_exact(op, w, some), path="gram-exact")
        trimmed = _trim(op, found, tol, cap)
        if trimmed is not None:
            return trimmed
        ops.notes.append("gram-missed-tol")
    array = source.array if op is source.op else ops.adjoint(source.array)
    found = Triplets(*_exact.full_svd(op, array), path="full-svd")
    trimmed = _trim(op, found, tol, cap)
    if trimmed is None:
        raise ValueError(f"tol={tol:.3g} cannot be kept in this precision; the full SVD reaches more than that")
    return trimmed


def _blocked(
    op: Operand,
    tol: float,
    cap: int | None,
    extra: int | None,
    steps: int | None,
    rng: np.random.Generator,
) -> Triplets | None:
    """Blocked QB with the exact Frobenius update (after RandLAPACK's QB, own form); None where exact is cheaper.

    Each block is a power iteration on what the earlier ones left, so the captured energy only grows.
    """
    ops: NumpyOps = op.ops
    norm2, limit = op.norm2(), min(op.shape)
    local = isinstance(op, Dense | Portable)
    most = limit if not local else int(_GIVE_UP * limit)
    if local and tol**2 < 2e3 * ops.eps:  # the update cannot see so small a remainder
        return None
    slack = 20 * ops.eps * norm2
    basis: list[Any] = []
    images: list[Any] = []
    n_iter = 2 if steps is None else steps
    width, rest, size = 32, norm2, 0
    enough = most
    if cap is not None:
        enough = min(most, cap + (max(10, math.ceil(0.05 * cap)) if extra is None else extra))
    while True:
        while rest > tol**2 * norm2 - slack and size < enough:
            width = min(width, enough - size)
            x, image = _next_block(op, ops, basis, width, n_iter, rng)
            basis.append(x)
            images.append(image)
            size += width
            rest -= ops.sum2(image)
            width = min(2 * width, 256)
        found = Triplets(
            *_range.rayleigh_ritz(ops, ops.hstack(basis), ops.hstack(images), min(size, limit)),
            path="adaptive",
            n_iter=n_iter,
        )
        trimmed = _trim(op, found, tol, cap)
        if trimmed is not None:
            trimmed.n_oversamples = size - int(trimmed.s.shape[0])
            return trimmed
        if size >= most:
            if not local and size >= limit:
                raise ValueError(f"tol={tol:.3g} cannot be kept in this precision")
            return None
        enough, rest, slack = min(most, size + width), math.inf, 0.0  # the identity was too kind: one more block


def _next_block(
    op: Operand, ops: NumpyOps, basis: list[Any], width: int, n_iter: int, rng: np.random.Generator
) -> tuple[Any, Any]:
    def deflate(y: Any) -> Any:
        for q in basis:
            y = y - ops.matmul(q, ops.matmul(ops.adjoint(q), y))
        return y

    x = deflate(op.sketch(width, rng))
    for _ in range(n_iter):
        x, _ = ops.orth(x, passes=1)
        x = deflate(op.normal(x))
    x, _ = ops.orth(deflate(x))
    x, _ = ops.orth(deflate(x))  # what round-off left along the basis grows when a small remainder is normalised
    return x, op.apply(x)
