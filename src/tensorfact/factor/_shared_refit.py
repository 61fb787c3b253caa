"""Least squares for a shared basis and its codes, each with the other one fixed, by conjugate gradients.

The loss is ``sum_l w_l tr((X_l - U V_l)^T A_l (X_l - U V_l) B_l)``: X_l (d, n) is a weight with its short side first,
A_l is the Gram matrix of the inputs of a weight whose inputs lie on the short side, B_l of one whose inputs lie on the
long side, and the identity where nothing is known. No inverse is taken, so singular Gram matrices do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Member", "loss", "refit_basis", "refit_codes", "scores", "top"]

Matrix = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Member:
    """One weight: `target` (d, n), the metric on its short or long side, and the weight of its loss."""

    target: Matrix
    short: Matrix | None = None
    long: Matrix | None = None
    weight: float = 1.0

    def left(self, x: Matrix) -> Matrix:
        """Apply the metric of the short side."""
        return x if self.short is None else np.matmul(self.short, x)

    def right(self, x: Matrix) -> Matrix:
        """Apply the metric of the long side."""
        return x if self.long is None else np.matmul(x, self.long)

    def norm2(self, x: Matrix) -> float:
        """Squared norm of ``x`` (d, n) in both metrics, without the weight."""
        return _dot(self.left(x), self.right(x))


def loss(basis: Matrix, codes: Sequence[Matrix], members: Sequence[Member]) -> float:
    """The weighted sum of squared errors."""
    return sum(m.weight * m.norm2(m.target - basis @ v) for m, v in zip(members, codes, strict=True))


def refit_codes(basis: Matrix, codes: Matrix, mask: npt.NDArray[np.bool_] | None, member: Member, steps: int) -> Matrix:
    """Codes (r, n) of one weight with a smaller loss, zero outside `mask`; `steps` of preconditioned CG.

    Cost of a step: ``2 r^2 n`` flop, and ``2 r n^2`` more where the metric is on the long side.
    """
    inner = basis.T @ member.left(basis)
    diagonal = np.diag(inner)[:, None] * (1.0 if member.long is None else np.diag(member.long)[None, :])
    keep: Matrix = np.ones((1, 1), dtype=bool) if mask is None else mask

    def apply(v: Matrix) -> Matrix:
        out: Matrix = keep * member.right(inner @ v)
        return out

    start = keep * codes
    residual = keep * member.right(basis.T @ member.left(member.target)) - apply(start)
    return _conjugate(apply, start, residual, diagonal, steps)


def refit_basis(basis: Matrix, codes: Sequence[Matrix], members: Sequence[Member], steps: int) -> Matrix:
    """A basis (d, r) with a smaller loss for the given codes; `steps` of preconditioned CG.

    Cost: ``2 r^2 n`` flop a weight to set up, ``2 d r (r + d)`` a weight and step.
    """
    outer, target, diagonal = [], np.zeros_like(basis), np.zeros_like(basis)
    for member, v in zip(members, codes, strict=True):
        weighted = member.weight * member.right(v)
        outer.append(weighted @ v.T)
        target += member.left(member.target @ weighted.T)
        ones = np.ones(len(basis)) if member.short is None else np.diag(member.short)
        diagonal += np.outer(ones, np.diag(outer[-1]))
    plain = [one for one, member in zip(outer, members, strict=True) if member.short is None]
    common = sum(plain[1:], plain[0]) if plain else None
    rest = [(one, member) for one, member in zip(outer, members, strict=True) if member.short is not None]

    def apply(u: Matrix) -> Matrix:
        out = np.zeros_like(u) if common is None else u @ common
        for one, member in rest:
            out += member.left(u @ one)
        return out

    return _conjugate(apply, basis, target - apply(basis), diagonal, steps)


def scores(basis: Matrix, codes: Matrix, member: Member) -> Matrix:
    """What each code entry adds to its weight in the metric: ``|V_ij| ||U_i||_A B_jj^(1/2)``, times the root weight.

    With orthonormal columns and no metric that is ``|V_ij|``, the criterion of FiPS; with the metric of the long side
    and ``U = I`` it is that of Wanda (Sun et al., 2024).
    """
    lengths = np.sqrt(np.maximum(np.einsum("ij,ij->j", basis, member.left(basis)), 0) * member.weight)
    found: Matrix = np.abs(codes) * lengths[:, None]
    if member.long is not None:
        found *= np.sqrt(np.maximum(np.diag(member.long), 0))
    return found


def top(found: Sequence[Matrix], kept: int) -> list[npt.NDArray[np.bool_]]:
    """Masks of the `kept` largest of all scores together, exactly so many; of equal ones the first."""
    flat = np.concatenate([np.asarray(part).ravel() for part in found])
    if kept >= flat.size:
        chosen = np.ones(flat.size, dtype=bool)
    else:
        bound = np.partition(flat, flat.size - kept)[flat.size - kept]
        chosen = flat > bound
        ties = np.flatnonzero(flat == bound)
        chosen[ties[: kept - np.count_nonzero(chosen)]] = True
    ends = np.cumsum([part.size for part in found])
    parts = np.split(chosen, ends[:-1])
    return [part.reshape(one.shape) for part, one in zip(parts, found, strict=True)]


def _conjugate(apply: Callable[[Matrix], Matrix], x: Matrix, residual: Matrix, diagonal: Matrix, steps: int) -> Matrix:
    """Conjugate gradients with a diagonal preconditioner; stops where the residual is rounding noise."""
    positive = diagonal[diagonal > 0]
    if not positive.size:
        return x
    scale = np.where(diagonal > 0, diagonal, positive.mean()).astype(x.dtype)
    z = residual / scale
    direction, energy = z, _dot(residual, z)
    # the energy of x itself in the same units: where the residual is below its rounding, steps would only add noise
    noise = (4 * float(np.finfo(x.dtype).eps)) ** 2 * (_dot(x, scale * x) + energy)
    for _ in range(steps):
        if not energy > noise:
            break
        image = apply(direction)
        curvature = _dot(direction, image)
        if not curvature > 0:
            break
        length = energy / curvature
        x = x + x.dtype.type(length) * direction
        residual = residual - x.dtype.type(length) * image
        z = residual / scale
        before, energy = energy, _dot(residual, z)
        direction = z + x.dtype.type(energy / before) * direction
    return x


def _dot(a: Matrix, b: Matrix) -> float:
    """Inner product, accumulated in float64 over rows."""
    return float(np.sum(np.einsum("ij,ij->i", a, b), dtype=np.float64))
