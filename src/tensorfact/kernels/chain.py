"""Kernels on matrix product operators: applied core by core, and multiplied out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tensorfact.kernels import _dispatch
from tensorfact.kernels._array import as_contiguous, as_offset, as_real, as_real_matrix, output
from tensorfact.kernels._dispatch import checked_threads, kernel

__all__ = ["chain", "kron_sum"]

Matrix = NDArray[Any]
MAX_SITES = 16  # as in csrc/core/chain.hpp


@kernel()
def _chain(x: Matrix, cores: Matrix, sizes: Matrix, bias: Matrix, y: Matrix, from_left: bool, nthreads: int) -> None:
    count = sizes.shape[0]
    tokens = x.shape[0]
    t = np.ascontiguousarray(x).reshape(-1)
    so_far, to_come = 1, x.shape[1]
    for step in range(count):
        l = step if from_left else count - 1 - step
        r, m, n, s = sizes[l, 0], sizes[l, 1], sizes[l, 2], sizes[l, 3]
        begin = 0
        for before in range(l):
            begin += sizes[before, 0] * sizes[before, 1] * sizes[before, 2] * sizes[before, 3]
        core = cores[0, begin : begin + r * m * n * s]
        to_come //= n
        if from_left:
            turned = np.ascontiguousarray(core.reshape(r, m, n, s).transpose(1, 3, 0, 2)).reshape(m * s, r * n)
            batch, columns = tokens * so_far, to_come
        else:
            turned = core.reshape(r * m, n * s)
            batch, columns = tokens * to_come, so_far
        source = t.reshape(batch, turned.shape[1], columns)
        target = np.empty((batch, turned.shape[0], columns), x.dtype)
        for i in range(batch):
            target[i] = np.dot(turned, source[i])
        t = target.reshape(-1)
        so_far *= m
    y[:, :] = t.reshape(tokens, so_far)
    if bias.shape[1] > 0:
        y += bias


@kernel()
def _kron_sum(left: Matrix, right: Matrix, out: Matrix, m1: int, m2: int, nthreads: int) -> None:
    n1, n2 = left.shape[0] // m1, right.shape[1] // m2
    for i in range(m1):
        rows = np.ascontiguousarray(left[i * n1 : (i + 1) * n1])
        for j in range(m2):
            block = np.dot(rows, np.ascontiguousarray(right[:, j * n2 : (j + 1) * n2]))
            out[i * m2 + j] = block.reshape(n1 * n2)


def chain(
    x: ArrayLike,
    cores: Sequence[ArrayLike],
    bias: ArrayLike | None = None,
    /,
    *,
    direction: Literal["left", "right"] = "right",
    out: Matrix | None = None,
    workers: int | None = None,
) -> Matrix:
    """Apply a matrix product operator to rows, ``X W^T + b``, one core after another; W is never formed.

    Parameters
    ----------
    x : array_like, shape (tokens, in)
        float32 or float64.
    cores : sequence of array_like, shape (r, m, n, r')
        Neighbours share a bond, the outer ones are 1: ``W[(i1..iL), (j1..jL)]`` is the product over k of
        ``cores[k][:, ik, jk, :]``. Cast to the dtype of `x`. At most 16.
    bias : array_like, shape (out,), optional
        Added to every row.
    direction : {"left", "right"}
        The core to begin with. The cost differs where one side is wider.
    out : ndarray, shape (tokens, out), optional
        C-contiguous, of the dtype of `x`, not overlapping the inputs.
    workers : int, optional
        Threads for this call, by default `get_num_threads()`. The result has the same bits for any number.

    Returns
    -------
    ndarray, shape (tokens, out)
        `out`, or a new array.

    Raises
    ------
    ValueError
        If shapes, bonds, dtypes or `out` do not fit.

    Notes
    -----
    From the right, core k costs ``2 r m n r'`` flops for every column before it and every row after it. A few tokens
    at a time pass all cores, so that what lies between stays in the cache.

    Examples
    --------
    >>> chain([[1.0, 2.0]], [np.ones((1, 2, 2, 1)), np.full((1, 1, 1, 1), 3.0)])
    array([[9., 9.]])
    """
    rows = as_contiguous(as_real_matrix(x, "x"))
    if direction not in ("left", "right"):
        raise ValueError(f'direction must be "left" or "right", got {direction!r}')
    arrays = [np.asarray(core) for core in cores]
    if not 1 <= len(arrays) <= MAX_SITES:
        raise ValueError(f"cores must be from 1 to {MAX_SITES} arrays, got {len(arrays)}")
    bond = 1
    for k, core in enumerate(arrays):
        if core.ndim != 4 or core.shape[0] != bond or 0 in core.shape or core.dtype.kind not in "biuf":
            raise ValueError(f"cores[{k}] must be real of shape ({bond}, m, n, r'), got {core.dtype} {core.shape}")
        bond = core.shape[3]
    if bond != 1:
        raise ValueError(f"the last core must end in a bond of 1, got shape {arrays[-1].shape}")
    sizes = np.array([core.shape for core in arrays], np.int64)
    _, m, n, _ = (int(size) for size in sizes.prod(axis=0))
    if rows.shape[1] != n:
        raise ValueError(f"x must have {n} columns, the product of the cores' third sizes, got shape {rows.shape}")
    offset = as_offset(bias, m, rows.dtype)
    flat = np.concatenate([core.reshape(-1) for core in arrays], dtype=rows.dtype, casting="unsafe")[None]
    result = output(out, (rows.shape[0], m), rows.dtype, rows, offset, *arrays)
    _chain(rows, flat, sizes, offset, result, direction == "left", checked_threads(workers))
    return result


def kron_sum(left: ArrayLike, right: ArrayLike, /, *, out: Matrix | None = None, workers: int | None = None) -> Matrix:
    """Sum of Kronecker products ``sum_a left[:, :, a] (x) right[a]``: a two-core operator multiplied out.

    Parameters
    ----------
    left : array_like, shape (m1, n1, r)
        float32 or float64.
    right : array_like, shape (r, m2, n2)
        Cast to the dtype of `left`.
    out : ndarray, shape (m1 * m2, n1 * n2), optional
        C-contiguous, of the dtype of `left`, not overlapping the inputs.
    workers : int, optional
        Threads for this call, by default `get_num_threads()`. The result has the same bits for any number.

    Returns
    -------
    ndarray, shape (m1 * m2, n1 * n2)
        `out`, or a new array.

    Raises
    ------
    ValueError
        If shapes, dtypes or `out` do not fit.

    Notes
    -----
    ``2 r`` flops for each number of the result, which is written once and never permuted.

    Examples
    --------
    >>> kron_sum([[[1.0]], [[2.0]]], [[[3.0, 4.0]]])
    array([[3., 4.],
           [6., 8.]])
    """
    a, b = np.asarray(left), np.asarray(right)
    if a.ndim != 3 or b.ndim != 3 or a.shape[2] != b.shape[0] or 0 in a.shape + b.shape:
        raise ValueError(f"left and right must be (m1, n1, r) and (r, m2, n2), got {a.shape} and {b.shape}")
    m1, n1, r = a.shape
    _, m2, n2 = b.shape
    first = as_contiguous(as_real_matrix(a.reshape(m1 * n1, r), "left"))
    second = as_real(b.reshape(r, m2 * n2), first.dtype, "right")
    result = output(out, (m1 * m2, n1 * n2), first.dtype, first, second)
    _kron_sum(first, second, result, m1, m2, checked_threads(workers))
    return result


def compiled() -> Any:
    """The compiled module, whose ``chain_at`` and ``kron_sum_at`` take addresses; None where another rung is active."""
    return vars(_dispatch)["_core"] if _dispatch.active() == "cpp" else None


def vector_bytes() -> int:
    """Bytes of a vector register of the compiled module, as in csrc/core/tiled.hpp."""
    module = vars(_dispatch)["_core"]
    return {"v4": 64, "v3": 32}.get(module.isa(), 16) if module is not None else 16
