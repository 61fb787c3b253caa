"""What a compression method must provide, and the table of those that exist.

A method is a frozen dataclass whose fields are its options; it registers itself at the foot of its own file. It is
sent to workers in other processes, so it holds options only. The core reads weights, casts and stores arrays, counts,
reports and swaps modules; the method decides how a budget is shared, turns dense weights into named arrays, and knows
the torch modules that serve them. A checkpoint stores its method's name and those options that `stored_options` names,
where they are not the defaults: what reads arrays (`dense_shape`, `expand`, `layout`, `module`, `ties`, `install`) must
not depend on others.

A method that turns one weight at a time into arrays of its own inherits the defaults of `_units.PerWeight` and gives
`factor`; its arrays are written as they come. The hooks below are for what needs more:

* `units` groups weights that are factored at once, and `factor_unit` returns their arrays by full stored name. Arrays
  that several layers share are stored once; `ties` says which stored name serves each other one, from the recipe in
  ``config.json`` alone (its ``"units"`` lists the layers of every unit, and what `FactoredUnit.recipe` adds).
  `install` puts modules into a model that share one `torch.nn.Parameter` where arrays are shared; the core ties them
  again after loading. Masks and other integer arrays keep their type, which `stored_types` names by suffix.
* With ``calibration=`` the dense model runs once over the data. `analyse_with` and `factor_unit` then get `Evidence`:
  Gram matrices, and up to `samples` inputs of each layer. A method with `needs_calibration` refuses to run without.
* Refinement trains what `install` made, filled with the arrays, block by block, and stores the trained arrays; the
  module's state dict has them under the same suffixes. `trainer` adds masks and schedules, and may swap the modules'
  parameters for others until `finish`.
* A unit may replace more than weights: `install` may swap the activation between two layers too, `FactoredUnit.arrays`
  may use any name that the model's state dict then has, and `FactoredUnit.dropped` names what the source has in
  addition. `expand` may raise ValueError where no dense weight stands for the arrays: there is no way back then.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from tensorfact.compress.checkpoint import TensorInfo

if TYPE_CHECKING:
    from tensorfact.compress._units import Evidence, FactoredUnit, Trainer, Unit

__all__ = [
    "Allocation",
    "Factored",
    "Layer",
    "Method",
    "Rank",
    "as_rank",
    "create",
    "methods",
    "owner",
    "reader",
    "reading_options",
    "register",
    "stored_size",
]

Rank = int | tuple[int, ...]
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear weight of the checkpoint that a method may replace.

    `shape` is ``(out_features, in_features)``; a ``"conv1d"`` weight lies transposed in the file.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    info: TensorInfo
    bias: TensorInfo | None = None

    @property
    def size(self) -> int:
        """Parameters of the weight."""
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True, slots=True)
class Allocation:
    """How a budget is shared: a rank for each layer to replace, a reason for each one left dense."""

    ranks: dict[str, Rank]
    dense: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Factored:
    """What a method makes of one weight.

    `arrays` are keyed by the suffix that follows the module name (``"down.weight"``); `error` is the achieved relative
    Frobenius error; `spectrum` holds the leading singular values that the algorithm found, if any.
    """

    arrays: Arrays
    error: float
    path: str
    spectrum: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    notes: tuple[str, ...] = ()


class Method(Protocol):
    """The interface of a method. Weights are float32 or float64 arrays (out, in), not necessarily contiguous.

    `pattern` is a regular expression that matches the suffixes of its arrays and nothing else; `bias` is the suffix
    under which its module keeps a bias. A task holds at most about `memory` times its weight, the weight included.
    `remark` goes into the notes of every report: what rank and spectrum mean. `samples` is how many inputs of a layer
    `Evidence.inputs` can give, `stored_types` maps suffixes of arrays that are not of the type of weights to those of
    safetensors, `stored_options` are the options that reading needs, and `alone` says whether `module` makes a layer that can be timed by itself.
    """

    name: ClassVar[str]
    pattern: ClassVar[str]
    bias: ClassVar[str]
    memory: ClassVar[int]
    needs_calibration: ClassVar[bool]
    samples: ClassVar[int]
    stored_types: ClassVar[Mapping[str, str]]
    stored_options: ClassVar[tuple[str, ...]]
    alone: ClassVar[bool]

    @property
    def remark(self) -> str:
        """Return a sentence for the report; empty where rank and singular values are those of the weight itself."""

    @property
    def needs_analysis(self) -> bool:
        """Whether `allocate` wants the result of `analyse` for every layer."""

    def analyse(self, weight: npt.NDArray[Any], /) -> npt.NDArray[np.float64]:
        """Return what the allocation needs to know of one weight, for example its singular values. Runs on a worker."""

    def analyse_with(self, layer: Layer, weight: npt.NDArray[Any], evidence: Evidence, /) -> npt.NDArray[np.float64]:
        """Do the same with what is known of the layer's inputs. Runs on a worker."""

    def spectrum(self, analysis: npt.NDArray[np.float64], /) -> npt.NDArray[np.float64]:
        """Return the one descending sequence of singular values that a report shows, empty where there is none."""

    def full_rank(self, shape: tuple[int, int], /) -> int:
        """Return the rank (the largest bond) at which every weight of this shape is met exactly."""

    def break_even(self, shape: tuple[int, int], /) -> int:
        """Return the largest rank (largest bond) that takes fewer numbers than the weight; 0 if there is none."""

    def allocate(
        self, layers: Sequence[Layer], param_ratio: float, analyses: Mapping[str, npt.NDArray[np.float64]], /
    ) -> Allocation:
        """Share `param_ratio` times the parameters of `layers`; never above."""

    def layout(self, shape: tuple[int, int], rank: Rank, /) -> dict[str, tuple[int, ...]]:
        """Return the shape of every array that `factor` will give, before it runs."""

    def parameters(self, shape: tuple[int, int], rank: Rank, /) -> int | None:
        """Return how many numbers one weight counts with where its bytes do not say it, as those of few bits; or None.

        The budget must count in the same way.
        """

    def factor(self, weight: npt.NDArray[Any], rank: Rank, /, *, rng: np.random.Generator) -> Factored:
        """Replace one weight. Runs on a worker."""

    def wanted(self, name: str, shape: tuple[int, int], /) -> str:
        """Return why a linear weight (out, in) is no target where the user names none; empty where it is one."""

    def units(self, layers: Sequence[Layer], /) -> tuple[Unit, ...]:
        """Return the layers in groups that are factored at once; every layer is in one of them."""

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
        """Replace the weights of a unit, by layer name; `evidence` is None without calibration. Runs on a worker."""

    def residual(self, weight: npt.NDArray[Any], arrays: Arrays, /) -> float:
        """Return the relative Frobenius error of given arrays; used after they were rounded to a 16-bit type."""

    def dense_shape(self, shapes: Mapping[str, tuple[int, ...]], /) -> tuple[int, int]:
        """Return the shape (out, in) of the weight that arrays of these shapes stand for.

        Raises ValueError if an array is missing or they do not fit together.
        """

    def expand(self, arrays: Arrays, /) -> npt.NDArray[Any]:
        """Return the dense weight (out, in) that the arrays stand for."""

    def predicted_error(self, analysis: npt.NDArray[np.float64], rank: Rank, /) -> float | None:
        """Return the relative Frobenius error to expect at `rank`, never too small; None when unknown."""

    def optimal_error(self, analysis: npt.NDArray[np.float64], rank: Rank, /) -> float | None:
        """Return the smallest relative Frobenius error possible at `rank`, or None when unknown."""

    def ties(self, recipe: Mapping[str, Any], /) -> dict[str, str]:
        """Return full names of arrays that are not stored, and the stored one that serves each; see `FactoredUnit`."""

    def module_class(self) -> type[Any]:
        """Return the torch module that serves the arrays; imports torch."""

    def module_classes(self) -> tuple[type[Any], ...]:
        """Return every class of modules that `install` puts in the place of linear layers."""

    def install(
        self, model: Any, names: Mapping[str, str], ranks: Mapping[str, Rank], recipe: Mapping[str, Any], /
    ) -> None:
        """Swap the linear modules of `model`: `names` maps layers to module names. Modules already swapped stay."""

    def trainer(
        self, unit: Unit, modules: Mapping[str, Any], factored: FactoredUnit, /, *, steps: int, rng: np.random.Generator
    ) -> Trainer:
        """Return what the method adds to the training of a unit; `modules` are by layer name."""

    def module(
        self, shape: tuple[int, int], rank: Rank, /, *, bias: bool, device: Any = None, dtype: Any = None
    ) -> Any:
        """Return a module for a weight (out, in) at `rank`, whose state dict has the arrays' suffixes as keys."""


