"""Sparse codes as they are stored: the values that stay, and a bit for every place or an index for every value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["Format", "SparseCodes", "code_bytes", "pack_bits", "unpack_bits"]

Format = Literal["bitmask", "csr"]
_SHORT = 1 << 16  # columns that a 16-bit index reaches


def pack_bits(mask: npt.ArrayLike, /) -> npt.NDArray[np.uint8]:
    """Bits (ceil(r / 8), n) of a mask (r, n): eight rows to a byte, the first one lowest, the last byte padded."""
    return np.packbits(np.asarray(mask, dtype=bool), axis=0, bitorder="little")


def unpack_bits(bits: npt.NDArray[np.uint8], rows: int, /) -> npt.NDArray[np.bool_]:
    """The mask (rows, n) of :func:`pack_bits`."""
    return np.unpackbits(bits, axis=0, count=rows, bitorder="little").astype(bool)


def code_bytes(shape: tuple[int, int], kept: int, itemsize: int, form: Format) -> int:
    """Bytes of codes of `shape` with `kept` values of `itemsize` bytes."""
    if form == "bitmask":
        return kept * itemsize + (shape[0] + 7) // 8 * shape[1]
    return kept * (itemsize + (2 if shape[1] <= _SHORT else 4)) + 4 * (shape[0] + 1)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SparseCodes:
    """A sparse matrix (r, n): values in C order with a bitmask, or in compressed rows (CSR).

    Parameters
    ----------
    shape : (int, int)
        Rows and columns.
    values : array (k,)
        The entries that are kept, row after row; a kept entry may be zero.
    mask : uint8 array (ceil(r / 8), n), optional
        One bit a place, eight rows to a byte, the first one lowest (format "bitmask").
    indices : uint16 or uint32 array (k,), optional
        Column of each value (format "csr").
    pointers : uint32 array (r + 1,), optional
        Where each row begins in `values` (format "csr").
    """

    shape: tuple[int, int]
    values: npt.NDArray[Any]
    mask: npt.NDArray[np.uint8] | None = None
    indices: npt.NDArray[Any] | None = None
    pointers: npt.NDArray[Any] | None = None

    def __post_init__(self) -> None:
        kept = len(self.values)
        if self.mask is not None:
            expected = (self.shape[0] + 7) // 8, self.shape[1]
            if self.mask.shape != expected or self.mask.dtype != np.uint8:
                raise ValueError(f"mask must hold uint8 {expected}, got {self.mask.dtype} {self.mask.shape}")
            count = int(np.count_nonzero(unpack_bits(self.mask, self.shape[0])))
        elif self.indices is not None and self.pointers is not None:
            if self.pointers.shape != (self.shape[0] + 1,) or np.any(np.diff(self.pointers.astype(np.int64)) < 0):
                raise ValueError(f"pointers must rise over {self.shape[0] + 1} places, got {self.pointers}")
            if len(self.indices) != kept or (kept and int(self.indices.max()) >= self.shape[1]):
                raise ValueError(f"indices must be {kept} columns below {self.shape[1]}, got {self.indices}")
            count = int(self.pointers[-1])
        else:
            raise ValueError("codes must have a mask, or indices and pointers")
        if count != kept:
            raise ValueError(f"values must be as many as places are kept, {count}, got {kept}")
        for name in ("values", "mask", "indices", "pointers"):
            part = getattr(self, name)
            if part is not None:
                frozen = part.view()
                frozen.setflags(write=False)
                object.__setattr__(self, name, frozen)

    @classmethod
    def pack(
        cls, dense: npt.NDArray[Any], mask: npt.NDArray[np.bool_], form: Format | Literal["auto"] = "auto"
    ) -> SparseCodes:
        """Pack the entries of `dense` (r, n) where `mask` is true; "auto" takes the format of fewer bytes."""
        shape = (dense.shape[0], dense.shape[1])
        values = np.ascontiguousarray(dense[mask])
        forms: tuple[Format, ...] = ("bitmask", "csr") if form == "auto" else (form,)
        best = min(forms, key=lambda one: code_bytes(shape, len(values), values.itemsize, one))
        if best == "bitmask":
            return cls(shape=shape, values=values, mask=pack_bits(mask))
        rows, columns = np.nonzero(mask)
        pointers = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=shape[0]))])
        index = np.uint16 if shape[1] <= _SHORT else np.uint32
        return cls(shape=shape, values=values, indices=columns.astype(index), pointers=pointers.astype(np.uint32))

    @property
    def format(self) -> Format:
        """``"bitmask"`` or ``"csr"``."""
        return "csr" if self.mask is None else "bitmask"

    @property
    def nbytes(self) -> int:
        """Bytes of the stored arrays."""
        return code_bytes(self.shape, len(self.values), self.values.itemsize, self.format)

    @property
    def density(self) -> float:
        """Share of the places that are kept."""
        return len(self.values) / math.prod(self.shape)

    def kept(self) -> npt.NDArray[np.bool_]:
        """The mask (r, n), true where a value is stored."""
        if self.mask is not None:
            return unpack_bits(self.mask, self.shape[0])
        assert self.indices is not None
        assert self.pointers is not None
        mask = np.zeros(self.shape, dtype=bool)
        rows = np.repeat(np.arange(self.shape[0]), self.pointers[1:].astype(np.int64) - self.pointers[:-1])
        mask[rows, self.indices] = True
        return mask

    def dense(self) -> npt.NDArray[Any]:
        """The matrix (r, n) with zeros where nothing is stored."""
        out = np.zeros(self.shape, dtype=self.values.dtype)
        out[self.kept()] = self.values
        return out

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The stored arrays by name, and the shape."""
        parts = {"values": self.values, "mask": self.mask, "indices": self.indices, "pointers": self.pointers}
        found = {name: part for name, part in parts.items() if part is not None}
        return {**found, "shape": np.asarray(self.shape, dtype=np.int64)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> SparseCodes:
        """Rebuild from :meth:`to_arrays`."""
        if not {"values", "shape"} <= set(arrays):
            raise ValueError(f"arrays must hold values and shape, got {sorted(arrays)}")
        rows, columns = (int(n) for n in np.asarray(arrays["shape"]))
        parts = {name: np.asarray(arrays[name]) for name in ("mask", "indices", "pointers") if name in arrays}
        return cls(shape=(rows, columns), values=np.asarray(arrays["values"]), **parts)

    def __repr__(self) -> str:
        return f"SparseCodes({self.shape[0]}x{self.shape[1]}, density={self.density:.4g}, format={self.format!r})"
