"""Sparse codes in torch: bits to a mask, values to a matrix and back."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["mask_shape", "pack_mask", "spread", "unpack_mask"]


def mask_shape(rows: int, columns: int) -> tuple[int, int]:
    """Shape of a packed mask."""
    return (rows + 7) // 8, columns


def pack_mask(keep: Tensor) -> Tensor:
    """Bits (ceil(rows / 8), columns) of a mask: eight rows to a uint8, the first one lowest."""
    rows, columns = keep.shape
    bits = torch.nn.functional.pad(keep, (0, 0, 0, -rows % 8)).reshape(-1, 8, columns).to(torch.uint8)
    return (bits << _places(keep.device)).sum(1, dtype=torch.uint8)


def unpack_mask(bits: Tensor, rows: int) -> Tensor:
    """The mask (rows, columns) of `pack_mask`."""
    places = (bits[:, None, :] >> _places(bits.device)) & 1
    return places.reshape(-1, bits.shape[1])[:rows].bool()


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)[:, None]


def spread(values: Tensor, keep: Tensor) -> Tensor:
    """The matrix with `values` (k,) where `keep` is true, row after row, and zeros elsewhere; differentiable."""
    return values.new_zeros(keep.shape).masked_scatter(keep, values)
