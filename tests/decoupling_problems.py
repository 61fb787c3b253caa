"""Decoupled functions with known weights and branches: polynomials, sines, hyperbolic tangents."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Truth(NamedTuple):
    x: np.ndarray
    f: np.ndarray
    jac: np.ndarray
    w: np.ndarray
    v: np.ndarray


def problem(kind, n, m, r, seed, count=150, noise=0.0):
    rng = np.random.default_rng(1000 + seed)
    w, v = rng.standard_normal((n, r)), rng.standard_normal((m, r))
    v /= np.linalg.norm(v, axis=0)
    x = rng.uniform(-1, 1, (m, count))
    z = v.T @ x
    if kind == "poly":
        c = rng.standard_normal((r, 4))
        g = np.array([np.polyval(row, at) for row, at in zip(c, z, strict=True)])
        h = np.array([np.polyval(np.polyder(row), at) for row, at in zip(c, z, strict=True)])
    elif kind == "trig":
        omega = rng.uniform(1, 3, r)[:, None]
        g, h = np.sin(omega * z), omega * np.cos(omega * z)
    else:
        g, h = np.tanh(2 * z), 2 / np.cosh(2 * z) ** 2
    f, jac = (w @ g).T, np.einsum("ni,is,mi->snm", w, h, v)
    if noise:
        jac = jac + noise * np.linalg.norm(jac) / np.sqrt(jac.size) * rng.standard_normal(jac.shape)
        f = f + noise * np.linalg.norm(f) / np.sqrt(f.size) * rng.standard_normal(f.shape)
    return Truth(x.T, f, jac, w, v)
