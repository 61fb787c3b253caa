"""Masks of an encoder, as `torch.nn.TransformerEncoderLayer` takes them, for all slices at once."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["merge_masks"]


def merge_masks(
    mask: Tensor | None,
    padding: Tensor | None,
    is_causal: bool,
    *,
    slices: int,
    heads: int,
    batch: int,
    length: int,
    like: Tensor,
) -> tuple[Tensor | None, bool]:
    """One mask that broadcasts to (slices * batch, heads, length, length), or none and whether attention is causal.

    ``mask`` is (length, length) or (batch * slices * heads, length, length), ``padding`` (batch, length); bool ones
    are True where attention is forbidden, others are added to the scores.
    """
    if mask is None and padding is None:
        return None, is_causal
    if is_causal and padding is None:
        _judge("mask", mask, ((length, length), (batch * slices * heads, length, length)))
        return None, True
    if is_causal and mask is None:
        mask = torch.ones(length, length, dtype=torch.bool, device=like.device).triu(1)
    both = [one for one in (mask, padding) if one is not None]
    kind = torch.bool if all(one.dtype == torch.bool for one in both) else like.dtype
    found = None
    if padding is not None:
        _judge("src_key_padding_mask", padding, ((batch, length),))
        found = _as(kind, padding)[None, :, None, None, :].expand(slices, batch, 1, 1, length)
    if mask is not None:
        _judge("mask", mask, ((length, length), (batch * slices * heads, length, length)))
        full = _as(kind, mask)
        if mask.ndim == 2:
            if found is None:
                return full[None, None], False
            full = full[None, None, None]
        else:
            full = full.reshape(batch, slices, heads, length, length).transpose(0, 1)
        found = full if found is None else full & found if kind == torch.bool else full + found
    assert found is not None
    return found.reshape(slices * batch, *found.shape[2:]), False


def _judge(name: str, mask: Tensor | None, shapes: tuple[tuple[int, ...], ...]) -> None:
    if mask is None:
        return
    if tuple(mask.shape) not in shapes:
        raise ValueError(f"{name} must be of shape {' or '.join(map(str, shapes))}, got {tuple(mask.shape)}")
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(f"{name} must be bool or floating-point, got {mask.dtype}")


def _as(kind: torch.dtype, mask: Tensor) -> Tensor:
    """As scaled_dot_product_attention wants it: bool True where attention is allowed, or numbers to add."""
    if kind == torch.bool:
        return ~mask
    if mask.dtype != torch.bool:
        return mask.to(kind)
    return torch.zeros_like(mask, dtype=kind).masked_fill(mask, float("-inf"))
