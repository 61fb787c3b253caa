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
from tensorfact.factor._branches import Branches, Problem, alive_range, data_knots, values
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
    projected = problem.jac.project(_rows(v))
    for sweep in range(max_iter):
        target = problem.jac.outputs(projected, _rows(h)).reshape(w.shape) + lam * (r @ problem.f)
        w = _solve(problem, _gram(v) * _gram(h) + lam * _gram(r), target, w)
        target = problem.jac.inputs(_rows(w), _rows(h)).reshape(v.shape)
        v = _solve(problem, _gram(w) * _gram(h), target, v)
        length = np.linalg.norm(v, axis=-1, keepdims=True)
        length = np.where(length > 1e-150, length, 1.0)
        v, w, r = v / length, w * length, r / length

        projected = problem.jac.project(_rows(v))
        z = v @ problem.x.T
        alive = alive_range(z, scale)
        knots = data_knots(problem, z, alive)
        by_sample = problem.jac.samples(projected, _rows(w)).reshape(h.shape)
        if exact:
            state = Branches(w, v, knots, c)
            c = np.stack([coupled_coefficients(problem, state.start(i)) for i in range(q)])
        else:
            h = _solve(problem, _gram(w) * _gram(v), by_sample, h)
            r = _solve(problem, _gram(w), w @ problem.f.T, r)
            c = _project(problem, z, knots, h, r)
        c[~alive] = 0
        h, r = values(problem, z, knots, c, 1), values(problem, z, knots, c, 0)
        mean = r.mean(axis=-1, keepdims=True)
        c, r = c - mean, r - mean

        model = np.sum(_gram(w) * _gram(v) * _gram(h), axis=(-1, -2))
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

        size, extent = np.linalg.norm(w, axis=-1, keepdims=True), np.linalg.norm(h, axis=-1, keepdims=True)
        product = (size * extent)[..., 0]
        dead = ~alive | ~np.isfinite(product) | (product <= 1e-8 * product.max(axis=-1, keepdims=True))
        balance = np.sqrt(np.where(size * extent > 0, extent / np.where(size > 0, size, 1.0), 1.0))
        w, h, r, c = w * balance, h / balance, r / balance, c / balance
        if (dead & (repairs < _MAX_REPAIRS)).any():
            for i, b in zip(*np.nonzero(dead & (repairs < _MAX_REPAIRS)), strict=True):
                w[i, b], v[i, b], h[i, b] = _strongest(problem, w[i], v[i], h[i], int(b), rng)
                r[i, b] = 0
                repairs[i, b] += 1
            projected = problem.jac.project(_rows(v))
    found.repairs = int(repairs.sum())
    return found


def _rows(a: Array) -> Array:
    return a.reshape(-1, a.shape[-1])


def _gram(a: Array) -> Array:
    return a @ np.swapaxes(a, -1, -2)


def _solve(problem: Problem, gram: Array, target: Array, before: Array) -> Array:
    """Tikhonov step, relative to the mean diagonal of each system: towards the iterate before, or towards zero."""
    rank = gram.shape[-1]
    mu = np.trace(gram, axis1=-2, axis2=-1)[:, None, None] / rank
    mu = np.where(mu > 0, mu, 1.0) * max(problem.ridge, 4 * np.finfo(np.float64).eps * rank)
    system = gram + mu * np.eye(rank)
    if problem.proximal:
        target = target + mu * before
    try:
        return np.linalg.solve(system, target)
    except np.linalg.LinAlgError:
        return np.stack([np.linalg.lstsq(a, b, rcond=None)[0] for a, b in zip(system, target, strict=True)])


def _project(problem: Problem, z: Array, knots: Array, h: Array, r: Array) -> Array:
    """Nearest splines to the columns h (as derivatives) and r (as values), one coefficient vector each."""
    p, t, points = problem.degree, _rows(knots), _rows(z)
    band, rhs = kernels.spline_gram(points, t, p, _rows(h), 1)
    if problem.lam > 0:
        # The mean of r is free: the bias takes it. So the fit may add a constant, which is what zero-mean data ask for.
        value_band, value_rhs = kernels.spline_gram(points, t, p, _rows(r), 0)
        band, rhs = band + problem.lam * value_band, rhs + problem.lam * value_rhs
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
        projected = problem.jac.project(b[None])
        a = problem.jac.outputs(projected, s[None])[0] - ((vo @ b) * (ho @ s)) @ wo
        a = a / max(float(np.linalg.norm(a)), 1e-300)
        s = problem.jac.samples(projected, a[None])[0] - ((vo @ b) * (wo @ a)) @ ho
        b = problem.jac.inputs(a[None], s[None])[0] - ((wo @ a) * (ho @ s)) @ vo
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
