"""Kernels on tensors with short tubes: faces in a transform domain, and products of faces with the transforms fused."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tensorfact.kernels import _dispatch
from tensorfact.kernels._array import as_contiguous, as_offset, as_real_matrix, output
from tensorfact.kernels._dispatch import checked_threads, kernel

__all__ = ["facewise_product", "tube_faces"]

Matrix = NDArray[Any]
MAX_TUBE = 16  # as in csrc/core/tubes.hpp


@kernel()
def _tube_faces(x: Matrix, forward: Matrix, faces: Matrix, last: bool, nthreads: int) -> bool:
    p = forward.shape[0]
    rows, columns = x.shape[0], x.shape[1] // p
    for u in range(p):
        face = np.zeros((rows, columns), x.dtype)
        for k in range(p):
            line = x[:, k::p] if last else x[:, k * columns : (k + 1) * columns]
            face += forward[u, k] * line
        faces[u * rows : (u + 1) * rows] = face
    return bool(np.isfinite(x).all())


@kernel()
def _facewise(
    x: Matrix,
    faces: Matrix,
    forward: Matrix,
    inverse: Matrix,
    bias: Matrix,
    y: Matrix,
    last: bool,
    nthreads: int,
) -> bool:
    p = forward.shape[0]
    rows, inner, columns = x.shape[0], faces.shape[0] // p, faces.shape[1]
    y[:, :] = bias if bias.shape[1] > 0 else np.zeros((1, 1), y.dtype)
    for u in range(p):
        face = np.zeros((rows, inner), x.dtype)
        for k in range(p):
            line = x[:, k::p] if last else x[:, k * inner : (k + 1) * inner]
            face += forward[u, k] * line
        product = np.dot(face, faces[u * inner : (u + 1) * inner])
        for k in range(p):
            if last:
                y[:, k::p] += inverse[k, u] * product
            else:
                y[:, k * columns : (k + 1) * columns] += inverse[k, u] * product
    return bool(np.isfinite(x).all())


def tube_faces(
    x: ArrayLike,
    forward: ArrayLike,
    /,
    *,
    last: bool = True,
    out: Matrix | None = None,
    workers: int | None = None,
) -> tuple[NDArray[Any], bool]:
    """Transform the tubes of rows, faces first: ``out[u, i, j] = sum_k forward[u, k] x[i, j, k]``.

    Parameters
    ----------
    x : array_like, shape (rows, columns * p)
        float32 or float64; a row is `columns` tubes of p numbers, or without `last` p lines of `columns` numbers.
    forward : array_like, shape (p, p)
        Cast to the dtype of `x`; p is at most 16.
    last : bool
        Whether the tubes are the last axis of a row.
    out : ndarray, shape (p * rows, columns), optional
        C-contiguous, of the dtype of `x`, not overlapping the inputs.
    workers : int, optional
        Threads for this call, by default `get_num_threads()`. The result has the same bits for any number.

    Returns
    -------
    faces : ndarray, shape (p, rows, columns)
        A view of `out`, or new.
    finite : bool
        Whether `x` has neither NaN nor infinity: the one read that there is tells it for nothing.

    Raises
    ------
    ValueError
        If shapes, dtypes or `out` do not fit.

    Notes
    -----
    ``2 p`` flops for each number, which is read once and written once. Tubes are turned in registers.

    Examples
    --------
    >>> faces, finite = tube_faces([[1.0, 2.0, 3.0, 4.0]], [[1.0, 1.0], [1.0, -1.0]])
    >>> faces[:, 0], finite
    (array([[ 3.,  7.],
           [-1., -1.]]), True)
    """
    rows, p, there = _tubes(x, forward, "forward")
    shape = p * rows.shape[0], rows.shape[1] // p
    result = output(out, shape, rows.dtype, rows)
    finite = _tube_faces(rows, there, result, last, checked_threads(workers))
    return result.reshape(p, rows.shape[0], shape[1]), bool(finite)


def facewise_product(
    x: ArrayLike,
    faces: ArrayLike,
    forward: ArrayLike,
    inverse: ArrayLike,
    bias: ArrayLike | None = None,
    /,
    *,
    last: bool = True,
    out: Matrix | None = None,
    workers: int | None = None,
) -> tuple[Matrix, bool]:
    """Transform the tubes of rows, multiply every face by its matrix, transform back.

    Parameters
    ----------
    x : array_like, shape (rows, l * p)
        float32 or float64; a row is l tubes of p numbers, or without `last` p lines of l numbers.
    faces : array_like, shape (p, l, n)
        Cast to the dtype of `x`, as are all others.
    forward, inverse : array_like, shape (p, p)
        What is applied to the tubes of `x` and to those of the product; any matrices. p is at most 16.
    bias : array_like, shape (n * p,), optional
        Added to every row; without `last` only.
    last : bool
        Whether the tubes are the last axis of a row, of `x` and of the result.
    out : ndarray, shape (rows, n * p), optional
        C-contiguous, of the dtype of `x`, not overlapping the inputs.
    workers : int, optional
        Threads for this call, by default `get_num_threads()`. The result has the same bits for any number.

    Returns
    -------
    y : ndarray, shape (rows, n * p)
        `out`, or a new array.
    finite : bool
        Whether `x` has neither NaN nor infinity.

    Raises
    ------
    ValueError
        If shapes, dtypes or `out` do not fit.

    Notes
    -----
    ``2 rows p (l n + p (l + n))`` flops; `x` is read once and the result written once. Some tens of rows at a time go
    through all three steps, so that their faces stay in the cache.

    Examples
    --------
    >>> y, _ = facewise_product([[1.0, 2.0]], np.ones((2, 1, 1)), [[0.0, 1.0], [1.0, 0.0]], np.eye(2))
    >>> y
    array([[2., 1.]])
    """
    rows, p, there = _tubes(x, forward, "forward")
    _, _, back = _tubes(x, inverse, "inverse")
    weights = np.asarray(faces)
    if weights.ndim != 3 or weights.shape[0] != p or 0 in weights.shape or weights.dtype.kind not in "biuf":
        raise ValueError(f"faces must be real of shape ({p}, l, n), got {weights.dtype} {weights.shape}")
    _, inner, columns = weights.shape
    if back.shape != there.shape or rows.shape[1] != p * inner:
        raise ValueError(
            f"x must have {p * inner} columns and inverse the shape of forward {there.shape}, "
            f"got {rows.shape} and {back.shape}"
        )
    if bias is not None and last:
        raise ValueError("bias must be None with last=True: it goes with rows of faces")
    offset = as_offset(bias, p * columns, rows.dtype)
    flat = np.ascontiguousarray(weights.reshape(p * inner, columns), dtype=rows.dtype)
    result = output(out, (rows.shape[0], p * columns), rows.dtype, rows, flat, there, back, offset)
    finite = _facewise(rows, flat, there, back, offset, result, last, checked_threads(workers))
    return result, bool(finite)


def _tubes(x: ArrayLike, z: ArrayLike, name: str) -> tuple[Matrix, int, Matrix]:
    """Rows, the length of their tubes, and the matrix in their dtype."""
    rows = as_contiguous(as_real_matrix(x, "x"))
    matrix = np.asarray(z)
    p = matrix.shape[0] if matrix.ndim else 0
    if matrix.shape != (p, p) or not 1 <= p <= MAX_TUBE or matrix.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be real and square, up to {MAX_TUBE}, got {matrix.dtype} {matrix.shape}")
    if rows.shape[1] % p:
        raise ValueError(f"x must have a multiple of {p} columns, got shape {rows.shape}")
    return rows, p, np.ascontiguousarray(matrix, dtype=rows.dtype)


def compiled() -> Any:
    """The compiled module, whose ``facewise_at`` takes addresses; None where another rung is active."""
    return vars(_dispatch)["_core"] if _dispatch.active() == "cpp" else None