_METHODS: dict[str, type[Any]] = {}
_M = TypeVar("_M", bound=type[Any])


def register(method: _M) -> _M:
    """Add a method class to the table under its `name`; usable as a decorator."""
    _METHODS[method.name] = method
    return method


def methods() -> tuple[str, ...]:
    """Return the names of the registered methods."""
    return tuple(sorted(_METHODS))


def create(method: str | Method, options: Mapping[str, Any] | None = None) -> Method:
    """Return a method by name and options; an instance passes through.

    Raises
    ------
    ValueError
        If the name or an option is unknown.
    """
    if not isinstance(method, str):
        if options:
            raise ValueError(f"options must be empty when method is an instance, got {sorted(options)}")
        return method
    if method not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(methods())}, got {method!r}")
    known = {f.name for f in dataclasses.fields(_METHODS[method])}
    for name in options or {}:
        if name not in known:
            raise ValueError(f"options of {method!r} must be among {', '.join(sorted(known))}, got {name!r}")
    made: Method = _METHODS[method](**(options or {}))
    return made


def reading_options(method: Method) -> dict[str, Any]:
    """Return the options that reading what a method stores needs, where they are not the defaults."""
    defaults = {f.name: f.default for f in dataclasses.fields(method)}  # type: ignore[arg-type]
    found = {name: getattr(method, name) for name in method.stored_options}
    return {name: value for name, value in found.items() if value != defaults[name]}


def reader(name: str, recipe: Mapping[str, Any]) -> Method:
    """Return the method that reads the arrays of a recipe, as in ``config.json``.

    Raises
    ------
    ValueError
        If the method or an option is unknown.
    """
    options = recipe.get("options") or {}
    if not isinstance(options, Mapping):
        raise ValueError(f"options of the recipe must be a JSON object, got {options!r}")
    return create(name, options)


def as_rank(value: Any) -> Rank:
    """Return a rank as read from JSON, where a tuple has become a list."""
    return tuple(value) if isinstance(value, list) else value


def stored_size(method: Method, shape: tuple[int, int], rank: Rank) -> int:
    """Return how many numbers a method stores for one weight."""
    return sum(math.prod(array) for array in method.layout(shape, rank).values())


def owner(method: Method, key: str) -> tuple[str, str] | None:
    """Split the key of a stored array into module and suffix; None where `key` is no array of the method."""
    found = re.fullmatch(rf"(.+?)\.({method.pattern})", key)
    return (found[1], found[2]) if found else None
