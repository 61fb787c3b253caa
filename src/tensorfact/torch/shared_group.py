"""Layers that share one basis, as a container."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from tensorfact.factor import SharedBasis, SharedBasisInfo, SparseCodes, shared_basis
from tensorfact.torch._quantized import QuantizedTensor, numbers_of, parts_of
from tensorfact.torch.shared_basis import SharedBasisLinear

_ENDS = ("basis", "basis.packed", "basis.scale")


class SharedBasisGroup(nn.Module):
    """Layers that share one basis, by name; ``group[name]`` is the layer, to be put into a model.

    The state dict has the basis once. A layer that is taken away leaves the basis to the others. Members keep one basis
    under ``.to()`` and `copy.deepcopy` of whatever holds them all; after a conversion that makes new parameters
    (`to_empty` from the meta device), `tie` joins them again.
    """

    def __init__(self, layers: Mapping[str, SharedBasisLinear]) -> None:
        super().__init__()
        if not layers:
            raise ValueError("layers must hold at least one SharedBasisLinear, got none")
        self.names = tuple(layers)
        shapes = {tuple(layer.basis.shape) for layer in layers.values()}
        if len(shapes) > 1:
            raise ValueError(f"layers must have bases of one shape, got {sorted(shapes)}")
        self.members = nn.ModuleList(layers.values())
        self.tie()
        self.register_state_dict_post_hook(_drop_copies)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_add_copies)  # type: ignore[no-untyped-call]
        # assigned parameters are separate ones
        self.register_load_state_dict_post_hook(_tie)  # type: ignore[no-untyped-call]

    def __getitem__(self, name: str) -> SharedBasisLinear:
        """Return the layer of that name."""
        if name not in self.names:
            raise KeyError(name)
        return self.members[self.names.index(name)]  # type: ignore[return-value]

    def layers(self) -> dict[str, SharedBasisLinear]:
        """Return the layers by name."""
        return {name: self[name] for name in self.names}

    @property
    def basis(self) -> nn.Parameter | QuantizedTensor:
        """The shared parameter (d, rank)."""
        return self.members[0].basis  # type: ignore[return-value]

    @property
    def nbytes(self) -> int:
        """Bytes of basis, values and masks, the basis once; biases are not counted."""
        members = self.layers().values()
        parts = [*parts_of(self.basis), *(part for m in members for part in (*parts_of(m.values), m.mask))]
        return sum(part.numel() * part.element_size() for part in parts)

    def tie(self) -> None:
        """Let every layer refer to the basis of the first one."""
        for layer in self.members[1:]:
            layer.basis = self.basis

    @classmethod
    def from_linears(
        cls,
        linears: Mapping[str, nn.Linear],
        *,
        param_ratio: float,
        sparsity: float | Literal["auto"] = 0.75,
        grams: Mapping[str, Any] | None = None,
        rank: int | None = None,
        sweeps: int = 6,
        rng: Any = None,
        member: type[SharedBasisLinear] = SharedBasisLinear,
    ) -> Self:
        """Factor trained layers with `tensorfact.shared_basis`; `linears` are left as they are.

        The short sides must agree. float16 and bfloat16 weights are factored in float32, for the budget of their own
        type, and cast back. Device, dtype, biases, training flags and ``requires_grad`` survive. `grams` are the Gram
        matrices (in, in) of the inputs by name. The other arguments are those of `tensorfact.shared_basis`.
        """
        weights = []
        for name, linear in linears.items():
            if not isinstance(linear, nn.Linear):
                raise ValueError(f"linears must hold torch.nn.Linear, got {type(linear).__name__} at {name!r}")
            if linear.weight.is_meta:
                raise ValueError(f"linears must hold values, got a weight on the meta device at {name!r}")
            weight = linear.weight.detach().cpu()
            half = weight.dtype in (torch.float16, torch.bfloat16)
            weights.append(weight.float().numpy() if half else weight.numpy())
        given = None if grams is None else [grams.get(name) for name in linears]
        result = shared_basis(
            weights,
            param_ratio=param_ratio,
            sparsity=sparsity,
            grams=given,
            rank=rank,
            sweeps=sweeps,
            rng=rng,
            itemsize=max((linear.weight.element_size() for linear in linears.values()), default=None),
        )
        group = cls.from_result(result, tuple(linears), [linear.bias for linear in linears.values()], member=member)
        first = next(iter(linears.values())).weight
        group.to(device=first.device, dtype=first.dtype)
        group.basis.requires_grad_(any(linear.weight.requires_grad for linear in linears.values()))
        for name, linear in linears.items():
            layer = group[name].train(linear.training)
            layer.values.requires_grad_(linear.weight.requires_grad)
            if layer.bias is not None:
                layer.bias.requires_grad_(linear.bias.requires_grad)
        return group

    @classmethod
    def from_result(
        cls,
        result: SharedBasis,
        names: Sequence[str],
        biases: Sequence[Tensor | None] | None = None,
        *,
        member: type[SharedBasisLinear] = SharedBasisLinear,
    ) -> Self:
        """Build the layers of a factorisation; values are copied."""
        if len(names) != len(result):
            raise ValueError(f"names must be one a matrix, {len(result)}, got {len(names)}")
        basis = nn.Parameter(torch.tensor(result.basis))
        layers = {}
        for i, name in enumerate(names):
            code, (rows, columns) = result.codes[i], result.shapes[i]
            bias = None if biases is None else biases[i]
            layer = member(
                columns,
                rows,
                rank=result.rank,
                kept=len(code.values),
                bias=bias is not None,
                basis=basis,
                dtype=basis.dtype,
            )
            if layer.transposed != result.transposed[i]:
                raise ValueError(f"result must hold matrices turned as shared_basis turns them, got {result} at {i}")
            with torch.no_grad():
                layer.values.copy_(torch.tensor(code.values))
                layer.set_places(torch.tensor(code.kept()))
                if bias is not None and layer.bias is not None:
                    layer.bias.copy_(bias)
            layers[name] = layer
        return cls(layers)

    def to_result(self) -> SharedBasis:
        """Return the NumPy form of basis and codes; its error is not known (NaN)."""
        codes = tuple(
            SparseCodes.pack(
                layer.dense_codes().detach().cpu().numpy(),
                layer.kept_places().cpu().numpy(),
                "bitmask",
            )
            for layer in self.layers().values()
        )
        return SharedBasis(
            basis=numbers_of(self.basis).detach().cpu().numpy().copy(),
            codes=codes,
            transposed=tuple(layer.transposed for layer in self.layers().values()),
            error=math.nan,
            info=SharedBasisInfo(path="given"),
        )


def _tie(module: Any, keys: Any) -> None:
    module.tie()


def _drop_copies(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for i in range(1, len(module.members)):  # type: ignore[arg-type]
        for end in _ENDS:
            state.pop(f"{prefix}members.{i}.{end}", None)


def _add_copies(module: nn.Module, state: dict[str, Any], prefix: str, *args: Any) -> None:
    for end in _ENDS:
        basis = state.get(f"{prefix}members.0.{end}")
        if basis is not None:
            for i in range(1, len(module.members)):  # type: ignore[arg-type]
                state.setdefault(f"{prefix}members.{i}.{end}", basis)
