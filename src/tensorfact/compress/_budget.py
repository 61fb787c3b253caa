"""One budget of parameters for many weights: the same share for each, or greedy on the energy that a step keeps.

A method offers levels for every weight (ranks, or caps on the bonds of a train); a `Menu` says what each level costs
and keeps. Nothing here knows what a level is. Energy counts relative to the norm of its own weight, per stored number.
Without a floor, sharing by loss alone is worse than uniform (Swift-SVD, Table 6), hence `floor`.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from tensorfact.compress._method import Allocation, Layer, Rank
from tensorfact.compress._patterns import matching
from tensorfact.compress._types import is_positive_int
from tensorfact.compress._units import PerWeight

__all__ = ["BudgetOptions", "Menu", "is_positive_int", "rank_step", "share_budget"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetOptions(PerWeight):
    """The options of every method that shares a budget; the methods document them."""

    allocation: Literal["spectrum", "uniform"] = "spectrum"
    rank_multiple: int = 8
    rank_pattern: Mapping[str, Rank] = field(default_factory=dict)
    floor: float = 0.5
    min_saving: float = 0.1

    def check(self) -> None:
        """Raise ValueError for an option out of range."""
        if self.allocation not in ("spectrum", "uniform"):
            raise ValueError(f"allocation must be one of spectrum, uniform, got {self.allocation!r}")
        if not is_positive_int(self.rank_multiple):
            raise ValueError(f"rank_multiple must be an integer >= 1, got {self.rank_multiple!r}")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor must be in [0, 1], got {self.floor!r}")
        if not 0 <= self.min_saving < 1:
            raise ValueError(f"min_saving must be in [0, 1), got {self.min_saving!r}")

    @property
    def needs_analysis(self) -> bool:
        """The spectra are needed to share the budget by them."""
        return self.allocation == "spectrum"

    def given(self, layers: Sequence[Layer]) -> dict[str, Rank]:
        """Return the ranks of `rank_pattern` by layer; the first pattern that matches wins."""
        names = [layer.name for layer in layers]
        given: dict[str, Rank] = {}
        for pattern, rank in self.rank_pattern.items():
            for name in matching([pattern], names, argument="rank_pattern"):
                given.setdefault(name, rank)
        return given


@dataclass(frozen=True, slots=True)
class Menu:
    """What one weight may become.

    `costs[k]` numbers are stored at level k: none at level 0, more at every level, below the dense size at the last
    one. `kept[k]` is the share of the energy kept there; empty where it is unknown.
    """

    costs: npt.NDArray[np.int64]
    kept: npt.NDArray[np.float64]

    def level(self, numbers: float) -> int:
        """Return the largest level that costs at most `numbers`."""
        # A product that should be whole may fall short by a rounding error.
        return int(np.searchsorted(self.costs, numbers * (1 + 1e-12), side="right")) - 1


def share_budget(
    options: BudgetOptions,
    layers: Sequence[Layer],
    param_ratio: float,
    menus: Mapping[str, Menu],
    *,
    given: Mapping[str, tuple[Rank, int]],
    to_rank: Callable[[Layer, int], Rank],
    what: str,
) -> Allocation:
    """Share ``param_ratio * sum(out * in)`` numbers among the layers; never above.

    Layers too small for level 1 within their share take it first. ``"uniform"`` rounds the other shares down.
    ``"spectrum"`` ends when no layer's next step fits, so what is left is less than one step of any layer that can
    still grow. Cost: O(S log L) for S steps and L layers.

    Parameters
    ----------
    given : mapping of str to (rank, numbers stored)
        Layers whose rank is not ours to choose; they count against the budget.
    to_rank : callable
        The rank that a level of a layer stands for.
    what : str
        What replaces a weight, in words, for the reasons of the layers left dense.

    Raises
    ------
    ValueError
        If level 1 everywhere, or `given`, already exceeds the budget.
    """
    total = sum(layer.size for layer in layers)
    budget = math.floor(param_ratio * total + 1e-6)
    near = f"near break-even: {what} would save less than {options.min_saving:.0%}"
    ranks: dict[str, Rank] = {}
    dense: dict[str, str] = {}
    free: list[tuple[Layer, Menu, int]] = []
    spent = 0
    for layer in layers:
        menu = menus[layer.name]
        limit = menu.level((1 - options.min_saving) * layer.size)
        rank, cost = given.get(layer.name, (None, 0))
        if rank is None and limit >= 1:
            free.append((layer, menu, limit))
        elif rank is not None and cost < layer.size:
            ranks[layer.name] = rank
            spent += cost
        else:
            past = f"rank {rank} of rank_pattern is past break-even ({len(menu.costs) - 1})"
            dense[layer.name] = f"even rank 1 is {near}" if rank is None else past
            spent += layer.size
    least = spent + sum(int(menu.costs[1]) for _, menu, _ in free)
    if least > budget:
        raise ValueError(
            f"param_ratio must be at least {math.ceil(least / total * 1e4) / 1e4:g} for these weights and ranks, "
            f"got {param_ratio}"
        )
    budget -= spent
    share = _common_share([(layer.size, int(menu.costs[1])) for layer, menu, _ in free], budget)
    shares = []
    for layer, menu, limit in free:
        step = rank_step(limit, options.rank_multiple)
        mine = share * layer.size
        wanted = min(limit, menu.level(mine * (1.0 if options.allocation == "uniform" else options.floor)))
        start = max(min(step, max(1, menu.level(mine))), wanted // step * step)
        shares.append(_Share(layer, menu, step, limit, limit + 1 if share >= 1 else start))
        budget -= shares[-1].cost(shares[-1].level)
    if options.allocation == "spectrum":
        _spend(shares, budget)
    for item in shares:
        if item.level >= item.full:
            dense[item.layer.name] = f"its share of the budget is {near}"
        else:
            ranks[item.layer.name] = to_rank(item.layer, item.level)
    return Allocation(ranks, dense)


@dataclass(slots=True)
class _Share:
    """One layer during allocation. Level `full` stands for dense."""

    layer: Layer
    menu: Menu
    step: int
    limit: int
    level: int

    @property
    def full(self) -> int:
        return self.limit + 1

    def cost(self, level: int) -> int:
        return self.layer.size if level >= self.full else int(self.menu.costs[level])

    def next(self) -> int:
        """Return the next level to try: one step up, or dense after the last step below the limit."""
        level = self.level - self.level % self.step + self.step
        return level if level <= self.limit else self.full

    def gain(self) -> tuple[float, int]:
        """Return minus the energy that the next step keeps per number, and how many numbers it takes."""
        level = self.next()
        cost = self.cost(level) - self.cost(self.level)
        after = 1.0 if level >= self.full else self.menu.kept[level]
        return float(self.menu.kept[self.level] - after) / max(1, cost), cost


def _common_share(sizes: Sequence[tuple[int, int]], budget: int) -> float:
    """Return the share of its parameters that each layer may keep once those too small for it have level 1.

    `sizes` are the dense size and the cost of level 1 of each layer.
    """
    rest = list(sizes)
    while rest:
        share = budget / sum(size for size, _ in rest)
        large = [(size, least) for size, least in rest if share * size >= least]
        if len(large) == len(rest):
            return share
        budget -= sum(least for _, least in rest) - sum(least for _, least in large)
        rest = large
    return 0.0


def _spend(shares: list[_Share], budget: int) -> None:
    """Give the budget out in steps, largest relative energy per stored number first."""
    heap = [(item.gain()[0], i) for i, item in enumerate(shares) if item.level < item.full]
    heapq.heapify(heap)
    while heap:
        _, i = heapq.heappop(heap)
        item = shares[i]
        cost = item.gain()[1]
        if cost > budget:
            continue  # smaller layers may still fit
        budget -= cost
        item.level = item.next()
        if item.level < item.full:
            heapq.heappush(heap, (item.gain()[0], i))


def rank_step(limit: int, multiple: int) -> int:
    """Return the largest divisor of `multiple` that leaves at least 8 steps up to `limit`, or 1."""
    return max((d for d in range(1, multiple + 1) if multiple % d == 0 and d * 8 <= limit), default=1)
