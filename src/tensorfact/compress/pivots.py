"""The pivots method: ``lowrank``, stored in rank^2 numbers fewer and with nothing lost.

Each weight is of the form that `tensorfact.factor._pivots` describes. Its break-even is the full rank, and at the same
bytes its rank is higher: at half of a square weight 0.29 of the side, not 0.25.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tensorfact.compress._method import Arrays, Layer, Rank, register
from tensorfact.compress._types import BITS
from tensorfact.compress._units import FactoredUnit, Trainer, Unit
from tensorfact.compress.lowrank import LowRankMethod, as_int
from tensorfact.factor._pivots import pack_pivots, pivot_numbers, unpack_pivots

__all__ = ["PivotMethod"]


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class PivotMethod(LowRankMethod):
    """Options of the ``pivots`` method: those of ``lowrank``, without `factor_bits`.

    Refinement trains two factors and packs them when it is done.
    """

    name: ClassVar[str] = "pivots"
    pattern: ClassVar[str] = r"(?:head|follow)\.weight|pivots"
    bias: ClassVar[str] = "bias"
    memory: ClassVar[int] = 4
    stored_types: ClassVar[Mapping[str, str]] = {"pivots": "U8"}
    stored_options: ClassVar[tuple[str, ...]] = ()
    alone: ClassVar[bool] = False  # bits at random would not do

    def __post_init__(self) -> None:
        """Check the options."""
        # slots=True makes a new class, which the cell of a bare super() does not know
        LowRankMethod.__post_init__(self)
        if self.factor_bits is not None:
            raise ValueError(f"factor_bits must be None for pivots, got {self.factor_bits!r}: lowrank can do so")

    @property
    def remark(self) -> str:
        """Say what is counted."""
        return "pivots: a weight of rank r takes r * (out + in - r) numbers and a bit for each output"

    def parameters(self, shape: tuple[int, int], rank: Rank, /) -> None:
        """Return None: the bits of the pivots count, too."""

    def break_even(self, shape: tuple[int, int], /) -> int:
        """Return the largest rank that takes fewer numbers than the matrix; the bits count as of a 16-bit type.

        `menu` counts in the weight's own type: with a wider one the rank may be larger, by a few.
        """
        costs = (self._numbers(shape, rank, 16) for rank in range(min(shape), 0, -1))
        return next((min(shape) - i for i, cost in enumerate(costs) if cost < shape[0] * shape[1]), 0)

    def cost(self, layer: Layer, rank: int) -> int:
        """Return the numbers of both arrays, and what the bits take in numbers of the weight's type."""
        return self._numbers(layer.shape, rank, BITS[layer.info.dtype])

    def _numbers(self, shape: tuple[int, int], rank: int, width: int) -> int:
        if not rank:
            return 0
        # beyond the full rank the formula would fall again
        return pivot_numbers(shape, min(rank, *shape)) + -(-8 * ((shape[0] + 7) // 8) // width)

    def layout(self, shape: tuple[int, int], rank: Rank, /) -> dict[str, tuple[int, ...]]:
        """Return the shapes of ``head.weight``, ``follow.weight`` and ``pivots``."""
        r = as_int(rank)
        return {"head.weight": (r, shape[1]), "follow.weight": (shape[0] - r, r), "pivots": ((shape[0] + 7) // 8,)}

    def stored(self, factors: Arrays) -> Arrays:
        """Return pivot rows, what follows from them, and which they are."""
        bits, head, follow = pack_pivots(factors["up.weight"], factors["down.weight"])
        return {"head.weight": head, "follow.weight": follow, "pivots": bits}

    def factors(self, arrays: Arrays) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return two factors with the same product."""
        return unpack_pivots(arrays["pivots"], arrays["head.weight"], arrays["follow.weight"])

    def dense_shape(self, shapes: Mapping[str, tuple[int, ...]], /) -> tuple[int, int]:
        """Return ``(out, in)`` of arrays that fit together."""
        head, follow = shapes.get("head.weight", ()), shapes.get("follow.weight", ())
        if len(head) == len(follow) == 2 and follow[1] == head[0]:
            shape = head[0] + follow[0], head[1]
            if shapes.get("pivots") == ((shape[0] + 7) // 8,):
                return shape
        raise ValueError(f"head.weight, follow.weight and pivots must fit together, got {dict(shapes)}")

    def module_class(self) -> type[Any]:
        """Return `tensorfact.torch.PivotLowRankLinear`."""
        from tensorfact.torch import PivotLowRankLinear

        return PivotLowRankLinear

    def module(
        self, shape: tuple[int, int], rank: Rank, /, *, bias: bool, device: Any = None, dtype: Any = None
    ) -> Any:
        """Return a `PivotLowRankLinear`."""
        return self.module_class()(shape[1], shape[0], rank=as_int(rank), bias=bias, device=device, dtype=dtype)

    def trainer(
        self, unit: Unit, modules: Mapping[str, Any], factored: FactoredUnit, /, *, steps: int, rng: np.random.Generator
    ) -> Trainer:
        """Return one that trains two factors."""
        start = factored.start
        return _FactorTrainer(modules[unit.layers[0].name], start["up.weight"], start["down.weight"])


class _FactorTrainer(Trainer):
    """Two factors while it trains; packed when it is done."""

    def __init__(self, module: Any, up: npt.NDArray[Any], down: npt.NDArray[Any]) -> None:
        import torch

        self._module = module
        module.open(torch.from_numpy(np.ascontiguousarray(up)), torch.from_numpy(np.ascontiguousarray(down)))

    def finish(self) -> None:
        """Choose the pivots and pack."""
        self._module.close()
