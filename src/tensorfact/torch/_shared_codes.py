"""Sparse codes in torch: bits to a mask, values to a matrix and back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["mask_bytes", "pack_mask", "spread", "unpack_mask"]


def mask_bytes(rows: int, columns: int) -> int:
    """Bytes of a packed mask."""
    return (rows * columns + 7) // 8


def pack_mask(keep: Tensor) -> Tensor:
    """Bits of a mask in C order, eight to a uint8, the first one lowest."""
    bits = torch.nn.functional.pad(keep.reshape(-1), (0, -keep.numel() % 8)).reshape(-1, 8).to(torch.uint8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=keep.device)).sum(1, dtype=torch.uint8)


def unpack_mask(bits: Tensor, shape: tuple[int, int]) -> Tensor:
    """The mask (rows, columns) of `pack_mask`."""
    places = (bits[:, None] >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1
    return places.reshape(-1)[: math.prod(shape)].reshape(shape).bool()


def spread(values: Tensor, keep: Tensor) -> Tensor:
    """The matrix with `values` (k,) where `keep` is true, row after row, and zeros elsewhere; differentiable."""
    return values.new_zeros(keep.shape).masked_scatter(keep, values)
