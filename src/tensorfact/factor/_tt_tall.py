"""A dense tensor as a tall matrix of its trailing modes: the three passes that a sweep makes over it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tensorfact import kernels

__all__ = ["HostTensor"]

_BLOCK_BYTES = 32 << 20  # of a copy of input that the kernels cannot read in place


class HostTensor:
    """Tensor (n_1, ..., n_k, bond) in host memory or in a file, of which a group of trailing modes makes the columns.

    A C-contiguous array is a row-contiguous matrix and a Fortran-contiguous one a column-contiguous matrix, both
    without a copy; anything else is copied by blocks of rows. ``exponent`` scales the blocks by a power of two.
    """

    def __init__(self, array: np.ndarray, dtype: Any, workers: int | None, exponent: int = 0) -> None:
        self.array = array
        self.dtype = np.dtype(dtype)
        self.workers = workers
        self.exponent = exponent
        aligned = array.dtype == self.dtype and array.flags.aligned and exponent == 0
        self.by_row = bool(aligned and array.flags.c_contiguous)
        self.by_column = bool(aligned and array.flags.f_contiguous) and not self.by_row
        self.eps = float(np.finfo(self.dtype).eps)

    @property
    def modes(self) -> tuple[int, ...]:
        return self.array.shape[:-1]

    @property
    def bond(self) -> int:
        return int(self.array.shape[-1])

    @property
    def size(self) -> int:
        return self.array.size

    # -- the matrix ----------------------------------------------------------------------------------------------
    def pieces(self, group: int) -> Iterator[tuple[int, np.ndarray]]:
        """Row ranges of the unfolding whose columns are the last ``group`` modes and the bond: first row, matrix."""
        width = math.prod(self.array.shape[len(self.modes) - group :])
        if self.by_row:
            yield 0, self.array.reshape(-1, width)
        elif self.by_column:
            yield 0, self.array.T.reshape(width, -1).T
        else:
            lo = 0
            for block in self._blocks(self.array, len(self.modes) - group):
                matrix = self._working(block).reshape(-1, width)
                yield lo, matrix
                lo += matrix.shape[0]

    def _blocks(self, array: np.ndarray, axes: int) -> Iterator[np.ndarray]:
        """Parts of ``array`` in the order of its first ``axes`` axes, cut along those only, each small if possible."""
        part = array.nbytes // max(array.shape[0], 1)
        if axes > 1 and part > _BLOCK_BYTES:
            for i in range(array.shape[0]):
                yield from self._blocks(array[i], axes - 1)
        elif axes == 0:
            yield array
        else:
            step = max(1, _BLOCK_BYTES // max(part, 1))
            for lo in range(0, array.shape[0], step):
                yield array[lo : lo + step]

    def _working(self, block: np.ndarray) -> np.ndarray:
        block = np.ascontiguousarray(block, dtype=self.dtype)
        if self.exponent and self.dtype.kind == "c":
            parts = block.view(block.real.dtype)
            block = np.ldexp(parts, self.exponent).view(self.dtype)
        elif self.exponent:
            block = np.ldexp(block, self.exponent)
        return block

    # -- passes --------------------------------------------------------------------------------------------------
    def sketch(self, group: int, buckets: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """Sparse-sign sketch (buckets, width) of the unfolding, and the squared norm: one read."""
        z: Any = 0.0
        norm2 = 0.0
        for _, piece in self.pieces(group):
            codes = rng.integers(0, 2 * buckets, size=piece.shape[0], dtype=np.uint32)
            part, sum2 = kernels.row_sketch(piece, codes, buckets, workers=self.workers)
            z, norm2 = z + part, norm2 + sum2
        return z, norm2

    def gram(self, group: int) -> np.ndarray:
        """Gram matrix (width, width) of the unfolding in double precision: one read."""
        g: Any = 0.0
        for _, piece in self.pieces(group):
            g = g + kernels.tall_gram(piece, workers=self.workers)
        return np.asarray(g)

    def triangle(self, group: int) -> np.ndarray:
        """Triangular factor (width, width) of the unfolding: one read."""
        r: np.ndarray | None = None
        for _, piece in self.pieces(group):
            part = kernels.tall_triangle(piece, workers=self.workers)
            r = part if r is None else kernels.tall_triangle(np.concatenate([r, part]))
        assert r is not None
        return r

    def project(self, group: int, v: np.ndarray, *, residual: bool, overwrite: bool) -> tuple[HostTensor, float, float]:
        """The tensor whose trailing group is replaced by its coordinates in ``v``; squared norms kept and lost."""
        lead = self.modes[: len(self.modes) - group]
        rows, q = math.prod(lead), v.shape[1]
        kept2 = lost2 = 0.0
        if overwrite and self.by_row:
            return self._project_in_place(lead, v, residual)
        out = np.empty((rows, q), self.dtype, order="F" if self.by_column else "C")
        for lo, piece in self.pieces(group):
            part = out[lo : lo + piece.shape[0]]
            _, sum2, residual2 = kernels.tall_product(piece, v, residual=residual, out=part, workers=self.workers)
            kept2, lost2 = kept2 + sum2, lost2 + residual2
        folded = out.T.reshape(q, *lead[::-1]).T if self.by_column else out.reshape(*lead, q)
        return HostTensor(folded, self.dtype, self.workers), kept2, lost2

    def _project_in_place(
        self, lead: tuple[int, ...], v: np.ndarray, residual: bool
    ) -> tuple[HostTensor, float, float]:
        """The same over the memory of the tensor itself: blocks of rows shrink towards its beginning."""
        width, q = v.shape
        matrix, flat = self.array.reshape(-1, width), self.array.reshape(-1)
        rows, step = matrix.shape[0], max(1, _BLOCK_BYTES // (4 * width * self.dtype.itemsize))
        buffer = np.empty((min(rows, step), q), self.dtype)
        kept2 = lost2 = 0.0
        for lo in range(0, rows, step):
            piece = matrix[lo : lo + step]
            part = buffer[: piece.shape[0]]
            _, sum2, residual2 = kernels.tall_product(piece, v, residual=residual, out=part, workers=self.workers)
            flat[lo * q : lo * q + part.size] = part.reshape(-1)
            kept2, lost2 = kept2 + sum2, lost2 + residual2
        return HostTensor(flat[: rows * q].reshape(*lead, q), self.dtype, self.workers), kept2, lost2

    def small(self, group: int, matrix: np.ndarray) -> np.ndarray:
        """Rows over the columns of the unfolding as tensors (rows, n_a, ..., n_z, bond)."""
        shape = self.array.shape[len(self.modes) - group :]
        if self.by_column:
            return matrix.reshape(-1, *shape[::-1]).transpose(0, *range(len(shape), 0, -1))
        return matrix.reshape(-1, *shape)

    def columns(self, group: int, wide: np.ndarray) -> np.ndarray:
        """The way back: a wide core (q, n_a, ..., n_z, bond) as columns of the unfolding's row space, conjugated."""
        if self.by_column:
            wide = wide.transpose(0, *range(group + 1, 0, -1))
        return np.ascontiguousarray(wide.reshape(wide.shape[0], -1).conj().T, dtype=self.dtype)

    def center(self) -> np.ndarray:
        """The tensor itself as the first member (1, n_1, ..., n_k, bond) of a chain."""
        return (self.array if self.by_row or self.by_column else self._working(self.array))[None]

    def peak(self) -> float:
        """Largest magnitude of a real or imaginary part, NaN or infinity where there is one: one read."""
        top = 0.0
        for _, piece in self.pieces(1):
            for part in (piece.real, piece.imag) if self.dtype.kind == "c" else (piece,):
                high, low = float(part.max()), float(part.min())
                top = max(top, high, -low) if high == high and low == low else math.nan
                if not math.isfinite(top):
                    return top
        return top
