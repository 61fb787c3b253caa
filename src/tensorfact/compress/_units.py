"""Units: what a method factors at once. One weight by default, several where they share arrays or replace an MLP.

`PerWeight` holds the defaults of every hook of `Method` that concerns units, data and training; methods inherit it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from tensorfact.compress._types import BITS

if TYPE_CHECKING:
    from tensorfact.compress._method import Arrays, Layer, Method, Rank

__all__ = [
    "Evidence",
    "FactoredUnit",
    "PerWeight",
    "Size",
    "Trainer",
    "Unit",
    "deal",
    "layer_sizes",
    "recipe_units",
    "stored_sizes",
]


_ROWS = 1024  # rows of a block of a residual: bounds its float64 copy


@dataclass(frozen=True, slots=True)
class Unit:
    """Weights that are factored at once."""

    name: str
    layers: tuple[Layer, ...]


@dataclass(frozen=True, slots=True)
class FactoredUnit:
    """What a method makes of one unit.

    Parameters
    ----------
    arrays : dict of str to array
        By full stored name (``"encoder.layer.0.mlp.fc1.basis"``). An array that several layers share is there once,
        under the name that `Method.ties` gives as its source. Floating arrays are cast to the type of the weight.
    errors : mapping of str to float
        Achieved relative Frobenius error by layer; where there is no weight to compare with, leave the layer out.
    path : str
        Algorithm that ran.
    spectra : mapping of str to array
        Leading singular values by layer, if any.
    ranks : mapping of str to rank
        Where the factorisation had to settle something else than the rank it was given.
    dropped : tuple of str
        Further tensors of the source that the result does not have, such as a bias that was absorbed.
    recipe : mapping
        JSON values that loading needs, stored in ``config.json`` under ``units`` and the name of the unit.
    start : dict of str to array
        Not stored: what `Method.trainer` may begin with.
    notes : tuple of str
        Remarks for the report.
    """

    arrays: Arrays
    errors: Mapping[str, float]
    path: str
    spectra: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    ranks: Mapping[str, Rank] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    start: Arrays = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Evidence(Protocol):
    """What the calibration run of the dense model found out about the input of each targeted layer. Picklable."""

    def gram(self, name: str, /) -> npt.NDArray[np.float64]:
        """Return the sum of ``x x^T`` over the inputs x of a layer, shape (in, in); padding is left out."""

    def count(self, name: str, /) -> int:
        """Return how many inputs were summed."""

    def inputs(self, name: str, n: int, /) -> npt.NDArray[np.float32]:
        """Return up to `n` of the inputs, shape (rows, in); at most `Method.samples` were kept."""


class Trainer:
    """What a method adds to the training of its modules: masks, schedules. This one adds nothing.

    It is made after the modules hold the stored arrays and may turn them into a form that trains (dense codes with a
    mask, floating weights behind quantised ones). `finish` turns them back.
    """

    def after_step(self, step: int, optimizer: Any) -> None:
        """Do what is due after optimiser step `step`, counted from 1."""

    def admissible(self, step: int) -> bool:
        """Return whether the state after `step` steps may be kept: false while a mask is still too dense."""
        return True

    def finish(self) -> None:
        """Bring the modules to the form that is stored; called once, on the state that is kept."""

    def ranks(self) -> Mapping[str, Rank]:
        """Return ranks that training has changed (how many numbers a mask keeps), by layer; asked after `finish`."""
        return {}


class PerWeight:
    """Defaults for a method that turns one weight at a time into arrays of its own, without data."""

    __slots__ = ()
    needs_calibration: ClassVar[bool] = False
    samples: ClassVar[int] = 0
    stored_types: ClassVar[Mapping[str, str]] = {}
    stored_options: ClassVar[tuple[str, ...]] = ()
    alone: ClassVar[bool] = True

    def wanted(self, name: str, shape: tuple[int, int], /) -> str:
        """Return nothing: every linear weight is a target where the user names none."""
        return ""

    def parameters(self, shape: tuple[int, int], rank: Rank, /) -> int | None:
        """Return None: the numbers of a weight are those that are stored for it."""
        return None

    def residual(self: Any, weight: npt.NDArray[Any], arrays: Arrays, /) -> float:
        """Return the relative Frobenius error of what `expand` makes of the arrays, summed in blocks of rows."""
        dense = self.expand(arrays)
        lost = total = 0.0
        for start in range(0, weight.shape[0], _ROWS):
            block = np.array(weight[start : start + _ROWS], dtype=np.float64).ravel()
            total += float(block @ block)
            block -= dense[start : start + _ROWS].ravel()
            lost += float(block @ block)
        return math.sqrt(lost / total) if total else 0.0

    def units(self: Any, layers: Sequence[Layer], /) -> tuple[Unit, ...]:
        """Return one unit a layer."""
        return tuple(Unit(layer.name, (layer,)) for layer in layers)

    def analyse_with(
        self: Any, layer: Layer, weight: npt.NDArray[Any], evidence: Evidence, /
    ) -> npt.NDArray[np.float64]:
        """Return `analyse` of the weight."""
        return self.analyse(weight)  # type: ignore[no-any-return]

    def factor_unit(
        self: Any,
        unit: Unit,
        weights: Mapping[str, npt.NDArray[Any]],
        ranks: Mapping[str, Rank],
        /,
        *,
        rng: np.random.Generator,
        evidence: Evidence | None,
    ) -> FactoredUnit:
        """Factor the only weight; `evidence` is not used."""
        (layer,) = unit.layers
        made = self.factor(weights[layer.name], ranks[layer.name], rng=rng)
        return FactoredUnit(
            {f"{layer.name}.{suffix}": values for suffix, values in made.arrays.items()},
            {layer.name: made.error},
            made.path,
            {layer.name: made.spectrum},
            notes=made.notes,
        )

    def ties(self, recipe: Mapping[str, Any], /) -> dict[str, str]:
        """Return nothing: no array is shared."""
        return {}

    def module_classes(self: Any) -> tuple[type[Any], ...]:
        """Return the only class of modules."""
        return (self.module_class(),)

    def install(
        self: Any, model: Any, names: Mapping[str, str], ranks: Mapping[str, Rank], recipe: Mapping[str, Any], /
    ) -> None:
        """Replace each linear module by the method's own; device, dtype and mode stay, the values are undefined."""
        ours = self.module_classes()
        for name, module_name in names.items():
            module = model.get_submodule(module_name)
            if isinstance(module, ours):  # an inner model of this family has done it
                continue
            weight = module.weight
            shape = tuple(weight.shape if hasattr(module, "in_features") else weight.shape[::-1])
            bias = module.bias is not None
            layer = self.module(shape, ranks[name], bias=bias, device=weight.device, dtype=weight.dtype)
            model.set_submodule(module_name, layer.train(module.training))

    def trainer(
        self, unit: Unit, modules: Mapping[str, Any], factored: FactoredUnit, /, *, steps: int, rng: np.random.Generator
    ) -> Trainer:
        """Return a trainer that adds nothing."""
        return Trainer()


