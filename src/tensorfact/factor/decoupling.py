"""Decoupling of a multivariate function into univariate splines between two linear maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tensorfact.factor._branches import Problem
from tensorfact.factor._decoupling_fit import Progress, Settings, fit, scaling_of
from tensorfact.factor._decoupling_result import Decoupling
from tensorfact.factor._input import check_count, check_fraction
from tensorfact.factor._jacobian import DenseJacobian
from tensorfact.factor.knots import MAX_DEGREE

__all__ = ["decouple"]

Array = NDArray[np.float64]
Polish = Literal["auto", "lm", "lbfgs"] | bool


def decouple(
    x: ArrayLike,
    f: ArrayLike,
    jac: ArrayLike,
    /,
    *,
    rank: int,
    degree: int = 3,
    n_basis: int = 12,
    weight: float = 0.3,
    ridge: float = 1e-6,
    regularization: Literal["proximal", "ridge"] = "proximal",
    coefficients: Literal["project", "exact"] = "project",
    blend: float = 0.8,
    normalize: bool = True,
    polish: Polish = True,
    n_restarts: int = 5,
    max_iter: int = 100,
    stop_tol: float = 1e-6,
    polish_iter: int = 200,
    progress: Callable[[Progress], None] | None = None,
    rng: Any = None,
) -> Decoupling:
    """Fit ``f(x) ~ w g(v^T x) + bias`` with `rank` univariate splines g to values and Jacobians.

    Parameters
    ----------
    x : array_like, shape (N, m)
        Samples of the input.
    f : array_like, shape (N, n)
        Values there.
    jac : array_like, shape (N, n, m)
        Jacobians there: ``jac[s, a, b] = d f_a / d x_b``. See `sample_jacobians`.
    rank : int
        Number of branches; it may exceed n and m.
    degree, n_basis : int
        Degree (1 to 7) and number of basis functions of each spline; ``n_basis = degree + 1`` are polynomials.
    weight : float
        Weight of the values against the Jacobians in ``||J - J^||^2 / ||J||^2 + weight ||F - F^||^2 / ||F - mean||^2``:
        1 gives both equal shares. It multiplies squared norms. A much smaller weight buys slopes with values where
        splines are too coarse for the function.
    ridge : float
        Tikhonov weight of the factor updates, relative to the mean diagonal of each system.
    regularization : {"proximal", "ridge"}
        Towards the iterate before (safe from 1e-6 to 1e-3), or towards zero, which lets weak branches die.
    coefficients : {"project", "exact"}
        Splines nearest to the unconstrained factors, one branch at a time, or all together by least squares.
    blend : float
        Share of quantiles in the knots of the sweeps, see `quantile_knots`.
    normalize : bool
        Scale every input and output to unit deviation first, and the Jacobians with them; the errors that are weighed
        are then those of the scaled data.
    polish : bool or {"auto", "lm", "lbfgs"}
        Minimise over weights and coefficients together after the sweeps, on equally spaced knots: by
        Levenberg-Marquardt up to 3000 parameters, by L-BFGS above. It needs a degree of at least 2.
    n_restarts : int
        Starts, swept as one batch. The one with the least objective after the polish is returned.
    max_iter : int
        Sweeps at most; fewer where the objective of every start changes by less than `stop_tol` three times running.
    polish_iter : int
        Steps of the polish at most.
    progress : callable, optional
        Called with a `DecouplingProgress` after every sweep and every polished start.
    rng : None, int, SeedSequence or numpy.random.Generator
        Randomness of the starts.

    Returns
    -------
    Decoupling
        Frozen result with ``error`` and ``jacobian_error`` (achieved, relative Frobenius, in the user's units);
        ``info`` has the floor: the errors of the best splines at the same weights.

    Raises
    ------
    ValueError
        Shapes that do not fit, NaN or infinity, fewer than two samples, or an option out of range.

    Notes
    -----
    A sweep costs two passes over the Jacobians, ``4 N n m rank`` flop, for each start. A step of Levenberg-Marquardt
    costs ``N (r (m + k))^2 + (r (n + m + k))^3 / 1.5``. Below ``r (r - 1) <= n (n - 1) m (m - 1) / 2`` the factors are
    unique in general; above it compare functions, not factors.

    References
    ----------
    De Jonghe, Pham, Ishteva, arXiv 2605.18794 (R-CMTF-BSD); Zniyed, Usevich, Miron, Brie, arXiv 2106.13542;
    Dreesen, Ishteva, Schoukens, arXiv 1410.4060.

    Examples
    --------
    >>> import numpy as np, tensorfact
    >>> x = np.random.default_rng(0).uniform(-1, 1, (80, 2))
    >>> a, b = x[:, 0] + x[:, 1], x[:, 0] - x[:, 1]
    >>> f = np.stack([a**3 + b**2, a**3], axis=1)
    >>> row = np.stack([3 * a**2 + 2 * b, 3 * a**2 - 2 * b], axis=1)
    >>> jac = np.stack([row, np.stack([3 * a**2, 3 * a**2], axis=1)], axis=1)
    >>> fit = tensorfact.decouple(x, f, jac, rank=2, rng=0)
    >>> max(fit.error, fit.jacobian_error) < 1e-12
    True
    """
    inputs, outputs = matrix(x, "x"), matrix(f, "f")
    jacobians = finite(np.asarray(jac), "jac")
    count, m = inputs.shape
    n = outputs.shape[1]
    if outputs.shape[0] != count:
        raise ValueError(f"f must have one row for each of the {count} samples of x, got shape {outputs.shape}")
    if jacobians.shape != (count, n, m):
        raise ValueError(f"jac must have shape (N, n, m) = {(count, n, m)}, got {jacobians.shape}")
    scaling = scaling_of(inputs, outputs, normalize)
    scaled = jacobians * (scaling.width / scaling.spread[:, None])
    problem = make_problem(
        (inputs - scaling.shift) / scaling.width,
        (outputs - scaling.mean) / scaling.spread,
        DenseJacobian(scaled),
        rank=rank,
        degree=degree,
        n_basis=n_basis,
        weight=weight,
        ridge=ridge,
        regularization=regularization,
        blend=blend,
    )
    settings = make_settings(problem, coefficients, polish, n_restarts, max_iter, stop_tol, polish_iter, progress)
    found = fit(problem, scaling, settings, np.random.default_rng(rng), notes_on(problem))
    found = rounded(found, x, f, jac)
    return replace(
        found,
        error=relative(outputs, found(inputs)),
        jacobian_error=relative(jacobians, found.jacobian(inputs)),
    )


def make_problem(
    x: Array,
    f: Array,
    jac: Any,
    *,
    rank: int,
    degree: int,
    n_basis: int,
    weight: float,
    ridge: float,
    regularization: str,
    blend: float,
) -> Problem:
    """Check the options that define what is fitted."""
    degree = check_count("degree", degree, 1, MAX_DEGREE)
    if regularization not in ("proximal", "ridge"):
        raise ValueError(f"regularization must be 'proximal' or 'ridge', got {regularization!r}")
    for name, value in (("weight", weight), ("ridge", ridge)):
        if isinstance(value, bool) or not np.isfinite(value) or value < 0:
            raise ValueError(f"{name} must be a finite number, at least 0, got {value!r}")
    return Problem(
        x=x,
        f=f,
        jac=jac,
        rank=check_count("rank", rank, 1),
        degree=degree,
        n_basis=check_count("n_basis", n_basis, degree + 1),
        weight=float(weight),
        ridge=float(ridge),
        proximal=regularization == "proximal",
        blend=check_fraction("blend", blend, 0.0, np.nextafter(1.0, 2.0)),
        f_norm2=_variation(f),
    )


def make_settings(
    problem: Problem,
    coefficients: str,
    polish: Polish,
    n_restarts: int,
    max_iter: int,
    stop_tol: float,
    polish_iter: int,
    progress: Callable[[Progress], None] | None,
) -> Settings:
    """Check the options that say how to fit."""
    if coefficients not in ("project", "exact"):
        raise ValueError(f"coefficients must be 'project' or 'exact', got {coefficients!r}")
    if polish not in (True, False, "auto", "lm", "lbfgs"):
        raise ValueError(f"polish must be True, False, 'auto', 'lm' or 'lbfgs', got {polish!r}")
    method = {"True": "auto", "False": "none"}.get(str(polish), str(polish))
    return Settings(
        max_iter=check_count("max_iter", max_iter, 1),
        stop_tol=check_fraction("stop_tol", stop_tol, 0.0, 1.0),
        exact=coefficients == "exact",
        method="none" if problem.degree < 2 else method,  # without bends, nothing tells how to turn v
        polish_iter=check_count("polish_iter", polish_iter, 1),
        n_restarts=check_count("n_restarts", n_restarts, 1),
        progress=progress,
    )


def notes_on(problem: Problem) -> list[str]:
    """What is unusual about the data."""
    notes = []
    if problem.f_norm2 == 0:
        notes.append("constant outputs: only the Jacobians were fitted")
    if problem.jac.norm2 == 0:
        notes.append("zero Jacobians")
    (_, m), n = problem.x.shape, problem.f.shape[1]
    if problem.count * n * (m + 1) < problem.rank * (n + m + problem.n_basis):
        notes.append("fewer data than parameters")
    if problem.degree < 2:
        notes.append("no polish at degree 1")
    return notes


def _variation(f: Array) -> float:
    """Squared norm of centred values, zero where they are constant to rounding."""
    norm2 = float(np.vdot(f, f))
    return norm2 if norm2 > f.size * 1e-28 else 0.0


def rounded(found: Decoupling, *given: Any) -> Decoupling:
    """In float32 where all that was given is in single or half precision; the fit itself runs in float64."""
    if not all(np.asarray(a).dtype in (np.float16, np.float32) for a in given):
        return found
    names = ("w", "v", "knots", "coefficients", "bias")
    return replace(found, **{name: getattr(found, name).astype(np.float32) for name in names})


def relative(truth: Array, found: Array) -> float:
    """Relative Frobenius distance; the distance itself from zero."""
    norm = float(np.linalg.norm(truth))
    distance = float(np.linalg.norm(truth - found))
    return distance / norm if norm > 0 else distance


def matrix(a: ArrayLike, name: str) -> Array:
    """Samples in float64."""
    array = np.asarray(a)
    if array.ndim != 2:
        raise ValueError(f"{name} must have two axes, one row a sample, got shape {array.shape}")
    if array.shape[0] < 2 or array.shape[1] < 1:
        raise ValueError(f"{name} must hold at least two samples of at least one number, got shape {array.shape}")
    return finite(array, name)


def finite(array: NDArray[Any], name: str) -> Array:
    """Real finite numbers in float64."""
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} must hold real numbers, got dtype {array.dtype}")
    wide = array.astype(np.float64)
    if not np.isfinite(wide).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return wide
