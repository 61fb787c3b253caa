"""Small work of a sweep: choose ranks, split wide cores into one core a mode, orthonormalise the finished chain."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tensorfact import kernels

__all__ = ["Budget", "left_orthonormal", "reversed_modes", "right_vectors", "split_left", "split_right", "tail_rank"]


class Budget:
    """The squared error that may still be spent. Without a tolerance there is no limit."""

    def __init__(self, tol: float | None) -> None:
        self.tol = tol
        self.norm2 = math.nan
        self.spent2 = 0.0

    def share2(self, bonds_left: int) -> float:
        """For the next bond: an equal part of what is left, so nothing that one bond saves is lost for the others."""
        limit2 = math.inf if self.tol is None else self.tol**2 * self.norm2
        return max(limit2 - self.spent2, 0.0) / max(bonds_left, 1)


def tails(s: np.ndarray) -> np.ndarray:
    """Squared norm of what each rank 0 .. len(s) discards, summed from the small end."""
    squares = np.asarray(s, dtype=np.float64)[::-1] ** 2
    return np.concatenate([np.cumsum(squares)[::-1], [0.0]])


def tail_rank(tail2: np.ndarray, limit2: float) -> int:
    """Smallest rank, at least 1, that discards no more than ``limit2``."""
    return max(1, int(np.argmax(tail2 <= limit2)))


_PLAIN = 64  # below so many rows there is nothing to gain over the SVD
_FEW = 4  # leading directions are found by iteration where there are at most so many times fewer than rows


def right_vectors(a: np.ndarray, keep: int | None = None, *, nearly: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """All min(m, n) singular values of a small matrix (m, n), and its first right singular vectors (n, keep or all).

    With ``keep`` a matrix in double precision goes through its Gram matrix, several times faster than an SVD, where
    that loses nothing: where what is discarded is far above the squared rounding. ``nearly`` lets few vectors of many
    come from a subspace iteration: nearly the first ones. Singular values behind them are then their mean.
    """
    if keep is not None and min(a.shape) >= _PLAIN and 2 * keep <= min(a.shape) and a.dtype.char in "dD":
        found = _by_gram(a, keep, nearly)
        if found is not None:
            return found
    if a.shape[0] > a.shape[1]:
        a = kernels.tall_triangle(a)
    if 2 * a.shape[0] < a.shape[1]:
        # A = (A^T)^T = (Q R)^T: the right vectors are those of R^T, seen through Q
        q, r = np.linalg.qr(a.T)
        _, s, vh = np.linalg.svd(r.T)
        v = q.conj() @ vh.conj().T
    else:
        _, s, vh = np.linalg.svd(a, full_matrices=False)
        v = vh.conj().T
    return s, v if keep is None else v[:, :keep]


def _by_gram(a: np.ndarray, keep: int, nearly: bool = False) -> tuple[np.ndarray, np.ndarray] | None:
    """The same from A A^H or A^H A; None where its rounding would show in the singular values or in what is lost."""
    wide = a.shape[0] < a.shape[1]
    gram = a @ a.conj().T if wide else a.conj().T @ a
    if not np.isfinite(gram).all():
        return None
    found = _leading(gram, keep) if nearly and _FEW * keep <= len(gram) else None
    if found is not None:
        squares, u = found
    else:
        values, u = np.linalg.eigh(gram)  # NumPy's BLAS, as around it: threads of two libraries wait for each other
        squares, u = np.maximum(values[::-1], 0.0), u[:, : -keep - 1 : -1]
    if not squares[keep:].sum() > 1e-8 * squares.sum():
        return None
    return np.sqrt(squares), np.linalg.qr(a.conj().T @ u)[0] if wide else np.ascontiguousarray(u)


def _leading(gram: np.ndarray, keep: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Eigenvalues, the first ones by subspace iteration, and ``keep`` eigenvectors; None where they are not the first.

    The start is random, always the same: columns of the matrix itself may be zero or apart from all that matters.
    """
    width = keep + max(8, keep // 4)
    q = np.random.default_rng(0).standard_normal((len(gram), width))
    for _ in range(3):
        q = np.linalg.qr(gram @ q)[0]
    values, turn = np.linalg.eigh(q.conj().T @ gram @ q)
    first = np.maximum(values[::-1], 0.0)
    others = len(gram) - width
    rest = max(float(np.trace(gram).real) - float(first.sum()), 0.0) / others
    if not rest <= first[keep - 1]:
        return None
    return np.concatenate([first, np.full(others, rest)]), q @ turn[:, : -keep - 1 : -1]


def split_right(
    small: np.ndarray, caps: list[int], exact: bool, limit2: float, extra: int
) -> tuple[list[np.ndarray], np.ndarray, list[float], float, bool]:
    """Right-orthonormal cores of the trailing modes of a small tensor (rows, n_a, ..., n_z, bond), right end first.

    ``caps`` bounds the bonds from the left: that before n_a, those between the modes, and ``bond`` itself, which is
    truncated too where it is wider. Each bond may discard ``limit2``; with ``exact`` it takes its cap instead. The bond
    before n_a takes ``extra`` more. Returns the cores of n_a .. n_z, the rows (q, bond) the truncated ``bond`` stands
    for, what each bond discards (squared, in the order of ``caps``), what is left out before n_a with the extra
    columns, and whether a cap was felt.
    """
    rows, *modes, bond = small.shape
    cores: list[np.ndarray] = []
    lost2: list[float] = []
    felt = False
    tail = np.eye(bond, dtype=small.dtype)  # rows: the next bond in terms of the given one
    if bond > caps[-1] or not exact:
        s, v = right_vectors(small.reshape(-1, bond), caps[-1] if exact else None)
        tail2 = tails(s)
        q = min(caps[-1], len(s)) if exact else min(caps[-1], tail_rank(tail2, limit2))
        felt |= bool(tail2[q] > limit2)
        lost2.append(float(tail2[q]))
        tail = np.ascontiguousarray(v[:, :q].conj().T)
        small = small @ v[:, :q]
    else:
        lost2.append(0.0)
    for k in range(len(modes) - 1, -1, -1):
        width = modes[k] * small.shape[-1]
        matrix = small.reshape(-1, width)
        cap, more = caps[k], extra if k == 0 else 0
        if exact and cap + more >= width and matrix.shape[0] >= width:
            v, q, left2, first2 = np.eye(width, dtype=small.dtype), width, 0.0, 0.0
        else:
            s, v = right_vectors(matrix, cap + more if exact else None, nearly=more > 0)
            tail2 = tails(s)
            q = min(cap, len(s)) if exact else min(cap, len(s), tail_rank(tail2, limit2))
            felt |= bool(tail2[q] > limit2)
            first2 = float(tail2[q])
            q = min(q + more, len(s))
            left2 = float(tail2[q])
        cores.append(v[:, :q].conj().T.reshape(q, modes[k], -1))
        lost2.append(first2)
        if k:
            small = (matrix @ v[:, :q]).reshape(rows, *modes[:k], q)
    return cores[::-1], tail, lost2[::-1], left2, felt


def split_left(
    center: np.ndarray, caps: tuple[int, ...], budget: Budget, after: int
) -> tuple[list[np.ndarray], list[float], np.ndarray]:
    """Left-orthonormal cores of a tensor (1, n_1, ..., n_k, bond), each bond truncated once, from the left end.

    The last bond is truncated too when ``after``, the number of modes behind it, is not zero; then what remains, (r,
    bond), is returned for the next core. Otherwise the last core holds it. Also returned: what each bond discards.
    """
    modes = center.shape[1:-1]
    cores: list[np.ndarray] = []
    lost2: list[float] = []
    core = center
    bonds = len(modes) - (after == 0)
    for k in range(bonds):
        r, n = core.shape[:2]
        matrix = core.reshape(r * n, -1)
        left, rest, tail2 = _truncate(matrix, min(caps[k], *matrix.shape), budget, bonds - k)
        budget.spent2 += tail2
        lost2.append(tail2)
        cores.append(left.reshape(r, n, -1))
        core = rest.reshape(left.shape[1], *core.shape[2:])
    if after == 0:
        return [*cores, core], lost2, np.ones((1, 1), core.dtype)
    return cores, lost2, core


def _truncate(matrix: np.ndarray, cap: int, budget: Budget, bonds_left: int) -> tuple[np.ndarray, np.ndarray, float]:
    """``matrix ~ left rest`` with orthonormal ``left`` of the least allowed rank, and what that discards, squared."""
    rows, cols = matrix.shape
    if budget.tol is None and cap == rows:
        return np.eye(rows, dtype=matrix.dtype), matrix, 0.0
    if budget.tol is None and cap == cols:
        left, rest = np.linalg.qr(matrix)
        return left, rest, 0.0
    s, left = right_vectors(
        matrix.T, cap if budget.tol is None else None
    )  # of the transpose: conjugates of the left vectors
    tail2 = tails(s)
    q = cap if budget.tol is None else min(cap, tail_rank(tail2, budget.share2(bonds_left)))
    left = np.ascontiguousarray(left[:, :q].conj())
    return left, left.conj().T @ matrix, float(tail2[q])


def left_orthonormal(cores: list[np.ndarray], rest: Any = None) -> list[np.ndarray]:
    """The same train, ``rest`` times its first core, with all cores but the last left-orthonormal: one QR a core."""
    out: list[np.ndarray] = []
    for k, given in enumerate(cores):
        core = given if rest is None else np.tensordot(rest, given, axes=1)
        r, n, s = core.shape
        if k == len(cores) - 1:
            out.append(core)
            break
        left, rest = np.linalg.qr(core.reshape(r * n, s))
        out.append(left.reshape(r, n, -1))
    return out


def reversed_modes(cores: list[np.ndarray]) -> list[np.ndarray]:
    """The cores of the tensor with its modes in reverse order."""
    return [core.transpose(2, 1, 0) for core in cores[::-1]]
