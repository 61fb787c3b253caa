"""Which trailing modes of a tensor a step of the sweep folds into columns, and what the step costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["GRAM_WIDTH", "MAX_WIDTH", "WORTH", "Plan", "buckets_for", "choose_group", "step_cost", "surplus"]

_OVERSAMPLES, _VECTOR = 6, 8  # columns beyond the rank: at least so many, up to a multiple of a vector of the product
WORTH = 0.7  # a projection that keeps a larger share of the columns is not worth its pass
MAX_WIDTH = 2048
GRAM_WIDTH = 1024  # columns of a Gram matrix: the sums of a wider one leave the cache, and reflections are faster
_THIN, _WIDEST = 1 / 8, 1024  # a sketch that keeps more of the columns takes another mode, up to so many columns


@dataclass(frozen=True)
class Plan:
    """The request, in the order of the modes that the sweep sees."""

    caps: tuple[int, ...]  # of each inner bond
    exact: bool  # the caps are the ranks; otherwise the budget decides below them
    method: str  # "tsqr" or "sketch"
    smallest: int  # a tensor of no more numbers is split by LAPACK directly

    def last(self, modes: int) -> int:
        """Cap of the bond behind the first ``modes`` modes; that behind the last one is 1."""
        return self.caps[modes - 1] if modes <= len(self.caps) else 1


def choose_group(tensor: Any, plan: Plan, target: int) -> int:
    """How many trailing modes become columns; 0 when the rest is better split directly."""
    modes, bond = tensor.modes, tensor.bond
    if tensor.size <= plan.smallest or len(modes) < 2:
        return 0
    if plan.exact and plan.method == "tsqr" and not target:
        return _cheapest_group(tensor, plan)
    best, before = 0, math.inf
    for group in range(1, len(modes)):
        width = math.prod(modes[len(modes) - group :]) * bond
        rows = math.prod(modes[: len(modes) - group])
        cap = plan.caps[len(modes) - group - 1]
        extra = surplus(cap) if plan.method == "sketch" else 0
        wanted = target or _target(plan, cap, bond)
        kept = cap + extra if plan.exact else 1
        tall = rows >= 4 * width or (
            plan.exact and extra > 0 and rows >= 4 * buckets_for(width, kept) and 4 * kept <= width
        )
        thick = tall and kept > _THIN * before and width <= _WIDEST
        if best and (not tall or width > 1.5 * wanted) and not thick:
            break
        if tall and (kept <= WORTH * width or not plan.exact):
            best, before = group, (width if extra and plan.exact else math.inf)
        if width >= wanted:
            break
    if target and best:
        width = math.prod(modes[len(modes) - best :]) * bond
        return best if width >= target else 0
    return best


def _cheapest_group(tensor: Any, plan: Plan) -> int:
    """The same for deterministic steps to given ranks, whose cost is known beforehand."""
    modes = tensor.modes
    best, least, width = 0, math.inf, tensor.bond
    for group in range(1, len(modes)):
        width *= modes[-group]
        kept = plan.caps[len(modes) - group - 1]
        if tensor.size < 4 * width * width or (best and width > MAX_WIDTH):
            break
        if kept <= WORTH * width and (cost := _deterministic_cost(width, kept)) < least:
            best, least = group, cost
    return best


def _deterministic_cost(width: int, kept: int) -> float:
    """Reads of the data for a triangle, the product, and, in proportion, all that comes after them.

    Measured on two AVX-512 cores: 28 columns of a Gram matrix, 12 of reflections or 14 of a product cost a read in
    double precision.
    """
    triangle = 1.7 + width / (28 if width <= GRAM_WIDTH else 12)
    return (triangle + 1.2 + kept / 14) / max(1 - kept / width, 0.1)


def step_cost(tensor: Any, plan: Plan) -> float:
    """Estimated time of all steps from this side, in reads of the data; infinite where there is nothing to gain."""
    group = choose_group(tensor, plan, 0)
    if group == 0:
        return math.inf
    width = math.prod(tensor.modes[len(tensor.modes) - group :]) * tensor.bond
    cap = plan.caps[len(tensor.modes) - group - 1]
    kept = cap + (surplus(cap) if plan.method == "sketch" else 0) if plan.exact else width // 8
    layout = 1.0 if getattr(tensor, "by_row", True) else 1.2
    if plan.method == "tsqr":
        return layout * _deterministic_cost(width, kept)
    return float(layout * (1.3 + max(1.0, kept / 15)) / max(1 - kept / width, 0.1))


def surplus(cap: int) -> int:
    """Columns of a sketched range beyond the rank."""
    return -(-(cap + _OVERSAMPLES) // _VECTOR) * _VECTOR - cap if cap < MAX_WIDTH else _OVERSAMPLES


def _target(plan: Plan, cap: int, bond: int) -> int:
    """Width of the unfolding that makes the passes fast and the projection small."""
    if plan.method == "sketch":
        return 256 if plan.exact and cap > 30 else 128
    # a later step has the bond in its columns: a quarter must remain, or the rest takes too many passes
    return max(2 * cap, 4 * bond, 32) if plan.exact else max(64, 4 * bond)


def buckets_for(width: int, kept: int) -> int:
    """Rows of a sketch: four times the columns, or enough for the directions that are kept of very many columns."""
    return min(4 * width, max(8 * kept, 256)) if 8 * kept < width else 4 * width
