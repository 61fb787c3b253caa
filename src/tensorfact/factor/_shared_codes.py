"""Sparse codes as they are stored: the values that stay, and a bit for every place or an index for every value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tensorfact.factor._quantized import pack_codes, unpack_codes

__all__ = [
    "PATTERNS",
    "Format",
    "SparseCodes",
    "code_bytes",
    "pack_bits",
    "pack_places",
    "unpack_bits",
    "unpack_places",
]

Format = Literal["bitmask", "csr", "2:4", "1:4"]
PATTERNS: dict[str, int] = {"2:4": 2, "1:4": 1}
"""Values that every four consecutive rows of a column keep."""
_SHORT = 1 << 16  # columns that a 16-bit index reaches


def pack_bits(mask: npt.ArrayLike, /) -> npt.NDArray[np.uint8]:
    """Bits (ceil(r / 8), n) of a mask (r, n): eight rows to a byte, the first one lowest, the last byte padded."""
    return np.packbits(np.asarray(mask, dtype=bool), axis=0, bitorder="little")


def unpack_bits(bits: npt.NDArray[np.uint8], rows: int, /) -> npt.NDArray[np.bool_]:
    """The mask (rows, n) of :func:`pack_bits`."""
    return np.unpackbits(bits, axis=0, count=rows, bitorder="little").astype(bool)


def pack_places(mask: npt.NDArray[np.bool_], keep: int, /) -> npt.NDArray[np.uint8]:
    """Two bits a kept place, (ceil(r keep / 16), n), of a mask (r, n) that keeps `keep` of every four rows.

    They say which of the four it is; in a column the places follow each other, the first one in the lowest bits.

    Raises
    ------
    ValueError
        If the mask has another pattern, or r is no multiple of 4.
    """
    rows, columns = mask.shape
    if rows % 4 or np.any(mask.reshape(rows // 4, 4, columns).sum(1) != keep):
        raise ValueError(f"mask must keep {keep} of every 4 rows of a column")
    place = np.nonzero(mask.reshape(rows // 4, 4, columns).transpose(2, 0, 1))[2]
    return pack_codes(place.reshape(columns, -1).T - 2, 2)


def unpack_places(bits: npt.NDArray[np.uint8], rows: int, keep: int, /) -> npt.NDArray[np.bool_]:
    """The mask (rows, n) of :func:`pack_places`; places that repeat each other keep less."""
    place = unpack_codes(bits, 2, rows // 4 * keep).astype(np.int64) + 2
    mask = np.zeros((rows, bits.shape[1]), dtype=bool)
    first = 4 * np.repeat(np.arange(rows // 4), keep)[:, None]
    mask[first + place, np.arange(bits.shape[1])] = True
    return mask


def code_bytes(shape: tuple[int, int], kept: int, itemsize: int, form: Format) -> int:
    """Bytes of codes of `shape` with `kept` values of `itemsize` bytes."""
    if form == "bitmask":
        return kept * itemsize + (shape[0] + 7) // 8 * shape[1]
    if form in PATTERNS:
        return kept * itemsize + (shape[0] * PATTERNS[form] + 15) // 16 * shape[1]
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
    keep : {1, 2}, optional
        So many of every four rows of a column are kept, and `mask` (ceil(r keep / 16), n) has two bits for each of them
        (formats "1:4" and "2:4").
    """

    shape: tuple[int, int]
    values: npt.NDArray[Any]
    mask: npt.NDArray[np.uint8] | None = None
    indices: npt.NDArray[Any] | None = None
    pointers: npt.NDArray[Any] | None = None
    keep: int | None = None

    def __post_init__(self) -> None:
        kept = len(self.values)
        if self.mask is not None:
            expected = (self.shape[0] + 7) // 8, self.shape[1]
            if self.keep is not None:
                if self.keep not in PATTERNS.values() or self.shape[0] % 4:
                    raise ValueError(f"keep must be 1 or 2 of every 4 rows, got {self.keep} of {self.shape[0]} rows")
                expected = (self.shape[0] * self.keep + 15) // 16, self.shape[1]
            if self.mask.shape != expected or self.mask.dtype != np.uint8:
                raise ValueError(f"mask must hold uint8 {expected}, got {self.mask.dtype} {self.mask.shape}")
            count = int(np.count_nonzero(self.kept()))
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
        if best in PATTERNS:
            keep = PATTERNS[best]
            return cls(shape=shape, values=values, mask=pack_places(mask, keep), keep=keep)
        rows, columns = np.nonzero(mask)
        pointers = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=shape[0]))])
        index = np.uint16 if shape[1] <= _SHORT else np.uint32
        return cls(shape=shape, values=values, indices=columns.astype(index), pointers=pointers.astype(np.uint32))

    @property
    def format(self) -> Format:
        """``"bitmask"``, ``"csr"``, ``"1:4"`` or ``"2:4"``."""
        if self.keep is not None:
            return "1:4" if self.keep == 1 else "2:4"
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
        if self.mask is not None and self.keep is not None:
            return unpack_places(self.mask, self.shape[0], self.keep)
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
        if self.keep is not None:
            found["keep"] = np.asarray(self.keep, dtype=np.int64)
        return {**found, "shape": np.asarray(self.shape, dtype=np.int64)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> SparseCodes:
        """Rebuild from :meth:`to_arrays`."""
        if not {"values", "shape"} <= set(arrays):
            raise ValueError(f"arrays must hold values and shape, got {sorted(arrays)}")
        rows, columns = (int(n) for n in np.asarray(arrays["shape"]))
        parts = {name: np.asarray(arrays[name]) for name in ("mask", "indices", "pointers") if name in arrays}
        keep = int(arrays["keep"]) if "keep" in arrays else None
        return cls(shape=(rows, columns), values=np.asarray(arrays["values"]), keep=keep, **parts)

    def __repr__(self) -> str:
        return f"SparseCodes({self.shape[0]}x{self.shape[1]}, density={self.density:.4g}, format={self.format!r})"
