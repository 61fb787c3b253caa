"""B-spline bases of one variable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tensorfact import kernels
from tensorfact.factor._input import check_count
from tensorfact.factor.knots import MAX_DEGREE, difference_penalty

__all__ = ["BSplineBasis"]

Array = NDArray[Any]
Outside = Literal["linear", "clamp", "error"]


@dataclass(frozen=True, slots=True, eq=False)
class BSplineBasis:
    """B-splines of one degree on given knots.

    Parameters
    ----------
    knots : array_like, shape (k + degree + 1,)
        Finite and non-decreasing, with ``knots[degree] < knots[k]``; repeated knots are allowed. float32 stays
        float32, everything else becomes float64.
    degree : int
        0 to 7.
    outside : {"linear", "clamp", "error"}
        Beyond ``domain``: straight on with the slope at the end, constant, or ``ValueError``.

    Raises
    ------
    ValueError
        If the knots do not define a basis; the message says why.

    Examples
    --------
    >>> import tensorfact
    >>> basis = tensorfact.BSplineBasis(tensorfact.clamped_knots(0, 1, 5), 3)
    >>> values, first = basis.evaluate([0.0, 0.25])
    >>> values.sum(axis=1).tolist(), first.tolist()
    ([1.0, 1.0], [0, 0])
    """

    knots: Any
    degree: int = 3
    outside: Outside = "linear"

    def __post_init__(self) -> None:  # noqa: D105
        given = np.asarray(self.knots)
        if given.ndim != 1:
            raise ValueError(f"knots must have one axis, got shape {given.shape}")
        if given.dtype.kind not in "fiu":
            raise ValueError(f"knots must be real numbers, got dtype {given.dtype}")
        if self.outside not in ("linear", "clamp", "error"):
            raise ValueError(f"outside must be 'linear', 'clamp' or 'error', got {self.outside!r}")
        knots = given.astype(np.float32 if given.dtype == np.float32 else np.float64)
        object.__setattr__(self, "degree", check_count("degree", self.degree, 0, MAX_DEGREE))
        kernels.spline_basis(np.empty((1, 0), knots.dtype), knots, self.degree)  # judges the knots
        knots.setflags(write=False)
        object.__setattr__(self, "knots", knots)

    @property
    def n_basis(self) -> int:
        """Number of basis functions."""
        return int(self.knots.size) - self.degree - 1

    @property
    def domain(self) -> tuple[float, float]:
        """Where the functions sum to one: ``knots[degree]`` to ``knots[n_basis]``."""
        return float(self.knots[self.degree]), float(self.knots[self.n_basis])

    @property
    def dtype(self) -> Any:
        """Precision of knots and results."""
        return self.knots.dtype

    @property
    def uniform(self) -> bool:
        """Whether the knots take the fast path of equal spacing."""
        return kernels.spline_uniform(self.knots, self.degree)

    def evaluate(self, x: ArrayLike, nu: int = 0) -> tuple[Array, Array]:
        """Values, or derivatives of order `nu`, of the functions that are not zero at each point.

        Parameters
        ----------
        x : array_like, shape (n,)
            Finite points.
        nu : int
            Order of the derivative.

        Returns
        -------
        values : numpy.ndarray, shape (n, degree + 1)
            Of function ``first[i] + q`` at point i. In memory one row for each q: it is made at memory speed.
        first : numpy.ndarray of int32, shape (n,)

        Raises
        ------
        ValueError
            NaN or infinity in `x`, or points outside with ``outside="error"``.
        """
        values, first = kernels.spline_basis(self._points(x), self.knots, self.degree, nu, tails=self._tails)
        return values[0].T, first[0]

    def __call__(self, x: ArrayLike, coefficients: ArrayLike, nu: int = 0) -> Array:
        """The spline ``sum_j c_j B_j`` (or a derivative) at points of any shape, without storing the basis."""
        shape = np.shape(x)
        points = self._points(np.ravel(np.asarray(x)))
        y = kernels.spline_values(points, self.knots, self.degree, coefficients, nu, tails=self._tails)
        return y.reshape(shape)

    def design_matrix(self, x: ArrayLike, nu: int = 0) -> Any:
        """`evaluate` as a ``scipy.sparse.csr_array`` of shape (n, n_basis), ``degree + 1`` entries a row."""
        from scipy.sparse import csr_array

        values, first = self.evaluate(x, nu)
        n, order = values.shape
        columns = first[:, None] + np.arange(order, dtype=np.int32)
        pointer = np.arange(0, n * order + 1, order, dtype=np.int32 if n * order < 2**31 else np.int64)
        return csr_array((np.ravel(values), np.ravel(columns), pointer), shape=(n, self.n_basis))

    def gram(self, x: ArrayLike, y: ArrayLike | None = None, nu: int = 0) -> tuple[Array, Array]:
        """Banded normal equations at points `x`: ``band[j, d] = (B^T B)[j, j + d]`` and ``B^T y``, in float64."""
        band, rhs = kernels.spline_gram(self._points(x), self.knots, self.degree, y, nu, tails=self._tails)
        return band[0], rhs[0]

    def fit(self, x: ArrayLike, y: ArrayLike, *, smooth: float = 0.0, order: int = 2, ridge: float = 1e-12) -> Array:
        """Coefficients of the least-squares spline through the points, with a P-spline penalty on request.

        Parameters
        ----------
        x, y : array_like, shape (n,)
            Data.
        smooth : float
            Weight of `difference_penalty` of this `order`, relative to the mean diagonal of ``B^T B``.
        ridge : float
            Tikhonov weight, relative alike; a positive one decides coefficients that no point determines.

        Returns
        -------
        numpy.ndarray, shape (n_basis,)

        Raises
        ------
        ValueError
            Shapes differ, NaN or infinity, negative weights, or coefficients that nothing determines.

        Notes
        -----
        Normal equations: relative accuracy eps times the squared condition number, about 1e2 for cubic splines.
        """
        values = np.asarray(y, self.dtype).ravel()
        if not np.isfinite(values).all():
            raise ValueError("y must be finite")
        if not (smooth >= 0 and ridge >= 0):
            raise ValueError(f"smooth and ridge must not be negative, got {smooth!r} and {ridge!r}")
        band, rhs = self.gram(x, values)
        scale = float(band[:, 0].mean())
        penalty = difference_penalty(self.n_basis, min(order, self.n_basis - 1)) if smooth > 0 else np.zeros((1, 1))
        total = np.zeros((self.n_basis, max(band.shape[1], penalty.shape[1])))
        total[:, : band.shape[1]] = band
        total[:, : penalty.shape[1]] += smooth * scale * penalty
        total[:, 0] += ridge * scale
        solution, _ = kernels.spline_solve(total[None], rhs[None])
        if not np.isfinite(solution).all():
            raise ValueError("x determines too few coefficients: give ridge > 0 or smooth > 0")
        found: Array = solution[0].astype(self.dtype)
        return found

    def __repr__(self) -> str:  # noqa: D105
        lo, hi = self.domain
        kind = "uniform" if self.uniform else "general"
        return (
            f"BSplineBasis(degree={self.degree}, n_basis={self.n_basis}, [{lo:.4g}, {hi:.4g}], {kind} knots, "
            f"{self.dtype})"
        )

    @property
    def _tails(self) -> Literal["linear", "clamp"]:
        return "clamp" if self.outside == "clamp" else "linear"

    def _points(self, x: ArrayLike) -> Array:
        points = np.asarray(x, self.dtype)
        if points.ndim != 1:
            raise ValueError(f"x must have one axis, got shape {points.shape}")
        if not np.isfinite(points).all():
            raise ValueError("x must be finite, got NaN or infinity")
        lo, hi = self.domain
        if self.outside == "error" and points.size and not lo <= points.min() <= points.max() <= hi:
            raise ValueError(f"x must lie in [{lo}, {hi}], got [{points.min()}, {points.max()}]")
        return points
