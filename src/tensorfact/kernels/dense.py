"""Kernels on dense matrices for randomized SVD."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tensorfact.kernels._array import as_contiguous, as_lines, as_matrix, is_lines, output
from tensorfact.kernels._dispatch import checked_threads, kernel

__all__ = ["cholesky_qr", "eigh", "gram", "matmul", "normal_apply", "sum_squares"]

Matrix = NDArray[Any]
Accumulate = Literal["native", "double"]

# Bytes of a block of rows: still in the shared cache for its second product, and few enough blocks that waiting for the
# threads of BLAS costs little (16 MB lost a tenth on two cores).
_BLOCK_BYTES = 32 << 20
_MIN_BLOCK_ROWS = 256


@kernel()
def _sum_squares(a: Matrix, nthreads: int) -> float:
    total = 0.0
    for i in range(a.shape[0]):
        for lo in range(0, a.shape[1], 4096):
            part = a[i, lo : lo + 4096].astype(np.float64)
            total += np.sum(part * part)
    return total


@kernel(blas=True)
def _normal_apply(a: Matrix, x: Matrix, out: Matrix, block_rows: int) -> None:
    out[:, :] = 0
    for lo in range(0, a.shape[0], block_rows):
        block = np.ascontiguousarray(a[lo : lo + block_rows])
        out += block.conj().T @ (block @ x)


@kernel(blas=True)
def _matmul(a: Matrix, b: Matrix, out: Matrix) -> None:
    out[:, :] = np.dot(np.ascontiguousarray(a), np.ascontiguousarray(b))


@kernel(blas=True)
def _eigh(a: Matrix, values: Matrix) -> int:
    found, vectors = np.linalg.eigh(np.ascontiguousarray(a.conj().T))  # it reads the lower triangle
    values[0, :] = found
    a[:, :] = vectors.conj().T
    return 0


@kernel(blas=True)
def _gram(a: Matrix, out: Matrix, nthreads: int) -> None:
    out[:, :] = 0
    for lo in range(0, a.shape[0], 1024):
        block = np.ascontiguousarray(a[lo : lo + 1024]).astype(out.dtype)
        out += block.conj().T @ block
    for j in range(out.shape[0]):  # exactly Hermitian, whatever the order of summation was
        out[j, j] = out[j, j].real
        out[j + 1 :, j] = out[j, j + 1 :].conj()


@kernel(blas=True)
def _cholesky_qr(y: Matrix, q: Matrix, r: Matrix, g: Matrix, nthreads: int) -> float:
    m, l = y.shape
    if m < l:
        return 0.0
    g[:, :] = 0
    for lo in range(0, m, 1024):
        block = y[lo : lo + 1024].astype(g.dtype)
        g += block.conj().T @ block
    spread = 1.0
    norm = np.empty(l, np.float64)
    info = np.finfo(g.real.dtype)
    for j in range(l):
        norm[j] = np.sqrt(g[j, j].real)
        if not g[j, j].real > info.tiny / info.eps:  # no digits left to tell columns apart
            return 0.0
    for j in range(l):  # right-looking Cholesky, upper triangle
        pivot = np.float64(g[j, j].real)
        if not (pivot > 0.0 and np.isfinite(pivot)):
            return 0.0
        spread = min(spread, np.sqrt(pivot) / norm[j])
        g[j, j:] /= np.sqrt(g[j, j].real)
        g[j + 1 :, j] = 0
        g[j + 1 :, j + 1 :] -= np.outer(g[j, j + 1 :].conj(), g[j, j + 1 :])
    r[:, :] = g.astype(r.dtype)
    for j in range(l):
        if not r[j, j].real > 0.0:
            return 0.0
    if q is not y:
        q[:, :] = y
    for j in range(l):
        q[:, j] /= r[j, j]
        q[:, j + 1 :] -= np.outer(q[:, j], r[j, j + 1 :])
    return spread


def sum_squares(a: ArrayLike, /, *, workers: int | None = None) -> float:
    """Sum of the squared magnitudes of all elements, accumulated in float64.

    Parameters
    ----------
    a : array_like, shape (m, n)
        Real or complex. Row- and column-contiguous arrays are read in place; others are copied by blocks of rows.
    workers : int, optional
        Threads for this call, by default `get_num_threads()`. The result has the same bits for any number.

    Returns
    -------
    float
        ``sum(abs(a)**2)``; 0.0 for an empty array. NaN and infinity propagate; squares of float64 numbers above 1e154
        overflow to infinity.

    Notes
    -----
    One read of `a`, 2 m n flops: bound by the memory bus.

    Examples
    --------
    >>> sum_squares([[3.0, 4.0]])
    25.0
    """
    matrix = as_matrix(a, "a")
    threads = checked_threads(workers)
    if matrix.size == 0:
        return 0.0
    if is_lines(matrix):
        return _sum_lines(matrix, threads)
    rows = max(1, _BLOCK_BYTES // (matrix.shape[1] * matrix.itemsize))
    blocks = (np.array(matrix[lo : lo + rows], order="C") for lo in range(0, matrix.shape[0], rows))
    return sum(_sum_lines(block, threads) for block in blocks)


def _sum_lines(matrix: Matrix, threads: int) -> float:
    lines = matrix if matrix.shape[1] == 1 or matrix.strides[1] == matrix.itemsize else matrix.T
    if lines.shape[1] == 1:
        lines = np.ascontiguousarray(lines)
    if lines.flags.c_contiguous:
        lines = lines.reshape(1, -1)
    if lines.dtype.kind == "c":  # |z|^2 is the sum over both parts
        lines = lines.view(lines.real.dtype)
    return float(_sum_squares(lines, threads))


def normal_apply(a: ArrayLike, x: ArrayLike, /, *, out: Matrix | None = None, block_rows: int | None = None) -> Matrix:
    """Apply ``A^H A`` to a block of vectors, reading `a` once: ``A^H (A X)``.

    Parameters
    ----------
    a : array_like, shape (m, n)
        Real or complex. Row- and column-contiguous arrays are used in place, others copied.
    x : array_like, shape (n, l)
        Cast to the dtype of `a`; it may not be complex when `a` is real.
    out : ndarray, shape (n, l), optional
        C-contiguous, of the dtype of `a`, not overlapping `a` or `x`.
    block_rows : int, optional
        Rows of `a` in one block, by default as many as make 32 MB, at least 256.

    Returns
    -------
    ndarray, shape (n, l)
        `out`, or a new C-contiguous array. Zeros when m is 0.

    Raises
    ------
    ValueError
        If shapes, dtypes or `out` do not fit.

    Notes
    -----
    4 m n l flops (real), one read of `a`. BLAS threads each product, so its thread count may change the last bits.

    Examples
    --------
    >>> normal_apply([[1.0, 0.0], [0.0, 2.0]], [[1.0], [1.0]])
    array([[1.],
           [4.]])
    """
    matrix = as_lines(as_matrix(a, "a"))
    block = as_matrix(x, "x")
    m, n = matrix.shape
    if block.shape[0] != n:
        raise ValueError(f"x must have {n} rows, the columns of a, got shape {block.shape}")
    if block.dtype.kind == "c" and matrix.dtype.kind != "c":
        raise ValueError(f"x must be real when a is real, got dtype {block.dtype}")
    block = as_contiguous(block.astype(matrix.dtype, copy=False))
    if block_rows is None:
        block_rows = max(_MIN_BLOCK_ROWS, _BLOCK_BYTES // max(1, n * matrix.itemsize))
    elif isinstance(block_rows, bool) or not hasattr(block_rows, "__index__") or block_rows < 1:
        raise ValueError(f"block_rows must be a positive integer or None, got {block_rows!r}")
    result = output(out, block.shape, matrix.dtype, matrix, block)
    _normal_apply(matrix, block, result, max(1, min(int(block_rows), m)))
    return result


def matmul(a: ArrayLike, b: ArrayLike, /, *, out: Matrix | None = None) -> Matrix:
    """Product of two matrices by the BLAS that the other kernels use.

    ``numpy.matmul`` brings a BLAS of its own, whose idle threads spin for a while: a loop that alternates between the
    two runs at half speed on few cores.

    Parameters
    ----------
    a : array_like, shape (m, k)
        Real or complex. Row- and column-contiguous arrays are used in place, others copied.
    b : array_like, shape (k, n)
        Of the dtype of `a`.
    out : ndarray, shape (m, n), optional
        C-contiguous, of the same dtype, not overlapping `a` or `b`.

    Returns
    -------
    ndarray, shape (m, n)
        `out`, or a new C-contiguous array.

    Raises
    ------
    ValueError
        If shapes, dtypes or `out` do not fit.

    Notes
    -----
    2 m n k flops (real). BLAS threads the product, so its thread count may change the last bits.

    Examples
    --------
    >>> matmul([[1.0, 2.0]], [[3.0], [4.0]])
    array([[11.]])
    """
    left, right = as_lines(as_matrix(a, "a")), as_lines(as_matrix(b, "b"))
    if left.shape[1] != right.shape[0]:
        raise ValueError(f"b must have {left.shape[1]} rows, the columns of a, got shape {right.shape}")
    if left.dtype != right.dtype:
        raise ValueError(f"b must be of the dtype of a, {left.dtype}, got {right.dtype}")
    result = output(out, (left.shape[0], right.shape[1]), left.dtype, left, right)
    _matmul(left, right, result)
    return result


def eigh(h: ArrayLike, /) -> tuple[Matrix, Matrix]:
    """Eigenvalues and eigenvectors of a Hermitian matrix in its own precision, by divide and conquer (``syevd``).

    Parameters
    ----------
    h : array_like, shape (n, n)
        Hermitian; copied. The upper triangle is read.

    Returns
    -------
    values : ndarray, shape (n,)
        Ascending, real.
    vectors : ndarray, shape (n, n)
        Orthonormal columns in the same order.

    Raises
    ------
    ValueError
        If `h` is not square.
    numpy.linalg.LinAlgError
        If LAPACK does not converge, or `h` holds NaN or infinity.

    Notes
    -----
    About 9 n^3 flops, half of them at the speed of memory. The interpreter's lock is released.

    Examples
    --------
    >>> eigh([[2.0, 0.0], [0.0, 1.0]])[0]
    array([1., 2.])
    """
    matrix = as_matrix(h, "h")
    n = matrix.shape[0]
    if matrix.shape[1] != n:
        raise ValueError(f"h must be square, got shape {matrix.shape}")
    vectors = np.array(matrix, order="C")
    if not np.isfinite(vectors).all():
        raise np.linalg.LinAlgError("h must be finite, got NaN or infinity")
    values = np.empty((1, n), dtype=vectors.real.dtype)
    info = _eigh(vectors, values)
    if info != 0:
        raise np.linalg.LinAlgError(f"the eigenvalues did not converge: LAPACK's info is {info}")
    return values[0], vectors.conj().T


def gram(
    a: ArrayLike, /, *, accumulate: Accumulate = "native", out: Matrix | None = None, workers: int | None = None
) -> Matrix:
    """Gram matrix ``A^H A``, both triangles, exactly Hermitian.

    Parameters
    ----------
    a : array_like, shape (m, n)
        Real or complex. Row- and column-contiguous arrays are used in place, others copied.
    accumulate : {"native", "double"}
        "native" works in the dtype of `a`. "double" multiplies and adds in float64 or complex128, which is also the
        dtype of the result; `a` is converted by blocks of rows, never as a whole.
    out : ndarray, shape (n, n), optional
        C-contiguous, of the result's dtype, not overlapping `a`.
    workers : int, optional
        Threads of the conversion and the mirroring, by default `get_num_threads()`.

    Returns
    -------
    ndarray, shape (n, n)
        `out`, or a new array. Zeros when m is 0.

    Notes
    -----
    m n^2 flops (real). BLAS threads the product, so its thread count may change the last bits.

    Examples
    --------
    >>> gram([[1.0, 2.0], [0.0, 1.0]])
    array([[1., 2.],
           [2., 5.]])
    """
    matrix = as_lines(as_matrix(a, "a"))
    n = matrix.shape[1]
    result = output(out, (n, n), _accumulator(matrix, accumulate), matrix)
    _gram(matrix, result, checked_threads(workers))
    return result


def cholesky_qr(
    y: ArrayLike, /, *, accumulate: Accumulate = "native", overwrite: bool = False, workers: int | None = None
) -> tuple[Matrix, Matrix, float]:
    """One pass of Cholesky QR, ``Y = Q R`` through ``Y^H Y = R^H R``, with a measure of how far to trust it.

    Parameters
    ----------
    y : array_like, shape (m, l)
        Tall block of columns. Copied unless C-contiguous.
    accumulate : {"native", "double"}
        Precision of the Gram matrix and its Cholesky factor, as in `gram`. "double" serves float32 blocks up to
        condition numbers near 1e7, where "native" stops at 1e3.
    overwrite : bool
        Write Q over `y`, which then must be a writeable C-contiguous array of a kernel dtype.
    workers : int, optional
        Threads of our own loops, by default `get_num_threads()`.

    Returns
    -------
    q : ndarray, shape (m, l)
        Orthonormal to about eps / spread^2 in the precision that accumulates: an estimate, because a triangle can be
        worse conditioned than its diagonal tells (Kahan's is). A second pass over `q` whose own spread is near 1
        proves it.
    r : ndarray, shape (l, l)
        Upper triangular, positive diagonal, of the dtype of `y`.
    spread : float
        ``min_j r_jj / ||y_j||`` in [0, 1], the least part of a column outside the span of the earlier ones; 1.0 when l
        is 0. 0.0 means that the factorisation failed (rank-deficient, m < l, NaN or infinity, overflow): then `q` and
        `r` are undefined and `y` is untouched. A small value means that `q` is far from orthonormal: rank-deficient
        blocks often pass with a spread near sqrt(eps). The caller decides.

    Notes
    -----
    2 m l^2 flops (real), a small multiple of a matrix product where Householder QR takes tens.

    References
    ----------
    Yamamoto, Nakatsukasa, Yanagisawa, Fukaya, "Roundoff error analysis of the CholeskyQR2 algorithm", ETNA 44 (2015).

    Examples
    --------
    >>> q, r, spread = cholesky_qr([[3.0], [4.0]])
    >>> r, spread
    (array([[5.]]), 1.0)
    """
    given = as_matrix(y, "y")
    block = as_contiguous(given)
    if overwrite and (block is not y or not block.flags.writeable):
        raise ValueError("y must be a writeable C-contiguous array of a float or complex type when overwrite is true")
    l = block.shape[1]
    q = block if overwrite else np.empty(block.shape, block.dtype)
    r = np.empty((l, l), block.dtype)
    g = np.empty((l, l), _accumulator(block, accumulate))
    spread = float(_cholesky_qr(block, q, r, g, checked_threads(workers)))
    return q, r, spread


def _accumulator(a: Matrix, accumulate: str) -> np.dtype[Any]:
    if accumulate not in ("native", "double"):
        raise ValueError(f'accumulate must be "native" or "double", got {accumulate!r}')
    return np.result_type(a.dtype, np.float64) if accumulate == "double" else a.dtype
