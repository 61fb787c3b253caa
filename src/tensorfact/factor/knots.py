"""Where to put the knots of splines, and how to penalise the roughness of their coefficients."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tensorfact.factor._input import check_count

__all__ = ["MAX_DEGREE", "clamped_knots", "difference_penalty", "quantile_knots"]

Array = NDArray[Any]

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
