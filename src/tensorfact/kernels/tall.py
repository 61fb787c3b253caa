"""Kernels on tall matrices, for tensor trains: each reads the matrix once and leaves it as it is.

A tall matrix is row-contiguous, or column-contiguous for sweeps from the left end of a tensor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tensorfact.kernels._array import as_contiguous, as_lines, as_matrix
from tensorfact.kernels._dispatch import checked_threads, kernel

__all__ = ["row_sketch", "tall_gram", "tall_product", "tall_triangle"]

Matrix = NDArray[Any]


@kernel()
def _row_sketch(y: Matrix, codes: Matrix, z: Matrix, nthreads: int) -> float:
    z[:, :] = 0
    total = 0.0
    for i in range(y.shape[0]):
        code = codes[0, i]
        if code % 2 == 0:
            z[code // 2] += y[i]
        else:
            z[code // 2] -= y[i]
        for j in range(y.shape[1]):
            total += np.float64(y[i, j].real) ** 2 + np.float64(y[i, j].imag) ** 2
    return total


@kernel()
def _tall_triangle(y: Matrix, r: Matrix, nthreads: int) -> None:
    m, n = y.shape
    r[:, :] = 0
    stack = np.empty((min(m, 2 * n + 64) + n, n), y.dtype)
    for lo in range(0, m, 2 * n + 64):
        rows = min(2 * n + 64, m - lo)
        stack[:n] = r
        stack[n : n + rows] = y[lo : lo + rows]
        if not np.isfinite(stack[: n + rows]).all():  # LAPACK may refuse or loop on them
            r[:, :] = np.nan
            return
        r[:, :] = np.linalg.qr(stack[: n + rows])[1]


@kernel()
def _tall_gram(y: Matrix, g: Matrix, nthreads: int) -> None:
    g[:, :] = 0
    for lo in range(0, y.shape[0], 1024):
        block = np.ascontiguousarray(y[lo : lo + 1024]).astype(g.dtype)
        g += np.dot(np.ascontiguousarray(block.conj().T), block)
    for j in range(g.shape[0]):  # exactly Hermitian, whatever the order of summation was
        g[j, j] = g[j, j].real
        g[j + 1 :, j] = g[j, j + 1 :].conj()


@kernel()
def _tall_product(y: Matrix, v: Matrix, w: Matrix, sums: Matrix, residual: bool, nthreads: int) -> None:
    sums[:, :] = 0
    adjoint = np.ascontiguousarray(v.conj().T)
    for lo in range(0, y.shape[0], 1024):
        block = np.ascontiguousarray(y[lo : lo + 1024])
        image = np.dot(block, v)
        w[lo : lo + 1024] = image
        for i in range(image.shape[0]):
            for j in range(image.shape[1]):
                sums[0, 0] += np.float64(image[i, j].real) ** 2 + np.float64(image[i, j].imag) ** 2
        if residual:
            rest = block - np.dot(image, adjoint)
            for i in range(rest.shape[0]):
                for j in range(rest.shape[1]):
                    sums[0, 1] += np.float64(rest[i, j].real) ** 2 + np.float64(rest[i, j].imag) ** 2


def row_sketch(y: ArrayLike, codes: ArrayLike, buckets: int, /, *, workers: int | None = None) -> tuple[Matrix, float]:
    """Add every row, with a sign, to one of a few buckets (a sparse-sign sketch); and the sum of squares on the way.

    Parameters
    ----------
    y : array_like, shape (m, n)
        Tall. Row- and column-contiguous arrays are read in place, others copied.
    codes : array_like of uint32, shape (m,)
        Bucket times two, plus one where the sign is negative; below ``2 * buckets``. Drawn at random by the caller.
    buckets : int
        Rows of the sketch.
    workers : int, optional
        Threads for this call, by default `get_num_threads()`. The result has the same bits for any number.

    Returns
    -------
    z : ndarray, shape (buckets, n)
        The sketch ``S Y``, with ``E[Z^H Z] = Y^H Y``, in the dtype of `y`.
    sum2 : float
        Sum of the squared magnitudes of `y`, accumulated in float64. NaN and infinity propagate.

    Raises
    ------
    ValueError
        If shapes do not fit or a code is out of range.

    Notes
    -----
    One read of `y`, 4 m n flops: bound by the memory bus as long as the sketch fits into the second-level cache.

    References
    ----------
    Charikar, Chen, Farach-Colton (2002); Clarkson and Woodruff, STOC 2013 (CountSketch for low rank).

    Examples
    --------
    >>> row_sketch([[1.0, 2.0], [3.0, 4.0]], [0, 1], 1)
    (array([[-2., -2.]]), 30.0)
    """
    matrix = as_lines(as_matrix(y, "y"))
    draws = np.ascontiguousarray(codes, dtype=np.uint32).reshape(1, -1)
    if draws.shape[1] != matrix.shape[0]:
        raise ValueError(f"codes must have {matrix.shape[0]} entries, one for each row of y, got {draws.shape[1]}")
    if buckets < 1 or (draws.size and int(draws.max()) >= 2 * buckets):
        raise ValueError(f"codes must be below 2 * buckets = {2 * buckets}, got {int(draws.max(initial=0))}")
    z = np.empty((buckets, matrix.shape[1]), matrix.dtype)
    return z, float(_row_sketch(matrix, draws, z, checked_threads(workers)))


def tall_triangle(y: ArrayLike, /, *, workers: int | None = None) -> Matrix:
    """Triangular factor of ``Y = Q R`` by Householder reflections, without Q (TSQR).

    Parameters
    ----------
    y : array_like, shape (m, n)
        Tall; any shape is served. Row- and column-contiguous arrays are read in place, others copied.
    workers : int, optional
        Threads for this call, by default `get_num_threads()`. The result has the same bits for any number.

    Returns
    -------
    ndarray, shape (n, n)
        Upper triangular, with the singular values and right singular vectors of `y`; unique up to the signs (phases)
        of its rows. Not finite where `y` is not.

    Notes
    -----
    One read of `y`, 2 m n^2 flops (real).

    References
    ----------
    Demmel, Grigori, Hoemmen, Langou (2012); Roehrig-Zoellner, Thies, Basermann (2022), arXiv 2102.00104.

    Examples
    --------
    >>> abs(tall_triangle([[3.0], [4.0]]))
    array([[5.]])
    """
    matrix = as_lines(as_matrix(y, "y"))
    n = matrix.shape[1]
    r = np.zeros((n, n), matrix.dtype)
    if matrix.size:
        _tall_triangle(matrix, r, checked_threads(workers))
    return r


def tall_gram(y: ArrayLike, /, *, workers: int | None = None) -> Matrix:
    """Gram matrix ``Y^H Y`` of a tall matrix, summed in double precision; half the flops of `tall_triangle`.

    Parameters
    ----------
    y : array_like, shape (m, n)
        Tall; any shape is served. Row- and column-contiguous arrays are read in place, others copied.
    workers : int, optional
        Threads for this call, by default `get_num_threads()`. The result has the same bits for any number.

    Returns
    -------
    ndarray, shape (n, n)
        Of float64 or complex128, exactly Hermitian. Products are rounded to the dtype of `y` and summed in it over at
        most 256 rows, so its error is at most about ``32 eps ||Y||^2`` in that dtype. Not finite where `y` is not.

    Notes
    -----
    One read of `y`, m n^2 flops (real), sums of at most m n / 16 numbers or one Gram matrix. Unlike `kernels.gram` it
    does not go through BLAS. Made for up to about 1000 columns, whose sums stay in the cache.

    Examples
    --------
    >>> tall_gram([[3.0, 1.0], [4.0, 0.0]])
    array([[25.,  3.],
           [ 3.,  1.]])
    """
    matrix = as_lines(as_matrix(y, "y"))
    n = matrix.shape[1]
    g = np.zeros((n, n), np.result_type(matrix.dtype, np.float64))
    if matrix.size:
        _tall_gram(matrix, g, checked_threads(workers))
    return g


def tall_product(
    y: ArrayLike, v: ArrayLike, /, *, residual: bool = False, out: Matrix | None = None, workers: int | None = None
) -> tuple[Matrix, float, float]:
    """``Y V`` for a tall `y` and a few orthonormal columns `v`, and the norms that account for what is lost.

    Parameters
    ----------
    y : array_like, shape (m, n)
        Tall. Row- and column-contiguous arrays are read in place, others copied.
    v : array_like, shape (n, k)
        Of the dtype of `y`.
    residual : bool
        Also compute ``||Y - Y V V^H||^2``, row by row while the rows are in the cache: twice the flops. The difference
        of the norms of Y and Y V cancels where little is lost.
    out : ndarray, shape (m, k), optional
        Of the dtype and the layout (row- or column-contiguous) of `y`.
    workers : int, optional
        Threads for this call, by default `get_num_threads()`. The result has the same bits for any number.

    Returns
    -------
    w : ndarray, shape (m, k)
        Row-contiguous if `y` is, else column-contiguous.
    sum2 : float
        Squared Frobenius norm of `w`, accumulated in float64.
    residual2 : float
        Squared Frobenius norm of ``Y - Y V V^H``; NaN if it was not asked for.

    Raises
    ------
    ValueError
        If shapes, dtypes or `out` do not fit.

    Notes
    -----
    2 m n k flops (real), one read of `y` and one write of `w`.

    Examples
    --------
    >>> tall_product([[3.0, 4.0]], [[1.0], [0.0]], residual=True)
    (array([[3.]]), 9.0, 16.0)
    """
    matrix = as_lines(as_matrix(y, "y"))
    basis = as_contiguous(as_matrix(v, "v"))
    if basis.shape[0] != matrix.shape[1]:
        raise ValueError(f"v must have {matrix.shape[1]} rows, the columns of y, got shape {basis.shape}")
    if basis.dtype != matrix.dtype:
        raise ValueError(f"v must be of the dtype of y, {matrix.dtype}, got {basis.dtype}")
    shape = (matrix.shape[0], basis.shape[1])
    if out is None:
        by_row = matrix.shape[1] <= 1 or matrix.strides[1] == matrix.itemsize
        out = np.empty(shape, matrix.dtype, order="C" if by_row else "F")
    elif out.shape != shape or out.dtype != matrix.dtype:
        raise ValueError(f"out must be an array of {matrix.dtype} with shape {shape}, got {out.dtype} {out.shape}")
    sums = np.zeros((1, 2))
    if out.size:
        _tall_product(matrix, basis, out, sums, bool(residual), checked_threads(workers))
    elif residual:
        raise ValueError(f"v must have at least one column when the residual is asked for, got shape {basis.shape}")
    return out, float(sums[0, 0]), float(sums[0, 1]) if residual else float("nan")
