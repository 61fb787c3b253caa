"""Bounds that come with a number: the spectral norm of a residual, and what it can do to class probabilities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tensorfact.factor._operand import Operand

__all__ = ["residual_certificate", "softmax_bound"]

PROBES = 6  # the bound fails with probability 10^-PROBES
POWERS = 6  # bound / true norm is about 1.2 (j = 6), 1.5 (j = 3), 30 to 60 (j = 0, the textbook form)


def residual_certificate(
    op: Operand, u: Any, s: Any, vh: Any, rng: np.random.Generator, *, probes: int = PROBES, powers: int = POWERS
) -> float:
    """Upper bound on ``||E||_2`` for ``E = A - (u * s) vh``, with probability at least ``1 - 10**-probes``.

    For Gaussian ``w``: ``||E (E^H E)^j w|| >= ||E||^(2j+1) |<v_1, w>|`` and ``P(|g| <= t) <= t sqrt(2/pi)``, hence
    ``||E||_2 <= (10 sqrt(2/pi) max_i ||E (E^H E)^j w_i||)^(1/(2j+1))`` (Halko et al., 2011, Lemma 4.1 is ``j = 0``;
    complex Gaussians are less likely to be small).  A slack of round-off size keeps the bound above the norm that
    an exact evaluation would give.  Cost: ``2 powers + 1`` products with ``probes`` columns.
    """
    ops = op.ops
    us, vs = u * s[None, :], vh
    w = ops.draw(op.shape[1], probes, rng)
    logs = np.zeros(probes)
    for step in range(powers + 1):
        y = op.apply(w) - ops.matmul(us, ops.matmul(vs, w))
        y, logs = _normalise(ops, y, logs)
        if step < powers:
            w = op.adjoint(y) - ops.matmul(ops.adjoint(vs), ops.matmul(ops.adjoint(us), y))
            w, logs = _normalise(ops, w, logs)
    largest = float(np.max(logs))
    power = 2 * powers + 1
    bound = math.exp((math.log(10 * math.sqrt(2 / math.pi)) + largest) / power) if math.isfinite(largest) else 0.0
    top = float(np.max(ops.to_numpy(s), initial=0.0))
    return bound + 4 * ops.eps * math.sqrt(min(op.shape)) * top


def _normalise(ops: Any, x: Any, logs: np.ndarray) -> tuple[Any, np.ndarray]:
    norms = ops.column_norms(x)
    safe = np.where(norms > 0, norms, 1.0)
    with np.errstate(divide="ignore"):
        return x / ops.from_numpy(safe)[None, :], logs + np.log(norms)


def softmax_bound(spectral_error: float, x_norm: float | np.ndarray) -> Any:
    """Largest change of any class probability when a classifier's weight is replaced.

    For ``P = softmax(W x + b)`` and ``Q = softmax(W' x + b)``: ``max_i |P_i - Q_i| <= ||W - W'||_2 ||x||_2 / 2``,
    because the rows of the Jacobian ``diag(P) - P P^T`` sum in absolute value to ``2 P_i (1 - P_i) <= 1/2``.  Below 1
    the same number bounds ``||P - Q||_2`` and the total variation; above, it says nothing and is clipped.  It covers
    the last linear layer only.

    Parameters
    ----------
    spectral_error : float
        ``||W - W'||_2`` or a bound on it, such as :attr:`LowRank.spectral_bound`.
    x_norm : float or array
        Euclidean norm of the layer's input.

    Examples
    --------
    >>> import tensorfact
    >>> tensorfact.softmax_bound(0.01, 20.0)
    0.1
    """
    norm = np.asarray(x_norm, dtype=float)
    if not (np.isfinite(spectral_error) and spectral_error >= 0):
        raise ValueError(f"spectral_error must be finite and >= 0, got {spectral_error}")
    if not (np.isfinite(norm).all() and (norm >= 0).all()):
        raise ValueError("x_norm must be finite and >= 0")
    bound = np.minimum(1.0, 0.5 * spectral_error * norm)
    return float(bound) if bound.ndim == 0 else bound
