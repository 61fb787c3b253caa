"""Two factors with rank^2 numbers fewer and nothing lost: some rows of the matrix, and how the others follow from them.

A matrix W = L R of rank r has r rows that span the others: W[pivots] = B and W[rest] = C B. B and C take
``r (m + n) - r^2`` numbers, L and R take ``r (m + n)``. Pivoted QR finds the rows (PIFA, Zhao et al., ICML 2025); swaps
then raise their volume until no entry of C is above 1.05, so that rounding errors of B do not grow in the other rows
(maximum volume, Goreinov et al., 2010).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg

__all__ = ["pack_pivots", "pivot_numbers", "unpack_pivots"]

_LARGEST = 1.05  # of C: every swap multiplies the volume by at least so much
_SWAPS = 4  # a rank


def pivot_numbers(shape: tuple[int, int], rank: int) -> int:
    """Numbers of B and C together."""
    return rank * (sum(shape) - rank)


def pack_pivots(
    left: npt.NDArray[Any], right: npt.NDArray[Any], /
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any], npt.NDArray[Any]]:
    """Bits of the pivot rows (ceil(m / 8),), B (r, n) and C (m - r, r) of ``left @ right``, (m, r) by (r, n).

    Computed in float64; the results have the type of `right`. Cost: O(m r^2) and O(m r) a swap.

    Raises
    ------
    ValueError
        If a number is not finite.
    """
    for name, part in (("left", left), ("right", right)):
        if not np.isfinite(part).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    m, rank = left.shape
    wide = left.astype(np.float64)
    # an orthonormal basis spans the same rows, and is as well conditioned as can be
    basis = np.linalg.qr(wide)[0] if rank else wide
    order = scipy.linalg.qr(basis.T, mode="r", pivoting=True)[1] if rank else np.arange(m)
    pivots, rest = order[:rank].copy(), order[rank:].copy()
    factor = _follow(basis, pivots, rest)
    for _ in range(_SWAPS * rank):
        if not factor.size:
            break
        i, j = np.unravel_index(np.argmax(np.abs(factor)), factor.shape)
        size = factor[i, j]
        if abs(size) <= _LARGEST:
            break
        column, row = factor[:, j].copy(), factor[i].copy()
        row[j] -= 1
        column[i] += 1
        factor -= np.outer(column, row / size)
        pivots[j], rest[i] = rest[i], pivots[j]
    pivots.sort()
    rest.sort()
    mask = np.zeros(m, dtype=bool)
    mask[pivots] = True
    follow = _follow(basis, pivots, rest)
    head = wide[pivots] @ right.astype(np.float64)
    return np.packbits(mask, bitorder="little"), head.astype(right.dtype), follow.astype(right.dtype)


def _follow(basis: npt.NDArray[Any], pivots: npt.NDArray[Any], rest: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """C with ``basis[rest] = C basis[pivots]``."""
    if not len(pivots) or not len(rest):
        return np.zeros((len(rest), len(pivots)))
    found: npt.NDArray[Any] = np.linalg.solve(basis[pivots].T, basis[rest].T).T
    return found


def unpack_pivots(
    bits: npt.NDArray[np.uint8], head: npt.NDArray[Any], follow: npt.NDArray[Any], /
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Factors (m, r) and (r, n) of the matrix; the first one has an identity in the pivot rows."""
    rank, rest = head.shape[0], follow.shape[0]
    mask = np.unpackbits(bits, count=rank + rest, bitorder="little").astype(bool)
    if np.count_nonzero(mask) != rank:
        raise ValueError(f"pivots must be {rank} rows, got {np.count_nonzero(mask)}")
    left = np.zeros((rank + rest, rank), dtype=head.dtype)
    left[mask] = np.eye(rank, dtype=head.dtype)
    left[~mask] = follow
    return left, head
