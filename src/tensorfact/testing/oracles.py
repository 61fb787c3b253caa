"""Slow, obvious, double-precision answers to compare with. Independent of the rest of tensorfact by intent.

Every error is relative: Frobenius errors to ``||A||_F``, spectral errors to ``||A||_2``.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "OptimalErrors",
    "as_double",
    "effective_rank_for",
    "full_bonds",
    "largest_principal_sine",
    "optimal_errors",
    "optimal_errors_of",
    "rank_for_tail",
    "reconstruct",
    "relative_error",
    "singular_values",
    "spectral_error",
    "train_bound",
    "train_to_dense",
    "unfolding_values",
]


class OptimalErrors(NamedTuple):
    """Smallest relative errors that any matrix of the given rank can reach (Eckart, Young, Mirsky)."""

    frobenius: float
    spectral: float


def as_double(a: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return `a` as float64, or as complex128 if it is complex."""
    array = np.asarray(a)
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _ratio(part: float, whole: float) -> float:
    if whole == 0.0:  # zero matrix: only zero approximates it
        return 0.0 if part == 0.0 else float("inf")
    return part / whole


def singular_values(a: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """All singular values of `a` (m, n), float64, non-increasing, by LAPACK's full SVD.

    Examples
    --------
    >>> singular_values([[3.0, 0.0], [0.0, 4.0]])
    array([4., 3.])
    """
    return np.asarray(np.linalg.svd(as_double(a), compute_uv=False), dtype=np.float64)


def optimal_errors(a: npt.ArrayLike, rank: int) -> OptimalErrors:
    """Relative Frobenius and spectral error of the best approximation of `a` of rank `rank`.

    Examples
    --------
    >>> optimal_errors([[3.0, 0.0], [0.0, 4.0]], 1)
    OptimalErrors(frobenius=0.6, spectral=0.75)
    """
    return optimal_errors_of(singular_values(a), rank)


def optimal_errors_of(s: npt.NDArray[np.float64], rank: int) -> OptimalErrors:
    """`optimal_errors` of a matrix whose singular values `s` are known, largest first."""
    tail = s[rank:]
    return OptimalErrors(
        frobenius=_ratio(float(np.linalg.norm(tail)), float(np.linalg.norm(s))),
        spectral=_ratio(float(tail[0]) if tail.size else 0.0, float(s[0]) if s.size else 0.0),
    )


def effective_rank_for(a: npt.ArrayLike, tol: float) -> int:
    """Smallest rank whose best approximation of `a` has relative Frobenius error <= `tol`.

    Examples
    --------
    >>> effective_rank_for([[3.0, 0.0], [0.0, 4.0]], 0.6)
    1
    """
    return rank_for_tail(singular_values(a), tol)


def rank_for_tail(s: npt.NDArray[np.float64], tol: float) -> int:
    """Smallest number of the singular values ``s`` whose tail is at most ``tol`` times their norm."""
    total = float(np.linalg.norm(s))
    for rank in range(s.size):
        if float(np.linalg.norm(s[rank:])) <= tol * total:
            return rank
    return int(s.size)


def reconstruct(u: npt.ArrayLike, s: npt.ArrayLike, vh: npt.ArrayLike) -> npt.NDArray[Any]:
    """``u @ diag(s) @ vh`` in double precision.

    Examples
    --------
    >>> reconstruct([[1.0], [0.0]], [2.0], [[0.0, 1.0]])
    array([[0., 2.],
           [0., 0.]])
    """
    product: npt.NDArray[Any] = (as_double(u) * as_double(s)) @ as_double(vh)
    return product


def relative_error(a: npt.ArrayLike, approx: npt.ArrayLike) -> float:
    """Compute ``||a - approx||_F / ||a||_F`` in double precision; 0 for two zero arrays.

    Examples
    --------
    >>> relative_error([3.0, 4.0], [3.0, 3.0])
    0.2
    """
    exact = as_double(a)
    return _ratio(float(np.linalg.norm(exact - as_double(approx))), float(np.linalg.norm(exact)))


def spectral_error(a: npt.ArrayLike, approx: npt.ArrayLike) -> float:
    """Compute ``||a - approx||_2 / ||a||_2`` in double precision, by a full SVD.

    Examples
    --------
    >>> spectral_error([[3.0, 0.0], [0.0, 4.0]], [[0.0, 0.0], [0.0, 4.0]])
    0.75
    """
    exact = as_double(a)
    difference = exact - as_double(approx)
    if not np.isfinite(difference).all():  # LAPACK would raise; a broken approximation is an infinite error
        return float("inf")
    return _ratio(float(np.linalg.norm(difference, 2)), float(np.linalg.norm(exact, 2)))


def largest_principal_sine(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Sine of the largest principal angle between the column spans of `x` and `y` (1 if their dimensions differ).

    Examples
    --------
    >>> largest_principal_sine([[1.0], [0.0]], [[0.0], [2.0]])
    1.0
    """
    first, second = (np.linalg.qr(as_double(v))[0] for v in (x, y))
    if first.shape != second.shape:
        return 1.0
    # The residual form keeps its accuracy near zero, where arccos of the cosines loses half of the digits.
    return float(np.linalg.norm(second - first @ (first.conj().T @ second), 2))


def train_to_dense(cores: Sequence[npt.ArrayLike]) -> npt.NDArray[Any]:
    """The tensor of a chain of cores (r, n, r') in double precision, one core after another.

    Examples
    --------
    >>> train_to_dense([np.ones((1, 2, 3)), np.ones((3, 2, 1))])
    array([[3., 3.],
           [3., 3.]])
    """
    dense = as_double(cores[0])
    for core in cores[1:]:
        dense = np.tensordot(dense, as_double(core), axes=1)
    result: npt.NDArray[Any] = dense[0, ..., 0]
    return result


def unfolding_values(a: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], ...]:
    """Singular values of every unfolding (n_1 .. n_k, n_k+1 .. n_d), k = 1 .. d - 1.

    Examples
    --------
    >>> [values.size for values in unfolding_values(np.ones((2, 3, 4)))]
    [2, 4]
    """
    array = as_double(a)
    return tuple(singular_values(array.reshape(prod(array.shape[:k]), -1)) for k in range(1, array.ndim))


def train_bound(values: Sequence[npt.NDArray[np.float64]], bonds: Sequence[int]) -> float:
    """Relative error that TT-SVD never exceeds at these inner bonds: root of the sum of the squared tails.

    ``values`` come from `unfolding_values`. It is at most ``sqrt(d - 1)`` times the best possible error (Oseledets,
    2011).

    Examples
    --------
    >>> train_bound(unfolding_values([[3.0, 0.0], [0.0, 4.0]]), [1])
    0.6
    """
    tails = [optimal_errors_of(s, bond).frobenius for s, bond in zip(values, bonds, strict=True)]
    return float(np.linalg.norm(tails)) if tails else 0.0


def full_bonds(shape: Sequence[int], rank: float = float("inf")) -> tuple[int, ...]:
    """Largest bonds at most ``rank`` that a tensor of this shape can use, all of a neighbour's included.

    Examples
    --------
    >>> full_bonds((2, 2, 2, 5)), full_bonds((4, 5, 6), 3)
    ((2, 4, 5), (3, 3))
    """
    sides = [min(prod(shape[:k]), prod(shape[k:]), rank) for k in range(1, len(shape))]
    for k in range(1, len(sides)):
        sides[k] = min(sides[k], sides[k - 1] * shape[k])
    for k in range(len(sides) - 1, 0, -1):
        sides[k - 1] = min(sides[k - 1], sides[k] * shape[k])
    return tuple(int(side) for side in sides)
