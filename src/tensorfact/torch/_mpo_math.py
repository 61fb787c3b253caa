"""Matrix product operators in plain torch operations: differentiable by every transform, on any device.

Cores are (r, m, n, s); a family of equal-shaped operators is one stack (members, r, m, n, s) for each core.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Direction = Literal["left", "right"]


def merge(left: Tensor, right: Tensor) -> Tensor:
    """Contract stacks (f, r, m, n, s) and (f, s, m', n', t) to (f, r, m m', n n', t)."""
    f, r, m, n, s = left.shape
    _, _, rows, cols, t = right.shape
    product = left.reshape(f, r * m * n, s) @ right.reshape(f, s, rows * cols * t)
    product = product.reshape(f, r, m, n, rows, cols, t).transpose(3, 4)
    return product.reshape(f, r, m * rows, n * cols, t)


def merge_all(stacks: Sequence[Tensor]) -> Tensor:
    """Contract neighbouring stacks to one, from the right."""
    done = stacks[-1]
    for stack in reversed(stacks[:-1]):
        done = merge(stack, done)
    return done


def rebuild(cores: Sequence[Tensor]) -> Tensor:
    """Multiply the cores out to the dense weight (out, in)."""
    return merge_all([core[None] for core in cores])[0, 0, :, :, 0]


def chain(x: Tensor, cores: Sequence[Tensor], direction: Direction = "left") -> Tensor:
    """Map (tokens, in) to (tokens, out), one core after another from the named end; the weight is never formed."""
    tokens = x.shape[0]
    if direction == "left":
        t = x.reshape(tokens, 1, 1, math.prod(core.shape[2] for core in cores))  # rows so far, bond, columns to come
        for core in cores:
            r, _, n, s = core.shape
            t = torch.einsum("bprjc,rijs->bpisc", t.reshape(tokens, t.shape[1], r, n, t.shape[3] // n), core)
            t = t.reshape(tokens, t.shape[1] * t.shape[2], s, t.shape[4])
    else:
        t = x.reshape(tokens, math.prod(core.shape[2] for core in cores), 1, 1)  # columns to come, bond, rows so far
        for core in reversed(cores):
            r, m, n, s = core.shape
            t = torch.einsum("bcjsp,rijs->bcrip", t.reshape(tokens, t.shape[1] // n, n, s, t.shape[3]), core)
            t = t.reshape(tokens, t.shape[1], r, m * t.shape[4])
    return t.reshape(tokens, math.prod(core.shape[1] for core in cores))


def reference(x: Tensor, cores: Sequence[Tensor], bias: Tensor | None, path: str) -> Tensor:
    """Map (..., in) to (..., out) by ``path``: "left" or "right" as a chain, anything else through the weight."""
    if path not in ("left", "right"):
        return torch.nn.functional.linear(x, rebuild(cores), bias)
    direction: Direction = "left" if path == "left" else "right"
    out_features = math.prod(core.shape[1] for core in cores)
    y = chain(x.reshape(-1, x.shape[-1]), cores, direction).reshape(*x.shape[:-1], out_features)
    return y if bias is None else y + bias


def environments(gradient: Tensor, stacks: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of the stacks, given that of the weights (members, out, in).

    Each is the gradient of the weight contracted with all other cores (the single-site environment), the cores on the
    left once for all: 4 out.in bond flops a member for the first two contractions, the later ones are smaller.
    """
    order, f = len(stacks), gradient.shape[0]
    rows, cols = [stack.shape[2] for stack in stacks], [stack.shape[3] for stack in stacks]
    pairs = [axis for k in range(order) for axis in (1 + k, 1 + order + k)]
    rest = gradient.reshape(f, *rows, *cols).permute(0, *pairs)  # (f, m1, n1, m2, n2, ...)
    right: list[Tensor] = [stacks[-1].new_ones(f, 1, 1)]  # behind each core: (f, bond, sites that follow)
    for stack in reversed(stacks[1:]):
        _, r, m, n, s = stack.shape
        right.append((stack.reshape(f, r * m * n, s) @ right[-1]).reshape(f, r, m * n * right[-1].shape[2]))
    found = []
    for k, stack in enumerate(stacks):
        _, r, m, n, s = stack.shape
        behind = right[order - 1 - k]
        rest = rest.reshape(f, r * m * n, behind.shape[2])
        found.append((rest @ behind.mT).reshape(stack.shape))
        if k + 1 < order:
            rest = stack.reshape(f, r * m * n, s).mT @ rest
    return found
