"""The FiPS method: the MLP weights of neighbouring blocks as one shared dense basis and sparse codes of their own.

Every weight is turned to (d, n), short side first, and becomes ``basis @ codes``; the basis (d, r) is stored once a
group. The codes are stored as values and one bit a place, and the budget counts both. With calibration data the error
of the outputs is fitted instead of that of the weights, and the blocks of a group are trained together.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from tensorfact.compress._few_bits import (
    FewBitsTrainer,
    check_factor_bits,
    packed_arrays,
    packed_layout,
    packed_types,
    unpacked,
)
from tensorfact.compress._method import Allocation, Arrays, Factored, Layer, Rank, register
from tensorfact.compress._mlp_names import block_of, is_mlp
from tensorfact.compress._types import BITS, is_positive_int
from tensorfact.compress._units import Evidence, FactoredUnit, PerWeight, Trainer, Unit
from tensorfact.factor._shared_budget import Shares, budget_shares
from tensorfact.factor._shared_codes import unpack_bits
from tensorfact.factor.shared_basis import fit_shared, short_first, svd_start

__all__ = ["FipsMethod"]


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class FipsMethod(PerWeight):
    """Options of the ``fips`` method.

    Parameters
    ----------
    group_size : int
        Most consecutive blocks that share a basis. The blocks are dealt into groups of equal size, one block more or
        less; a change of the short side begins a new group.
    share : bool
        False gives every weight a basis of its own, at the same bytes: the control.
    sparsity : float or "auto"
        Share of the codes that is zero, in [0, 1). "auto" takes a basis of d columns, so that all bytes beyond it go
        into codes; 0.75 where d columns do not fit.
    sweeps : int
        Alternating least-squares sweeps; 0 prunes the codes of the SVD in one shot.
    prune : {"start", "gradual"}
        Refinement begins with the pruned codes and keeps their places, or begins with dense codes and prunes them on
        the way, by the schedule of FiPS; each layer ends with as many values as its start has.
    factor_bits : int, optional
        Store basis and values in so many bits a number, 2 to 8; not with gradual pruning. The budget is one of bytes:
        fewer bits buy more numbers.

    Notes
    -----
    Without ``target_modules`` only the MLP weights of the blocks are targeted.
    """

    name: ClassVar[str] = "fips"
    pattern: ClassVar[str] = r"(?:basis|values)(?:\.(?:packed|scale))?|mask"
    bias: ClassVar[str] = "bias"
    memory: ClassVar[int] = 8
    stored_types: ClassVar[Mapping[str, str]] = {"mask": "U8", **packed_types(("basis", "values"))}
    stored_options: ClassVar[tuple[str, ...]] = ("factor_bits",)
    alone: ClassVar[bool] = False  # a mask of random bits would not do
    needs_analysis: ClassVar[bool] = False

    group_size: int = 4
    share: bool = True
    sparsity: float | Literal["auto"] = "auto"
    sweeps: int = 6
    prune: Literal["start", "gradual"] = "start"
    factor_bits: int | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        if not is_positive_int(self.group_size):
            raise ValueError(f"group_size must be an integer >= 1, got {self.group_size!r}")
        if not isinstance(self.share, bool):
            raise ValueError(f"share must be true or false, got {self.share!r}")
        if self.sparsity != "auto" and (
            isinstance(self.sparsity, bool) or not isinstance(self.sparsity, int | float) or not 0 <= self.sparsity < 1
        ):
            raise ValueError(f"sparsity must be 'auto' or in [0, 1), got {self.sparsity!r}")
        if self.sweeps != 0 and not is_positive_int(self.sweeps):
            raise ValueError(f"sweeps must be an integer >= 0, got {self.sweeps!r}")
        if self.prune not in ("start", "gradual"):
            raise ValueError(f"prune must be 'start' or 'gradual', got {self.prune!r}")
        check_factor_bits(self.factor_bits)
        if self.factor_bits is not None and self.prune != "start":
            raise ValueError(f"prune must be 'start' with factor_bits, got {self.prune!r}")

    @property
    def remark(self) -> str:
        """Say what ranks are, and how bytes are counted."""
        owner = f"up to {self.group_size} blocks share one basis" if self.share else "every weight has its own basis"
        return (
            f"fips: {owner}; a rank is the columns of the basis and the values of the sparse codes. Numbers after "
            "include the bits of the masks, and each layer's equal part of its basis"
            + ("" if self.factor_bits is None else f"; basis and values have {self.factor_bits} bits a number")
        )

    def wanted(self, name: str, shape: tuple[int, int], /) -> str:
        """Return why a linear weight is no target where the user names none; empty for MLP weights."""
        return "" if is_mlp(name, shape) else "not a weight of a block's MLP"

    def analyse(self, weight: npt.NDArray[Any], /) -> npt.NDArray[np.float64]:
        """Return nothing: the budget is shared by sizes alone."""
        return np.empty(0)

    def spectrum(self, analysis: npt.NDArray[np.float64], /) -> npt.NDArray[np.float64]:
        """Return nothing."""
        return np.empty(0)

    def full_rank(self, shape: tuple[int, int], /) -> int:
        """Return the short side: a basis of so many columns with full codes meets every weight."""
        return min(shape)

    def break_even(self, shape: tuple[int, int], /) -> int:
        """Return the most columns of a basis of its own that leave room for one value."""
        return max(shape) - 1

    def units(self, layers: Sequence[Layer], /) -> tuple[Unit, ...]:
        """Return groups of consecutive blocks; weights with another short side are in groups of their own."""
        if not self.share:
            return tuple(Unit(layer.name, (layer,)) for layer in layers)
        stacks: dict[tuple[str, int, str], dict[int, list[Layer]]] = {}
        alone = []
        for layer in layers:
            place = block_of(layer.name)
            if place is None:
                alone.append(Unit(layer.name, (layer,)))
            else:
                key = (place[0], min(layer.shape), layer.info.dtype)
                stacks.setdefault(key, {}).setdefault(place[1], []).append(layer)
        units = []
        for (prefix, short, dtype), blocks in stacks.items():
            for run in _groups(sorted(blocks), self.group_size):
                members = tuple(layer for block in run for layer in blocks[block])
                numbers = str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}"
                units.append(Unit(f"{prefix}.{numbers} ({short}, {dtype})", members))
        return (*units, *alone)

    def allocate(
        self, layers: Sequence[Layer], param_ratio: float, analyses: Mapping[str, npt.NDArray[np.float64]], /
    ) -> Allocation:
        """Give every group `param_ratio` of its bytes; within a group values go where they are needed.

        Until a group is factored its layers count with values in proportion to their sizes.

        Raises
        ------
        ValueError
            If a group's budget does not hold a basis and its codes.
        """
        ranks: dict[str, Rank] = {}
        for unit in self.units(layers):
            try:
                shares = self._shares(unit, param_ratio)
            except ValueError as error:
                raise ValueError(f"{error}, in {unit.name}") from error
            widths = [max(layer.shape) for layer in unit.layers]
            ends = [shares.kept * end // sum(widths) for end in np.cumsum([0, *widths]).tolist()]
            for layer, low, high in zip(unit.layers, ends[:-1], ends[1:], strict=True):
                ranks[layer.name] = shares.rank, high - low
        return Allocation(ranks)

    def _shares(self, unit: Unit, param_ratio: float) -> Shares:
        short = min(unit.layers[0].shape)
        widths = [max(layer.shape) for layer in unit.layers]
        itemsize = BITS[unit.layers[0].info.dtype] // 8

        def at(sparsity: float, rank: int | None = None) -> Shares:
            return budget_shares(
                short,
                widths,
                param_ratio,
                sparsity,
                itemsize=itemsize,
                form="bitmask",
                rank=rank,
                bits=self.factor_bits,
            )

        if self.sparsity != "auto":
            return at(float(self.sparsity))
        usual = at(0.75)
        return at(0.0, short) if usual.rank > short else usual

    def layout(self, shape: tuple[int, int], rank: Rank, /) -> dict[str, tuple[int, ...]]:
        """Return the shapes of ``basis`` (d, r), ``values`` (k,) and ``mask`` (ceil(r / 8), n), or turned."""
        columns, kept = _pair(rank)
        short, long = sorted(shape)
        bits = (columns + 7) // 8, long
        mask = {"mask": bits[::-1] if shape[0] >= shape[1] else bits}
        if self.factor_bits is None:
            return {"basis": (short, columns), "values": (kept,), **mask}
        packed = packed_layout("basis", (short, columns), self.factor_bits)
        return {**packed, **packed_layout("values", (kept,), self.factor_bits), **mask}

    def factor(self, weight: npt.NDArray[Any], rank: Rank, /, *, rng: np.random.Generator) -> Factored:
        """Return one weight with a basis of its own."""
        made = self._fitted({"": weight}, {"": rank}, None, rng)
        arrays = {key.removeprefix("."): values for key, values in self._stored(made[0]).items()}
        return Factored(arrays, self.residual(weight, arrays), made[2])

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
        """Return one basis and codes for every weight of the group."""
        names = [layer.name for layer in unit.layers]
        grams = None if evidence is None else _grams(evidence, names)
        arrays, settled, path, note = self._fitted(
            {name: weights[name] for name in names}, {name: ranks[name] for name in names}, grams, rng
        )
        begin: Arrays = {}
        if self.prune == "gradual":
            begin = self._dense_start({name: weights[name] for name in names}, _pair(ranks[names[0]])[0], rng)
        elif self.factor_bits is not None:
            begin = arrays
        stored = self._stored(arrays)
        errors = {}
        for name in names:
            own = {key: values for part in self._own(stored, names[0], name) for key, values in part.items()}
            errors[name] = self.residual(weights[name], own)
        return FactoredUnit(stored, errors, path, ranks=settled, start=begin, notes=(note,))

    def _own(self, arrays: Arrays, first: str, name: str) -> tuple[Arrays, Arrays]:
        """Arrays of a layer by suffix: those of its basis, which are stored with the first one, and its own."""
        by_layer = [
            {key.removeprefix(f"{owner}."): v for key, v in arrays.items() if key.startswith(f"{owner}.")}
            for owner in (first, name)
        ]
        basis = {key: v for key, v in by_layer[0].items() if key.startswith("basis")}
        return basis, {key: v for key, v in by_layer[1].items() if not key.startswith("basis")}

    def _stored(self, arrays: Arrays) -> Arrays:
        """Arrays with basis and values in few bits, where they are to be stored so."""
        if self.factor_bits is None:
            return arrays
        found: Arrays = {}
        for key, values in arrays.items():
            found |= {key: values} if key.endswith("mask") else packed_arrays(key, values, self.factor_bits)
        return found

    def _dense_start(self, weights: Mapping[str, npt.NDArray[Any]], rank: int, rng: np.random.Generator) -> Arrays:
        """Basis and dense codes of the SVD, padded, from which FiPS prunes."""
        members = short_first(list(weights.values()), [w.shape[0] >= w.shape[1] for w in weights.values()])
        _, basis, parts = svd_start(members, rank, rng)
        return {"basis": basis, **dict(zip(weights, parts, strict=True))}

    def _fitted(
        self,
        weights: Mapping[str, npt.NDArray[Any]],
        ranks: Mapping[str, Rank],
        grams: Mapping[str, npt.NDArray[np.float64]] | None,
        rng: np.random.Generator,
    ) -> tuple[Arrays, dict[str, Rank], str, str]:
        pairs = [_pair(ranks[name]) for name in weights]
        shares = Shares(pairs[0][0], sum(kept for _, kept in pairs), "bitmask")
        made = fit_shared(
            list(weights.values()),
            [w.shape[0] >= w.shape[1] for w in weights.values()],
            shares,
            None if grams is None else [grams.get(name) for name in weights],
            sweeps=self.sweeps,
            rng=rng,
        )
        first = next(iter(weights))
        arrays: Arrays = {f"{first}.basis": np.array(made.basis)}
        settled: dict[str, Rank] = {}
        for name, codes, turned in zip(weights, made.codes, made.transposed, strict=True):
            arrays[f"{name}.values"] = np.array(codes.values)
            bits = codes.mask
            assert bits is not None
            arrays[f"{name}.mask"] = np.array(bits.T if turned else bits, order="C")
            settled[name] = made.rank, len(codes.values)
        info = made.info
        what = "outputs" if info.data else "weights"
        note = f"error of the {what} of the group: {info.start_error:.4f} after pruning, {info.final_error:.4f} fitted"
        return arrays, settled, info.path, note

    def dense_shape(self, shapes: Mapping[str, tuple[int, ...]], /) -> tuple[int, int]:
        """Return ``(out, in)``; the mask says which way the weight is turned."""
        basis, values, mask = (shapes.get(name, ()) for name in ("basis", "values", "mask"))
        if self.factor_bits is not None:
            packed, scale = shapes.get("basis.packed", ()), shapes.get("basis.scale", ())
            basis = (scale[0], packed[1]) if len(packed) == len(scale) == 2 else ()
            values = shapes.get("values.scale", ())
        if len(basis) == 2 and len(values) == 1 and len(mask) == 2:
            rows = (basis[1] + 7) // 8
            if mask[1] == rows and mask[0] >= basis[0]:
                return mask[0], basis[0]
            if mask[0] == rows and mask[1] > basis[0]:
                return basis[0], mask[1]
        raise ValueError(f"basis, values and mask must fit together, got {basis}, {values}, {mask}")

    def expand(self, arrays: Arrays, /) -> npt.NDArray[Any]:
        """Return the product of basis and codes, turned as the weight."""
        shape = self.dense_shape({name: array.shape for name, array in arrays.items()})
        mask, bits = arrays["mask"], self.factor_bits
        basis = arrays["basis"] if bits is None else unpacked(arrays, "basis", bits, min(shape))
        turned = shape[0] == mask.shape[0]
        keep = unpack_bits(mask.T if turned else mask, basis.shape[1])
        count = np.count_nonzero(keep)
        if bits is not None and arrays["values.packed"].shape != packed_layout("", (count,), bits)[".packed"]:
            raise ValueError(f"values must be as many as the mask keeps, {count}")
        values = arrays["values"] if bits is None else unpacked(arrays, "values", bits, count)
        if count != len(values):
            raise ValueError(f"values must be as many as the mask keeps, {count}, got {len(values)}")
        codes = np.zeros(keep.shape, dtype=values.dtype)
        codes[keep] = values
        product = basis @ codes
        return product.T if turned else product

    def predicted_error(self, analysis: npt.NDArray[np.float64], rank: Rank, /) -> float | None:
        """Return None: it is not known beforehand."""
        return None

    def optimal_error(self, analysis: npt.NDArray[np.float64], rank: Rank, /) -> float | None:
        """Return None: the best dictionary is not known."""
        return None

    def ties(self, recipe: Mapping[str, Any], /) -> dict[str, str]:
        """Return the bases of all members of a group but the first, and the first one's."""
        found = {}
        for unit in (recipe.get("units") or {}).values():
            first, *others = unit["layers"]
            ends = ("basis",) if self.factor_bits is None else ("basis.packed", "basis.scale")
            found.update({f"{name}.{end}": f"{first}.{end}" for name in others for end in ends})
        return found

    def module_class(self) -> type[Any]:
        """Return `tensorfact.torch.SharedBasisLinear`."""
        from tensorfact.torch import SharedBasisLinear

        return SharedBasisLinear

    def module(
        self, shape: tuple[int, int], rank: Rank, /, *, bias: bool, device: Any = None, dtype: Any = None
    ) -> Any:
        """Return a `SharedBasisLinear` with a basis of its own."""
        columns, kept = _pair(rank)
        return self.module_class()(
            shape[1],
            shape[0],
            rank=columns,
            kept=kept,
            bias=bias,
            bits=self.factor_bits,
            device=device,
            dtype=dtype,
        )

    def install(
        self, model: Any, names: Mapping[str, str], ranks: Mapping[str, Rank], recipe: Mapping[str, Any], /
    ) -> None:
        """Swap the modules and let the members of a group share one parameter."""
        # slots=True makes a new class, which the cell of a bare super() does not know
        PerWeight.install(self, model, names, ranks, recipe)
        for unit in (recipe.get("units") or {}).values():
            members = [model.get_submodule(names[name]) for name in unit["layers"] if name in names]
            for member in members[1:]:
                member.basis = members[0].basis

    def trainer(
        self, unit: Unit, modules: Mapping[str, Any], factored: FactoredUnit, /, *, steps: int, rng: np.random.Generator
    ) -> Trainer:
        """Return a trainer of dense codes under masks."""
        from tensorfact.compress._fips_trainer import FipsTrainer

        layers = [modules[layer.name] for layer in unit.layers]
        if self.factor_bits is not None:
            first = unit.layers[0].name
            values = [
                (module.values, factored.start.get(f"{layer.name}.values"))
                for layer, module in zip(unit.layers, layers, strict=True)
            ]
            return FewBitsTrainer([(layers[0].basis, factored.start.get(f"{first}.basis")), *values])
        codes = [factored.start[layer.name] for layer in unit.layers] if factored.start else None
        return FipsTrainer(layers, steps, basis=factored.start.get("basis"), codes=codes)


def _groups(blocks: Sequence[int], size: int) -> list[list[int]]:
    """Deal block numbers into runs of consecutive ones, of nearly equal length, at most `size`."""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and runs[-1][-1] == block - 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    groups = []
    for run in runs:
        count = -(-len(run) // size)
        ends = [len(run) * i // count for i in range(count + 1)]
        groups += [run[low:high] for low, high in itertools.pairwise(ends)]
    return groups


def _pair(rank: Rank) -> tuple[int, int]:
    if not isinstance(rank, tuple) or len(rank) != 2:
        raise ValueError(f"rank must be columns of the basis and values of the codes for a fips weight, got {rank!r}")
    return rank


def _grams(evidence: Evidence, names: Sequence[str]) -> dict[str, npt.NDArray[np.float64]]:
    """Gram matrices of the layers that saw inputs other than zero."""
    found = {name: evidence.gram(name) for name in names if evidence.count(name)}
    return {name: gram for name, gram in found.items() if np.trace(gram) > 0}
