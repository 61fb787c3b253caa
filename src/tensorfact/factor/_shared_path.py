"""Which way a layer of basis and sparse codes is evaluated fastest."""

from __future__ import annotations

from typing import Literal

from tensorfact.kernels import sparse_cost

__all__ = ["shared_path"]

_MARGIN = 0.9  # of the dense time: the model of the costs is a rough one
_ROWS = 8


def shared_path(rows: int, shape: tuple[int, int], rank: int, kept: int, /) -> Literal["sparse", "dense"]:
    """Whether basis and sparse codes one after the other beat the dense weight (out, in), for so many rows of x.

    The basis (d, rank) takes ``rank d`` operations a row, the codes (rank, n) what `tensorfact.kernels.sparse_cost`
    says, and the dense weight ``d n``.
    """
    short, long = sorted(shape)
    if rows < _ROWS or not rank * long:
        return "dense"
    sizes = (rank, long) if shape[0] >= shape[1] else (long, rank)
    cost = rank * short + rank * long * sparse_cost(*sizes, kept / (rank * long))
    return "sparse" if cost <= _MARGIN * short * long else "dense"
