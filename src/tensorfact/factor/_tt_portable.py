"""The passes of a sweep for arrays of any array-API library, on the array's own device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tensorfact.factor._ops import PortableOps

__all__ = ["DeviceTensor"]

_BLOCK_NUMBERS = 1 << 22  # of one block of rows: its QR and its residual are the temporaries


class DeviceTensor:
    """What :class:`HostTensor` is, for a tensor that lives elsewhere; matrices of the size of a core visit the host."""

    def __init__(self, array: Any, ops: PortableOps) -> None:
        self.array, self.ops, self.eps = array, ops, ops.eps

    @classmethod
    def of(cls, a: Any, ops: PortableOps, flipped: bool, exponent: int) -> DeviceTensor:
        """The tensor with a bond of 1 behind it; flipped: modes reversed; scaled by a power of two."""
        xp = ops.xp
        if flipped:
            a = xp.permute_dims(a, tuple(range(a.ndim))[::-1])
        if exponent:  # in two halves: a power of two may itself be out of range
            half = exponent // 2
            a = a * 2.0**half * 2.0 ** (exponent - half)
        return cls(xp.reshape(a, (*a.shape, 1)), ops)

    @property
    def modes(self) -> tuple[int, ...]:
        return tuple(int(n) for n in self.array.shape[:-1])

    @property
    def bond(self) -> int:
        return int(self.array.shape[-1])

    @property
    def size(self) -> int:
        return math.prod(self.modes) * self.bond

    def _pieces(self, group: int) -> Iterator[tuple[int, Any]]:
        width = math.prod(self.modes[len(self.modes) - group :]) * self.bond
        matrix = self.ops.xp.reshape(self.array, (-1, width))
        rows, step = int(matrix.shape[0]), max(1, _BLOCK_NUMBERS // width)
        for lo in range(0, rows, step):
            yield lo, matrix[lo : min(rows, lo + step), :]

    def sketch(self, group: int, buckets: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """Gaussian sketch (buckets, width): a product, where a sparse one would need scattered additions."""
        z, norm2 = None, 0.0
        for _, piece in self._pieces(group):
            probe = self.ops.draw(buckets, int(piece.shape[0]), rng)
            part = self.ops.matmul(probe, piece)
            z, norm2 = part if z is None else z + part, norm2 + self.ops.sum2(piece)
        return self.ops.to_numpy(z) / math.sqrt(buckets), norm2

    def gram(self, group: int) -> np.ndarray | None:
        """Gram matrix (width, width) in double precision; None for narrower types, whose sums libraries round."""
        if self.eps > 1e-10:
            return None
        g: Any = 0.0
        for _, piece in self._pieces(group):
            g = g + self.ops.to_numpy(self.ops.matmul(self.ops.adjoint(piece), piece))
        return np.asarray(g)

    def triangle(self, group: int) -> np.ndarray:
        """Triangular factor (width, width) by QR of one block of rows after the other."""
        xp, r = self.ops.xp, None
        for _, piece in self._pieces(group):
            stack = piece if r is None else xp.concat([r, piece], axis=0)
            if not math.isfinite(self.ops.sum2(stack)):
                return np.full((1, int(piece.shape[1])), np.nan)
            r = xp.linalg.qr(stack, mode="reduced")[1]
        return self.ops.to_numpy(r)

    def project(
        self, group: int, v: np.ndarray, *, residual: bool, overwrite: bool
    ) -> tuple[DeviceTensor, float, float]:
        """The tensor in the coordinates of ``v``; squared norms kept and lost. Never overwrites."""
        ops, lead = self.ops, self.modes[: len(self.modes) - group]
        basis = ops.from_numpy(v)
        parts, kept2, lost2 = [], 0.0, 0.0
        for _, piece in self._pieces(group):
            part = ops.matmul(piece, basis)
            parts.append(part)
            kept2 += ops.sum2(part)
            lost2 += ops.sum2(piece - ops.matmul(part, ops.adjoint(basis))) if residual else math.nan
        folded = ops.xp.reshape(parts[0] if len(parts) == 1 else ops.xp.concat(parts, axis=0), (*lead, v.shape[1]))
        return DeviceTensor(folded, ops), kept2, lost2

    def small(self, group: int, matrix: np.ndarray) -> np.ndarray:
        """Rows over the columns of the unfolding as tensors (rows, n_a, ..., n_z, bond)."""
        return matrix.reshape(-1, *self.modes[len(self.modes) - group :], self.bond)

    def columns(self, group: int, wide: np.ndarray) -> np.ndarray:
        """The way back: a wide core (q, n_a, ..., n_z, bond) as columns of the unfolding's row space, conjugated."""
        return np.ascontiguousarray(wide.reshape(wide.shape[0], -1).conj().T)

    def center(self) -> np.ndarray:
        """The tensor itself on the host, as the first member of a chain."""
        return self.ops.to_numpy(self.array)[None]

    def peak(self) -> float:
        """Largest magnitude of an entry, NaN or infinity where there is one."""
        return float(self.ops.xp.max(self.ops.xp.abs(self.array)))
