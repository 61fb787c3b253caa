"""The low-rank method: two factors, ``up @ down``, for each weight W (out, in), at a cost of rank * (out + in).

Ranks come from one budget over all weights: uniform, or greedy on the removed energy of each weight relative to its own
norm, per stored number. Without a floor, sharing by loss alone is worse than uniform (Swift-SVD, Table 6), hence
`floor`.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import scipy.linalg

from tensorfact.compress._method import Allocation, Arrays, Factored, Layer, Rank, register
from tensorfact.compress._patterns import matching
from tensorfact.factor.low_rank import randomized_svd, singular_values

__all__ = ["LowRankMethod", "break_even", "rank_step"]

_ROWS = 1024  # rows of a block of the residual: bounds its workspace


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class LowRankMethod:
    """Options of the ``lowrank`` method.

    Parameters
    ----------
    allocation : {"spectrum", "uniform"}
        Share the budget by the singular values of the weights, or give each weight the same share.
    rank_multiple : int
        Ranks are multiples of it; small matrices use its largest divisor that leaves 8 steps to the largest rank.
    rank_pattern : dict of str to int
        Name, suffix or ``re:`` pattern -> rank; counts against the budget like the others.
    floor : float
        Least share of its uniform rank that each weight keeps, in [0, 1].
    min_saving : float
        Least share of its parameters that two factors save, in [0, 1); otherwise the weight stays dense, because near
        break-even two thin products take longer than one. Ranks of `rank_pattern` are bound by break-even alone.
    solver : {"subspace", "krylov", "shifted", "exact"}
        Passed to `tensorfact.randomized_svd`, or a full SVD.
    n_iter, n_oversamples
        As in `tensorfact.randomized_svd`.
    split : {"sqrt", "left", "right"}
        Which factor takes the singular values; ``"sqrt"`` shares them, so that 16-bit types lose least.
    """

    name: ClassVar[str] = "lowrank"

    allocation: Literal["spectrum", "uniform"] = "spectrum"
    rank_multiple: int = 8
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    floor: float = 0.5
    min_saving: float = 0.1
    solver: Literal["subspace", "krylov", "shifted", "exact"] = "subspace"
    n_iter: int | Literal["auto"] = "auto"
    n_oversamples: int | Literal["auto"] = "auto"
    split: Literal["sqrt", "left", "right"] = "sqrt"

    def __post_init__(self) -> None:
        """Check the options."""
        for name, value, allowed in (
            ("allocation", self.allocation, ("spectrum", "uniform")),
            ("solver", self.solver, ("subspace", "krylov", "shifted", "exact")),
            ("split", self.split, ("sqrt", "left", "right")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        if not _positive_int(self.rank_multiple):
            raise ValueError(f"rank_multiple must be an integer >= 1, got {self.rank_multiple!r}")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor must be in [0, 1], got {self.floor!r}")
        if not 0 <= self.min_saving < 1:
            raise ValueError(f"min_saving must be in [0, 1), got {self.min_saving!r}")
        for pattern, rank in self.rank_pattern.items():
            if not _positive_int(rank):
                raise ValueError(f"rank_pattern must map names to ranks >= 1, got {pattern!r}: {rank!r}")

    @property
    def needs_analysis(self) -> bool:
        """The spectra are needed to share the budget by them."""
        return self.allocation == "spectrum"

    def analyse(self, weight: npt.NDArray[Any], /) -> npt.NDArray[np.float64]:
        """Return all singular values, descending."""
        return np.asarray(singular_values(weight), dtype=np.float64)

    def layout(self, shape: tuple[int, int], rank: Rank, /) -> dict[str, tuple[int, ...]]:
        """Return the shapes of ``down.weight`` (rank, in) and ``up.weight`` (out, rank)."""
        return {"down.weight": (_int(rank), shape[1]), "up.weight": (shape[0], _int(rank))}

    def factor(self, weight: npt.NDArray[Any], rank: Rank, /, *, rng: np.random.Generator) -> Factored:
        """Return the factors of the best approximation found at `rank`."""
        if self.solver == "exact":
            return self._exact(weight, _int(rank))
        result = randomized_svd(
            weight, rank=_int(rank), n_iter=self.n_iter, n_oversamples=self.n_oversamples, method=self.solver, rng=rng
        )
        left, right = result.factors(split=self.split)
        return Factored(
            {"down.weight": right, "up.weight": left},
            float(result.error),
            result.info.path,
            np.asarray(result.s, dtype=np.float64),
            tuple(result.info.notes),
        )

    def _exact(self, weight: npt.NDArray[Any], rank: int) -> Factored:
        u, s, vh = scipy.linalg.svd(weight, full_matrices=False, check_finite=False)
        total = float(np.linalg.norm(s.astype(np.float64)))
        error = float(np.linalg.norm(s[rank:].astype(np.float64))) / total if total else 0.0
        power = {"sqrt": 0.5, "left": 1.0, "right": 0.0}[self.split]
        left = u[:, :rank] * s[:rank] ** power
        right = (s[:rank] ** (1 - power))[:, None] * vh[:rank]
        return Factored({"down.weight": right, "up.weight": left}, error, "full-svd", s[:rank].astype(np.float64))

    def residual(self, weight: npt.NDArray[Any], arrays: Arrays, /) -> float:
        """Return the relative Frobenius error of ``up @ down``, in blocks of rows."""
        up, down = arrays["up.weight"], arrays["down.weight"]
        lost = total = 0.0
        for start in range(0, weight.shape[0], _ROWS):
            rows = slice(start, start + _ROWS)
            block = np.asarray(weight[rows], dtype=np.float64).ravel()
            total += float(block @ block)
            block -= (up[rows] @ down).ravel()
            lost += float(block @ block)
        return math.sqrt(lost / total) if total else 0.0

    def expand(self, arrays: Arrays, /) -> npt.NDArray[Any]:
        """Return ``up @ down``."""
        return arrays["up.weight"] @ arrays["down.weight"]

    def predicted_error(self, analysis: npt.NDArray[np.float64], rank: Rank, /) -> float | None:
        """Return the error of the truncated SVD (Eckart and Young, 1936)."""
        if analysis.size == 0:
            return None
        energy = np.cumsum(analysis[::-1] ** 2)[::-1]
        return math.sqrt(energy[_int(rank)] / energy[0]) if _int(rank) < energy.size and energy[0] > 0 else 0.0

    def allocate(
        self, layers: Sequence[Layer], param_ratio: float, analyses: Mapping[str, npt.NDArray[np.float64]], /
    ) -> Allocation:
        """Share ``param_ratio * sum(out * in)`` numbers among the layers; never above.

        Layers too small for rank 1 within their share take it first. ``"uniform"`` rounds the other shares down.
        ``"spectrum"`` ends when no layer's next step fits, so what is left is less than one step of any layer that can
        still grow. Cost: O(S log L) for S steps and L layers.

        Raises
        ------
        ValueError
            If rank 1 everywhere, or `rank_pattern`, already exceeds the budget, or a pattern matches nothing.
        """
        total = sum(layer.size for layer in layers)
        budget = math.floor(param_ratio * total + 1e-6)
        near = f"near break-even: two factors would save less than {self.min_saving:.0%}"
        given = self._given(layers)
        ranks: dict[str, Rank] = {}
        dense: dict[str, str] = {}
        free, spent = [], 0
        for layer in layers:
            limit, rank = break_even(layer.shape), given.get(layer.name)
            if rank is None and self.largest_rank(layer.shape) >= 1:
                free.append(layer)
            elif rank is not None and rank <= limit:
                ranks[layer.name] = rank
                spent += rank * sum(layer.shape)
            else:
                past = f"rank {rank} of rank_pattern is past break-even ({limit})"
                dense[layer.name] = f"even rank 1 is {near}" if rank is None else past
                spent += layer.size
        least = spent + sum(sum(layer.shape) for layer in free)
        if least > budget:
            raise ValueError(
                f"param_ratio must be at least {math.ceil(least / total * 1e4) / 1e4:g} for these weights and ranks, "
                f"got {param_ratio}"
            )
        budget -= spent
        share = _common_share(free, budget)
        shares = []
        for layer in free:
            limit = self.largest_rank(layer.shape)
            step = rank_step(limit, self.rank_multiple)
            uniform = share * layer.size / sum(layer.shape)
            wanted = min(limit, uniform * (1.0 if self.allocation == "uniform" else self.floor))
            start = max(min(step, max(1, int(uniform))), int(wanted) // step * step)
            shares.append(_Share(layer, step, limit, limit + 1 if share >= 1 else start))
            budget -= shares[-1].cost(shares[-1].rank)
        if self.allocation == "spectrum":
            _spend(shares, budget, analyses)
        for item in shares:
            if item.rank >= item.full:
                dense[item.layer.name] = f"its share of the budget is {near}"
            else:
                ranks[item.layer.name] = item.rank
        return Allocation(ranks, dense)

    def largest_rank(self, shape: tuple[int, int]) -> int:
        """Return the largest rank below break-even whose factors save at least `min_saving` of the weight."""
        most = (1 - self.min_saving) * shape[0] * shape[1] / sum(shape)
        return min(break_even(shape), math.floor(most * (1 + 1e-12)))  # a product that should be whole may fall short

    def _given(self, layers: Sequence[Layer]) -> dict[str, int]:
        names = [layer.name for layer in layers]
        given: dict[str, int] = {}
        for pattern, rank in self.rank_pattern.items():
            for name in matching([pattern], names, argument="rank_pattern"):
                given.setdefault(name, rank)  # the first pattern that matches wins
        return given


@dataclass(slots=True)
class _Share:
    """One layer during allocation. Rank `full` stands for dense."""

    layer: Layer
    step: int
    limit: int
    rank: int

    @property
    def full(self) -> int:
        return self.limit + 1

    def cost(self, rank: int) -> int:
        return self.layer.size if rank >= self.full else rank * sum(self.layer.shape)

    def next(self) -> int:
        """Return the next rank to try: one step up, or dense after the last step below the limit."""
        rank = self.rank - self.rank % self.step + self.step
        return rank if rank <= self.limit else self.full


def _common_share(layers: Sequence[Layer], budget: int) -> float:
    """Return the share of its parameters that each layer may keep once those too small for it have rank 1."""
    rest = list(layers)
    while rest:
        share = budget / sum(layer.size for layer in rest)
        large = [layer for layer in rest if share * layer.size >= sum(layer.shape)]
        if len(large) == len(rest):
            return share
        budget -= sum(sum(layer.shape) for layer in rest) - sum(sum(layer.shape) for layer in large)
        rest = large
    return 0.0


def _spend(shares: list[_Share], budget: int, analyses: Mapping[str, npt.NDArray[np.float64]]) -> None:
    """Give the budget out in steps, largest relative energy per stored number first."""
    kept = {}
    for item in shares:
        energy = np.concatenate([[0.0], np.cumsum(analyses[item.layer.name] ** 2)])
        kept[item.layer.name] = energy / (energy[-1] or 1.0)

    def gain(item: _Share) -> tuple[float, int]:
        rank = item.next()
        cost = item.cost(rank) - item.cost(item.rank)
        energy = kept[item.layer.name]
        after = 1.0 if rank >= item.full else energy[min(rank, energy.size - 1)]
        return float(energy[min(item.rank, energy.size - 1)] - after) / max(1, cost), cost

    heap = [(gain(item)[0], i) for i, item in enumerate(shares) if item.rank < item.full]
    heapq.heapify(heap)
    while heap:
        _, i = heapq.heappop(heap)
        item = shares[i]
        cost = gain(item)[1]
        if cost > budget:
            continue  # smaller layers may still fit
        budget -= cost
        item.rank = item.next()
        if item.rank < item.full:
            heapq.heappush(heap, (gain(item)[0], i))


def break_even(shape: tuple[int, int]) -> int:
    """Return the largest rank at which two factors take fewer numbers than the matrix."""
    return (shape[0] * shape[1] - 1) // (shape[0] + shape[1])


def rank_step(limit: int, multiple: int) -> int:
    """Return the largest divisor of `multiple` that leaves at least 8 steps up to `limit`, or 1."""
    return max((d for d in range(1, multiple + 1) if multiple % d == 0 and d * 8 <= limit), default=1)


def _positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _int(rank: Rank) -> int:
    if not isinstance(rank, int):
        raise ValueError(f"rank must be one integer for a low-rank weight, got {rank!r}")
    return rank
