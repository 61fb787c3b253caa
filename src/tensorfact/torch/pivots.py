"""A low-rank linear layer in rank^2 numbers fewer."""

from __future__ import annotations

import math
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from tensorfact.factor._pivots import pack_pivots


class PivotLowRankLinear(nn.Module):
    """A linear layer of low rank: some of its outputs are computed, the others are sums of these.

    The weight (out_features, in_features) is ``head.weight`` (rank, in_features) in its pivot rows, and
    ``follow.weight @ head.weight`` in the others. That is any matrix of the rank, in ``rank * (in_features +
    out_features - rank)`` numbers; a forward pass takes as many multiply-adds a row. Source: PIFA (Zhao et al., ICML
    2025).

    Parameters
    ----------
    in_features, out_features : int
        Sizes of the last axis of the input and of the output.
    rank : int
        From 1 to ``min(in_features, out_features)``.
    bias : bool
        Whether a bias (out_features,) is added.
    device, dtype
        As in `torch.nn.Linear`.

    Notes
    -----
    State-dict keys: ``head.weight``, ``follow.weight`` (out_features - rank, rank), ``pivots``, uint8
    (ceil(out_features / 8),) with a bit for each output, the first one lowest, and ``bias``. The pivots stay in
    training; a refinement goes back to two factors for the time it takes (`open`, `close`), and then chooses them
    anew.

    Examples
    --------
    >>> import torch
    >>> from tensorfact.torch import PivotLowRankLinear
    >>> layer = PivotLowRankLinear(64, 48, rank=16)
    >>> sum(p.numel() for p in (layer.head.weight, layer.follow.weight)), layer(torch.zeros(2, 64)).shape
    (1536, torch.Size([2, 48]))
    """

    pivots: Tensor
    bias: nn.Parameter | None
    up: nn.Parameter | None
    down: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rank: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= rank <= min(in_features, out_features):
            raise ValueError(
                f"rank must be from 1 to min(in_features, out_features) = {min(in_features, out_features)}, got {rank}"
            )
        self.in_features = in_features
        self.out_features = out_features
        self.rank = rank
        self.head = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        others = out_features - rank
        self.follow = nn.Linear(rank, max(1, others), bias=False, device=device, dtype=dtype)
        if not others:  # full rank; nn.Linear would warn that it has nothing to draw
            self.follow.out_features = 0
            self.follow.weight = nn.Parameter(self.follow.weight.detach()[:0].clone())
        self.register_buffer("pivots", torch.zeros((out_features + 7) // 8, dtype=torch.uint8, device=device))
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        self.register_parameter("up", None)
        self.register_parameter("down", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw parameters for the variance of a fresh `nn.Linear` weight; the first outputs are the pivots."""
        self.head.reset_parameters()
        if self.follow.weight.numel():
            bound = math.sqrt(3 / self.rank)
            nn.init.uniform_(self.follow.weight, -bound, bound)
        if not self.pivots.is_meta:
            first = np.packbits(np.arange(self.out_features) < self.rank, bitorder="little")
            self.pivots.copy_(torch.from_numpy(first))
        if self.bias is not None:
            nn.init.uniform_(self.bias, -1 / math.sqrt(self.in_features), 1 / math.sqrt(self.in_features))

    def order(self) -> Tensor:
        """For each output its place among pivots and others: ``cat([head, follow])[order]`` are the outputs."""
        places = torch.arange(8, dtype=torch.uint8, device=self.pivots.device)
        mask = ((self.pivots[:, None] >> places) & 1).reshape(-1)[: self.out_features].long()
        before = mask.cumsum(0)
        index = torch.arange(self.out_features, device=mask.device)
        return torch.where(mask == 1, before - 1, index - before + self.rank)

    @property
    def weight(self) -> Tensor:
        """The dense weight (out_features, in_features), computed at every access; differentiable."""
        if self.up is not None and self.down is not None:
            return self.up @ self.down
        head = self.head.weight
        return torch.cat([head, self.follow.weight @ head]).index_select(0, self.order())

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        if self.up is not None and self.down is not None:
            return nn.functional.linear(nn.functional.linear(x, self.down), self.up, self.bias)
        some = self.head(x)
        found = torch.cat([some, self.follow(some)], dim=-1).index_select(-1, self.order())
        return found if self.bias is None else found + self.bias

    @torch.no_grad()
    def store(self, up: Tensor, down: Tensor) -> None:
        """Take the product of two factors (out_features, rank) and (rank, in_features)."""
        if tuple(up.shape) != (self.out_features, self.rank) or tuple(down.shape) != (self.rank, self.in_features):
            raise ValueError(f"up and down must have rank {self.rank}, got {tuple(up.shape)} and {tuple(down.shape)}")
        for name, part in (("up", up), ("down", down)):
            if not bool(part.isfinite().all()):
                raise ValueError(f"{name} must be finite, got NaN or infinity")
        bits, head, follow = pack_pivots(up.detach().double().cpu().numpy(), down.detach().double().cpu().numpy())
        self.pivots.copy_(torch.from_numpy(bits))
        self.head.weight.copy_(torch.from_numpy(head))
        self.follow.weight.copy_(torch.from_numpy(follow))

    @torch.no_grad()
    def open(self, up: Tensor, down: Tensor) -> None:
        """Go on with two factors as parameters ``up`` and ``down``."""
        like = self.head.weight
        self.up = nn.Parameter(up.to(like.device, like.dtype, copy=True))
        self.down = nn.Parameter(down.to(like.device, like.dtype, copy=True))

    def close(self) -> None:
        """Store their product."""
        if self.up is not None and self.down is not None:
            self.store(self.up, self.down)
            self.up = None
            self.down = None

    @classmethod
    def from_factors(cls, up: Tensor, down: Tensor, bias: Tensor | None = None) -> Self:
        """Build the layer of ``up @ down``, (out, rank) by (rank, in); device and dtype are those of `down`."""
        layer = cls(
            down.shape[1], up.shape[0], rank=up.shape[1], bias=bias is not None, device=down.device, dtype=down.dtype
        )
        layer.store(up, down)
        if layer.bias is not None and bias is not None:
            with torch.no_grad():
                layer.bias.copy_(bias)
        return layer

    def to_linear(self) -> nn.Linear:
        """Return the dense layer with the same output up to rounding."""
        like = self.head.weight
        linear = nn.Linear(
            self.in_features, self.out_features, bias=self.bias is not None, device=like.device, dtype=like.dtype
        )
        with torch.no_grad():
            linear.weight.copy_(self.weight)
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear.train(self.training)

    def extra_repr(self) -> str:
        """Return the sizes that `repr` shows."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, "
            f"bias={self.bias is not None}"
        )
