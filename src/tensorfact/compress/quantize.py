"""The quantize method: every weight in few bits a number, rounded to nearest, and no factors.

It is what factors must be compared with at the same bytes. The budget is one of bytes; it decides how many bits, from 2
to 8, each weight gets.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

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
from tensorfact.compress._types import BITS
from tensorfact.compress._units import FactoredUnit, PerWeight, Trainer, Unit
from tensorfact.factor._quantized import dequantize, packed_bits, quantize

__all__ = ["QuantizeMethod"]

_CHOICES = range(2, 9)
_LEAST = 8  # outputs: with fewer, the shape of the packed codes does not tell their bits


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeMethod(BudgetOptions):
    """Options of the ``quantize`` method.

    Parameters
    ----------
    allocation : {"spectrum", "uniform"}
        Give more bits where they lower the relative error most, or to every weight the most that all can have.
    rank_pattern : dict of str to int
        Name, suffix or ``re:`` pattern -> bits; counts against the budget like the others.
    factor_bits : int, optional
        Bits of all weights that `rank_pattern` does not name.
    floor, min_saving
        As for ``lowrank``, of bytes.
    """

    name: ClassVar[str] = "quantize"
    pattern: ClassVar[str] = r"packed|scale"
    bias: ClassVar[str] = "bias"
    memory: ClassVar[int] = 6
    stored_types: ClassVar[Mapping[str, str]] = {
        key.removeprefix("."): kind for key, kind in packed_types(("",)).items()
    }
    alone: ClassVar[bool] = False  # random codes have no scales to go with them
    remark: ClassVar[str] = (
        "quantize: a rank is the bits of a number; numbers after are bytes in numbers of the weights' type, scales "
        "included"
    )

    factor_bits: int | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        self.check()
        check_factor_bits(self.factor_bits)
        for pattern, bits in self.rank_pattern.items():
            if not is_positive_int(bits) or bits not in _CHOICES:
                raise ValueError(f"rank_pattern must map names to bits from 2 to 8, got {pattern!r}: {bits!r}")

    def analyse(self, weight: npt.NDArray[Any], /) -> npt.NDArray[np.float64]:
        """Return the relative errors with 2, 3, ... 8 bits."""
        total = float(np.linalg.norm(weight))
        found = []
        for bits in _CHOICES:
            rounded = dequantize(*quantize(weight, bits))
            found.append(float(np.linalg.norm(rounded - weight)) / total if total else 0.0)
        return np.minimum.accumulate(np.array(found))

    def spectrum(self, analysis: npt.NDArray[np.float64], /) -> npt.NDArray[np.float64]:
        """Return nothing."""
        return np.empty(0)

    def full_rank(self, shape: tuple[int, int], /) -> int:
        """Return the most bits that there are."""
        return _CHOICES[-1]

    def break_even(self, shape: tuple[int, int], /) -> int:
        """Return the most bits: all of them take less than 16."""
        return _CHOICES[-1] if shape[0] >= _LEAST else 0

    def layout(self, shape: tuple[int, int], rank: Rank, /) -> dict[str, tuple[int, ...]]:
        """Return the shapes of ``packed`` and ``scale``."""
        return {key.removeprefix("."): found for key, found in packed_layout("", shape, _bits(rank)).items()}

    def factor(self, weight: npt.NDArray[Any], rank: Rank, /, *, rng: np.random.Generator) -> Factored:
        """Round one weight."""
        made = {key.removeprefix("."): found for key, found in packed_arrays("", weight, _bits(rank)).items()}
        return Factored(made, self.residual(weight, made), "nearest")

    def dense_shape(self, shapes: Mapping[str, tuple[int, ...]], /) -> tuple[int, int]:
        """Return ``(out, in)``."""
        packed, scale = shapes.get("packed", ()), shapes.get("scale", ())
        if len(packed) == len(scale) == 2 and scale[0] >= _LEAST:
            shape, bits = (scale[0], packed[1]), 8 * packed[0] // scale[0]
            if bits in _CHOICES and self.layout(shape, bits) == {"packed": packed, "scale": scale}:
                return shape
        raise ValueError(f"packed and scale must fit together, got {packed or 'none'} and {scale or 'none'}")

    def expand(self, arrays: Arrays, /) -> npt.NDArray[Any]:
        """Return the weight."""
        packed = arrays["packed"]
        shape = self.dense_shape({name: array.shape for name, array in arrays.items()})
        return unpacked({f".{k}": v for k, v in arrays.items()}, "", 8 * packed.shape[0] // shape[0], shape[0])

    def predicted_error(self, analysis: npt.NDArray[np.float64], rank: Rank, /) -> float | None:
        """Return the error that was measured."""
        return float(analysis[_bits(rank) - _CHOICES[0]]) if analysis.size else None

    def optimal_error(self, analysis: npt.NDArray[np.float64], rank: Rank, /) -> float | None:
        """Return None: the best codes are not known."""
        return None

    def allocate(
        self, layers: Sequence[Layer], param_ratio: float, analyses: Mapping[str, npt.NDArray[np.float64]], /
    ) -> Allocation:
        """Share the budget of bytes; see `share_budget`.

        Raises
        ------
        ValueError
            If 2 bits everywhere, or the bits that were asked for, already exceed it, or a pattern matches nothing.
        """
        menus = {layer.name: _menu(layer, analyses.get(layer.name)) for layer in layers}
        asked = {} if self.factor_bits is None else {layer.name: self.factor_bits for layer in layers}
        asked |= {name: _bits(bits) for name, bits in self.given(layers).items()}
        given = {
            name: (bits, int(menus[name].costs[bits - _CHOICES[0] + 1]))
            for name, bits in asked.items()
            if len(menus[name].costs) > 1
        }
        return share_budget(
            self,
            layers,
            param_ratio,
            menus,
            given=given,
            to_rank=lambda layer, level: level - 1 + _CHOICES[0],
            what="codes and scales",
        )

    def module_class(self) -> type[Any]:
        """Return `tensorfact.torch.QuantizedLinear`."""
        from tensorfact.torch import QuantizedLinear

        return QuantizedLinear

    def module(
        self, shape: tuple[int, int], rank: Rank, /, *, bias: bool, device: Any = None, dtype: Any = None
    ) -> Any:
        """Return a `QuantizedLinear`."""
        return self.module_class()(shape[1], shape[0], bits=_bits(rank), bias=bias, device=device, dtype=dtype)

    def factor_unit(self, unit: Unit, weights: Any, ranks: Any, /, *, rng: Any, evidence: Any) -> FactoredUnit:
        """Round the only weight; training may begin with it as it was."""
        (layer,) = unit.layers
        made = PerWeight.factor_unit(self, unit, weights, ranks, rng=rng, evidence=evidence)
        return dataclasses.replace(made, start={"": weights[layer.name]})

    def trainer(
        self, unit: Unit, modules: Mapping[str, Any], factored: FactoredUnit, /, *, steps: int, rng: np.random.Generator
    ) -> Trainer:
        """Return one that rounds in every pass."""
        return FewBitsTrainer([(modules[unit.layers[0].name], factored.start.get(""))])


def _menu(layer: Layer, analysis: npt.NDArray[np.float64] | None) -> Menu:
    """Levels are 2, 3, ... 8 bits; costs are bytes in numbers of the weight's type."""
    if layer.shape[0] < _LEAST:
        return Menu(np.zeros(1, dtype=np.int64), np.zeros(1))
    width = BITS[layer.info.dtype]
    costs = np.array([0, *(math.ceil(packed_bits(layer.shape, bits) / width) for bits in _CHOICES)], dtype=np.int64)
    if analysis is None:
        return Menu(costs, np.empty(0))
    return Menu(costs, np.concatenate([[0.0], 1 - analysis**2]))


def _bits(rank: Rank) -> int:
    if not isinstance(rank, int) or rank not in _CHOICES:
        raise ValueError(f"rank must be the bits of a number, from 2 to 8, for a quantised weight, got {rank!r}")
    return rank
