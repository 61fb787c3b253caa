"""Sparse codes in evaluation on a CPU: the product that does not touch their zeros."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tensorfact.kernels import SparsePlan, pack_sparse, sparse_product

__all__ = ["PlanCache", "apply_codes", "servable"]


class PlanCache:
    """The packed codes that evaluation keeps until a part of them changes. Copies and pickles are empty."""

    def __init__(self) -> None:
        self._state: tuple[tuple[Any, ...], SparsePlan, tuple[Any, ...]] | None = None

    def get(self, parts: Sequence[Tensor], make: Callable[[], tuple[Tensor, Tensor]]) -> SparsePlan:
        """The plan that is kept, or a new one of the matrix and the mask that `make` gives."""
        key = tuple((id(part), part._version, part.data_ptr(), part.dtype) for part in parts)
        state = self._state
        if state is None or state[0] != key:
            with torch.no_grad():
                matrix, mask = make()
                plan = pack_sparse(matrix.detach().numpy(), mask.numpy())
            # the parts are held, so that no other takes their ids and addresses
            self._state = state = key, plan, (*parts, *(part.detach() for part in parts))
        return state[1]

    def clear(self) -> None:
        """Forget the plan."""
        self._state = None

    def __deepcopy__(self, memo: Any) -> PlanCache:
        return PlanCache()

    def __reduce__(self) -> tuple[Any, ...]:
        return PlanCache, ()


def servable(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether the sparse kernel can take these inputs; gradients do not pass it."""
    plain = x.device.type == "cpu" and x.dtype == dtype and dtype in (torch.float32, torch.float64)
    return plain and not x.is_inference() and not torch.is_autocast_enabled("cpu")


def apply_codes(x: Tensor, plan: SparsePlan, bias: Tensor | None = None) -> Tensor:
    """``x V + b`` for x (..., k) and packed codes V (k, n)."""
    rows = x.detach().reshape(-1, x.shape[-1]).numpy()
    offset = None if bias is None else bias.detach().numpy()
    out = sparse_product(rows, plan, offset, path="sparse", workers=torch.get_num_threads())
    return torch.from_numpy(out).reshape(*x.shape[:-1], plan.shape[1])
