"""Matrices of known spectrum, and how far a factorisation of them is from the best one."""

from __future__ import annotations

import numpy as np


def power_law(m, n, slope=0.5, dtype=np.float32, seed=0):
    """Singular values i^-slope between products of random reflections: dense, quick, exact to rounding."""
    rng = np.random.default_rng(seed)
    s = np.arange(1, min(m, n) + 1, dtype=float) ** -slope
    a = np.zeros((m, n))
    np.fill_diagonal(a, s)
    for _ in range(4):
        x, y = rng.standard_normal(m), rng.standard_normal(n)
        a -= np.outer(x, (2 / (x @ x)) * (x @ a))
        a -= np.outer(a @ y, (2 / (y @ y)) * y)
    return a.astype(dtype), s


def ratios(a, s, result):
    """Achieved over optimal error, Frobenius and spectral."""
    residual = a.astype(float) - result.reconstruct().astype(float)
    k = result.rank
    gram = residual @ residual.T if residual.shape[0] < residual.shape[1] else residual.T @ residual
    return (
        np.sqrt(np.trace(gram) / np.sum(s[k:] ** 2)),
        np.sqrt(np.linalg.eigvalsh(gram)[-1]) / s[k],
    )
