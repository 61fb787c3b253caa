"""In which order a chain of operator cores and a block of vectors are multiplied: searched once, then remembered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from tensorfact.factor._train_ops import dot, namespace, permute

__all__ = ["Plan", "apply_plan", "plan_for"]

# Seconds, on one core; only their ratios matter. Small steps are dominated by the call, thin ones by memory.
_PER_MAC = 1 / 25e9
_PER_ENTRY_MOVED = 1 / 1e9
_PER_STEP = 4e-6
_SEARCHED = 7  # operands up to which all pairwise orders are tried; 3^7 splits

Plan = tuple[tuple[int, int], ...]
"""Pairs of positions in the shrinking list of operands; the product of a pair goes to the end of the list."""


def plan_for(row_shape: tuple[int, ...], col_shape: tuple[int, ...], ranks: tuple[int, ...], columns: int) -> Plan:
    """The cheapest pairwise order for ``operator @ x`` with ``columns`` vectors, x being the last operand.

    Up to 6 sites every order is compared, contractions to the dense matrix among them; longer chains take the better of
    the two ends and of the dense matrix. Similar numbers of columns share a plan.
    """
    bucket = 1 << max(0, columns - 1).bit_length()
    return _plan(row_shape, col_shape, ranks, bucket)


def labels(order: int) -> list[tuple[Any, ...]]:
    """Names of the axes: core k has bond k, row k, column k, bond k + 1; the block has all columns and its own axis."""
    cores = [(f"b{k}", f"m{k}", f"n{k}", f"b{k + 1}") for k in range(order)]
    return [*cores, (*(f"n{k}" for k in range(order)), "x")]


@lru_cache(maxsize=4096)
def _plan(rows: tuple[int, ...], cols: tuple[int, ...], ranks: tuple[int, ...], columns: int) -> Plan:
    order = len(rows)
    size = {"x": columns, **{f"b{k}": r for k, r in enumerate(ranks)}}
    size.update({f"m{k}": m for k, m in enumerate(rows)} | {f"n{k}": n for k, n in enumerate(cols)})
    axes = [frozenset(names) for names in labels(order)]
    if order + 1 <= _SEARCHED:
        return _linear(_best_tree(axes, size, (1 << (order + 1)) - 1), order + 1)
    chains: list[Any] = []
    for run in (range(order), range(order - 1, -1, -1)):
        tree: Any = order
        for k in run:
            tree = (tree, k)
        chains.append(tree)
    dense: Any = 0
    for k in range(1, order):
        dense = (dense, k)
    chains.append((dense, order))
    return _linear(min(chains, key=lambda tree: _tree_cost(tree, axes, size)[0]), order + 1)


def _best_tree(axes: list[frozenset[str]], size: dict[str, int], everything: int) -> Any:
    """Dynamic programming over subsets of operands."""
    open_axes = {mask: _open(axes, mask) for mask in range(1, everything + 1)}
    best: dict[int, tuple[float, Any]] = {1 << k: (0.0, k) for k in range(len(axes))}
    for mask in range(1, everything + 1):
        if mask in best:
            continue
        found: tuple[float, Any] = (math.inf, None)
        part = (mask - 1) & mask
        while part:
            other = mask ^ part
            if part > other:
                cost = best[part][0] + best[other][0] + _step_cost(open_axes[part], open_axes[other], size)
                if cost < found[0]:
                    found = (cost, (best[part][1], best[other][1]))
            part = (part - 1) & mask
        best[mask] = found
    return best[everything][1]


def _open(axes: list[frozenset[str]], mask: int) -> frozenset[str]:
    """Axes of the product of the operands in ``mask``: those that are not summed inside it."""
    result: frozenset[str] = frozenset()
    for k, names in enumerate(axes):
        if mask >> k & 1:
            result = result ^ names
    return result


def _step_cost(a: frozenset[str], b: frozenset[str], size: dict[str, int]) -> float:
    def entries(names: frozenset[str]) -> float:
        return float(math.prod(size[name] for name in names))

    return entries(a | b) * _PER_MAC + (entries(a) + entries(b) + entries(a ^ b)) * _PER_ENTRY_MOVED + _PER_STEP


def _tree_cost(tree: Any, axes: list[frozenset[str]], size: dict[str, int]) -> tuple[float, frozenset[str]]:
    if isinstance(tree, int):
        return 0.0, axes[tree]
    (first, a), (second, b) = (_tree_cost(branch, axes, size) for branch in tree)
    return first + second + _step_cost(a, b, size), a ^ b


def _linear(tree: Any, count: int) -> Plan:
    """The tree as pairs of positions in a list from which a pair is taken and to which its product is appended."""
    held: list[Any] = list(range(count))
    steps: list[tuple[int, int]] = []

    def reduce(branch: Any) -> Any:
        if isinstance(branch, int):
            return branch
        pair = tuple(reduce(part) for part in branch)
        i, j = (held.index(part) for part in pair)
        steps.append((i, j))
        for part in pair:
            held.remove(part)
        held.append(pair)
        return pair

    reduce(tree)
    return tuple(steps)


def apply_plan(plan: Plan, cores: Sequence[Any], x: Any) -> Any:
    """The operator applied to ``x`` (n_1, ..., n_L, k): an array (m_1 .. m_L, k)."""
    order = len(cores)
    held = list(zip([*cores, x], labels(order), strict=True))
    for i, j in plan:
        first, second = held[i], held[j]
        for place in sorted((i, j), reverse=True):
            del held[place]
        held.append(_product(*first, *second))
    array, names = held[0]
    target = ("b0", *(f"m{k}" for k in range(order)), f"b{order}", "x")
    array = permute(array, [names.index(name) for name in target])
    return namespace(array).reshape(array, (-1, int(x.shape[-1])))


def _product(a: Any, a_names: tuple[Any, ...], b: Any, b_names: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """Contract the axes that two arrays share, as one matrix product."""
    xp = namespace(a)
    shared = [name for name in a_names if name in b_names]
    left, right = ([n for n in names if n not in shared] for names in (a_names, b_names))
    size = dict(zip((*a_names, *b_names), (*map(int, a.shape), *map(int, b.shape)), strict=True))
    inner = math.prod(size[name] for name in shared)
    x = xp.reshape(permute(a, [a_names.index(n) for n in (*left, *shared)]), (-1, inner))
    y = xp.reshape(permute(b, [b_names.index(n) for n in (*shared, *right)]), (inner, -1))
    names = (*left, *right)
    return xp.reshape(dot(x, y), tuple(size[name] for name in names)), names
