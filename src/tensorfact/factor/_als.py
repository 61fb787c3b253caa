"""Coupled matrix-tensor factorisation by alternating least squares, all starts at once.

Lineage: CMTF with constrained factors (Zniyed, Usevich, Miron, Brie, arXiv 2106.13542), B-splines (arXiv 2504.03263,
2605.18794).
Not known from these: the exact regularisation, normalisation, initialisation and stop rule. Those here are our own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tensorfact import kernels
from tensorfact.factor._branches import Branches, Problem, data_knots, normal_equations, values
from tensorfact.factor._coupled import coupled_coefficients

__all__ = ["Sweeps", "alternate"]

Array = NDArray[np.float64]
_MAX_REPAIRS = 3  # of one branch
_COEFFICIENT_RIDGE = 1e-12  # of the banded systems, relative to the mean diagonal


@dataclass(slots=True)
class Sweeps:
    """What the sweeps found: the best iterate of each start and how they went."""

    best: Branches
    objective: Array  # (q,)
    history: list[Array] = field(default_factory=list)  # objective of each start after each sweep
    repairs: int = 0
    converged: bool = False


def alternate(
    problem: Problem,
    w: Array,
    v: Array,
    h: Array,
    r: Array,
    *,
    max_iter: int,
    stop_tol: float,
    exact: bool,
    rng: np.random.Generator,
    progress: Callable[[int, Array], None] | None = None,
) -> Sweeps:
    """Sweep from w (q, r, n), v (q, r, m), h and r (q, r, N) until the objective settles in every start."""
    q, rank, _ = w.shape
    lam, scale = problem.lam, max(float(np.abs(problem.x).max(initial=0.0)), 1e-300)
    c = np.zeros((q, rank, problem.n_basis))
    knots = np.zeros((q, rank, problem.n_basis + problem.degree + 1))
    found = Sweeps(Branches(w, v, knots, c), np.full(q, np.inf))
    repairs = np.zeros((q, rank), np.int64)
    vv, hh, rr = _gram(v), _gram(h), _gram(r)
    for sweep in range(max_iter):
        summed = problem.jac.summed(_rows(h))
        target = problem.jac.outputs(summed, _rows(v)).reshape(w.shape) + lam * (r @ problem.f)
        w = _solve(problem, vv * hh + lam * rr, target, w)
        target = problem.jac.inputs(summed, _rows(w)).reshape(v.shape)
        v = _solve(problem, _gram(w) * hh, target, v)
        length = np.linalg.norm(v, axis=-1, keepdims=True)
        length = np.where(length > 1e-150, length, 1.0)
        v, w, r = v / length, w * length, r / length
        ww, vv = _gram(w), _gram(v)

        z = v @ problem.x.T
        knots, alive = data_knots(problem, z, 1e-9 * scale)
        by_sample = problem.jac.samples(_rows(w), _rows(v)).reshape(h.shape)
        if exact:
            state = Branches(w, v, knots, c)
            c = np.stack([coupled_coefficients(problem, state.start(i)) for i in range(q)])
        else:
            both = np.stack([by_sample, w @ problem.f.T])
            h, r = _solve(problem, np.stack([ww * vv, ww]), both, np.stack([h, r]))
            c = _project(problem, z, knots, h, r)
        c[~alive] = 0
        h, r = values(problem, z, knots, c, 1), values(problem, z, knots, c, 0)
        mean = r.mean(axis=-1, keepdims=True)
        c, r = c - mean, r - mean

        hh, rr = _gram(h), _gram(r)

        model = np.sum(ww * vv * hh, axis=(-1, -2))
        jac_error2 = np.maximum(problem.jac.norm2 - 2 * np.sum(by_sample * h, axis=(-1, -2)) + model, 0.0)
        rest = problem.f.T - np.swapaxes(w, -1, -2) @ r
        objective = problem.objective(jac_error2, np.sum(rest * rest, axis=(-1, -2)))
        objective = np.where(np.isfinite(objective), objective, np.inf)
        found.history.append(objective)
        better = objective < found.objective
        if better.any():
            keep = better[:, None, None]
            best = found.best
            found.best = Branches(*(np.where(keep, new, old) for new, old in (
                (w, best.w), (v, best.v), (knots, best.knots), (c, best.c))))  # fmt: skip
            found.objective = np.where(better, objective, found.objective)
        if progress is not None:
            progress(sweep + 1, found.objective.copy())
        if _settled(found.history, stop_tol):
            found.converged = True
            break

        size, extent = (np.sqrt(np.einsum("qii->qi", a))[..., None] for a in (ww, hh))
        product = (size * extent)[..., 0]
        dead = ~alive | ~np.isfinite(product) | (product <= 1e-8 * product.max(axis=-1, keepdims=True))
        balance = np.sqrt(np.where(size * extent > 0, extent / np.where(size > 0, size, 1.0), 1.0))
        w, h, r, c = w * balance, h / balance, r / balance, c / balance
        square = balance * np.swapaxes(balance, -1, -2)
        hh, rr = hh / square, rr / square
        if (dead & (repairs < _MAX_REPAIRS)).any():
            for i, b in zip(*np.nonzero(dead & (repairs < _MAX_REPAIRS)), strict=True):
                w[i, b], v[i, b], h[i, b] = _strongest(problem, w[i], v[i], h[i], int(b), rng)
                r[i, b] = 0
                repairs[i, b] += 1
            vv, hh, rr = _gram(v), _gram(h), _gram(r)
    found.repairs = int(repairs.sum())
    return found


def _rows(a: Array) -> Array:
    return a.reshape(-1, a.shape[-1])


def _gram(a: Array) -> Array:
    return a @ np.swapaxes(a, -1, -2)


def _solve(problem: Problem, gram: Array, target: Array, before: Array) -> Array:
    """Tikhonov step, relative to the mean diagonal of each system: towards the iterate before, or towards zero.

    Any leading axes. The systems are small and have many right-hand sides: by the inverse of the Cholesky factor, these
    take two matrix products.
    """
    rank = gram.shape[-1]
    mu = np.einsum("...ii->...", gram)[..., None, None] / rank
    mu = np.where(mu > 0, mu, 1.0) * max(problem.ridge, 4 * np.finfo(np.float64).eps * rank)
    system = gram + mu * np.eye(rank)
    if problem.proximal:
        target = target + mu * before
    try:
        inverse = np.linalg.inv(np.linalg.cholesky(system))
    except np.linalg.LinAlgError:
        return _any_solve(system, target)
    found: Array = np.swapaxes(inverse, -1, -2) @ (inverse @ target)
    return found


def _any_solve(system: Array, target: Array) -> Array:
    """The same without a Cholesky factor, which rounding or numbers that are not finite can take away."""
    try:
        found: Array = np.linalg.solve(system, target).astype(np.float64, copy=False)
        return found
    except np.linalg.LinAlgError:
        flat = zip(system.reshape(-1, *system.shape[-2:]), target.reshape(-1, *target.shape[-2:]), strict=True)
        return np.stack([np.linalg.lstsq(a, b, rcond=None)[0] for a, b in flat]).reshape(target.shape)


def _project(problem: Problem, z: Array, knots: Array, h: Array, r: Array) -> Array:
    """Nearest splines to the columns h (as derivatives) and r (as values), one coefficient vector each."""
    band, rhs = normal_equations(problem, z, knots, h, 1)
    if problem.lam > 0:
        # The mean of r is free: the bias takes it. So the fit may add a constant, which is what zero-mean data ask for.
        value_band, value_rhs = normal_equations(problem, z, knots, r, 0)
        band += problem.lam * value_band
        rhs += problem.lam * value_rhs
    scale = band[:, :, 0].mean(axis=1)
    band[:, :, 0] += (_COEFFICIENT_RIDGE * np.where(scale > 0, scale, 1.0))[:, None]
    c, _ = kernels.spline_solve(band, rhs)
    if not np.isfinite(c).all():
        band[:, :, 0] += (1e-8 * np.where(scale > 0, scale, 1.0))[:, None]
        c = np.nan_to_num(kernels.spline_solve(band, rhs)[0])
    return c.reshape(*z.shape[:-1], -1)


def _strongest(
    problem: Problem, w: Array, v: Array, h: Array, branch: int, rng: np.random.Generator
) -> tuple[Array, Array, Array]:
    """The leading rank-one term of what the other branches leave of the Jacobians, by power iteration."""
    others = np.arange(w.shape[0]) != branch
    wo, vo, ho = w[others], v[others], h[others]
    a = rng.standard_normal((1, w.shape[1]))[0]
    b = rng.standard_normal((1, v.shape[1]))[0]
    s: Array = np.ones(h.shape[1])
    for _ in range(5):
        b = b / max(float(np.linalg.norm(b)), 1e-300)
        a = problem.jac.outputs(problem.jac.summed(s[None]), b[None])[0] - ((vo @ b) * (ho @ s)) @ wo
        a = a / max(float(np.linalg.norm(a)), 1e-300)
        s = problem.jac.samples(a[None], b[None])[0] - ((vo @ b) * (wo @ a)) @ ho
        b = problem.jac.inputs(problem.jac.summed(s[None]), a[None])[0] - ((wo @ a) * (ho @ s)) @ vo
    length = float(np.linalg.norm(b))
    if not np.isfinite(length) or length < 1e-150:
        b, s = rng.standard_normal((1, v.shape[1]))[0], np.ones(h.shape[1])
        length = float(np.linalg.norm(b))
    extent = float(np.sqrt(np.linalg.norm(s))) or 1.0
    return a * extent, b / length, s / extent


def _settled(history: list[Array], stop_tol: float) -> bool:
    """Whether no start changed by more than `stop_tol` of its objective in any of the last three sweeps."""
    if len(history) < 4:
        return False
    last = np.array(history[-4:])
    if not np.isfinite(last).all():
        return False
    change = np.abs(np.diff(last, axis=0)) / np.maximum(last[:-1], 1e-30)
    return bool((change < stop_tol).all())
