"""Masks that move while codes are trained: RigL for free places, SR-STE for patterns of four."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from tensorfact.torch._shared_training import CodeTrainer, opened
from tensorfact.torch.shared_basis import SharedBasisLinear

__all__ = ["PatternTrainer", "RiglTrainer"]


class RiglTrainer(CodeTrainer):
    """Drops the smallest codes and grows places where the gradient is largest, as many; RigL (Evci et al., 2020).

    Grown codes begin at zero. Every layer keeps its number of values. The masks are frozen for the last part.

    Parameters
    ----------
    layers : sequence of SharedBasisLinear
        Members of one group.
    steps : int
        Length of the training.
    fraction : float
        Share of the values that move at the first update; it falls to zero like a cosine.
    every : int
        Steps between updates; at most a tenth of the time until `end`.
    end : float
        Share of the steps after which the masks stay.
    """

    def __init__(
        self,
        layers: Sequence[SharedBasisLinear],
        steps: int,
        *,
        fraction: float = 0.1,
        every: int = 50,
        end: float = 0.75,
    ) -> None:
        super().__init__(layers)
        if not 0 < fraction < 1 or not 0 < end <= 1:
            raise ValueError(f"fraction and end must be shares, got {fraction} and {end}")
        self.last = max(1, round(end * steps))
        self.fraction, self.every = fraction, max(1, min(every, self.last // 10 or 1))
        for layer in self.layers:
            layer.straight = True

    def after_step(self, step: int, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Move places where it is due after optimiser step `step`, counted from 1."""
        if step < self.last and step % self.every == 0:
            share = self.fraction / 2 * (1 + math.cos(math.pi * step / self.last))
            for layer in self.layers:
                _move(layer, share)
        self._clear(optimizer)
        if step >= self.last:
            for layer in self.layers:
                layer.straight = False

    def settled(self, step: int) -> bool:
        """Whether the masks stay from here on."""
        return step >= self.last


class PatternTrainer(CodeTrainer):
    """Keeps the largest of every four codes anew after every step, and trains all of them; SR-STE (Zhou et al., 2021).

    Gradients of the kept codes reach all four; those that are not kept shrink by `decay` of themselves a step. The
    masks are frozen for the last part.
    """

    def __init__(
        self, layers: Sequence[SharedBasisLinear], steps: int, *, decay: float = 2e-4, end: float = 0.75
    ) -> None:
        for layer in layers:
            if layer.pattern is None:
                raise ValueError(f"layers must have a pattern, got {layer}")
        super().__init__(layers)
        self.last, self.decay = max(1, round(end * steps)), decay
        for layer in self.layers:
            layer.straight = True

    @torch.no_grad()
    def after_step(self, step: int, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Choose the masks after optimiser step `step`, counted from 1."""
        if step > self.last:
            self._clear(optimizer)
            return
        lengths = torch.linalg.vector_norm(self.basis(), dim=0)[:, None]
        for layer in self.layers:
            codes, keep = opened(layer)
            codes.sub_(self.decay * codes * ~keep)
            rows, columns = codes.shape
            score = (codes.abs() * lengths).reshape(rows // 4, 4, columns)
            count = layer.kept // (rows // 4 * columns)
            best = torch.sort(score, dim=1, descending=True, stable=True).indices[:, :count]
            layer.keep = torch.zeros_like(score, dtype=torch.bool).scatter(1, best, True).reshape(rows, columns)
        if step == self.last:
            for layer in self.layers:
                layer.straight = False
            self._clear(optimizer)

    def settled(self, step: int) -> bool:
        """Whether the masks stay from here on."""
        return step >= self.last


@torch.no_grad()
def _move(layer: SharedBasisLinear, share: float) -> None:
    codes, keep = opened(layer)
    count = min(int(share * layer.kept), codes.numel() - layer.kept)
    if codes.grad is None or count < 1:
        return
    size, kept = codes.abs().reshape(-1), keep.reshape(-1)
    slope = codes.grad.abs().reshape(-1)
    inf = torch.full_like(size, math.inf)
    # stable orders break ties by place, the same way in every run
    dropped = torch.sort(torch.where(kept, size, inf), stable=True).indices[:count]
    grown = torch.sort(torch.where(kept, -inf, slope), descending=True, stable=True).indices[:count]
    moved = kept.clone()
    moved[dropped] = False
    moved[grown] = True
    codes.reshape(-1)[grown] = 0
    layer.keep = moved.reshape(keep.shape)
