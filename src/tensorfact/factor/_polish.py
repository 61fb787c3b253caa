"""Joint polish of weights and coefficients at fixed knots: Levenberg-Marquardt, or L-BFGS for many parameters.

The alternating sweeps leave out how the splines' arguments move with v; with that term the error falls to round-off
where splines can represent the function.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensorfact import kernels
from tensorfact.factor._branches import Branches, Problem, centred, uniform_range
from tensorfact.factor._coupled import Point, coefficient_matrix, coupled_coefficients, dense_basis, evaluate

__all__ = ["Polished", "polish"]

Array = NDArray[np.float64]
LM_PARAMETERS = 3000  # the normal matrix of more takes longer than many steps of L-BFGS
_MAX_ROUNDS = 3  # of new knots, where z left the range of the old ones
_ROUND_OFF = 1e-31  # objective: squared relative error


@dataclass(frozen=True, slots=True)
class Polished:
    """A polished start."""

    state: Branches
    point: Point
    method: str
    iterations: int


def polish(problem: Problem, start: Branches, *, method: str, max_iter: int) -> Polished:
    """Minimise the objective over w, v and c from `start` (one start), on equally spaced knots.

    `method` is "lm", "lbfgs", or "auto": the first where there are at most 3000 parameters.
    """
    if method == "auto":
        method = "lm" if start.w.size + start.v.size + start.c.size <= LM_PARAMETERS else "lbfgs"
    state = start.copy()
    point, done = None, 0
    best: Polished | None = None
    for _ in range(_MAX_ROUNDS):
        z = state.v @ problem.x.T
        state.knots = uniform_range(problem, z)
        state.c = coupled_coefficients(problem, state)
        run = _levenberg_marquardt if method == "lm" else _lbfgs
        state, point, steps = run(problem, state, max_iter - done)
        done += steps
        if best is None or point.objective < best.point.objective:
            best = Polished(state.copy(), point, method, done)
        lo, hi = state.knots[:, :1], state.knots[:, -1:]
        if done >= max_iter or ((point.z >= lo) & (point.z <= hi)).all():
            break
    assert best is not None
    return Polished(best.state, best.point, method, done)


def _means(problem: Problem, state: Branches) -> Array:
    z = state.v @ problem.x.T
    means: Array = kernels.spline_values(z, state.knots, problem.degree, state.c).mean(axis=1, keepdims=True)
    return means


def _shifted(state: Branches, step: Array) -> Branches:
    a, b = state.w.size, state.w.size + state.v.size
    return Branches(
        state.w + step[:a].reshape(state.w.shape),
        state.v + step[a:b].reshape(state.v.shape),
        state.knots,
        state.c + step[b:].reshape(state.c.shape),
    )


def _levenberg_marquardt(problem: Problem, state: Branches, max_iter: int) -> tuple[Branches, Point, int]:
    """Nielsen's damping (1999), scaled by the diagonal (Marquardt 1963)."""
    point = evaluate(problem, state)
    damping, growth, idle, steps = 1e-3, 2.0, 0, 0
    matrix = normal_matrix(problem, state, point)
    while steps < max_iter and point.objective > _ROUND_OFF and damping < 1e15 and idle < 3:
        steps += 1
        diagonal = np.diag(matrix).copy()
        diagonal += 1e-10 * diagonal.max(initial=0.0) + 1e-300
        gradient = point.gradient
        try:
            step: NDArray[Any] = -np.linalg.solve(matrix + np.diag(damping * diagonal), gradient)
        except np.linalg.LinAlgError:
            step = np.full(gradient.shape, np.nan)
        accepted = False
        if np.isfinite(step).all():
            trial = _shifted(state, step.astype(np.float64, copy=False))
            trial.c -= _means(problem, trial)  # steps along the free constants would add up
            found = evaluate(problem, trial)
            accepted = found.half < point.half
        if not accepted:
            damping, growth = damping * growth, growth * 2
            continue
        expected = 0.5 * float(step @ (damping * diagonal * step - gradient))
        gain = (point.half - found.half) / expected if expected > 0 else 0.0
        idle = idle + 1 if point.half - found.half <= 1e-7 * point.half else 0
        damping, growth = max(damping * max(0.1, 1 - (2 * gain - 1) ** 3), 1e-8), 2.0
        state, point = trial, found
        matrix = normal_matrix(problem, state, point)
    return state, point, steps


