"""The two ways through an MPO in plain torch operations: differentiable by every transform, on any device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Direction = Literal["left", "right"]


def rebuild(cores: Sequence[Tensor]) -> Tensor:
    """Multiply the cores (r, m, n, r') out to the dense weight (out, in)."""
    done = cores[0][0]  # (m, n, r): rows, columns and the open bond
    for core in cores[1:]:
        rows, cols, bond = done.shape
        _, m, n, bond_next = core.shape
        merged = done.reshape(rows * cols, bond) @ core.reshape(bond, m * n * bond_next)
        done = merged.reshape(rows, cols, m, n, bond_next).transpose(1, 2).reshape(rows * m, cols * n, bond_next)
    return done[..., 0]


def chain(x: Tensor, cores: Sequence[Tensor], direction: Direction = "left") -> Tensor:
    """Map (tokens, in) to (tokens, out), one core after another from the named end; the weight is never formed."""
    tokens = x.shape[0]
    if direction == "left":
        t = x.reshape(tokens, 1, 1, -1)  # (tokens, rows so far, bond, columns to come)
        for core in cores:
            r, m, n, r_next = core.shape
            t = torch.einsum("bprjc,rijs->bpisc", t.reshape(tokens, -1, r, n, t.shape[3] // n), core)
            t = t.reshape(tokens, -1, r_next, t.shape[4])
    else:
        t = x.reshape(tokens, -1, 1, 1)  # (tokens, columns to come, bond, rows so far)
        for core in reversed(cores):
            r, m, n, r_next = core.shape
            t = torch.einsum("bcjsp,rijs->bcrip", t.reshape(tokens, -1, n, r_next, t.shape[3]), core)
            t = t.reshape(tokens, t.shape[1], r, m * t.shape[4])
    return t.reshape(tokens, -1)


def reference(x: Tensor, cores: Sequence[Tensor], bias: Tensor | None, path: str) -> Tensor:
    """Map (..., in) to (..., out) by ``path``: "reconstruct", "left" or "right"."""
    if path == "reconstruct":
        return torch.nn.functional.linear(x, rebuild(cores), bias)
    out_features = math.prod(core.shape[1] for core in cores)
    direction: Direction = "left" if path == "left" else "right"
    y = chain(x.reshape(-1, x.shape[-1]), cores, direction).reshape(*x.shape[:-1], out_features)
    return y if bias is None else y + bias
