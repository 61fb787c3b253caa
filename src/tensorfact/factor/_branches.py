"""State of a decoupling under way, and its splines: knots, values, gauge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensorfact import kernels
from tensorfact.factor._jacobian import Jacobian
from tensorfact.factor.splines import clamped_knots, quantile_knots

__all__ = ["Branches", "Problem", "alive_range", "centred", "uniform_range", "values"]

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
    """Splines or derivatives at z (..., N), any leading axes."""
    flat = [a.reshape(-1, a.shape[-1]) for a in (z, knots, c)]
    found: Array = kernels.spline_values(flat[0], flat[1], problem.degree, flat[2], nu).reshape(z.shape)
    return found


def centred(a: Array) -> Array:
    """Less the mean over the samples."""
    rest: Array = a - a.mean(axis=-1, keepdims=True)
    return rest


def alive_range(z: Array, scale: float) -> NDArray[np.bool_]:
    """Whether each row of z spreads enough, against the size of the data, to carry a spline."""
    alive: NDArray[np.bool_] = np.ptp(z, axis=-1) > 1e-9 * scale
    return alive


def data_knots(problem: Problem, z: Array, alive: NDArray[np.bool_]) -> Array:
    """Knots that follow z, one row a branch; dead branches get those of the unit interval."""
    rows = np.empty((*z.shape[:-1], problem.n_basis + problem.degree + 1))
    share = np.linspace(0, 1, problem.n_basis - problem.degree + 1)
    ordered = np.sort(z, axis=-1)
    at = share * (problem.count - 1)
    below = np.minimum(at.astype(np.int64), problem.count - 2)
    part = at - below
    lo, hi = ordered[..., :1], ordered[..., -1:]
    quantiles = (1 - part) * ordered[..., below] + part * ordered[..., below + 1]
    breaks = problem.blend * quantiles + (1 - problem.blend) * (lo + share * (hi - lo))
    breaks[..., :1], breaks[..., -1:] = lo, hi
    p = problem.degree
    rows[..., p : rows.shape[-1] - p] = breaks
    rows[..., :p], rows[..., rows.shape[-1] - p :] = breaks[..., :1], breaks[..., -1:]
    tied = alive & (np.diff(breaks, axis=-1).min(axis=-1) <= 1e-8 * (hi - lo)[..., 0])
    for i in zip(*np.nonzero(tied), strict=True):  # rare: data with many equal values
        rows[i] = quantile_knots(z[i], problem.n_basis, p, blend=problem.blend)
    rows[~alive] = clamped_knots(0.0, 1.0, problem.n_basis, p)
    return rows


def uniform_range(problem: Problem, z: Array, margin: float = 0.1) -> Array:
    """Equally spaced knots over the range of each row of z, a margin of it added at both ends."""
    rows = np.empty((*z.shape[:-1], problem.n_basis + problem.degree + 1))
    for i in np.ndindex(z.shape[:-1]):
        lo, hi = float(z[i].min()), float(z[i].max())
        room = margin * (hi - lo) if hi > lo else max(1.0, abs(lo)) * 1e-3
        rows[i] = clamped_knots(lo - room, hi + room, problem.n_basis, problem.degree)
    return rows
