"""Sparse codes in torch: bits to a mask, values to a matrix and back."""

from __future__ import annotations

import torch
from torch import Tensor

from tensorfact.factor._shared_codes import pack_places
from tensorfact.torch._quantized import unpack

__all__ = ["mask_shape", "pack_mask", "spread", "unpack_mask"]


def mask_shape(rows: int, columns: int, fours: int | None = None) -> tuple[int, int]:
    """Shape of a packed mask; `fours` is how many of every four rows are kept, if there is such a pattern."""
    return (rows + 7) // 8 if fours is None else (rows * fours + 15) // 16, columns


def pack_mask(keep: Tensor, fours: int | None = None) -> Tensor:
    """Bits of a mask (rows, columns), or two bits a kept place where there is a pattern; see `mask_shape`."""
    if fours is None:
        return _pack_bits(keep)
    return torch.from_numpy(pack_places(keep.cpu().numpy(), fours)).to(keep.device)


def unpack_mask(bits: Tensor, rows: int, fours: int | None = None) -> Tensor:
    """The mask (rows, columns) of `pack_mask`."""
    if fours is None:
        return _unpack_bits(bits, rows)
    place = unpack(bits, 2, rows // 4 * fours).long() + 2
    place = place.reshape(rows // 4, fours, bits.shape[1])
    mask = torch.zeros((rows // 4, 4, bits.shape[1]), dtype=torch.bool, device=bits.device)
    return mask.scatter(1, place, True).reshape(rows, bits.shape[1])


def _pack_bits(keep: Tensor) -> Tensor:
    """Bits (ceil(rows / 8), columns) of a mask: eight rows to a uint8, the first one lowest."""
    rows, columns = keep.shape
    bits = torch.nn.functional.pad(keep, (0, 0, 0, -rows % 8)).reshape(-1, 8, columns).to(torch.uint8)
    return (bits << _places(keep.device)).sum(1, dtype=torch.uint8)


def _unpack_bits(bits: Tensor, rows: int) -> Tensor:
    """The mask (rows, columns) of `_pack_bits`."""
    places = (bits[:, None, :] >> _places(bits.device)) & 1
    return places.reshape(-1, bits.shape[1])[:rows].bool()


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)[:, None]


def spread(values: Tensor, keep: Tensor) -> Tensor:
    """The matrix with `values` (k,) where `keep` is true, row after row, and zeros elsewhere; differentiable."""
    return values.new_zeros(keep.shape).masked_scatter(keep, values)
