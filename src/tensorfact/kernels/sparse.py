"""Products of a dense matrix and a sparse one that was packed once: codes of a shared basis, pruned weights."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from tensorfact.kernels import _dispatch
from tensorfact.kernels._array import as_contiguous, as_offset, as_real_matrix, output
from tensorfact.kernels._dispatch import checked_threads, kernel
from tensorfact.kernels.dense import matmul

__all__ = ["SparsePlan", "pack_sparse", "sparse_cost", "sparse_path", "sparse_product"]

Matrix = NDArray[Any]
ROWS, WINDOW, GROUP = 128, 64, 4  # as in csrc/core/sparse.hpp


@kernel()
def _sparse_product(
    x: Matrix, values: Matrix, rows: Matrix, columns: Matrix, starts: Matrix, bias: Matrix, y: Matrix, nthreads: int
) -> None:
    n = y.shape[1]
    windows = (n + 63) // 64
    y[:, :] = 0
    if bias.shape[1] > 0:
        y += bias
    for i in range(starts.shape[1] - 1):
        begin, end = starts[0, i] * 4, starts[0, i + 1] * 4
        if begin == end:
            continue
        first = i // (windows * 16) * 128
        for c in range(4):
            column = i // 16 % windows * 64 + np.int64(columns[0, 4 * i + c])
            if column >= n:
                continue
            row = rows[0, begin + c : end : 4].astype(np.int64)
            count = np.sum(row < 128)  # entries of a shorter column come first, then "no row"
            picked = np.ascontiguousarray(x[:, first + row[:count]])
            y[:, column] += np.dot(picked, np.ascontiguousarray(values[0, begin + c : end : 4][:count]))


class SparsePlan:
    """A sparse matrix V (k, n), laid out for `sparse_product`. Made by `pack_sparse`, not changed afterwards.

    Attributes
    ----------
    shape : (int, int)
        k and n.
    nnz : int
        Entries that are stored.
    dtype : dtype
        float32 or float64.
    values, rows, columns, starts : ndarray
        Blocks of 128 rows; in each, windows of 64 columns, sorted by their number of entries and taken four at a time;
        shorter columns are padded with "no row".
    """

    def __init__(
        self, shape: tuple[int, int], nnz: int, values: Matrix, rows: Matrix, columns: Matrix, starts: Matrix
    ) -> None:
        self.shape, self.nnz, self.dtype = shape, nnz, values.dtype
        self.values, self.rows, self.columns, self.starts = values, rows, columns, starts
        for array in self._arrays():
            array.setflags(write=False)

    def _arrays(self) -> tuple[Matrix, ...]:
        return self.values, self.rows, self.columns, self.starts

    @property
    def density(self) -> float:
        """Share of the entries that are stored."""
        return self.nnz / max(1, self.shape[0] * self.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes in memory, without the dense matrix that the dense path keeps."""
        return sum(array.nbytes for array in self._arrays())

    @cached_property
    def dense(self) -> Matrix:
        """V with its zeros, C-contiguous and read-only: built at the first use and kept, for the dense path."""
        k, n = self.shape
        windows = -(-n // WINDOW)
        out = np.zeros((k, n), self.dtype)
        group = np.repeat(np.arange(self.starts.size - 1), np.diff(self.starts[0]))
        column = (group // (WINDOW // GROUP) % windows * WINDOW)[:, None] + self.columns.reshape(-1, GROUP)[group]
        row = (group // (windows * (WINDOW // GROUP)) * ROWS)[:, None] + self.rows.reshape(-1, GROUP)
        stored = self.rows.reshape(-1, GROUP) < ROWS
        out[row[stored], column[stored]] = self.values.reshape(-1, GROUP)[stored]
        out.setflags(write=False)
        return out

    def __repr__(self) -> str:
        """Size, type and density."""
        return f"SparsePlan({self.shape[0]}x{self.shape[1]}, {self.dtype}, density={self.density:.4g})"


def pack_sparse(v: ArrayLike, mask: ArrayLike | None = None, /, *, dtype: DTypeLike | None = None) -> SparsePlan:
    """Lay out a sparse matrix for `sparse_product`. Pack ``v.T`` for products with the transpose.

    Parameters
    ----------
    v : array_like, shape (k, n)
        Real. Any pattern: unstructured, 2:4 and 1:4 are served alike.
    mask : array_like of bool, shape (k, n), optional
        Entries to store, zeros among them. By default those that are not zero.
    dtype : dtype, optional
        float32 or float64, by default that of `v` (float16 becomes float32).

    Returns
    -------
    SparsePlan
        Of about ``nnz * (itemsize + 1)`` bytes.

    Raises
    ------
    ValueError
        If `v` is complex or `mask` does not fit.

    Examples
    --------
    >>> pack_sparse([[0.0, 2.0], [0.0, 0.0]])
    SparsePlan(2x2, float64, density=0.25)
    """
    matrix = as_real_matrix(v, "v")
    kind = np.dtype(matrix.dtype if dtype is None else dtype)
    if kind not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64, got {kind}")
    kept = matrix != 0 if mask is None else np.asarray(mask)
    if kept.shape != matrix.shape or kept.dtype != bool:
        raise ValueError(f"mask must be an array of bool with shape {matrix.shape}, got {kept.dtype} {kept.shape}")
    k, n = matrix.shape
    windows = -(-n // WINDOW)
    columns, lengths, values, rows = [], [], [], []
    for first in range(0, k, ROWS):
        block = np.zeros((min(ROWS, k - first), windows * WINDOW), bool)
        block[:, :n] = kept[first : first + ROWS]
        counts = block.sum(0).reshape(windows, WINDOW)
        order = np.argsort(-counts, axis=1, kind="stable")  # place -> column of its window
        sizes = np.take_along_axis(counts, order, 1)[:, ::GROUP].ravel()
        place = np.empty_like(order)
        np.put_along_axis(place, order, np.arange(WINDOW)[None], 1)
        slot = (place + WINDOW * np.arange(windows)[:, None]).ravel()  # column -> place in the block
        begin = np.concatenate([[0], np.cumsum(sizes)])
        column, row = np.nonzero(block.T)  # by column, rows rising
        before = np.cumsum(counts.ravel()) - counts.ravel()
        entry = begin[slot[column] // GROUP] + np.arange(column.size) - before[column]
        at = entry * GROUP + slot[column] % GROUP
        some = np.zeros(begin[-1] * GROUP, kind)
        some[at] = matrix[first : first + ROWS][row, column]
        where = np.full(begin[-1] * GROUP, ROWS, np.uint8)
        where[at] = row
        columns.append(order.astype(np.uint8).ravel())
        lengths.append(sizes)
        values.append(some)
        rows.append(where)
    starts = np.cumsum(np.concatenate([[0], *lengths]).astype(np.int64))

    def joined(parts: list[Matrix], of: DTypeLike) -> Matrix:
        return np.concatenate([np.zeros(0, of), *parts]).astype(of, copy=False)[None]

    return SparsePlan(
        (k, n),
        int(kept.sum()),
        joined(values, kind),
        joined(rows, np.uint8),
        joined(columns, np.uint8),
        starts[None],
    )


def sparse_path(tokens: int, plan: SparsePlan, /) -> Literal["sparse", "dense"]:
    """Which way `sparse_product` takes for so many rows of x: that which was the faster one when measured.

    The sparse one up to about half of the entries for 8 rows and more; sooner dense where k or n is below a few
    hundred; for one to three rows, where both only read V, a tenth. Always dense without the compiled kernel.

    Examples
    --------
    >>> sparse_path(4096, pack_sparse(np.eye(3)))
    'dense'
    """
    k, n = plan.shape
    if _dispatch.active() != "cpp" or not k or not n:
        return "dense"
    if tokens < 4:
        limit = 0.1 if k * n >= 1 << 20 else 0.0
    elif tokens < 8:
        limit = 0.3 if k * n >= 1 << 19 else 0.0
    else:
        return "sparse" if sparse_cost(k, n, plan.density) <= 1 else "dense"
    return "sparse" if plan.density <= limit else "dense"


def sparse_cost(k: int, n: int, density: float, /) -> float:
    """Time of ``X V`` on the sparse path in times of the dense product, for 8 rows of x and more; as it was measured.

    Infinite without the compiled kernel.

    Examples
    --------
    >>> sparse_cost(768, 3072, 0.25) < 1 < sparse_cost(768, 3072, 0.75)
    True
    """
    if _dispatch.active() != "cpp":
        return math.inf
    # 1.32 an entry, 0.24 for sums that come and go with each block of rows and as a margin, 53 / k and 27 / n for what
    # is transposed and written
    return 1.32 * density + 0.24 + 53 / max(k, 1) + 27 / max(n, 1)


def sparse_product(
    x: ArrayLike,
    plan: SparsePlan,
    bias: ArrayLike | None = None,
    /,
    *,
    path: Literal["auto", "sparse", "dense"] = "auto",
    out: Matrix | None = None,
    workers: int | None = None,
) -> Matrix:
    """``X V + b`` for a dense X and a packed sparse V.

    Parameters
    ----------
    x : array_like, shape (tokens, k)
        Of the dtype of the plan; other real ones are cast.
    plan : SparsePlan
        V (k, n), from `pack_sparse`.
    bias : array_like, shape (n,), optional
        Added to every row.
    path : {"auto", "sparse", "dense"}
        "auto" takes what `sparse_path` says. "dense" is one BLAS product with ``plan.dense``, which is kept.
    out : ndarray, shape (tokens, n), optional
        C-contiguous, of the dtype of the plan, not overlapping the inputs.
    workers : int, optional
        Threads of the sparse path, by default `get_num_threads()`. Its result has the same bits for any number.

    Returns
    -------
    ndarray, shape (tokens, n)
        `out`, or a new array.

    Raises
    ------
    ValueError
        If shapes, dtypes or `out` do not fit.

    Notes
    -----
    2 tokens nnz flops. On the sparse path a number of x that meets no entry is not used: NaN reaches fewer results than
    on the dense one, where it is multiplied by zeros.

    References
    ----------
    Kreutzer, Hager, Wellein, Fehske, Bishop (2014), SIAM J. Sci. Comput. 36(5), for the layout (SELL-C-sigma).

    Examples
    --------
    >>> sparse_product([[1.0, 2.0]], pack_sparse([[0.0, 3.0], [4.0, 0.0]]))
    array([[8., 3.]])
    """
    if path not in ("auto", "sparse", "dense"):
        raise ValueError(f'path must be "auto", "sparse" or "dense", got {path!r}')
    if not isinstance(plan, SparsePlan):
        raise ValueError(f"plan must come from pack_sparse, got {type(plan).__name__}")
    rows = as_contiguous(as_real_matrix(x, "x").astype(plan.dtype, copy=False))
    k, n = plan.shape
    if rows.shape[1] != k:
        raise ValueError(f"x must have {k} columns, the rows of the plan, got shape {rows.shape}")
    offset = as_offset(bias, n, plan.dtype)
    result = output(out, (rows.shape[0], n), plan.dtype, rows, offset)
    if path == "auto":
        path = sparse_path(rows.shape[0], plan)
    if path == "sparse":
        arrays = plan.values, plan.rows, plan.columns, plan.starts
        _sparse_product(rows, *arrays, offset, result, checked_threads(workers))
    else:
        if rows.shape[0] == 1:
            np.dot(rows[0], plan.dense, out=result[0])  # a GEMM would first copy V
        else:
            matmul(rows, plan.dense, out=result)
        if bias is not None:
            result += offset
    return result
