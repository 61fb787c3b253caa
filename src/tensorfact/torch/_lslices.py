"""Layers on slices ``(p, rows, features)``: each slice has weights of its own, all go through one batched product."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["SliceAttention", "SliceLayerNorm", "SliceLinear"]


class SliceLinear(nn.Module):
    """``y[i] = x[i] @ weight[i] + bias[i]``, weights (p, in_features, out_features)."""

    def __init__(
        self, p: int, in_features: int, out_features: int, *, bias: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(p, in_features, out_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(p, out_features, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every slice as `torch.nn.Linear` draws its weights."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Map (p, rows, in_features) to (p, rows, out_features)."""
        return _affine(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Return the sizes that `repr` shows."""
        p, rows, cols = self.weight.shape
        return f"{p} x ({rows} -> {cols}), bias={self.bias is not None}"


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.bmm(x, weight) if bias is None else torch.baddbmm(bias.unsqueeze(1), x, weight)


class SliceLayerNorm(nn.Module):
    """Layer normalisation of every slice over its own features; gain and shift of shape (p, features).

    ``dense=True`` takes (..., p * features) instead of (p, rows, features), and ``mixing`` then puts it into the
    transform domain: what stands in an ordinary encoder layer that was made by ``to_dense``.
    """

    def __init__(
        self,
        p: int,
        features: int,
        eps: float = 1e-5,
        *,
        bias: bool = True,
        dense: bool = False,
        mixing: Any = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.eps, self.dense, self.mixing = eps, dense, mixing
        self.weight = nn.Parameter(torch.ones(p, features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(p, features, device=device, dtype=dtype)) if bias else None

    def reset_parameters(self) -> None:
        """Gains to one, shifts to zero."""
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; the shape stays."""
        p, features = self.weight.shape
        if not self.dense:
            normal = functional.layer_norm(x, (features,), eps=self.eps)
            weight = self.weight.unsqueeze(1)
            return normal * weight if self.bias is None else torch.addcmul(self.bias.unsqueeze(1), normal, weight)
        y = x.reshape(*x.shape[:-1], p, features)
        z, inverse = self.mixing.matrices() if self.mixing is not None else (None, None)
        y = y if z is None else torch.einsum("uk,...kj->...uj", z, y)
        y = functional.layer_norm(y, (features,), eps=self.eps) * self.weight
        y = y if self.bias is None else y + self.bias
        return (y if inverse is None else torch.einsum("uk,...kj->...uj", inverse, y)).flatten(-2)

    def extra_repr(self) -> str:
        """Return the sizes that `repr` shows."""
        return f"{self.weight.shape[0]} x {self.weight.shape[1]}, eps={self.eps}"


class SliceAttention(nn.Module):
    """Self-attention of every slice with itself: fused projections, and one attention call with all slices as batch.

    State-dict keys as in `torch.nn.MultiheadAttention`: ``in_proj_weight`` (p, features, 3 features), ``in_proj_bias``,
    ``out_proj.weight`` (p, features, features), ``out_proj.bias``.
    """

    def __init__(
        self,
        p: int,
        features: int,
        heads: int,
        dropout: float,
        *,
        bias: bool = True,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.heads, self.dropout, self.batch_first = heads, dropout, batch_first
        self.in_proj_weight = nn.Parameter(torch.empty(p, features, 3 * features, device=device, dtype=dtype))
        self.in_proj_bias = nn.Parameter(torch.empty(p, 3 * features, device=device, dtype=dtype)) if bias else None
        self.out_proj = SliceLinear(p, features, features, bias=bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every slice as `torch.nn.MultiheadAttention` draws its weights."""
        bound = math.sqrt(6 / (self.in_proj_weight.shape[1] + self.in_proj_weight.shape[2]))
        nn.init.uniform_(self.in_proj_weight, -bound, bound)
        self.out_proj.reset_parameters()
        if self.in_proj_bias is not None:
            nn.init.zeros_(self.in_proj_bias)
        if self.out_proj.bias is not None:
            nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, batch: int, mask: Tensor | None, is_causal: bool) -> Tensor:
        """Attend within every slice and sequence of ``x (p, batch * length, features)``.

        ``mask`` broadcasts to (p * batch, heads, length, length): True or 0 where attention is allowed.
        """
        p, rows, features = x.shape
        qkv = _affine(x, self.in_proj_weight, self.in_proj_bias)
        qkv = qkv.view(p * batch, rows // batch, 3, self.heads, features // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        found = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)
        return self.out_proj(found.transpose(1, 2).reshape(p, rows, features))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Return the sizes that `repr` shows."""
        p, features, _ = self.in_proj_weight.shape
        return f"{p} x {features}, {self.heads} heads a slice"