def normal_matrix(problem: Problem, state: Branches, point: Point) -> Array:
    """Gauss-Newton matrix of all parameters, from inner products of rank-one terms: the Jacobian is never formed.

    Derivatives of the model tensor: ``e_a o v_i o h_i`` in w, ``w_i o e_b o h_i + w_i o v_i o (g''_i x_b)`` in v and
    ``w_i o v_i o B'_ik`` in c; of the centred values ``e_a o r_i``, ``w_i o (h_i x_b)`` and ``w_i o B_ik``.
    """
    (r, n), m, k, lam = state.w.shape, state.v.shape[1], state.c.shape[1], problem.lam
    w, v, count = state.w, state.v, problem.count
    slopes = dense_basis(problem, point.z, state.knots, 1)
    full = dense_basis(problem, point.z, state.knots, 0)
    plain = centred(full)
    bent = (point.bend[:, None, :] * problem.x.T).reshape(r * m, count)
    moved = centred(point.h[:, None, :] * problem.x.T).reshape(r * m, count)
    flat, flat_plain = slopes.reshape(r * k, count), plain.reshape(r * k, count)
    ww, vv = w @ w.T, v @ v.T
    hh = point.h @ point.h.T
    hg, hb = (point.h @ bent.T).reshape(r, r, m), (point.h @ flat.T).reshape(r, r, k)
    rx, rb = (point.r @ moved.T).reshape(r, r, m), (point.r @ flat_plain.T).reshape(r, r, k)
    gg = (bent @ bent.T).reshape(r, m, r, m)
    xx = (moved @ moved.T).reshape(r, m, r, m)
    gb = (bent @ flat.T).reshape(r, m, r, k)
    xb = (moved @ flat_plain.T).reshape(r, m, r, k)

    w_w = np.kron(vv * hh + lam * (point.r @ point.r.T), np.eye(n))
    along = v[:, None, :] * hh[:, :, None] + vv[:, :, None] * hg + lam * rx  # (i, j, b)
    w_v = np.einsum("ja,ijb->iajb", w, along).reshape(r * n, r * m)
    w_c = np.einsum("ja,ijk->iajk", w, vv[:, :, None] * hb + lam * rb).reshape(r * n, r * k)
    inner = vv[:, None, :, None] * gg + lam * xx
    inner += np.einsum("jb,ijc->ibjc", v, hg) + np.einsum("ic,jib->ibjc", v, hg)
    inner += hh[:, None, :, None] * np.eye(m)[None, :, None, :]
    v_v = (ww[:, None, :, None] * inner).reshape(r * m, r * m)
    inner = vv[:, None, :, None] * gb + lam * xb + np.einsum("jb,ijk->ibjk", v, hb)
    v_c = (ww[:, None, :, None] * inner).reshape(r * m, r * k)
    c_c = coefficient_matrix(problem, state, slopes, full)
    return np.block([[w_w, w_v, w_c], [w_v.T, v_v, v_c], [w_c.T, v_c.T, c_c]])


def _lbfgs(problem: Problem, state: Branches, max_iter: int) -> tuple[Branches, Point, int]:
    """L-BFGS with each parameter in units of its own curvature (roughly)."""
    from scipy.optimize import minimize

    point = evaluate(problem, state)
    if point.half <= 0:
        return state, point, 0
    ww, vv, hh = (np.sum(a * a, axis=1) for a in (state.w, state.v, point.h))
    curvature = [
        np.repeat(vv * hh, state.w.shape[1]),
        np.repeat(ww * (hh + vv * np.sum(point.bend**2, axis=1)), state.v.shape[1]),
    ]
    band, _ = _band(problem, state, point)
    curvature.append((ww[:, None] * vv[:, None] * band).ravel())
    scale = np.concatenate(curvature)
    scale = 1 / np.sqrt(np.maximum(scale, 1e-8 * scale.max()))
    unit = point.half
    least, best = point.half, np.zeros(scale.size)

    def objective(x: Array) -> tuple[float, Array]:
        nonlocal least, best
        at = evaluate(problem, _shifted(state, scale * x))
        half = at.half if np.isfinite(at.half) else 1e300
        if half < least:
            least, best = half, x.copy()
        return half / unit, scale * at.gradient / unit

    options: Any = {"maxiter": max_iter, "maxcor": 20, "ftol": 1e-9, "gtol": 1e-12, "maxfun": 2 * max_iter}
    result = minimize(objective, np.zeros(scale.size), jac=True, method="L-BFGS-B", options=options)
    state = _shifted(state, scale * best)
    return state, evaluate(problem, state), int(result.nit)


def _band(problem: Problem, state: Branches, point: Point) -> tuple[Array, Array]:
    band, rhs = kernels.spline_gram(point.z, state.knots, problem.degree, None, 1)
    return band[:, :, 0], rhs
