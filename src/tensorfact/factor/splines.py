"""B-spline bases of one variable, and where to put their knots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tensorfact import kernels
from tensorfact.factor._input import check_count

__all__ = ["BSplineBasis", "clamped_knots", "difference_penalty", "quantile_knots"]

Array = NDArray[Any]
Outside = Literal["linear", "clamp", "error"]

MAX_DEGREE = 7
_CLOSE = 1e-8  # breakpoints closer than this share of the range are one


def clamped_knots(lo: float, hi: float, n_basis: int, degree: int = 3) -> Array:
    """Equally spaced knots on [lo, hi], each end repeated ``degree + 1`` times.

    Parameters
    ----------
    lo, hi : float
        Finite, ``lo < hi``.
    n_basis : int
        Number of basis functions, at least ``degree + 1``.
    degree : int
        0 to 7.

    Returns
    -------
    numpy.ndarray of float64, shape (n_basis + degree + 1,)

    Raises
    ------
    ValueError
        If a number is out of range, or the interval is too short for that many different knots.

    Examples
    --------
    >>> clamped_knots(0, 1, 4, 2).tolist()
    [0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0]
    """
    degree, n_basis = _sizes(degree, n_basis)
    lo, hi = float(lo), float(hi)
    if not (np.isfinite(lo) and np.isfinite(hi) and lo < hi):
        raise ValueError(f"lo and hi must be finite and lo < hi, got {lo} and {hi}")
    breaks = np.linspace(lo, hi, n_basis - degree + 1)
    if not (np.diff(breaks) > 0).all():
        raise ValueError(f"[{lo}, {hi}] is too short for {breaks.size} different breakpoints")
    return np.pad(breaks, degree, mode="edge")


def quantile_knots(z: ArrayLike, n_basis: int, degree: int = 3, *, blend: float = 0.8) -> Array:
    """Clamped knots that follow the data: a blend of their quantiles and of equal spacing, without ties.

    Parameters
    ----------
    z : array_like, shape (n,)
        Data, at least two different values.
    n_basis : int
        Number of basis functions, at least ``degree + 1``.
    degree : int
        0 to 7.
    blend : float
        Share of the quantiles, 0 to 1. Pure quantiles (1) leave huge intervals at the ends of heavy tails, equal
        spacing (0) leaves intervals without data.

    Returns
    -------
    numpy.ndarray of float64, shape (n_basis + degree + 1,)
        From the least to the largest value. Breakpoints that tie (within 1e-8 of the range) are moved into the widest
        gaps, so that inner knots are always different.

    Raises
    ------
    ValueError
        If `z` is empty, not finite or constant, or a number is out of range.

    Examples
    --------
    >>> quantile_knots([0, 1, 2, 10], 4, 2, blend=1.0).tolist()
    [0.0, 0.0, 0.0, 1.5, 10.0, 10.0, 10.0]
    """
    degree, n_basis = _sizes(degree, n_basis)
    data = np.asarray(z, np.float64).ravel()
    if data.size == 0 or not np.isfinite(data).all():
        raise ValueError(f"z must be finite and not empty, got {data.size} values")
    if isinstance(blend, bool) or not 0 <= blend <= 1:
        raise ValueError(f"blend must be between 0 and 1, got {blend!r}")
    if not data.min() < data.max():
        raise ValueError(f"z must hold two different values, got only {data[0]}")
    share = np.linspace(0, 1, n_basis - degree + 1)
    data = np.sort(data)
    lo, hi = data[0], data[-1]
    quantiles = np.interp(share * (data.size - 1), np.arange(data.size), data)
    breaks = blend * quantiles + (1 - blend) * (lo + share * (hi - lo))
    breaks[0], breaks[-1] = lo, hi
    return np.pad(_untied(breaks), degree, mode="edge")


def _untied(breaks: Array) -> Array:
    """Merge breakpoints that are too close and halve the widest gaps instead; the ends stay."""
    least = _CLOSE * (breaks[-1] - breaks[0])
    kept = [breaks[0]]
    for at in breaks[1:-1]:
        if at - kept[-1] > least and breaks[-1] - at > least:
            kept.append(at)
    kept.append(breaks[-1])
    while len(kept) < breaks.size:
        gaps = np.diff(kept)
        widest = int(np.argmax(gaps))
        kept.insert(widest + 1, kept[widest] + gaps[widest] / 2)
    result = np.array(kept)
    if not (np.diff(result) > 0).all():
        raise ValueError(f"[{breaks[0]}, {breaks[-1]}] is too short for {breaks.size} different breakpoints")
    return result


def difference_penalty(n_basis: int, order: int = 2) -> Array:
    """Penalty on differences of neighbouring coefficients (P-splines) as a band: ``c^T P c = sum (diff^order c)^2``.

    Parameters
    ----------
    n_basis : int
        Number of coefficients, more than `order`.
    order : int
        Order of the differences; 0 penalises the coefficients themselves.

    Returns
    -------
    numpy.ndarray of float64, shape (n_basis, order + 1)
        ``band[j, d] = P[j, j + d]``, as `tensorfact.kernels.spline_gram` lays it out; zero beyond the end.

    References
    ----------
    Eilers and Marx, "Flexible smoothing with B-splines and penalties", Statistical Science 11 (1996).

    Examples
    --------
    >>> difference_penalty(3, 1).tolist()
    [[1.0, -1.0], [2.0, -1.0], [1.0, 0.0]]
    """
    n_basis = check_count("n_basis", n_basis, 1)
    order = check_count("order", order, 0, n_basis - 1)
    stencil = np.ones(1)
    for _ in range(order):
        stencil = np.convolve(stencil, [-1.0, 1.0])
    band = np.zeros((n_basis, order + 1))
    for q in range(order + 1):
        for s in range(q, order + 1):
            band[q : n_basis - order + q, s - q] += stencil[q] * stencil[s]
    return band


def _sizes(degree: int, n_basis: int) -> tuple[int, int]:
    degree = check_count("degree", degree, 0, MAX_DEGREE)
    return degree, check_count("n_basis", n_basis, degree + 1)


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
