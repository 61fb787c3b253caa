"""Factors in few bits: their arrays, what these stand for, and training that rounds on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tensorfact.compress._grouping import format_bytes
from tensorfact.compress._units import Trainer
from tensorfact.factor._quantized import (
    check_bits,
    dequantize,
    pack_codes,
    packed_shape,
    quantize,
    scale_shape,
    unpack_codes,
)

if TYPE_CHECKING:
    from tensorfact.compress._method import Arrays
    from tensorfact.compress.records import DenseRecord, LayerRecord
    from tensorfact.torch._quantized import QuantizedTensor

__all__ = [
    "FewBitsTrainer",
    "check_factor_bits",
    "packed_arrays",
    "packed_layout",
    "packed_types",
    "unpacked",
    "wide_note",
]


def check_factor_bits(bits: object) -> None:
    """Raise ValueError unless it is None or an integer from 2 to 8."""
    if bits is not None:
        check_bits(bits, "factor_bits")


def packed_types(names: Iterable[str]) -> dict[str, str]:
    """Return the stored types of the arrays of factors; the scales have 8 significant bits and are exact in BF16."""
    return {key: kind for name in names for key, kind in ((f"{name}.packed", "U8"), (f"{name}.scale", "BF16"))}


def packed_layout(name: str, shape: Sequence[int], bits: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays of one factor."""
    return {f"{name}.packed": packed_shape(shape, bits), f"{name}.scale": scale_shape(shape)}


def packed_arrays(name: str, values: npt.NDArray[Any], bits: int) -> Arrays:
    """Quantise one factor (m, ...) and return its arrays."""
    codes, scale = quantize(values, bits)
    return {f"{name}.packed": pack_codes(codes, bits), f"{name}.scale": scale}


def unpacked(arrays: Mapping[str, npt.NDArray[Any]], name: str, bits: int, count: int) -> npt.NDArray[Any]:
    """Return the numbers (count, ...) that the arrays of one factor stand for, float32."""
    packed, scale = arrays[f"{name}.packed"], np.asarray(arrays[f"{name}.scale"], dtype=np.float32)
    return dequantize(unpack_codes(packed, bits, count), scale)


def wide_note(bits: int | None, layers: Sequence[LayerRecord], dense: Sequence[DenseRecord]) -> tuple[str, ...]:
    """Say which bytes few bits do not reach, where they were asked for and targeted weights stay dense."""
    wide = [record.bytes for record in dense if record.targeted]
    if bits is None or not wide:
        return ()
    whole = sum(wide) + sum(record.bytes_after for record in layers)
    return (
        f"factor_bits: {len(wide)} of {len(wide) + len(layers)} targeted weights stay dense, in their own type, and "
        f"take {format_bytes(sum(wide))} of the {format_bytes(whole)} of all of them",
    )


class FewBitsTrainer(Trainer):
    """Trains floating numbers behind the stored ones, which are rounded in every pass.

    Parameters
    ----------
    tensors : sequence of (QuantizedTensor, array)
        Modules, and the numbers that they were rounded from.
    """

    def __init__(self, tensors: Sequence[tuple[QuantizedTensor, npt.NDArray[Any] | None]]) -> None:
        import torch

        self._tensors = [tensor for tensor, _ in tensors]
        for tensor, values in tensors:
            tensor.open(None if values is None else torch.from_numpy(np.ascontiguousarray(values)))

    def finish(self) -> None:
        """Round for good."""
        for tensor in self._tensors:
            tensor.close()
