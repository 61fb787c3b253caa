"""The decouple method: the MLPs of a transformer become sums of learned functions of one variable.

``fc2(act(fc1 x))`` turns into ``up(splines(down x))`` with r branches: fc1 becomes projection and splines, the
activation the identity, fc2 the r columns that mix them, so the model's own code still runs. Each MLP is fitted to its
own inputs in the dense model, so that blocks may come in any order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from tensorfact.compress._budget import is_positive_int
from tensorfact.compress._cuts import cut_errors
from tensorfact.compress._method import Allocation, Arrays, Factored, Layer, Rank, register
from tensorfact.compress._mlps import MLP, activation_name, mlps_of
from tensorfact.compress._units import FactoredUnit, PerWeight, Unit
from tensorfact.compress.checkpoint import read_weight
from tensorfact.factor import decouple_mlp

if TYPE_CHECKING:
    from tensorfact.compress._units import Evidence

__all__ = ["DecoupleMethod"]

_NO_WEIGHT = "a decoupled MLP is no product of dense weights: its branches have learned activations"


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class DecoupleMethod(PerWeight):
    """Options of the ``decouple`` method; every MLP keeps the same share of its parameters.

    Parameters
    ----------
    n_basis, degree : int
        Of the splines; many basis functions follow the samples rather than the MLP.
    weight : float
        Of values against Jacobians, see `tensorfact.decouple`.
    max_iter, polish_iter : int
        Sweeps and steps of the polish for each MLP.

    Notes
    -----
    A branch takes ``in + out + n_basis + 2`` numbers: its row, its column, its coefficients, the ends of its knots. The
    rank of fc1 is stored as (branches, n_basis, degree), that of fc2 as the number of branches.
    """

    name: ClassVar[str] = "decouple"
    pattern: ClassVar[str] = r"(?:down\.weight|splines\.coefficients|splines\.ends|up\.weight)"
    bias: ClassVar[str] = "up.bias"
    memory: ClassVar[int] = 24
    needs_calibration: ClassVar[bool] = True
    samples: ClassVar[int] = 5000
    alone: ClassVar[bool] = False
    needs_analysis: ClassVar[bool] = False
    remark: ClassVar[str] = "the rank is the number of branches of an MLP; no dense weight stands for its two layers"

    n_basis: int = 6
    degree: int = 3
    weight: float = 1.0
    max_iter: int = 20
    polish_iter: int = 60

    def __post_init__(self) -> None:
        """Check the options."""
        for name in ("n_basis", "degree", "max_iter", "polish_iter"):
            if not is_positive_int(getattr(self, name)):
                raise ValueError(f"{name} must be an integer >= 1, got {getattr(self, name)!r}")
        if self.degree > 7 or self.n_basis <= self.degree:
            raise ValueError(f"degree must be at most 7 and below n_basis = {self.n_basis}, got {self.degree}")
        if not (isinstance(self.weight, int | float) and 0 <= self.weight < math.inf):
            raise ValueError(f"weight must be a finite number, at least 0, got {self.weight!r}")

    def units(self, layers: Sequence[Layer], /) -> tuple[Unit, ...]:
        """Return one unit for each MLP, and one for every other layer."""
        mlps, rest = mlps_of(layers)
        pairs = [Unit(mlp.first.name, (mlp.first, mlp.second)) for mlp in mlps]
        return (*pairs, *(Unit(layer.name, (layer,)) for layer in layers if layer.name in rest))

    def allocate(
        self, layers: Sequence[Layer], param_ratio: float, analyses: Mapping[str, npt.NDArray[np.float64]], /
    ) -> Allocation:
        """Give every MLP the same share of what the other targeted layers, which stay dense, leave of the budget.

        Raises
        ------
        ValueError
            If no layer belongs to an MLP, or what is left is less than a branch for each.
        """
        mlps, dense = mlps_of(layers)
        if not mlps:
            reasons = "; ".join(sorted(set(dense.values()))[:3])
            raise ValueError(f"target_modules must name both layers of an MLP for the decouple method: {reasons}")
        total, inside = sum(layer.size for layer in layers), sum(mlp.size for mlp in mlps)
        share = (math.floor(param_ratio * total + 1e-6) - (total - inside)) / inside
        branches = {mlp.first.name: int(share * mlp.size // self._branch(mlp)) for mlp in mlps}
        if min(branches.values()) < 1:
            least = (total - inside + sum(self._branch(mlp) for mlp in mlps)) / total
            raise ValueError(
                f"param_ratio must be at least {math.ceil(least * 1e4) / 1e4:g}: layers outside of MLPs stay dense "
                f"(exclude_modules leaves them out of the ratio), got {param_ratio}"
            )
        ranks: dict[str, Rank] = {}
        for mlp in mlps:
            r = branches[mlp.first.name]
            if r * self._branch(mlp) >= mlp.size:
                dense |= dict.fromkeys((mlp.first.name, mlp.second.name), "its share of the budget is break-even")
                continue
            ranks[mlp.first.name], ranks[mlp.second.name] = (r, self.n_basis, self.degree), r
        return Allocation(ranks, dense)

    def _branch(self, mlp: MLP) -> int:
        return mlp.first.shape[1] + mlp.second.shape[0] + self.n_basis + 2

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
        """Fit one MLP at its inputs, and compare on inputs that were left out with SVD and DRONE at equal size."""
        if evidence is None:
            raise ValueError("calibration must be given: the decouple method fits MLPs to their inputs")
        first, second = unit.layers
        (mlp,), _ = mlps_of(unit.layers)
        activation = _pair(mlp.activation)
        w1, w2 = weights[first.name].astype(np.float64), weights[second.name].astype(np.float64)
        b1, b2 = (_bias(layer) for layer in unit.layers)
        x = evidence.inputs(first.name, self.samples).astype(np.float64)
        hidden = activation[0](x @ w1.T + b1)
        _check_between(unit, hidden, evidence)
        order = rng.permutation(len(x))
        fitted, left = order[len(x) // 5 :], order[: len(x) // 5]
        r, n_basis, degree = ranks[first.name]  # type: ignore[misc]
        found = decouple_mlp(
            w1,
            b1,
            w2,
            b2,
            activation,
            x[fitted],
            rank=r,
            n_basis=n_basis,
            degree=degree,
            weight=self.weight,
            blend=0.0,  # equally spaced knots: two numbers a branch
            max_iter=self.max_iter,
            polish_iter=self.polish_iter,
            rng=rng,
        )
        c, bias = np.array(found.coefficients), np.array(found.bias)
        if second.bias is None:  # what of the constant the splines can give; the error below is that of what is stored
            c += np.linalg.lstsq(found.w, bias, rcond=None)[0][:, None]
            bias[:] = 0
            found = dataclasses.replace(found, coefficients=c, bias=bias)
        truth = hidden[left] @ w2.T + b2
        error = _relative(found(x[left]), truth)
        numbers = r * (first.shape[1] + second.shape[0] + n_basis + 2)
        others = cut_errors((w1, b1, w2, b2), activation[0], x, evidence.gram(second.name), left, numbers)
        notes = [f"the MLP's outputs are off by {error:.3g} (relative, at {len(left)} calibration inputs left out)"]
        notes += [f"{what} there, for as many numbers (rank {k}): {off:.3g}" for what, k, off in others]
        arrays: Arrays = {
            f"{first.name}.down.weight": found.v.T,
            f"{first.name}.splines.coefficients": c,
            f"{first.name}.splines.ends": found.knots[:, [0, -1]],
            f"{second.name}.up.weight": found.w,
        }
        if second.bias is not None:
            arrays[f"{second.name}.up.bias"] = bias
        return FactoredUnit(
            arrays,
            {},
            f"decoupling ({found.info.polish})",
            dropped=() if first.bias is None else (first.bias.name,),
            notes=tuple(notes),
        )

    def install(
        self, model: Any, names: Mapping[str, str], ranks: Mapping[str, Rank], recipe: Mapping[str, Any], /
    ) -> None:
        """Put splines where fc1 is, the identity where the activation is, and the mixing layer where fc2 is."""
        from torch import nn

        ours = self.module_classes()
        for unit in recipe.get("units", {}).values():
            if not all(name in names for name in unit["layers"]):
                continue
            first, second = unit["layers"]
            places = names[first], names[second]
            modules = [model.get_submodule(place) for place in places]
            if isinstance(modules[0], ours):  # an inner model of this family has done it
                continue
            between, why = activation_name(model, *places)
            if between is None:
                raise ValueError(f"{first} cannot be decoupled in {type(model).__name__}: {why}")
            for name, place, module in zip(unit["layers"], places, modules, strict=True):
                weight = module.weight
                shape = tuple(weight.shape if hasattr(module, "in_features") else weight.shape[::-1])
                bias = module.bias is not None
                made = self.module(shape, ranks[name], bias=bias, device=weight.device, dtype=weight.dtype)
                model.set_submodule(place, made.train(module.training))
            model.set_submodule(between, nn.Identity())

    def layout(self, shape: tuple[int, int], rank: Rank, /) -> dict[str, tuple[int, ...]]:
        """Return the shapes of projection, coefficients and ends for fc1 (a tuple), of the mixing weight for fc2."""
        if isinstance(rank, tuple):
            r, n_basis, _ = rank
            return {"down.weight": (r, shape[1]), "splines.coefficients": (r, n_basis), "splines.ends": (r, 2)}
        return {"up.weight": (shape[0], rank)}

    def full_rank(self, shape: tuple[int, int], /) -> int:
        """Return the number of hidden units, the larger side in an MLP that widens."""
        return max(shape)

    def break_even(self, shape: tuple[int, int], /) -> int:
        """Return the largest number of branches that take fewer numbers than two weights of this shape."""
        return max(0, (2 * shape[0] * shape[1] - 1) // (2 * min(shape) + self.n_basis + 2))

    def module_class(self) -> type[Any]:
        """Return the module in the place of fc1."""
        return self.module_classes()[0]

    def module_classes(self) -> tuple[type[Any], ...]:
        """Return the modules in the places of fc1 and fc2."""
        from tensorfact.torch.decoupling import SplineHidden, SplineOutput

        return SplineHidden, SplineOutput

    def module(
        self, shape: tuple[int, int], rank: Rank, /, *, bias: bool, device: Any = None, dtype: Any = None
    ) -> Any:
        """Return the module for fc1, where `rank` is a tuple, or for fc2."""
        hidden, output = self.module_classes()
        if isinstance(rank, tuple):
            r, n_basis, degree = rank
            return hidden(shape[1], r, n_basis=n_basis, degree=degree, device=device, dtype=dtype)
        return output(rank, shape[0], bias=bias, device=device, dtype=dtype)

    def analyse(self, weight: npt.NDArray[Any], /) -> npt.NDArray[np.float64]:
        """Return nothing: one weight says little about its MLP."""
        return np.empty(0)

    def spectrum(self, analysis: npt.NDArray[np.float64], /) -> npt.NDArray[np.float64]:
        """Return nothing."""
        return np.empty(0)

    def factor(self, weight: npt.NDArray[Any], rank: Rank, /, *, rng: np.random.Generator) -> Factored:
        """Refuse: MLPs are factored as a whole."""
        raise ValueError(_NO_WEIGHT)

    def residual(self, weight: npt.NDArray[Any], arrays: Arrays, /) -> float:
        """Refuse: there is no weight to compare with."""
        raise ValueError(_NO_WEIGHT)

    def dense_shape(self, shapes: Mapping[str, tuple[int, ...]], /) -> tuple[int, int]:
        """Refuse: there is no dense weight."""
        raise ValueError(_NO_WEIGHT)

    def expand(self, arrays: Arrays, /) -> npt.NDArray[Any]:
        """Refuse: there is no dense weight."""
        raise ValueError(_NO_WEIGHT)

    def predicted_error(self, analysis: npt.NDArray[np.float64], rank: Rank, /) -> float | None:
        """Return None: unknown before the fit."""
        return None

    def optimal_error(self, analysis: npt.NDArray[np.float64], rank: Rank, /) -> float | None:
        """Return None: unknown."""
        return None


def _pair(module: Any) -> Any:
    from tensorfact.torch.decoupling import activation_of

    return activation_of(module)


def _bias(layer: Layer) -> npt.NDArray[np.float64]:
    return np.zeros(layer.shape[0]) if layer.bias is None else read_weight(layer.bias).astype(np.float64)


def _relative(found: npt.NDArray[Any], truth: npt.NDArray[Any]) -> float:
    norm = float(np.linalg.norm(truth))
    return float(np.linalg.norm(found - truth)) / norm if norm > 0 else 0.0


def _check_between(unit: Unit, hidden: npt.NDArray[np.float64], evidence: Evidence) -> None:
    """Refuse a pair whose second layer does not see the activation of the first: its mean squares must agree."""
    first, second = unit.layers
    seen = np.diag(evidence.gram(second.name)) / max(1, evidence.count(second.name))
    made = np.mean(hidden**2, axis=0)
    if seen.shape != made.shape or not np.linalg.norm(seen - made) <= 0.5 * np.linalg.norm(seen):
        raise ValueError(
            f"{second.name} must see the activation of {first.name} and nothing else, its inputs are of another size: "
            "name this MLP in exclude_modules"
        )
