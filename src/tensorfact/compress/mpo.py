"""The MPO method: each weight W (out, in) as a chain of cores (r, m, n, r'), a tensor train of paired modes.

``out`` and ``in`` are split into one factor a core, W is reshaped so that each row factor lies beside its column
factor, and TT-SVD cuts the bonds between the cores. With two cores that is the truncated SVD of a reshuffled weight
(Van Loan and Pitsianis, 1993): a sum of Kronecker products, not a matrix of low rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tensorfact.compress._budget import BudgetOptions, Menu, is_positive_int, share_budget
from tensorfact.compress._method import Allocation, Arrays, Factored, Layer, Rank, register
from tensorfact.factor import balanced_shape, singular_values, tt_matrix_svd, useful_ranks

__all__ = ["MPOMethod", "mode_shapes"]


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class MPOMethod(BudgetOptions):
    """Options of the ``mpo`` method.

    Parameters
    ----------
    order : int
        Number of cores, at least 2. With more cores a layer can be smaller, and at equal size is less accurate.
    allocation : {"spectrum", "uniform"}
        Share the budget by the singular values of the unfoldings, or give each weight the same share. Within a weight
        all bonds have one cap.
    rank_multiple : int
        Caps are multiples of it; small weights use its largest divisor that leaves 8 steps to the largest cap.
    rank_pattern : dict of str to int or tuple of int
        Name, suffix or ``re:`` pattern -> cap, or all ``order - 1`` bonds; counts against the budget like the others.
    floor : float
        Least share of its uniform number of parameters that each weight keeps, in [0, 1].
    min_saving : float
        Least share of its parameters that the cores save, in [0, 1); otherwise the weight stays dense. Bonds of
        `rank_pattern` are bound by break-even alone.
    balance : bool
        Share the singular values of every bond between its two sides, so that 16-bit types lose least and gradients
        have like scales; false leaves them in the last core.
    """

    name: ClassVar[str] = "mpo"
    pattern: ClassVar[str] = r"cores\.\d+"
    bias: ClassVar[str] = "bias"
    memory: ClassVar[int] = 5

    order: int = 2
    balance: bool = True

    def __post_init__(self) -> None:
        """Check the options."""
        self.check()
        if not is_positive_int(self.order) or self.order < 2:
            raise ValueError(f"order must be an integer >= 2, got {self.order!r}")
        if not isinstance(self.balance, bool):
            raise ValueError(f"balance must be true or false, got {self.balance!r}")
        for pattern, rank in self.rank_pattern.items():
            bonds = rank if isinstance(rank, tuple) else (rank,) * (self.order - 1)
            if len(bonds) != self.order - 1 or not all(map(is_positive_int, bonds)):
                raise ValueError(
                    f"rank_pattern must map names to a bond >= 1, or to {self.order - 1} of them for order "
                    f"{self.order}, got {pattern!r}: {rank!r}"
                )

    @property
    def remark(self) -> str:
        """Say what ranks and singular values are."""
        which = "of the weight" if self.order == 2 else "of the middle unfolding of the weight"
        return (
            f"mpo: a rank is the bond between neighbours of {self.order} cores, and singular values are those {which} "
            "reshaped so that each factor of the rows lies beside a factor of the columns"
        )

    def analyse(self, weight: npt.NDArray[Any], /) -> npt.NDArray[np.float64]:
        """Return the singular values of each unfolding, one row a bond, descending, padded with zeros."""
        rows, cols = mode_shapes((weight.shape[0], weight.shape[1]), self.order)
        tensor = _interleaved(weight, rows, cols)
        found = [
            singular_values(tensor.reshape(math.prod(rows[:k]) * math.prod(cols[:k]), -1)) for k in range(1, self.order)
        ]
        values = np.zeros((self.order - 1, max(map(len, found))))
        for row, sigma in zip(values, found, strict=True):
            row[: len(sigma)] = sigma
        return values

    def spectrum(self, analysis: npt.NDArray[np.float64], /) -> npt.NDArray[np.float64]:
        """Return the singular values of the unfolding that has most of them: there the largest bond is cut."""
        if analysis.size == 0:
            return np.empty(0)
        counts = np.count_nonzero(analysis, axis=1)
        longest = int(np.argmax(counts))
        return np.asarray(analysis[longest] if len(analysis) == 1 else analysis[longest, : counts[longest]])

    def full_rank(self, shape: tuple[int, int], /) -> int:
        """Return the largest bond that can be of use."""
        return max(_useful(shape, self.order))

    def break_even(self, shape: tuple[int, int], /) -> int:
        """Return the largest cap of the bonds at which the cores take fewer numbers than the matrix."""
        return len(_menu(shape, self.order, None).costs) - 1

    def allocate(
        self, layers: Sequence[Layer], param_ratio: float, analyses: Mapping[str, npt.NDArray[np.float64]], /
    ) -> Allocation:
        """Share the budget; see `share_budget`. A level is a cap on all bonds of one weight.

        Raises
        ------
        ValueError
            If bonds of 1 everywhere, or `rank_pattern`, already exceed the budget, or a pattern matches nothing.
        """
        patterns = self.given(layers)
        given: dict[str, tuple[Rank, int]] = {}
        for layer in layers:
            if layer.name in patterns:
                bonds = useful_ranks(_sizes(layer.shape, self.order), patterns[layer.name])
                given[layer.name] = bonds, _cost(layer.shape, bonds)
        return share_budget(
            self,
            layers,
            param_ratio,
            {layer.name: _menu(layer.shape, self.order, analyses.get(layer.name)) for layer in layers},
            given=given,
            to_rank=lambda layer, level: tuple(min(level, useful) for useful in _useful(layer.shape, self.order)),
            what="the cores",
        )

    def layout(self, shape: tuple[int, int], rank: Rank, /) -> dict[str, tuple[int, ...]]:
        """Return the shapes of ``cores.0``, ``cores.1``, ...: (r, m, n, r')."""
        bonds = _bonds(shape, rank)
        rows, cols = mode_shapes(shape, len(bonds) + 1)
        shapes = zip((1, *bonds), rows, cols, (*bonds, 1), strict=True)
        return {f"cores.{k}": core for k, core in enumerate(shapes)}

    def factor(self, weight: npt.NDArray[Any], rank: Rank, /, *, rng: np.random.Generator) -> Factored:
        """Return the cores of TT-SVD with the bonds `rank`; of a weight that needs fewer, the rest is zero."""
        shape = weight.shape[0], weight.shape[1]
        bonds = _bonds(shape, rank)
        rows, cols = mode_shapes(shape, len(bonds) + 1)
        made = tt_matrix_svd(weight, rows, cols, rank=bonds, balance=self.balance, rng=rng)
        layout = self.layout(shape, bonds).items()
        arrays = {name: _padded(np.asarray(core), full) for core, (name, full) in zip(made.cores, layout, strict=True)}
        spectrum = np.empty(0)
        if len(bonds) == 1:  # both sides of the bond are orthogonal, whichever has the singular values
            left, right = (np.sum(np.square(core, dtype=np.float64), axis=(1, 2)) for core in made.cores)
            spectrum = np.sort(np.sqrt(left.ravel() * right.ravel()))[::-1]
        return Factored(arrays, self.residual(weight, arrays), made.info.path, spectrum, made.info.notes)

    def dense_shape(self, shapes: Mapping[str, tuple[int, ...]], /) -> tuple[int, int]:
        """Return ``(out, in)`` of cores that form a chain."""
        cores = [shapes.get(f"cores.{k}", ()) for k in range(len(shapes))]
        right = [1] + [core[3] for core in cores if len(core) == 4]
        if len(right) <= len(cores) or right[-1] != 1 or [core[0] for core in cores] != right[:-1]:
            raise ValueError(f"cores.0, cores.1, ... must have four axes and form a chain, got {dict(shapes)}")
        return math.prod(core[1] for core in cores), math.prod(core[2] for core in cores)

    def expand(self, arrays: Arrays, /) -> npt.NDArray[Any]:
        """Return the product of the cores as a matrix."""
        cores = [arrays[f"cores.{k}"] for k in range(len(arrays))]
        product = cores[0].reshape(-1, cores[0].shape[3])
        for core in cores[1:]:
            product = (product @ core.reshape(core.shape[0], -1)).reshape(-1, core.shape[3])
        modes = [axis for core in cores for axis in core.shape[1:3]]
        order = [*range(0, len(modes), 2), *range(1, len(modes), 2)]
        return product.reshape(modes).transpose(order).reshape(math.prod(modes[::2]), math.prod(modes[1::2]))

    def predicted_error(self, analysis: npt.NDArray[np.float64], rank: Rank, /) -> float | None:
        """Return the bound of TT-SVD, the root of all squared tails (Oseledets, 2011); exact for two cores."""
        if analysis.size == 0:
            return None
        bonds = rank if isinstance(rank, tuple) else (rank,)
        lost = sum(float(np.sum(sigma[bond:][::-1] ** 2)) for sigma, bond in zip(analysis, bonds, strict=True))
        total = float(np.sum(analysis[0][::-1] ** 2))
        return min(1.0, math.sqrt(lost / total)) if total else 0.0

    def optimal_error(self, analysis: npt.NDArray[np.float64], rank: Rank, /) -> float | None:
        """Return the error of the truncated SVD for two cores; for more, the smallest error is not known."""
        return self.predicted_error(analysis, rank) if len(analysis) == 1 else None

    def module_class(self) -> type[Any]:
        """Return `tensorfact.torch.MPOLinear`."""
        from tensorfact.torch import MPOLinear

        return MPOLinear

    def module(
        self, shape: tuple[int, int], rank: Rank, /, *, bias: bool, device: Any = None, dtype: Any = None
    ) -> Any:
        """Return an `MPOLinear`."""
        bonds = _bonds(shape, rank)
        rows, cols = mode_shapes(shape, len(bonds) + 1)
        made = self.module_class()
        return made(
            shape[1], shape[0], rank=bonds, row_shape=rows, col_shape=cols, bias=bias, device=device, dtype=dtype
        )


def mode_shapes(shape: tuple[int, int], order: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the factors of ``out`` and of ``in``, one a core; part of the file format, which does not store them.

    Each side is as balanced as its divisors allow. One ascends and the other descends, so that the products of pairs
    are as equal as can be: that takes fewest numbers a bond. Where both sides are prime, two cores are a low rank.
    """
    return balanced_shape(shape[0], order), balanced_shape(shape[1], order)[::-1]


def _sizes(shape: tuple[int, int], order: int) -> tuple[int, ...]:
    return tuple(m * n for m, n in zip(*mode_shapes(shape, order), strict=True))


def _useful(shape: tuple[int, int], order: int) -> tuple[int, ...]:
    """Largest useful value of each inner bond."""
    return useful_ranks(_sizes(shape, order), shape[0] * shape[1])


def _bonds(shape: tuple[int, int], rank: Rank) -> tuple[int, ...]:
    bonds = rank if isinstance(rank, tuple) else (rank,)
    if not bonds or not all(map(is_positive_int, bonds)):
        raise ValueError(f"rank must be a tuple of bonds >= 1 for an mpo weight, got {rank!r}")
    useful = useful_ranks(_sizes(shape, len(bonds) + 1), bonds)
    if useful != bonds:
        raise ValueError(f"rank must be of use in a weight of shape {shape}: at most {useful}, got {bonds}")
    return bonds


def _cost(shape: tuple[int, int], bonds: tuple[int, ...]) -> int:
    sizes = _sizes(shape, len(bonds) + 1)
    return sum(left * size * right for left, size, right in zip((1, *bonds), sizes, (*bonds, 1), strict=True))


def _menu(shape: tuple[int, int], order: int, analysis: npt.NDArray[np.float64] | None) -> Menu:
    """Levels are caps on all bonds, below break-even; kept is the mean over the unfoldings."""
    useful = _useful(shape, order)
    bonds = np.minimum(np.arange(max(useful) + 1)[:, None], useful)
    ones = np.minimum(bonds[:, :1], 1)  # level 0 stores nothing
    costs = np.hstack([ones, bonds]) * _sizes(shape, order) * np.hstack([bonds, ones])
    total = costs.sum(axis=1)
    total = total[: np.searchsorted(total, shape[0] * shape[1])]
    if analysis is None:
        return Menu(total, np.empty(0))
    lost = np.zeros(len(total))
    for sigma, caps in zip(analysis, bonds[: len(total)].T, strict=True):
        tails = np.append(np.cumsum(sigma[::-1] ** 2)[::-1], 0.0)
        lost += tails[caps] / (tails[0] or 1.0)
    return Menu(total, 1.0 - lost / len(analysis))


def _interleaved(weight: npt.NDArray[Any], rows: tuple[int, ...], cols: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return W with its row and column factors in pairs."""
    order = [axis for k in range(len(rows)) for axis in (k, len(rows) + k)]
    return np.ascontiguousarray(weight.reshape(*rows, *cols).transpose(order))


def _padded(core: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    return np.pad(core, [(0, full - have) for full, have in zip(shape, core.shape, strict=True)])
