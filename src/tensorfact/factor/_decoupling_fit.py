"""From data to a decoupling: normalise, start, sweep, polish, choose, and go back to the user's units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tensorfact.factor._als import alternate
from tensorfact.factor._branches import Branches, Problem, alive_range
from tensorfact.factor._coupled import coupled_coefficients, evaluate
from tensorfact.factor._decoupling_result import Decoupling, DecouplingInfo
from tensorfact.factor._polish import polish

__all__ = ["Progress", "Scaling", "Settings", "fit", "scaling_of"]

Array = NDArray[np.float64]
_EXACT = 1e-26  # objective at which further starts cannot do better: squared relative errors of 1e-13


@dataclass(frozen=True, slots=True)
class Progress:
    """What the callback of a decoupling sees.

    Parameters
    ----------
    phase : str
        ``"sweep"`` or ``"polish"``.
    step : int
        Sweeps done, or starts polished.
    objective : numpy.ndarray, shape (restarts,)
        Best objective of each start so far.
    """

    phase: str
    step: int
    objective: Array


@dataclass(frozen=True, slots=True)
class Settings:
    """How to fit, checked by the caller."""

    max_iter: int
    stop_tol: float
    exact: bool
    method: str  # of the polish, or "none"
    polish_iter: int
    n_restarts: int
    progress: Callable[[Progress], None] | None


@dataclass(frozen=True, slots=True)
class Scaling:
    """Change of variables ``x~ = (x - shift) / width``, ``f~ = (f - mean) / spread``, consistent for Jacobians."""

    shift: Array
    width: Array
    mean: Array
    spread: Array


def scaling_of(x: Array, f: Array, normalize: bool) -> Scaling:
    """Zero mean always; unit deviation on request, but for what is constant."""
    shift, mean = x.mean(axis=0), f.mean(axis=0)
    if not normalize:
        return Scaling(np.zeros_like(shift), np.ones_like(shift), mean, np.ones_like(mean))

    def deviation(a: Array, centre: Array) -> Array:
        found = np.sqrt(np.mean((a - centre) ** 2, axis=0))
        varies = found > 1e-12 * np.maximum(np.abs(centre), np.abs(a).max(initial=0.0))
        return np.where(varies, found, 1.0)

    return Scaling(shift, deviation(x, shift), mean, deviation(f, mean))


def fit(
    problem: Problem,
    scaling: Scaling,
    settings: Settings,
    rng: np.random.Generator,
    notes: list[str],
    given: tuple[Array, Array, Array] | None = None,
) -> Decoupling:
    """Fit normalised data and return the result in the user's units; its errors are left for the caller to measure.

    `given` replaces the first start: w (r, n), v (r, m), h (r, N).
    """

    def tell(phase: str, step: int, objective: Array) -> None:
        if settings.progress is not None:
            settings.progress(Progress(phase, step, objective))

    start = _starts(problem, settings.n_restarts, rng, given)
    sweeps = alternate(
        problem,
        *start,
        max_iter=settings.max_iter,
        stop_tol=settings.stop_tol,
        exact=settings.exact,
        rng=rng,
        progress=lambda step, objective: tell("sweep", step, objective),
    )
    objective = sweeps.objective.copy()
    if not np.isfinite(objective).any():
        notes.append("no start gave a finite fit: the constant function")
    states = [sweeps.best.start(i).copy() for i in range(settings.n_restarts)]
    iterations = [0] * settings.n_restarts
    polished = "none"
    order = [int(i) for i in np.argsort(objective)]
    for done, i in enumerate(order):
        if settings.method == "none" or not np.isfinite(objective[i]):
            continue
        found = polish(problem, states[i], method=settings.method, max_iter=settings.polish_iter)
        iterations[i], polished = found.iterations, found.method
        if found.point.objective < objective[i]:
            states[i], objective[i] = found.state, found.point.objective
        tell("polish", done + 1, objective.copy())
        if objective[i] < _EXACT:
            break
    winner = int(np.argmin(objective))
    state = states[winner]
    if not np.isfinite(objective[winner]):
        state = _nothing(problem, state)
    floor = _floor(problem, state)
    dead = ~alive_range(state.v @ problem.x.T, max(float(np.abs(problem.x).max(initial=0.0)), 1e-300))
    if dead.any():
        notes.append(f"{int(dead.sum())} of {problem.rank} branches carry nothing")
    info = DecouplingInfo(
        polish=polished,
        sweeps=len(sweeps.history),
        polish_iterations=iterations[winner],
        repairs=sweeps.repairs,
        restarts=tuple(float(a) for a in objective),
        history=tuple(float(a[winner]) for a in sweeps.history),
        floor_function=floor[0],
        floor_jacobian=floor[1],
        converged=sweeps.converged,
        notes=tuple(notes),
    )
    return _in_users_units(problem, scaling, state, info)


def _starts(
    problem: Problem, count: int, rng: np.random.Generator, given: tuple[Array, Array, Array] | None
) -> tuple[Array, Array, Array, Array]:
    """Normal factors; the first start by generalised eigenvectors where the rank allows."""
    r, n, m = problem.rank, problem.f.shape[1], problem.x.shape[1]
    w = rng.standard_normal((count, r, n))
    v = rng.standard_normal((count, r, m))
    v /= np.linalg.norm(v, axis=-1, keepdims=True)
    h, values = rng.standard_normal((count, r, problem.count)), rng.standard_normal((count, r, problem.count))
    if given is None and 1 < r <= min(n, m):
        given = _pencil(problem, rng)
    if given is not None:
        w[0], v[0], h[0] = given
    return w, v, h, values - values.mean(axis=-1, keepdims=True)


def _pencil(problem: Problem, rng: np.random.Generator) -> tuple[Array, Array, Array] | None:
    """Factors of two random combinations of the Jacobians (Jennrich): exact without noise, else a start."""
    r, m = problem.rank, problem.x.shape[1]
    eye = np.eye(m)
    summed = problem.jac.summed(rng.standard_normal((2, problem.count)))
    first, second = (problem.jac.outputs(np.repeat(one[None], m, axis=0), eye).T for one in summed)
    try:
        u = np.linalg.svd(np.hstack([first, second]))[0][:, :r]
        t = np.linalg.svd(np.vstack([first, second]))[2][:r]
        roots, vectors = np.linalg.eig(np.linalg.solve((u.T @ second @ t.T).T, (u.T @ first @ t.T).T).T)
        w = (u @ vectors[:, np.argsort(roots.real)].real).T
        size = np.linalg.norm(w, axis=1, keepdims=True)
        w = w / np.where(size > 0, size, 1.0)
        v = np.linalg.lstsq(w.T, first, rcond=None)[0]
        length = np.linalg.norm(v, axis=1, keepdims=True)
        if not (length > 1e-12 * length.max()).all():
            return None
        v = v / length
        gram = (w @ w.T) * (v @ v.T)
        by_sample = problem.jac.samples(w, v)
        h = np.linalg.lstsq(gram, by_sample, rcond=1e-10)[0]
    except np.linalg.LinAlgError:
        return None
    return (w, v, h) if np.isfinite(h).all() else None


def _floor(problem: Problem, state: Branches) -> tuple[float, float]:
    """Relative errors (values, Jacobians) of the exact coefficients at the final weights and knots, normalised data."""
    try:
        point = evaluate(problem, Branches(state.w, state.v, state.knots, coupled_coefficients(problem, state)))
    except np.linalg.LinAlgError:
        return float("nan"), float("nan")
    f_norm2, jac_norm2 = problem.f_norm2 or 1.0, problem.jac.norm2 or 1.0
    return float(np.sqrt(point.f_error2 / f_norm2)), float(np.sqrt(point.jac_error2 / jac_norm2))


def _nothing(problem: Problem, state: Branches) -> Branches:
    knots = np.tile(
        np.pad(np.linspace(0, 1, problem.n_basis - problem.degree + 1), problem.degree, mode="edge"), (problem.rank, 1)
    )
    v = np.zeros_like(state.v)
    v[:, 0] = 1.0
    return Branches(np.zeros_like(state.w), v, knots, np.zeros_like(state.c))


def _in_users_units(problem: Problem, scaling: Scaling, state: Branches, info: DecouplingInfo) -> Decoupling:
    """Undo the change of variables; unit directions, positive at their largest entry, branches of equal weight."""
    r = evaluate(problem, state)
    c = state.c - _mean_values(problem, state)[:, None]
    w = state.w * scaling.spread
    v = state.v / scaling.width
    knots = state.knots + (v @ scaling.shift)[:, None]
    length = np.linalg.norm(v, axis=1)
    length = np.where(length > 0, length, 1.0)
    sign = np.sign(v[np.arange(v.shape[0]), np.abs(v).argmax(axis=1)])
    sign = np.where(sign == 0, 1.0, sign)
    v, knots = v / (sign * length)[:, None], knots / length[:, None]
    mirrored = sign < 0
    knots[mirrored], c[mirrored] = -knots[mirrored, ::-1], c[mirrored, ::-1]
    extent, size = np.linalg.norm(r.r, axis=1), np.linalg.norm(w, axis=1)
    balance = np.sqrt(np.where((extent > 0) & (size > 0), extent / np.where(size > 0, size, 1.0), 1.0))
    return Decoupling(
        w=(w * balance[:, None]).T,
        v=v.T,
        knots=knots,
        coefficients=c / balance[:, None],
        bias=scaling.mean,
        degree=problem.degree,
        error=float("nan"),
        info=info,
    )


def _mean_values(problem: Problem, state: Branches) -> Array:
    from tensorfact import kernels

    z = state.v @ problem.x.T
    return np.asarray(kernels.spline_values(z, state.knots, problem.degree, state.c).mean(axis=1))
