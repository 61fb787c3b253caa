"""Stand-in for tensorfact.factor's TTMatrix until it is here."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def balanced_shape(n: int, order: int) -> tuple[int, ...]:
    """`order` ascending factors of `n`, as equal as possible (the smallest largest factor)."""
    best: tuple[int, ...] | None = None

    def search(rest: int, left: int, low: int, found: tuple[int, ...]) -> None:
        nonlocal best
        if left == 1:
            shape = (*found, rest)
            if rest >= low and (best is None or shape[::-1] < best[::-1]):
                best = shape
            return
        factor = low
        while factor**left <= rest:
            if rest % factor == 0:
                search(rest // factor, left - 1, factor, (*found, factor))
            factor += 1

    search(n, order, 1, ())
    assert best is not None
    return best


def useful_ranks(sizes: Sequence[int], rank: int | tuple[int, ...]) -> tuple[int, ...]:
    """Bonds including the outer ones, clipped to what the neighbours can use."""
    inner = len(sizes) - 1
    bonds = [1, *([rank] * inner if isinstance(rank, int) else rank), 1]
    if len(bonds) != inner + 2 or any(isinstance(r, bool) or not isinstance(r, int) or r < 1 for r in bonds):
        raise ValueError(f"rank must be a positive integer or {inner} of them, got {rank!r}")
    for k in range(inner):
        bonds[k + 1] = min(bonds[k + 1], bonds[k] * sizes[k])
    for k in range(inner, 0, -1):
        bonds[k] = min(bonds[k], bonds[k + 1] * sizes[k])
    return tuple(bonds)


def decompose(
    weight: Tensor,
    rows: tuple[int, ...],
    cols: tuple[int, ...],
    *,
    rank: int | tuple[int, ...] | None,
    tol: float | None,
    max_rank: int | None,
) -> list[Tensor]:
    """TT-SVD of the interleaved weight."""
    if (rank is None) == (tol is None):
        raise ValueError(f"rank or tol must be given, not both: got rank={rank} and tol={tol}")
    if not torch.isfinite(weight).all():
        raise ValueError("linear must be finite, got NaN or infinity in its weight")
    order = len(rows)
    sizes = [m * n for m, n in zip(rows, cols, strict=True)]
    caps = useful_ranks(sizes, rank if rank is not None else max_rank or math.prod(sizes))
    delta = 0.0 if tol is None else tol * float(weight.norm()) / math.sqrt(max(1, order - 1))
    t = weight.reshape(*rows, *cols).permute([axis for k in range(order) for axis in (k, order + k)])
    cores: list[Tensor] = []
    bond = 1
    for k in range(order - 1):
        u, s, vh = torch.linalg.svd(t.reshape(bond * sizes[k], -1), full_matrices=False)
        keep = min(caps[k + 1], len(s))
        if tol is not None:
            tails = s.double().square().flip(0).cumsum(0).flip(0).sqrt()
            keep = max(1, min(keep, int((tails > delta).sum())))
        cores.append(u[:, :keep].reshape(bond, rows[k], cols[k], keep))
        t = s[:keep, None] * vh[:keep]
        bond = keep
    cores.append(t.reshape(bond, rows[-1], cols[-1], 1))
    return cores
