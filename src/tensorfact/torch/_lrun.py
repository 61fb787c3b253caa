"""From an embedding to slices, through a stack of layers, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tensorfact.torch._lmasks import merge_masks
from tensorfact.torch._lmixing import mix

__all__ = ["run_layers"]


def run_layers(layers: list[Any], src: Tensor, mask: Tensor | None, padding: Tensor | None, is_causal: bool) -> Tensor:
    """Cut the embedding into slices, run the layers on them, and put it together again."""
    first = layers[0]
    p, width = first.slices, first.d_model // first.slices
    if src.ndim not in (2, 3) or src.shape[-1] != first.d_model:
        raise ValueError(f"src must be (length, {first.d_model}) or a batch of these, got {tuple(src.shape)}")
    if src.dtype != first.linear1.weight.dtype and not torch.is_autocast_enabled(src.device.type):
        raise ValueError(f"src must be of the dtype of the weights, {first.linear1.weight.dtype}, got {src.dtype}")
    x = src.unsqueeze(0) if src.ndim == 2 else src if first.batch_first else src.transpose(0, 1)
    padding = padding.unsqueeze(0) if src.ndim == 2 and padding is not None else padding
    batch, length, _ = x.shape
    merged, causal = merge_masks(
        mask, padding, is_causal, slices=p, heads=first.slice_heads, batch=batch, length=length, like=src
    )
    z, inverse = (None, None) if first.mixing.trivial else first.mixing.matrices()
    x = x.reshape(batch * length, p, width).transpose(0, 1).contiguous()
    where = None if first.positions is None else mix(z, first.positions(length))
    if first.ln_domain == "transform":  # the residual stays in the transform domain from here to the end
        x = mix(z, x)
        for layer in layers:
            x = layer.run_slices(x, (None, None), where, batch, merged, causal)
        x = mix(inverse, x)
    else:
        for layer in layers:
            x = layer.run_slices(x, (z, inverse), where, batch, merged, causal)
    x = x.transpose(0, 1).reshape(batch, length, p * width)
    return x.squeeze(0) if src.ndim == 2 else x if first.batch_first else x.transpose(0, 1)