def recipe_units(units: Iterable[Unit], factored: Mapping[str, FactoredUnit]) -> dict[str, Any]:
    """Return the entry ``units`` of a recipe: what loading must know beyond the rank of each layer; often nothing."""
    found: dict[str, Any] = {}
    for unit in units:
        own = dict(factored[unit.name].recipe) if unit.name in factored else {}
        if own or len(unit.layers) > 1:
            found[unit.name] = {"layers": [layer.name for layer in unit.layers], **own}
    return found


@dataclass(frozen=True, slots=True)
class Size:
    """What is stored for a layer: numbers as the budget counts them, and bytes."""

    numbers: int
    nbytes: int


def stored_sizes(
    method: Method, layers: Sequence[Layer], ranks: Mapping[str, Rank], recipe: Mapping[str, Any]
) -> dict[str, Size]:
    """Return what is stored for each layer; an array that several layers share is counted once, in equal parts."""
    ties = method.ties(recipe)
    shared: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    for layer in layers:
        for suffix, shape in method.layout(layer.shape, ranks[layer.name]).items():
            key = f"{layer.name}.{suffix}"
            sizes[key] = math.prod(shape) * BITS[method.stored_types.get(suffix, layer.info.dtype)]
            shared.setdefault(ties.get(key, key), []).append(layer.name)
    bits = dict.fromkeys((layer.name for layer in layers), 0)
    for key, names in shared.items():
        deal(bits, sizes.get(key, 0), names)
    return layer_sizes(method, layers, ranks, bits)


def deal(bits: dict[str, int], size: int, names: Sequence[str]) -> None:
    """Add `size` bits to those of some layers, in equal parts that are whole."""
    for i, name in enumerate(names):
        bits[name] += size * (i + 1) // len(names) - size * i // len(names)


def layer_sizes(
    method: Method, layers: Sequence[Layer], ranks: Mapping[str, Rank], bits: Mapping[str, int]
) -> dict[str, Size]:
    """Turn the bits of each layer into sizes, rounded up along the way, so that the sums are those of the file.

    Numbers are those that the method counts, or else as many of the layer's own type as take these bytes: masks and
    indices count as the bytes that they take.
    """
    found, before = {}, 0
    for layer in layers:
        after = before + bits[layer.name]
        own, size = (-(-after // width) + before // -width for width in (BITS[layer.info.dtype], 8))
        counted = method.parameters(layer.shape, ranks[layer.name])
        found[layer.name] = Size(own if counted is None else counted, size)
        before = after
    return found
