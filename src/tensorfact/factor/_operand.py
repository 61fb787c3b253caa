"""What a low-rank routine may do with a matrix: multiply by it, from either side, and know its norm.

One class a source: an array in memory, an array of another library, a matrix on disk that is read in row blocks, an
operator that only multiplies.  All of them answer ``apply`` (A x), ``adjoint`` (A^H x) and ``normal`` (A^H A x); a pass
over the data is counted in ``ops.reads``.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np

from tensorfact import kernels
from tensorfact.factor._ops import NumpyOps

__all__ = ["Dense", "Linear", "Operand", "Portable", "Scaled", "Streamed", "scaled_by"]

_BLOCK_BYTES = 32 << 20  # row blocks of a streamed matrix: large for the disk and for GEMM, small beside the rest


class Operand:
    """A matrix (m, n) by what it does; subclasses supply ``apply`` and ``adjoint``."""

    in_memory = False

    def __init__(self, shape: tuple[int, int], ops: NumpyOps) -> None:
        self.shape = shape
        self.ops = ops
        self._norm2: float | None = None

    @property
    def known_norm2(self) -> float | None:
        """The squared norm if it has been computed, else None."""
        return self._norm2

    def apply(self, x: Any) -> Any:
        """A x for x (n, l)."""
        raise NotImplementedError

    def adjoint(self, x: Any) -> Any:
        """A^H x for x (m, l)."""
        raise NotImplementedError

    def normal(self, x: Any) -> Any:
        """A^H (A x), in one read of A where the source allows it."""
        return self.adjoint(self.apply(x))

    def sketch(self, width: int, rng: np.random.Generator) -> Any:
        """A^H times a Gaussian block of ``width`` columns."""
        return self.adjoint(self.ops.draw(self.shape[0], width, rng))

    def gram(self, *, double: bool) -> Any:
        """A^H A (n, n)."""
        raise NotImplementedError

    def transposed(self) -> Operand:
        return _Transposed(self)

    def norm2(self) -> float:
        """Squared Frobenius norm in float64; not finite exactly when an entry is not."""
        if self._norm2 is None:
            self._norm2 = self._compute_norm2()
        return self._norm2

    def _compute_norm2(self) -> float:
        """An operator is asked for its columns, a block of unit vectors at a time (min(m, n) products in all)."""
        m, n = self.shape
        total, step = 0.0, 256
        for lo in range(0, min(m, n), step):
            unit = np.zeros((min(m, n), min(step, min(m, n) - lo)), dtype=self.ops.dtype)
            np.fill_diagonal(unit[lo:], 1)
            block = self.ops.from_numpy(unit)
            total += self.ops.sum2(self.apply(block) if n <= m else self.adjoint(block))
        return total

    def residual2(self, u: Any, s: Any, vh: Any) -> float:
        """Squared Frobenius norm of ``A - (u * s) vh``, by blocks of columns."""
        ops, (_, n), total, step = self.ops, self.shape, 0.0, 256
        us = u * s[None, :]
        for lo in range(0, n, step):
            unit = np.zeros((n, min(step, n - lo)), dtype=ops.dtype)
            np.fill_diagonal(unit[lo:], 1)
            total += ops.sum2(self.apply(ops.from_numpy(unit)) - ops.matmul(us, vh[:, lo : lo + step]))
        return total


class _Transposed(Operand):
    """A^H of an operand that has no cheaper transpose."""

    def __init__(self, base: Operand) -> None:
        super().__init__((base.shape[1], base.shape[0]), base.ops)
        self.base = base

    @property
    def known_norm2(self) -> float | None:
        return self.base.known_norm2

    def apply(self, x: Any) -> Any:
        return self.base.adjoint(x)

    def adjoint(self, x: Any) -> Any:
        return self.base.apply(x)

    def transposed(self) -> Operand:
        return self.base

    def norm2(self) -> float:
        return self.base.norm2()


class Scaled(Operand):
    """A power of two times an operator, half of it on each side of the product so that neither leaves the range."""

    def __init__(self, base: Operand, exponent: int) -> None:
        super().__init__(base.shape, base.ops)
        self.base = base
        self.before, self.after = (base.ops.dtype.type(2.0**e) for e in (exponent // 2, exponent - exponent // 2))

    def apply(self, x: Any) -> Any:
        return self.base.apply(x * self.before) * self.after

    def adjoint(self, x: Any) -> Any:
        return self.base.adjoint(x * self.before) * self.after


class Dense(Operand):
    """A NumPy array in memory, row- or column-contiguous; ``conj`` stands for its complex conjugate without a copy."""

    in_memory = True

    def __init__(self, a: np.ndarray, ops: NumpyOps, *, conj: bool = False) -> None:
        super().__init__((a.shape[0], a.shape[1]), ops)
        self.a = a
        self.conj = conj

    def _flip(self, x: Any) -> Any:
        return x.conj() if self.conj else x

    def apply(self, x: Any) -> Any:
        self.ops.reads += 1
        return self._flip(kernels.matmul(self.a, self._flip(x)))

    def adjoint(self, x: Any) -> Any:
        self.ops.reads += 1
        if not self.ops.complex:
            return kernels.matmul(self.a.T, x)
        # (A^H x) = conj(A^T conj(x)): conjugate the thin factor, never the matrix
        return self._flip(kernels.matmul(self.a.T, self._flip(x).conj()).conj())

    def normal(self, x: Any) -> Any:
        self.ops.reads += 1
        return self._flip(kernels.normal_apply(self.a, np.ascontiguousarray(self._flip(x))))

    def gram(self, *, double: bool) -> Any:
        self.ops.reads += 1
        return self._flip(kernels.gram(self.a, accumulate="double" if double else "native"))

    def transposed(self) -> Dense:
        other = Dense(self.a.T, self.ops, conj=self.conj != self.ops.complex)
        other._norm2 = self._norm2
        return other

    def _compute_norm2(self) -> float:
        return kernels.sum_squares(self.a)

    def residual2(self, u: Any, s: Any, vh: Any) -> float:
        total, us = 0.0, u * s
        for lo in range(0, self.shape[0], 1024):
            block = kernels.matmul(us[lo : lo + 1024], vh)
            np.subtract(self._flip(self.a[lo : lo + 1024]), block, out=block)
            total += kernels.sum_squares(block)
        return total


class Portable(Operand):
    """An array of any array-API library, on its own device."""

    in_memory = True

    def __init__(self, a: Any, ops: NumpyOps) -> None:
        super().__init__((int(a.shape[0]), int(a.shape[1])), ops)
        self.a = a

    def apply(self, x: Any) -> Any:
        self.ops.reads += 1
        return self.ops.matmul(self.a, x)

    def adjoint(self, x: Any) -> Any:
        self.ops.reads += 1
        return self.ops.matmul(self.ops.adjoint(self.a), x)

    def gram(self, *, double: bool) -> Any:
        self.ops.reads += 1
        return self.ops.gram64(self.a) if double else self.ops.matmul(self.ops.adjoint(self.a), self.a)

    def transposed(self) -> Portable:
        other = Portable(self.ops.adjoint(self.a), self.ops)
        other._norm2 = self._norm2
        return other

    def _compute_norm2(self) -> float:
        return self.ops.sum2(self.a)

    def residual2(self, u: Any, s: Any, vh: Any) -> float:
        return self.ops.sum2(self.a - self.ops.matmul(u * s[None, :], vh))


class Streamed(Operand):
    """A matrix that is sliced by rows from disk (``np.memmap``, a safetensors slice): one block in memory at a time."""

    def __init__(self, source: Any, shape: tuple[int, int], ops: NumpyOps) -> None:
        super().__init__(shape, ops)
        self.source = source
        self.exponent = 0  # blocks are multiplied by 2 to this power
        rows = max(1, _BLOCK_BYTES // max(1, shape[1] * ops.dtype.itemsize))
        # whole chunks of the sketch's rows where they fit: then a file and an array in memory see the same sketch
        self.rows = min(shape[0], rows // 512 * 512 or rows)
        self._map = _file_mapping(source)

    def blocks(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Row blocks in working precision; mapped pages are given back after each, so they never pile up."""
        self.ops.reads += 1
        for lo in range(0, self.shape[0], self.rows):
            hi = min(lo + self.rows, self.shape[0])
            block = self._loaded(self.source[lo:hi])
            yield lo, hi, scaled_by(block, self.exponent) if self.exponent else block
            if self._map is not None:
                self._map.madvise(mmap.MADV_DONTNEED)

    def _loaded(self, part: Any) -> np.ndarray:
        if hasattr(part, "detach"):  # a safetensors slice opened for torch; NumPy knows no bfloat16
            part = part.detach().float().numpy() if part.itemsize < 4 else part.detach().numpy()
        return np.ascontiguousarray(part, dtype=self.ops.dtype)

    def apply(self, x: Any) -> Any:
        out = np.empty((self.shape[0], x.shape[1]), dtype=self.ops.dtype)
        for lo, hi, block in self.blocks():
            kernels.matmul(block, x, out=out[lo:hi])
        return out

    def adjoint(self, x: Any) -> Any:
        out = np.zeros((self.shape[1], x.shape[1]), dtype=self.ops.dtype)
        for lo, hi, block in self.blocks():
            out += kernels.matmul(self.ops.adjoint(block), x[lo:hi])
        return out

    def normal(self, x: Any) -> Any:
        out = np.zeros((self.shape[1], x.shape[1]), dtype=self.ops.dtype)
        part = np.empty_like(out)
        for _, _, block in self.blocks():
            out += kernels.normal_apply(block, x, out=part)
        return out

    def sketch(self, width: int, rng: np.random.Generator) -> Any:
        out = np.zeros((self.shape[1], width), dtype=self.ops.dtype)
        for lo, hi, block in self.blocks():
            out += kernels.matmul(self.ops.adjoint(block), self.ops.draw(hi - lo, width, rng))
        return out

    def scaled(self, exponent: int) -> Streamed:
        """The same file times ``2**exponent``."""
        other = Streamed(self.source, self.shape, self.ops)
        other.exponent = exponent
        return other

    def outer_gram(self) -> np.ndarray:
        """A A^H (m, m) in double precision, by blocks of columns: for a file that is wider than tall."""
        m, n = self.shape
        step = max(1, _BLOCK_BYTES // (m * self.ops.dtype.itemsize))
        total: Any = 0
        self.ops.reads += 1
        for lo in range(0, n, step):
            block = self._loaded(self.source[:, lo : lo + step])
            total = total + kernels.gram(self.ops.adjoint(scaled_by(block, self.exponent)), accumulate="double")
        return np.asarray(total)

    def gram(self, *, double: bool) -> Any:
        out: Any = 0
        for _, _, block in self.blocks():
            out = out + kernels.gram(block, accumulate="double" if double else "native")
        return out

    def _compute_norm2(self) -> float:
        return sum(kernels.sum_squares(block) for _, _, block in self.blocks())

    def residual2(self, u: Any, s: Any, vh: Any) -> float:
        us = u * s
        return sum(kernels.sum_squares(block - kernels.matmul(us[lo:hi], vh)) for lo, hi, block in self.blocks())


class Linear(Operand):
    """A SciPy ``LinearOperator`` or sparse matrix: only products, and for a sparse matrix the norm."""

    def __init__(self, operator: Any, ops: NumpyOps, *, norm2: float | None = None) -> None:
        super().__init__((int(operator.shape[0]), int(operator.shape[1])), ops)
        self.operator = operator
        self._norm2 = norm2

    def _checked(self, y: Any, rows: int, cols: int) -> Any:
        y = np.asarray(y)
        if y.dtype.kind == "c" and not self.ops.complex:
            raise ValueError("the operator must return real numbers, as its dtype says, got complex ones")
        y = np.array(y, dtype=self.ops.dtype, order="C")  # a copy: the operator may use its buffer again
        if y.shape != (rows, cols):
            raise ValueError(f"the operator must return shape {(rows, cols)}, got {y.shape}")
        if not np.isfinite(y).all():
            raise ValueError("the operator must return finite numbers, got NaN or infinity")
        return y

    def apply(self, x: Any) -> Any:
        self.ops.reads += 1
        return self._checked(self.operator.matmat(x), self.shape[0], x.shape[1])

    def adjoint(self, x: Any) -> Any:
        self.ops.reads += 1
        try:
            y = self.operator.rmatmat(x)
        except (NotImplementedError, TypeError) as missing:
            raise ValueError("the operator must offer products with its adjoint (rmatvec or rmatmat)") from missing
        return self._checked(y, self.shape[1], x.shape[1])


def scaled_by(x: Any, exponent: int) -> Any:
    """``x * 2**exponent`` in two steps, because the power itself may leave the range."""
    return x * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2)


def _file_mapping(source: Any) -> mmap.mmap | None:
    """The shared file mapping under an ``np.memmap``, if giving its pages back can lose nothing."""
    if not isinstance(source, np.memmap) or source.mode == "c" or not hasattr(mmap, "MADV_DONTNEED"):
        return None  # copy-on-write pages hold changes that exist nowhere else
    base: Any = source
    while base is not None and not isinstance(base, mmap.mmap):
        base = getattr(base, "base", None) if isinstance(base, np.ndarray) else getattr(base, "obj", None)
    return base
