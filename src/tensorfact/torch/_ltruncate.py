"""The best approximation of given rank as a function: its gradient sees the kept space, not single singular vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["best_approximation"]


class _BestApproximation(torch.autograd.Function):
    """Keep the leading triples of every face, as many as ``mask (..., k)`` says.

    The derivative depends on singular values through kept against dropped ones only: ties among the kept, where single
    vectors have no derivative, do no harm. With ``da = U^H dA V`` and ``i`` kept, ``j`` dropped,
    ``dx_ij = (s_i^2 da_ij + s_i s_j conj(da_ji)) / (s_i^2 - s_j^2)``; it is its own adjoint.
    """

    @staticmethod
    def forward(ctx: Any, faces: Tensor, mask: Tensor) -> Tensor:
        u, s, vh = torch.linalg.svd(faces, full_matrices=False)
        ctx.save_for_backward(u, s, vh, mask)
        found: Tensor = (u * (s * mask).unsqueeze(-2)) @ vh
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        u, s, vh, mask = ctx.saved_tensors
        kept, gone = mask.to(s.dtype), 1 - mask.to(s.dtype)
        left, right = u * kept.unsqueeze(-2), vh * kept.unsqueeze(-1)
        inner = u.mH @ gradient @ vh.mH
        # what meets the kept rows or columns, as if all that is dropped were zero ...
        through = left @ (u.mH @ gradient)
        found = through + ((gradient - through) @ vh.mH) @ right
        # ... and what the dropped values add, between kept i and dropped j
        squares = s * s
        pairs = kept.unsqueeze(-1) * gone.unsqueeze(-2)
        gap = squares.unsqueeze(-1) - squares.unsqueeze(-2)
        over = pairs / torch.where(pairs > 0, gap, torch.ones_like(gap))
        own, cross = over * squares.unsqueeze(-2), over * s.unsqueeze(-1) * s.unsqueeze(-2)
        rows = own * inner + cross * inner.mH
        cols = own.mT * inner + cross.mT * inner.mH
        return found + u @ (rows + cols) @ vh, None


def best_approximation(faces: Tensor, mask: Tensor) -> Tensor:
    """Faces ``(..., m, l)`` with the leading triples that ``mask (..., min(m, l))`` keeps."""
    found: Tensor = _BestApproximation.apply(faces, mask)  # type: ignore[no-untyped-call]
    return found
