"""How close is close enough: one rule, ``C * eps(dtype) * cond``, and assertions built on it.

Factors are not unique, so nothing here compares factors: compare reconstructions, orthogonality and spans.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tensorfact.testing import oracles

__all__ = [
    "ORTHONORMAL_C",
    "ROUNDING_C",
    "assert_close",
    "assert_orthonormal",
    "assert_same_span",
    "orthonormality_defect",
    "tol",
]

# Worst of 400 random problems per dtype, in units of eps * cond: reconstruction 2.2 (float32) and 33 (float64),
# error against tail bound 27, ridge by augmented QR 152. 100 covers all but the last, which passes c=500 itself.
ROUNDING_C = 100.0

# Same experiment: worst ||Q^H Q - I||_F of a QR-based factor was 8.6 in units of eps * sqrt(columns). A product of two
# such factors doubles it; one lost Gram-Schmidt pass or a single Cholesky QR exceeds 50 at once.
ORTHONORMAL_C = 50.0


def tol(dtype: npt.DTypeLike, cond: float = 1.0, c: float = ROUNDING_C) -> float:
    """Relative tolerance ``c * eps(dtype) * cond`` of a backward-stable computation.

    Parameters
    ----------
    dtype : dtype-like
        Floating or complex dtype in which the computation ran (complex64 has the eps of float32).
    cond : float
        Condition number of the problem, 1 for orthogonal transformations.
    c : float
        Constant of the algorithm, 100 unless measured otherwise.

    Examples
    --------
    >>> round(tol("float32", cond=10) / float(np.finfo("float32").eps))
    1000
    """
    return float(c * np.finfo(np.dtype(dtype)).eps * cond)


def _eps_dtype(array: npt.NDArray[Any], dtype: npt.DTypeLike | None) -> np.dtype[Any]:
    chosen = np.dtype(array.dtype if dtype is None else dtype)
    return chosen if chosen.kind in "fc" else np.dtype(np.float64)


def assert_close(
    actual: npt.ArrayLike,
    desired: npt.ArrayLike,
    *,
    cond: float = 1.0,
    c: float = ROUNDING_C,
    dtype: npt.DTypeLike | None = None,
) -> None:
    """Assert ``||actual - desired||_F <= tol * ||desired||_F``, computed in double precision.

    Parameters
    ----------
    actual, desired : array_like
        Arrays of equal shape. ``dtype`` (default: that of ``actual``) sets eps.
    cond, c : float
        See `tol`.

    Raises
    ------
    AssertionError
        Shapes differ, a value is not finite, or the distance exceeds the tolerance (both are in the message).

    Examples
    --------
    >>> assert_close(np.float32([1.0, 2.0]), [1.0, 2.0 + 1e-7])
    """
    got, want = np.asarray(actual), np.asarray(desired)
    if got.shape != want.shape:
        raise AssertionError(f"shapes differ: {got.shape} against {want.shape}")
    allowed = tol(_eps_dtype(got, dtype), cond, c)
    error = oracles.relative_error(want, got)
    if not error <= allowed:
        raise AssertionError(f"relative error {error:.3g} > {allowed:.3g} (cond={cond:.3g}, c={c:.3g})")


def orthonormality_defect(q: npt.ArrayLike, *, axis: int = -1) -> float:
    """``||Q^H Q - I||_F / (eps(dtype) * sqrt(k))`` of the k columns (``axis=-1``) or rows (``axis=0``) of `q`.

    Examples
    --------
    >>> orthonormality_defect(np.eye(4, 2))
    0.0
    """
    given = np.asarray(q)
    columns = oracles.as_double(given if axis == -1 else given.conj().T)
    k = columns.shape[1]
    if k == 0:
        return 0.0
    defect = float(np.linalg.norm(columns.conj().T @ columns - np.eye(k)))
    return defect / (float(np.finfo(_eps_dtype(given, None)).eps) * float(np.sqrt(k)))


def assert_orthonormal(q: npt.ArrayLike, *, axis: int = -1, c: float = ORTHONORMAL_C) -> None:
    """Assert that the columns (``axis=-1``) or rows (``axis=0``) of `q` are orthonormal to ``c * eps * sqrt(k)``.

    Examples
    --------
    >>> assert_orthonormal(np.eye(5, 3))
    """
    defect = orthonormality_defect(q, axis=axis)
    if not defect <= c:
        raise AssertionError(f"not orthonormal: ||Q^H Q - I||_F = {defect:.3g} eps sqrt(k) > {c:.3g} eps sqrt(k)")


def assert_same_span(
    x: npt.ArrayLike, y: npt.ArrayLike, *, cond: float = 1.0, c: float = ROUNDING_C, dtype: npt.DTypeLike | None = None
) -> None:
    """Assert that the columns of `x` and `y` span one space: sine of the largest principal angle <= `tol`.

    Examples
    --------
    >>> assert_same_span([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, -1.0], [0.0, 0.0]])
    """
    sine = oracles.largest_principal_sine(x, y)
    allowed = tol(_eps_dtype(np.asarray(x), dtype), cond, c)
    if not sine <= allowed:
        raise AssertionError(f"spans differ: sine of the largest principal angle {sine:.3g} > {allowed:.3g}")
