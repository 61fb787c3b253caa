"""Decoupling of a two-layer network, without its Jacobian tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tensorfact.factor._decoupling_fit import Progress, fit, scaling_of
from tensorfact.factor._decoupling_result import Decoupling
from tensorfact.factor._jacobian import MLPJacobian
from tensorfact.factor.decoupling import (
    Polish,
    finite,
    make_problem,
    make_settings,
    matrix,
    notes_on,
    relative,
    rounded,
)
from tensorfact.factor.sampling import Activation, activation_pair

__all__ = ["decouple_mlp"]

Array = NDArray[np.float64]


def decouple_mlp(
    w1: ArrayLike,
    b1: ArrayLike,
    w2: ArrayLike,
    b2: ArrayLike,
    activation: Activation,
    x: ArrayLike,
    /,
    *,
    rank: int,
    degree: int = 3,
    n_basis: int = 12,
    weight: float = 0.1,
    ridge: float = 1e-6,
    regularization: Literal["proximal", "ridge"] = "proximal",
    coefficients: Literal["project", "exact"] = "project",
    blend: float = 0.8,
    normalize: bool = True,
    polish: Polish = True,
    n_restarts: int = 1,
    max_iter: int = 50,
    stop_tol: float = 1e-4,
    polish_iter: int = 200,
    progress: Callable[[Progress], None] | None = None,
    rng: Any = None,
) -> Decoupling:
    """Fit the network ``w2 activation(w1 x + b1) + b2`` by one with `rank` learned splines for its hidden units.

    Parameters
    ----------
    w1 : array_like, shape (h, m)
    b1 : array_like, shape (h,)
    w2 : array_like, shape (n, h)
    b2 : array_like, shape (n,)
        Weights and biases, as in ``torch.nn.Linear``.
    activation : str or (callable, callable)
        "gelu", "gelu_tanh", "relu", "sigmoid", "silu", "tanh", or a function and its derivative.
    x : array_like, shape (N, m)
        Inputs at which values and Jacobians are to be met.
    rank, degree, n_basis, weight, ridge, regularization, coefficients, blend, normalize, polish, n_restarts, max_iter,
    stop_tol, polish_iter, progress, rng
        As for `decouple`. The first start takes the strongest hidden units of the network.

    Returns
    -------
    Decoupling
        ``jacobian_error`` below about 1e-7 cannot be told from zero: it is the difference of two norms.

    Raises
    ------
    ValueError
        As `decouple`.

    Notes
    -----
    The Jacobians ``w2 diag(s_i) w1`` are never formed: ``O(h rank (n + m + N))`` flop a product instead of
    ``O(n m N rank)``, and ``O(h^2 (n + m + N))`` once for their norm. Memory: about ``8 (N h + 3 h^2)`` bytes and three
    matrices of ``rank * n_basis`` squared.

    Examples
    --------
    >>> import numpy as np, tensorfact
    >>> rng = np.random.default_rng(0)
    >>> w1, w2 = rng.standard_normal((6, 3)), rng.standard_normal((2, 6))
    >>> x = rng.standard_normal((200, 3))
    >>> fit = tensorfact.decouple_mlp(w1, np.zeros(6), w2, np.zeros(2), "tanh", x, rank=6, n_basis=16, rng=0)
    >>> fit.error < 0.1
    True
    """
    value, slope = activation_pair(activation)
    inputs, first, second = matrix(x, "x"), finite(np.asarray(w1), "w1"), finite(np.asarray(w2), "w2")
    if first.ndim != 2 or first.shape[1] != inputs.shape[1]:
        raise ValueError(f"w1 must have shape (h, m) with m = {inputs.shape[1]}, got {first.shape}")
    if second.ndim != 2 or second.shape[1] != first.shape[0]:
        raise ValueError(f"w2 must have shape (n, h) with h = {first.shape[0]}, got {second.shape}")
    biases = [finite(np.asarray(b), name) for b, name in ((b1, "b1"), (b2, "b2"))]
    for b, size, name in zip(biases, (first.shape[0], second.shape[0]), ("b1", "b2"), strict=True):
        if b.shape != (size,):
            raise ValueError(f"{name} must have shape {(size,)}, got {b.shape}")
    hidden = inputs @ first.T + biases[0]
    outputs, slopes = value(hidden) @ second.T + biases[1], slope(hidden)
    if not (np.isfinite(outputs).all() and np.isfinite(slopes).all()):
        raise ValueError("activation must give finite values and slopes at x")
    scaling = scaling_of(inputs, outputs, normalize)
    scaled = first * scaling.width, second / scaling.spread[:, None]
    problem = make_problem(
        (inputs - scaling.shift) / scaling.width,
        (outputs - scaling.mean) / scaling.spread,
        MLPJacobian(*scaled, slopes),
        rank=rank,
        degree=degree,
        n_basis=n_basis,
        weight=weight,
        ridge=ridge,
        regularization=regularization,
        blend=blend,
    )
    settings = make_settings(problem, coefficients, polish, n_restarts, max_iter, stop_tol, polish_iter, progress)
    given = _strongest_units(*scaled, slopes, problem.rank) if problem.rank <= first.shape[0] else None
    generator = np.random.default_rng(rng)
    found = fit(problem, scaling, settings, generator, notes_on(problem), given)
    found = rounded(found, x, w1, w2)
    plain = MLPJacobian(first, second, slopes)
    along = np.ascontiguousarray(found.internals(inputs, 1).T, np.float64)
    distance2 = plain.residual(found.w.T.astype(np.float64), found.v.T.astype(np.float64), along)[0]
    jac_norm2 = plain.norm2
    return replace(
        found,
        error=relative(outputs, found(inputs)),
        jacobian_error=float(np.sqrt(distance2 / jac_norm2)) if jac_norm2 > 0 else float(np.sqrt(distance2)),
    )


def _strongest_units(w1: Array, w2: Array, slopes: Array, rank: int) -> tuple[Array, Array, Array]:
    """Hidden units with the largest share of the Jacobians, as branches (w, v, h)."""
    first, second = np.linalg.norm(w1, axis=1), np.linalg.norm(w2, axis=0)
    chosen = np.argsort(-first * second * np.linalg.norm(slopes, axis=0), kind="stable")[:rank]
    length = np.where(first[chosen] > 0, first[chosen], 1.0)
    v = w1[chosen] / length[:, None]
    return (w2[:, chosen] * length).T, v, np.ascontiguousarray(slopes[:, chosen].T)
