"""State of a decoupling under way, and its splines: knots, values, gauge."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensorfact.factor._jacobian import Jacobian
from tensorfact.factor.knots import clamped_knots, quantile_knots
from tensorfact.kernels._dispatch import checked_threads
from tensorfact.kernels._spline_bodies import _spline_gram, _spline_values

__all__ = [
    "Branches",
    "Problem",
    "alive_range",
    "centred",
    "data_knots",
    "normal_equations",
    "uniform_range",
    "values",
]

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Problem:
    """Data after normalisation, and the settings that every step needs."""

    x: Array  # (N, m)
    f: Array  # (N, n), zero mean
    jac: Jacobian
    rank: int
    degree: int
    n_basis: int
    weight: float  # of the function values, both terms relative to their norms
    ridge: float
    proximal: bool
    blend: float
    f_norm2: float

    @property
    def count(self) -> int:
        """Number of samples."""
        return int(self.x.shape[0])

    @property
    def jac_scale(self) -> float:
        """``||J||^2``, or one where all Jacobians are zero."""
        return self.jac.norm2 if self.jac.norm2 > 0 else 1.0

    @property
    def lam(self) -> float:
        """Weight of the squared error of values against that of Jacobians, both unnormalised."""
        return self.weight * self.jac_scale / self.f_norm2 if self.f_norm2 > 0 else 0.0

    def objective(self, jac_error2: Any, f_error2: Any) -> Any:
        """Relative squared error of the Jacobians plus `weight` times that of the values."""
        share = self.weight / self.f_norm2 if self.f_norm2 > 0 else 0.0
        return jac_error2 / self.jac_scale + share * f_error2


@dataclass(slots=True)
class Branches:
    """Factors of q starts: w (q, r, n), v (q, r, m), knots (q, r, k + p + 1), c (q, r, k)."""

    w: Array
    v: Array
    knots: Array
    c: Array

    def start(self, i: int) -> Branches:
        """One start, without the first axis."""
        return Branches(self.w[i], self.v[i], self.knots[i], self.c[i])

    def copy(self) -> Branches:
        """Independent arrays."""
        return Branches(self.w.copy(), self.v.copy(), self.knots.copy(), self.c.copy())


def values(problem: Problem, z: Array, knots: Array, c: Array, nu: int) -> Array:
    """Splines or derivatives at finite z (..., N), any leading axes, on knots from `data_knots`: not checked again."""
    out = np.empty(z.shape)
    points, t, flat = (a.reshape(-1, a.shape[-1]) for a in (z, knots, np.ascontiguousarray(c)))
    _spline_values(points, t, problem.degree, nu, False, flat, out.reshape(points.shape), checked_threads(None))
    return out


def normal_equations(problem: Problem, z: Array, knots: Array, y: Array, nu: int) -> tuple[Array, Array]:
    """As `kernels.spline_gram` of the same arguments, leading axes in one, for knots from `data_knots`."""
    points, t, target = (np.ascontiguousarray(a).reshape(-1, a.shape[-1]) for a in (z, knots, y))
    r, order = t.shape[0], problem.degree + 1
    band, rhs = np.empty((r * problem.n_basis, order)), np.empty((r, problem.n_basis))
    weights = np.empty((0, points.shape[1]))
    _spline_gram(points, t, problem.degree, nu, False, weights, target, band, rhs, checked_threads(None))
    return band.reshape(r, problem.n_basis, order), rhs


def centred(a: Array) -> Array:
    """Less the mean over the samples."""
    rest: Array = a - a.mean(axis=-1, keepdims=True)
    return rest


def alive_range(z: Array, scale: float) -> NDArray[np.bool_]:
    """Whether each row of z spreads enough, against the size of the data, to carry a spline."""
    alive: NDArray[np.bool_] = np.ptp(z, axis=-1) > 1e-9 * scale
    return alive


def data_knots(problem: Problem, z: Array, least: float) -> tuple[Array, NDArray[np.bool_]]:
    """Knots that follow z, one row a branch, and which branches are alive: z spreads over more than `least`.

    Dead branches get the knots of the unit interval.
    """
    p = problem.degree
    rows = np.empty((*z.shape[:-1], problem.n_basis + p + 1))
    share, below, part = _places(problem.count, problem.n_basis - p + 1)
    ordered = np.sort(z, axis=-1)
    lo, hi = ordered[..., :1], ordered[..., -1:]
    spread = hi - lo
    alive: NDArray[np.bool_] = (spread[..., 0] > least) & (spread[..., 0] < np.inf)
    breaks = rows[..., p : rows.shape[-1] - p]
    breaks[...] = (1 - part) * ordered[..., below] + part * ordered[..., below + 1]
    if problem.blend < 1:
        breaks *= problem.blend
        breaks += (1 - problem.blend) * (lo + share * spread)
    rows[..., : p + 1], rows[..., -p - 1 :] = lo, hi
    tied = alive & ((breaks[..., 1:] - breaks[..., :-1]).min(axis=-1) <= 1e-8 * spread[..., 0])
    if tied.any():
        for i in zip(*np.nonzero(tied), strict=True):  # rare: data with many equal values
            rows[i] = quantile_knots(z[i], problem.n_basis, p, blend=problem.blend)
    if not alive.all():
        rows[~alive] = clamped_knots(0.0, 1.0, problem.n_basis, p)
    return rows, alive


@lru_cache(maxsize=8)
def _places(count: int, breaks: int) -> tuple[Array, NDArray[np.int64], Array]:
    """Shares of the breaks, and where these quantiles lie among `count` sorted numbers: index below, and part."""
    share = np.linspace(0, 1, breaks)
    at = share * (count - 1)
    below = np.minimum(at.astype(np.int64), count - 2)
    return share, below, at - below


def uniform_range(problem: Problem, z: Array, margin: float = 0.1) -> Array:
    """Equally spaced knots over the range of each row of z, a margin of it added at both ends."""
    rows = np.empty((*z.shape[:-1], problem.n_basis + problem.degree + 1))
    for i in np.ndindex(z.shape[:-1]):
        lo, hi = float(z[i].min()), float(z[i].max())
        room = margin * (hi - lo) if hi > lo else max(1.0, abs(lo)) * 1e-3
        rows[i] = clamped_knots(lo - room, hi + room, problem.n_basis, problem.degree)
    return rows
