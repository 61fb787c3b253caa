"""Decide which tensors of a checkpoint are linear weights to be replaced, and say why the others are not.

The model itself is the authority: it is built on the meta device (no memory, no weights) and its `nn.Linear` and
`Conv1D` modules are the candidates. Where that is not possible, names decide, and the report says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tensorfact.compress._method import Layer, Method
from tensorfact.compress._modules import Modules, inspect_modules, is_embedding
from tensorfact.compress._patterns import matches, matching
from tensorfact.compress._types import FLOAT_TYPES
from tensorfact.compress.checkpoint import Checkpoint, CheckpointError, TensorInfo

__all__ = ["Plan", "make_plan"]

_HEADS = (
    "lm_head",
    "embed_out",
    "classifier",
    "score",
    "qa_outputs",
    "seq_relationship",
    "predictions.decoder",
    "head",
)
_ROUTERS = ("router", "mlp.gate", "block_sparse_moe.gate", "shared_expert_gate", "router.classifier")


@dataclass(frozen=True, slots=True)
class Plan:
    """The linear weights to replace (`layers`), the reason for every other tensor of two or more axes, and remarks."""

    layers: tuple[Layer, ...]
    dense: dict[str, str]
    notes: tuple[str, ...] = ()


def make_plan(
    checkpoint: Checkpoint,
    method: Method,
    *,
    target_modules: str | Sequence[str] | None = None,
    exclude_modules: str | Sequence[str] | None = None,
    trust_remote_code: bool = False,
) -> Plan:
    """Choose the weights.

    Parameters
    ----------
    checkpoint : Checkpoint
        Opened checkpoint.
    method : Method
        Says which weights are too small to gain.
    target_modules, exclude_modules : str or sequence of str, optional
        Names, dotted suffixes (``"q_proj"``) or ``re:`` expressions. None or ``"all-linear"`` targets every linear
        weight but heads, routers and tied ends; naming a head targets it. With None the method may want fewer.
    trust_remote_code : bool
        Whether code that lies in the checkpoint may run to build the model.

    Raises
    ------
    ValueError
        If a pattern matches nothing, a tied weight is targeted, or nothing is left to replace.
    """
    modules, notes = inspect_modules(checkpoint, trust_remote_code=trust_remote_code)
    candidates: dict[str, Layer] = {}
    dense: dict[str, str] = {}
    for key, info in checkpoint.tensors.items():
        name, _, last = key.rpartition(".")
        if len(info.shape) < 2:
            continue
        kind = modules.linear.get(name) if last == "weight" else None
        if kind is None:
            dense[key] = _why_not_linear(modules, name, info)
        elif len(info.shape) != 2:
            dense[key] = f"linear weight with {len(info.shape)} axes"
        elif info.dtype not in FLOAT_TYPES:
            dense[key] = f"stored as {info.dtype}: already quantised"
        else:
            shape = info.shape if kind == "linear" else info.shape[::-1]
            layer = Layer(name, kind, (shape[0], shape[1]), info, checkpoint.tensors.get(f"{name}.bias"))
            if method.break_even(layer.shape) < 1:
                dense[key] = "too small: even rank 1 would not be smaller"
            else:
                candidates[name] = layer
    chosen = _choose(candidates, modules, method, dense, target_modules, exclude_modules)
    if not chosen:
        raise ValueError(f"{checkpoint.directory} must hold a linear weight to replace, got none: {_summary(dense)}")
    return Plan(tuple(chosen), dense, tuple(notes))


def _choose(
    candidates: dict[str, Layer],
    modules: Modules,
    method: Method,
    dense: dict[str, str],
    target_modules: str | Sequence[str] | None,
    exclude_modules: str | Sequence[str] | None,
) -> list[Layer]:
    targets, excluded = _patterns(target_modules, "target_modules"), _patterns(exclude_modules, "exclude_modules")
    everything = targets is None or list(targets) == ["all-linear"]
    if not everything:
        _refuse_ties(targets or (), {**modules.tied, **modules.absent}, [*candidates, *modules.absent])
    names = list(candidates)
    wanted = set(names if everything else matching(targets or (), names, argument="target_modules"))
    unwanted = set(matching(excluded or (), [*names, *modules.absent], argument="exclude_modules"))
    chosen = []
    for name, layer in candidates.items():
        if name in unwanted:
            reason = "excluded by exclude_modules"
        elif name not in wanted:
            reason = "not among target_modules"
        elif name in modules.tied:
            reason = f"tied to {modules.tied[name]}"
        elif everything and (name in modules.heads or _ends(name, _HEADS)):
            reason = "output head"
        elif everything and _ends(name, _ROUTERS):
            reason = "expert router"
        elif targets is None and (why := method.wanted(name, layer.shape)):
            reason = why
        else:
            chosen.append(layer)
            continue
        dense[layer.info.name] = reason
    return chosen


def _why_not_linear(modules: Modules, name: str, info: TensorInfo) -> str:
    key = info.name.removesuffix(".weight")
    if key in modules.reasons:
        return modules.reasons[key]
    if is_embedding(name):
        return "embedding"
    if len(info.shape) == 3 and "expert" in info.name:
        return "fused experts (3-D): not supported yet"
    return f"not a linear weight ({len(info.shape)} axes)"


def _refuse_ties(targets: Sequence[str], ties: dict[str, str], linear: Sequence[str]) -> None:
    for name in linear:
        if name in ties and any(matches(pattern, name) for pattern in targets):
            raise ValueError(
                f"target_modules must not name one end of a tie, got {name!r}, whose weight is that of {ties[name]!r}: "
                "untie the model first"
            )


def _patterns(value: str | Sequence[str] | None, argument: str) -> list[str] | None:
    if value is None:
        return None
    patterns = [value] if isinstance(value, str) else list(value)
    if not patterns or not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise ValueError(f"{argument} must be a name or a list of names, got {value!r}")
    return patterns


def _ends(name: str, endings: Sequence[str]) -> bool:
    return any(matches(ending, name) for ending in endings)


def _summary(dense: dict[str, str]) -> str:
    reasons = sorted(set(dense.values()))
    return "; ".join(reasons[:4]) if reasons else "no tensor has two axes"


def require_dense(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that is already factored or quantised.

    Raises
    ------
    CheckpointError
        With the order that works: factor first, quantise after.
    """
    place: Path = checkpoint.directory
    if checkpoint.config.get("model_type") == "tensorfact":
        raise CheckpointError(f"{place} must be a dense checkpoint, got one that tensorfact wrote: use to-dense first")
    if checkpoint.config.get("quantization_config"):
        method = checkpoint.config["quantization_config"].get("quant_method", "unknown")
        raise CheckpointError(f"{place} must not be quantised yet (factor first, quantise after), got {method!r}")
