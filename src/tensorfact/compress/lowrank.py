"""The low-rank method: two factors, ``up @ down``, for each weight W (out, in), at a cost of rank * (out + in).

Ranks come from one budget over all weights (`_budget.py`): uniform, or greedy on the energy of the singular values.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import scipy.linalg

from tensorfact.compress._budget import BudgetOptions, Menu, is_positive_int, share_budget
from tensorfact.compress._few_bits import (
    FewBitsTrainer,
    check_factor_bits,
    packed_arrays,
    packed_layout,
    packed_types,
    unpacked,
)
from tensorfact.compress._method import Allocation, Arrays, Factored, Layer, Rank, register
from tensorfact.compress._units import Evidence, FactoredUnit, Trainer, Unit
from tensorfact.factor.low_rank import randomized_svd, singular_values
from tensorfact.factor.whitened import whitened_singular_values, whitened_svd

__all__ = ["LowRankMethod", "break_even"]

_ROWS = 1024  # rows of a block of the residual: bounds its workspace


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class LowRankMethod(BudgetOptions):
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
    whiten : bool
        With calibration data, share the budget by what is lost of the outputs, and lose least of those; false does
        both for the weights themselves, and leaves the data to the refinement.
    factor_bits : int, optional
        Store the factors in so many bits a number, 2 to 8. The budget counts numbers, not bytes: a ratio means the same
        ranks with any bits, and a weight that stays dense counts as many numbers as before but keeps the bytes of its
        own type. For a share of bytes take a smaller ratio, and look at the bytes of the report.
    """

    name: ClassVar[str] = "lowrank"
    pattern: ClassVar[str] = r"(?:down|up)\.(?:weight|packed|scale)"
    bias: ClassVar[str] = "up.bias"
    memory: ClassVar[int] = 3
    stored_types: ClassVar[Mapping[str, str]] = packed_types(("down", "up"))
    stored_options: ClassVar[tuple[str, ...]] = ("factor_bits",)

    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    solver: Literal["subspace", "krylov", "shifted", "exact"] = "subspace"
    n_iter: int | Literal["auto"] = "auto"
    n_oversamples: int | Literal["auto"] = "auto"
    split: Literal["sqrt", "left", "right"] = "sqrt"
    whiten: bool = True
    factor_bits: int | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        self.check()
        for name, value, allowed in (
            ("solver", self.solver, ("subspace", "krylov", "shifted", "exact")),
            ("split", self.split, ("sqrt", "left", "right")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        if not isinstance(self.whiten, bool):
            raise ValueError(f"whiten must be true or false, got {self.whiten!r}")
        check_factor_bits(self.factor_bits)
        for pattern, rank in self.rank_pattern.items():
            if not is_positive_int(rank):
                raise ValueError(f"rank_pattern must map names to ranks >= 1, got {pattern!r}: {rank!r}")

    @property
    def remark(self) -> str:
        """Say how bits are counted where there are few."""
        if self.factor_bits is None:
            return ""
        return (
            f"lowrank: factors of {self.factor_bits} bits a number; param_ratio counts numbers, not bytes; bytes "
            "include scales"
        )

    def parameters(self, shape: tuple[int, int], rank: Rank, /) -> int | None:
        """Return the numbers of both factors."""
        return as_int(rank) * sum(shape)

    def analyse(self, weight: npt.NDArray[Any], /) -> npt.NDArray[np.float64]:
        """Return all singular values, descending."""
        return np.asarray(singular_values(weight), dtype=np.float64)

    def analyse_with(self, layer: Layer, weight: npt.NDArray[Any], evidence: Evidence, /) -> npt.NDArray[np.float64]:
        """Return all singular values of the weight on its inputs: what a rank loses of the outputs."""
        if not self.whiten or not evidence.count(layer.name):
            return self.analyse(weight)
        return whitened_singular_values(weight, evidence.gram(layer.name))

    def spectrum(self, analysis: npt.NDArray[np.float64], /) -> npt.NDArray[np.float64]:
        """Return the singular values."""
        return analysis

    def full_rank(self, shape: tuple[int, int], /) -> int:
        """Return the smaller side."""
        return min(shape)

    def break_even(self, shape: tuple[int, int], /) -> int:
        """Return the largest rank at which two factors take fewer numbers than the matrix."""
        return break_even(shape)

    def layout(self, shape: tuple[int, int], rank: Rank, /) -> dict[str, tuple[int, ...]]:
        """Return the shapes of ``down.weight`` (rank, in) and ``up.weight`` (out, rank), or of what is packed."""
        down, up = (as_int(rank), shape[1]), (shape[0], as_int(rank))
        if self.factor_bits is None:
            return {"down.weight": down, "up.weight": up}
        return {**packed_layout("down", down, self.factor_bits), **packed_layout("up", up, self.factor_bits)}

    def factor(self, weight: npt.NDArray[Any], rank: Rank, /, *, rng: np.random.Generator) -> Factored:
        """Return the factors of the best approximation found at `rank`."""
        return self._as_stored(weight, self._found(weight, as_int(rank), rng))

    def _as_stored(self, weight: npt.NDArray[Any], made: Factored) -> Factored:
        arrays = self.stored(made.arrays)
        if arrays is made.arrays:
            return made
        return dataclasses.replace(made, arrays=arrays, error=self.residual(weight, arrays))

    def stored(self, factors: Arrays) -> Arrays:
        """Return what is stored of both factors; themselves, if they are."""
        if self.factor_bits is None:
            return factors
        found: Arrays = {}
        for name in ("down", "up"):
            found |= packed_arrays(name, factors[f"{name}.weight"], self.factor_bits)
        return found

    def _found(self, weight: npt.NDArray[Any], rank: int, rng: np.random.Generator) -> Factored:
        if self.solver == "exact":
            return self._exact(weight, rank)
        result = randomized_svd(
            weight, rank=rank, n_iter=self.n_iter, n_oversamples=self.n_oversamples, method=self.solver, rng=rng
        )
        left, right = result.factors(split=self.split)
        return Factored(
            {"down.weight": right, "up.weight": left},
            float(result.error),
            result.info.path,
            np.asarray(result.s, dtype=np.float64),
            tuple(result.info.notes),
        )

    def factor_unit(
        self,
        unit: Unit,
        weights: Mapping[str, npt.NDArray[Any]],
        ranks: Mapping[str, Rank],
        /,
        *,
        rng: np.random.Generator,
        evidence: Evidence | None,
    ) -> FactoredUnit:
        """Return the factors that lose least of the outputs on the calibration data, if there are some."""
        (layer,) = unit.layers
        weight, rank = weights[layer.name], as_int(ranks[layer.name])
        if evidence is None or not self.whiten or not evidence.count(layer.name):
            made = self._found(weight, rank, rng)
        else:
            found = whitened_svd(weight, evidence.gram(layer.name), rank=rank)
            left, right = found.factors(split=self.split)
            spectrum = np.asarray(found.s, dtype=np.float64)
            factors = {"down.weight": right, "up.weight": left}
            made = Factored(factors, found.weight_error, f"whitened-{found.path}", spectrum)
        start, made = made.arrays, self._as_stored(weight, made)
        return FactoredUnit(
            {f"{layer.name}.{suffix}": values for suffix, values in made.arrays.items()},
            {layer.name: made.error},
            made.path,
            {layer.name: made.spectrum},
            start={} if made.arrays is start else start,
            notes=made.notes,
        )

    def trainer(
        self, unit: Unit, modules: Mapping[str, Any], factored: FactoredUnit, /, *, steps: int, rng: np.random.Generator
    ) -> Trainer:
        """Return one that rounds, where the factors have few bits."""
        if self.factor_bits is None:
            return Trainer()
        module, start = modules[unit.layers[0].name], factored.start
        return FewBitsTrainer([(getattr(module, name), start.get(f"{name}.weight")) for name in ("down", "up")])

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
        up, down = self.factors(arrays)
        lost = total = 0.0
        for start in range(0, weight.shape[0], _ROWS):
            rows = slice(start, start + _ROWS)
            block = np.array(weight[rows], dtype=np.float64).ravel()
            total += float(block @ block)
            block -= (up[rows] @ down).ravel()
            lost += float(block @ block)
        return math.sqrt(lost / total) if total else 0.0

    def dense_shape(self, shapes: Mapping[str, tuple[int, ...]], /) -> tuple[int, int]:
        """Return ``(out, in)`` of two factors that fit together."""
        up, down = shapes.get("up.weight", ()), shapes.get("down.weight", ())
        if self.factor_bits is not None:
            up, down = (self._unpacked_shape(name, shapes) for name in ("up", "down"))
        if len(up) != 2 or len(down) != 2 or up[1] != down[0]:
            raise ValueError(f"up and down must fit together, got {up or 'none'} and {down or 'none'}")
        return up[0], down[1]

    def _unpacked_shape(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        packed, scale = (shapes.get(f"{name}.{part}", ()) for part in ("packed", "scale"))
        if len(packed) != 2 or len(scale) != 2:
            return ()
        found = scale[0], packed[1]
        fits = packed_layout(name, found, self.factor_bits or 8)
        return found if fits == {f"{name}.packed": packed, f"{name}.scale": scale} else ()

    def factors(self, arrays: Arrays) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return up and down as numbers."""
        bits = self.factor_bits
        if bits is None:
            return arrays["up.weight"], arrays["down.weight"]
        up, down = (unpacked(arrays, name, bits, len(arrays[f"{name}.scale"])) for name in ("up", "down"))
        return up, down

    def expand(self, arrays: Arrays, /) -> npt.NDArray[Any]:
        """Return ``up @ down``."""
        up, down = self.factors(arrays)
        product: npt.NDArray[Any] = up @ down
        return product

    def predicted_error(self, analysis: npt.NDArray[np.float64], rank: Rank, /) -> float | None:
        """Return the error of the truncated SVD (Eckart and Young, 1936)."""
        if analysis.size == 0:
            return None
        energy = np.cumsum(analysis[::-1] ** 2)[::-1]
        return math.sqrt(energy[as_int(rank)] / energy[0]) if as_int(rank) < energy.size and energy[0] > 0 else 0.0

    def optimal_error(self, analysis: npt.NDArray[np.float64], rank: Rank, /) -> float | None:
        """Return the same: nothing of this rank is closer."""
        return self.predicted_error(analysis, rank)

    def allocate(
        self, layers: Sequence[Layer], param_ratio: float, analyses: Mapping[str, npt.NDArray[np.float64]], /
    ) -> Allocation:
        """Share the budget; see `share_budget`.

        Raises
        ------
        ValueError
            If rank 1 everywhere, or `rank_pattern`, already exceeds the budget, or a pattern matches nothing.
        """
        given = {name: as_int(rank) for name, rank in self.given(layers).items()}
        return share_budget(
            self,
            layers,
            param_ratio,
            {layer.name: self.menu(layer, analyses.get(layer.name)) for layer in layers},
            given={la.name: (given[la.name], self.cost(la, given[la.name])) for la in layers if la.name in given},
            to_rank=lambda layer, level: level,
            what="two factors",
        )

    def largest_rank(self, shape: tuple[int, int]) -> int:
        """Return the largest rank below break-even whose factors save at least `min_saving` of the weight."""
        costs = np.arange(break_even(shape) + 1, dtype=np.int64) * sum(shape)
        return Menu(costs, np.empty(0)).level((1 - self.min_saving) * shape[0] * shape[1])

    def cost(self, layer: Layer, rank: int) -> int:
        """Return how many numbers of the budget a rank takes."""
        return rank * sum(layer.shape)

    def menu(self, layer: Layer, analysis: npt.NDArray[np.float64] | None) -> Menu:
        """Return the ranks below break-even as levels."""
        costs = np.array([self.cost(layer, rank) for rank in range(min(layer.shape) + 1)], dtype=np.int64)
        costs = costs[: np.searchsorted(costs, layer.size)]
        if analysis is None:
            return Menu(costs, np.empty(0))
        energy = np.concatenate([[0.0], np.cumsum(analysis**2)])
        return Menu(costs, energy[: costs.size] / (energy[-1] or 1.0))

    def module_class(self) -> type[Any]:
        """Return `tensorfact.torch.LowRankLinear`."""
        from tensorfact.torch import LowRankLinear

        return LowRankLinear

    def module(
        self, shape: tuple[int, int], rank: Rank, /, *, bias: bool, device: Any = None, dtype: Any = None
    ) -> Any:
        """Return a `LowRankLinear`."""
        made = self.module_class()
        bits = self.factor_bits
        return made(shape[1], shape[0], rank=as_int(rank), bias=bias, bits=bits, device=device, dtype=dtype)


def break_even(shape: tuple[int, int]) -> int:
    """Return the largest rank at which two factors take fewer numbers than the matrix."""
    return (shape[0] * shape[1] - 1) // (shape[0] + shape[1])


def as_int(rank: Rank) -> int:
    if not isinstance(rank, int):
        raise ValueError(f"rank must be one integer for a low-rank weight, got {rank!r}")
    return rank
