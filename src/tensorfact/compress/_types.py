"""The number types of the safetensors format, and conversions without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "BITS",
    "FLOAT_TYPES",
    "INTEGER_TYPES",
    "decode",
    "encode",
    "encode_all",
    "is_positive_int",
    "nbytes",
    "storage",
    "stored_type",
]

# Bits an element, for every type name of the safetensors format (sub-byte types included).
BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
}
FLOAT_TYPES: dict[str, type[np.generic]] = {"F64": np.float64, "F32": np.float32, "F16": np.float32, "BF16": np.float32}
"""Types that can be factored, and the NumPy type that they are computed in."""
INTEGER_TYPES: dict[str, type[np.generic]] = {
    "BOOL": np.bool_,
    **{f"{kind}{bits}": getattr(np, f"{word}{bits}") for kind, word in (("I", "int"), ("U", "uint"))
       for bits in (8, 16, 32, 64)},
}  # fmt: skip
"""Types of masks and indices, which are stored as they are."""


def decode(stored: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Turn stored values of a safetensors type into float32 or float64. bfloat16 is stored as uint16."""
    if dtype == "BF16":
        wide = stored.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return stored.astype(FLOAT_TYPES[dtype], copy=False)


def encode(values: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Cast to a safetensors type, round to nearest even; the result is C-contiguous (uint16 for bfloat16)."""
    if dtype != "BF16":
        return np.ascontiguousarray(values, dtype=storage(dtype))
    bits = np.array(values, dtype=np.float32, order="C").view(np.uint32)
    quiet = np.isnan(values)
    bits += ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)
    rounded = (bits >> np.uint32(16)).astype(np.uint16)
    rounded[quiet] = 0x7FC0  # the carry would turn some NaN patterns into infinity
    return rounded


def encode_all(
    arrays: Mapping[str, npt.NDArray[Any]], types: Mapping[str, str], where: str = ""
) -> dict[str, npt.NDArray[Any]]:
    """Cast arrays to safetensors types, by name; integers stay as they are. `where` is for the message.

    Raises
    ------
    ValueError
        If a number is not finite in its stored type.
    """
    found: dict[str, npt.NDArray[Any]] = {}
    for name, values in arrays.items():
        if types[name] not in FLOAT_TYPES:
            found[name] = np.ascontiguousarray(values)
            continue
        with np.errstate(over="ignore"):  # said below, by name
            found[name] = encode(values, types[name])
        if not np.isfinite(decode(found[name], types[name])).all():
            raise ValueError(f"{name}{where} does not fit {types[name]}: it must be finite")
    return found


def nbytes(dtype: str, size: int) -> int:
    """Bytes that `size` numbers of a safetensors type take."""
    return size * BITS[dtype] // 8


def storage(dtype: str) -> type[np.generic]:
    """Return the NumPy type that holds the stored bits of a floating type."""
    half: dict[str, type[np.generic]] = {"BF16": np.uint16, "F16": np.float16}
    return half.get(dtype) or FLOAT_TYPES[dtype]


def stored_type(values: npt.NDArray[Any], dtype: str) -> str:
    """Return the safetensors type to store an array in: `dtype` for floating numbers, their own for integers."""
    if values.dtype.kind == "f":
        return dtype
    own = [name for name, kind in INTEGER_TYPES.items() if np.dtype(kind) == values.dtype]
    if not own:
        raise ValueError(f"an array must be floating, integer or boolean to be stored, got {values.dtype}")
    return own[0]


def is_positive_int(value: object) -> bool:
    """Whether `value` is an integer of at least 1, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
