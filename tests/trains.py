"""Tensors of known structure, and how far a train is from one: plain NumPy in double precision."""

from __future__ import annotations

import numpy as np


def tensor(shape, rank, dtype, rng, decay=1.0, noise=0.0):
    """A unit tensor of train rank ``rank`` with weights ``decay**k`` on every bond, plus ``noise`` of that norm."""
    dense = np.ones((1, 1))
    for k, n in enumerate(shape):
        after = 1 if k == len(shape) - 1 else rank
        core = rng.standard_normal((dense.shape[1], n, after))
        if np.dtype(dtype).kind == "c":
            core = core + 1j * rng.standard_normal(core.shape)
        core = core * decay ** np.arange(after)
        dense = (dense @ core.reshape(dense.shape[1], -1)).reshape(-1, after)
    dense = dense.reshape(shape) / np.linalg.norm(dense)
    other = rng.standard_normal(shape)
    return (dense + noise * other / np.linalg.norm(other)).astype(dtype)


def dense_of(train):
    """The dense tensor of a train, core by core in double precision."""
    out = np.ones((1, 1))
    for core in train.cores:
        wide = np.asarray(core)
        wide = wide.astype(np.complex128 if wide.dtype.kind == "c" else np.float64)
        r, n, s = wide.shape
        out = (out @ wide.reshape(r, n * s)).reshape(-1, s)
    return out.reshape(train.shape)


def true_error(a, train):
    """Relative Frobenius error of a train."""
    exact = np.asarray(a)
    exact = exact.astype(np.complex128 if exact.dtype.kind == "c" else np.float64)
    norm = np.linalg.norm(exact)
    difference = np.linalg.norm(exact - dense_of(train))
    return difference / norm if norm > 0 else difference


def classical_error(a, caps):
    """Relative error of the textbook TT-SVD of 2011, from left to right, one full SVD a bond, at given inner ranks."""
    rest = np.asarray(a, dtype=np.complex128 if np.asarray(a).dtype.kind == "c" else np.float64)
    norm, lost2, shape = np.linalg.norm(rest), 0.0, rest.shape
    matrix = rest.reshape(shape[0], -1)
    for k, cap in enumerate(caps):
        _, s, vh = np.linalg.svd(matrix, full_matrices=False)
        lost2 += float(np.sum(s[cap:] ** 2))
        matrix = (s[:cap, None] * vh[:cap]).reshape(len(s[:cap]) * shape[k + 1], -1)
    return np.sqrt(lost2) / norm


def left_defect(train):
    """Largest entry of ``Q^H Q - I`` over all cores but the last."""
    worst = 0.0
    for core in train.cores[:-1]:
        q = np.asarray(core).reshape(-1, core.shape[2])
        q = q.astype(np.complex128 if q.dtype.kind == "c" else np.float64)
        worst = max(worst, float(np.abs(q.conj().T @ q - np.eye(q.shape[1])).max()))
    return worst
