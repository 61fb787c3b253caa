"""How the arrays of fips are stored: as they are, in few bits, with bits for places or with patterns of four."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorfact.compress._few_bits import packed_arrays, packed_layout, unpacked
from tensorfact.compress._method import Arrays, Rank
from tensorfact.factor._shared_codes import PATTERNS, unpack_bits, unpack_places

__all__ = ["FipsForm", "as_pair"]


@dataclass(frozen=True, slots=True)
class FipsForm:
    """Bits of a number, None for the type of the weights; and the pattern of the codes, None for bits for places."""

    bits: int | None
    pattern: str | None

    def layout(self, shape: tuple[int, int], rank: Rank) -> dict[str, tuple[int, ...]]:
        """Return the shapes of ``basis`` (d, r), ``values`` (k,) and ``mask`` (ceil(r / 8), n), or turned."""
        columns, kept = as_pair(rank)
        short, long = sorted(shape)
        fours = None if self.pattern is None else PATTERNS[self.pattern]
        bits = (columns + 7) // 8 if fours is None else (columns * fours + 15) // 16, long
        mask = {"mask": bits[::-1] if shape[0] >= shape[1] else bits}
        if self.bits is None:
            return {"basis": (short, columns), "values": (kept,), **mask}
        packed = packed_layout("basis", (short, columns), self.bits)
        return {**packed, **packed_layout("values", (kept,), self.bits), **mask}

    def of_layer(self, arrays: Arrays, first: str, name: str) -> Arrays:
        """Return the arrays of a layer by suffix: those of the basis, stored with the first layer, and its own."""
        basis = {f"{first}.{end}": end for end in self.basis_suffixes()}
        found = {suffix: arrays[key] for key, suffix in basis.items()}
        for key, values in arrays.items():
            suffix = key.removeprefix(f"{name}.")
            if key.startswith(f"{name}.") and suffix.partition(".")[0] in ("values", "mask"):
                found[suffix] = values
        return found

    def basis_suffixes(self) -> tuple[str, ...]:
        """Return the suffixes of the arrays that a group shares."""
        return ("basis",) if self.bits is None else ("basis.packed", "basis.scale")

    def stored(self, arrays: Arrays) -> Arrays:
        """Return arrays with basis and values in few bits, where they are to be stored so."""
        if self.bits is None:
            return arrays
        found: Arrays = {}
        for key, values in arrays.items():
            found |= {key: values} if key.endswith("mask") else packed_arrays(key, values, self.bits)
        return found

    def dense_shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """Return ``(out, in)``; the mask says which way the weight is turned."""
        basis, values, mask = (shapes.get(name, ()) for name in ("basis", "values", "mask"))
        if self.bits is not None:
            packed, scale = shapes.get("basis.packed", ()), shapes.get("basis.scale", ())
            basis = (scale[0], packed[1]) if len(packed) == len(scale) == 2 else ()
            values = shapes.get("values.scale", ())
        if len(basis) == 2 and len(values) == 1 and len(mask) == 2:
            rows = self.layout((basis[0], basis[0] + 1), (basis[1], 0))["mask"][0]
            if mask[1] == rows and mask[0] >= basis[0]:
                return mask[0], basis[0]
            if mask[0] == rows and mask[1] > basis[0]:
                return basis[0], mask[1]
        raise ValueError(f"basis, values and mask must fit together, got {basis}, {values}, {mask}")

    def expand(self, arrays: Arrays) -> npt.NDArray[Any]:
        """Return the product of basis and codes, turned as the weight."""
        shape = self.dense_shape({name: array.shape for name, array in arrays.items()})
        mask, bits = arrays["mask"], self.bits
        basis = arrays["basis"] if bits is None else unpacked(arrays, "basis", bits, min(shape))
        turned = shape[0] == mask.shape[0]
        mask = mask.T if turned else mask
        fours = self.pattern and PATTERNS[self.pattern]
        keep = unpack_places(mask, basis.shape[1], fours) if fours else unpack_bits(mask, basis.shape[1])
        count = int(np.count_nonzero(keep))
        if bits is not None and arrays["values.packed"].shape != packed_layout("", (count,), bits)[".packed"]:
            raise ValueError(f"values must be as many as the mask keeps, {count}")
        values = arrays["values"] if bits is None else unpacked(arrays, "values", bits, count)
        if count != len(values):
            raise ValueError(f"values must be as many as the mask keeps, {count}, got {len(values)}")
        codes = np.zeros(keep.shape, dtype=values.dtype)
        codes[keep] = values
        product = basis @ codes
        return product.T if turned else product


def as_pair(rank: Rank) -> tuple[int, int]:
    """Return columns of the basis and number of values."""
    if not isinstance(rank, tuple) or len(rank) != 2:
        raise ValueError(f"rank must be columns of the basis and values of the codes for a fips weight, got {rank!r}")
    return rank
