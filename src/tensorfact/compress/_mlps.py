"""Find the MLPs of a model: two linear layers with an activation module between them.

The model is built on the meta device; torch and transformers are imported inside the functions. Where two layers feed
the same one, the MLP is gated, and no decoupling stands for the product.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorfact.compress._hf_classes import module_names
from tensorfact.compress._method import Layer
from tensorfact.compress._modules import _meta_model
from tensorfact.compress.checkpoint import Checkpoint

__all__ = ["MLP", "activation_name", "find_mlps", "mlps_of"]


@dataclass(frozen=True, slots=True)
class MLP:
    """Two layers of a checkpoint and the module between them."""

    first: Layer
    second: Layer
    activation: Any

    @property
    def size(self) -> int:
        """Parameters of both weights."""
        return self.first.size + self.second.size


def mlps_of(layers: Sequence[Layer]) -> tuple[list[MLP], dict[str, str]]:
    """Return the MLPs among layers of one checkpoint, in its order, and a reason for every other layer.

    Raises
    ------
    ValueError
        If the model cannot be built.
    """
    if not layers:
        return [], {}
    directory = Path(layers[0].info.file).parent
    model = _built(str(directory), (directory / "config.json").read_bytes())
    return find_mlps(model, layers)


def find_mlps(model: Any, layers: Sequence[Layer]) -> tuple[list[MLP], dict[str, str]]:
    """Do the same for a model that exists."""
    names = module_names(model, [layer.name for layer in layers])
    pairs, reasons = _pairs(model)
    targeted = {names[layer.name]: layer for layer in layers if layer.name in names}
    found, used = [], set()
    for first, second in pairs:
        if first not in targeted or second not in targeted:
            for own, other in ((first, second), (second, first)):
                if own in targeted:
                    reasons[own] = f"the other layer of its MLP, {other}, is not targeted"
            continue
        place, why = activation_name(model, first, second)
        if place is None:
            reasons[first] = reasons[second] = why
            continue
        found.append(MLP(targeted[first], targeted[second], model.get_submodule(place)))
        used |= {first, second}
    order = {layer.name: i for i, layer in enumerate(layers)}
    found.sort(key=lambda mlp: order[mlp.first.name])
    rest = "not one of the two layers of an MLP"
    left = {n: reasons.get(names.get(n, n), rest) for n in order if names.get(n, n) not in used}
    return found, left


def activation_name(model: Any, first: str, second: str) -> tuple[str | None, str]:
    """Return the name of the module that acts between two linear modules, or None and the reason."""
    parent = _common(first, second)
    found = []
    for name, module in model.get_submodule(parent).named_modules(remove_duplicate=False):
        if name and _acts_by_number(module):
            found.append(f"{parent}.{name}" if parent else name)
    if len(found) == 1:
        return found[0], ""
    what = "no activation module" if not found else f"several activation modules ({', '.join(found[:3])})"
    return None, f"{what} between {first} and {second}"


@functools.lru_cache(maxsize=4)
def _built(directory: str, config: bytes) -> Any:
    """Build the model on no device; `config` is what ``config.json`` holds, which the cache must notice."""
    try:
        return _meta_model(Checkpoint.open(directory), trust_remote_code=False)
    except Exception as error:  # any model class may fail in its own way
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(f"the decouple method must build the model to find its MLPs: {text}") from error


def _pairs(model: Any) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Return pairs of linear modules where only the first can feed the second, nearest ones first, and reasons."""
    import torch
    from transformers.pytorch_utils import Conv1D

    shapes: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            shapes[name] = module.out_features, module.in_features
        elif isinstance(module, Conv1D):
            shapes[name] = module.weight.shape[1], module.weight.shape[0]
    possible, reasons = [], dict[str, str]()
    for second, (_, hidden) in shapes.items():
        feeding = _nearest(second, [name for name, (out, _) in shapes.items() if out == hidden and name != second])
        parent = _common(feeding[0], second) if feeding else ""
        if not parent or isinstance(model.get_submodule(parent), torch.nn.ModuleList):
            continue
        if len(feeding) == 1:
            if hidden >= shapes[feeding[0]][1]:  # else a narrow way between two MLPs
                possible.append((feeding[0], second))
        elif len(feeding) == 2 and hidden != shapes[feeding[0]][1]:
            gated = "a gated MLP: no sum of functions of one variable stands for the product of two projections"
            reasons |= dict.fromkeys((*feeding, second), gated)
    possible.sort(key=lambda pair: -_depth(_common(*pair)))
    pairs, used = [], set(reasons)
    for pair in possible:
        if not used & set(pair):
            pairs.append(pair)
            used |= set(pair)
    return pairs, reasons


def _nearest(name: str, others: Iterable[str]) -> list[str]:
    """Return those of `others` that share the longest path with `name`."""
    depths: Mapping[str, int] = {other: _depth(_common(name, other)) for other in others}
    most = max(depths.values(), default=0)
    return [other for other, depth in depths.items() if depth == most]


def _common(first: str, second: str) -> str:
    parts = []
    for a, b in zip(first.split("."), second.split("."), strict=False):
        if a != b:
            break
        parts.append(a)
    return ".".join(parts)


def _depth(name: str) -> int:
    return name.count(".") + 1 if name else 0


def _acts_by_number(module: Any) -> bool:
    """Whether a module without parameters maps a tensor number by number, and is not the identity."""
    import torch

    if (
        isinstance(module, torch.nn.Identity | torch.nn.modules.dropout._DropoutNd)
        or next(module.parameters(), None) is not None
    ):
        return False
    probe = torch.linspace(-4, 4, 24, dtype=torch.float64).reshape(4, 6)
    try:
        with torch.no_grad():
            found, other = module(probe), module(probe.reshape(6, 4).flip(0)).flip(0).reshape(4, 6)
            return found.shape == probe.shape and torch.allclose(found, other) and not torch.equal(found, probe)
    except Exception:  # a module of another kind: it may fail in any way
        return False
