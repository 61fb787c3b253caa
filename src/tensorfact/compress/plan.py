"""Decide which tensors of a checkpoint are linear weights to be replaced, and say why the others are not.

The model itself is the authority: it is built on the meta device (no memory, no weights) and its `nn.Linear` and `Conv1D`
modules are the candidates. Where that is not possible, names decide, and the report says so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tensorfact.compress._method import Layer
from tensorfact.compress._patterns import matches, matching
from tensorfact.compress.checkpoint import FLOAT_TYPES, Checkpoint, CheckpointError, TensorInfo
from tensorfact.compress.lowrank import break_even

__all__ = ["Plan", "make_plan"]

_HEADS = ("lm_head", "embed_out", "classifier", "score", "qa_outputs", "seq_relationship", "predictions.decoder", "head")
_ROUTERS = ("router", "mlp.gate", "block_sparse_moe.gate", "shared_expert_gate", "router.classifier")
_EMBEDDINGS = re.compile(r"embed|(^|\.)(wte|wpe|shared)(\.|$)|relative_attention_bias")
_CONV1D_FAMILIES = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")


@dataclass(frozen=True, slots=True)
class Plan:
    """The linear weights to replace (`layers`), the reason for every other tensor of two or more axes, and remarks."""

    layers: tuple[Layer, ...]
    dense: dict[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Modules:
    """What the model says of its modules: kind of each linear one, tied names, heads, and the kind of the others."""

    linear: dict[str, str] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    heads: frozenset[str] = frozenset()
    other: dict[str, str] = field(default_factory=dict)
    prefix: str = ""

    def find(self, table: dict[str, str], name: str) -> str | None:
        """Look a checkpoint name up, with and without the prefix of the base model."""
        for candidate in (name, f"{self.prefix}.{name}", name.removeprefix(f"{self.prefix}.")):
            if candidate in table:
                return table[candidate]
        return None


def make_plan(
    checkpoint: Checkpoint,
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
    target_modules, exclude_modules : str or sequence of str, optional
        Names, dotted suffixes (``"q_proj"``) or ``re:`` expressions. None or ``"all-linear"`` targets every linear weight but
        heads, routers and tied ends; naming a head targets it.
    trust_remote_code : bool
        Whether code that lies in the checkpoint may run to build the model.

    Raises
    ------
    ValueError
        If a pattern matches nothing, a tied weight is targeted, or nothing is left to replace.
    """
    modules, notes = _inspect(checkpoint, trust_remote_code=trust_remote_code)
    candidates: dict[str, Layer] = {}
    dense: dict[str, str] = {}
    for key, info in checkpoint.tensors.items():
        name, _, last = key.rpartition(".")
        if len(info.shape) < 2:
            continue
        kind = modules.find(modules.linear, name) if last == "weight" else None
        if kind is None:
            dense[key] = _why_not_linear(modules, name, info)
        elif len(info.shape) != 2:
            dense[key] = f"linear weight with {len(info.shape)} axes"
        elif info.dtype not in FLOAT_TYPES:
            dense[key] = f"stored as {info.dtype}: already quantised"
        else:
            shape = info.shape if kind == "linear" else info.shape[::-1]
            layer = Layer(name, kind, (shape[0], shape[1]), info, checkpoint.tensors.get(f"{name}.bias"))
            if break_even(layer.shape) < 1:
                dense[key] = "too small: even rank 1 would not be smaller"
            else:
                candidates[name] = layer
    chosen = _choose(candidates, modules, dense, target_modules, exclude_modules)
    if not chosen:
        raise ValueError(f"{checkpoint.directory} must hold a linear weight to replace, got none: {_summary(dense)}")
    return Plan(tuple(chosen), dense, tuple(notes))


def _choose(
    candidates: dict[str, Layer],
    modules: _Modules,
    dense: dict[str, str],
    target_modules: str | Sequence[str] | None,
    exclude_modules: str | Sequence[str] | None,
) -> list[Layer]:
    targets, excluded = _patterns(target_modules, "target_modules"), _patterns(exclude_modules, "exclude_modules")
    everything = targets is None or list(targets) == ["all-linear"]
    # A tied head is not stored, so a pattern that names it must still be understood, and refused.
    for name, end in modules.tied.items():
        if not everything and any(matches(pattern, name) for pattern in targets or ()) and modules.find(modules.linear, name):
            raise ValueError(f"target_modules must not name one end of a tie: {name!r} shares its weight with {end!r}")
    names = list(candidates)
    wanted = set(names if everything else matching(targets or (), names, argument="target_modules"))
    unwanted = set(matching(excluded or (), names, argument="exclude_modules")) if excluded else set()
    chosen = []
    for name, layer in candidates.items():
        tie = modules.find(modules.tied, name)
        if name in unwanted:
            reason = "excluded by exclude_modules"
        elif name not in wanted:
            reason = "not among target_modules"
        elif tie is not None:
            reason = f"tied to {tie}"
        elif everything and (modules.find(dict.fromkeys(modules.heads, "head"), name) or _ends(name, _HEADS)):
            reason = "output head"
        elif everything and _ends(name, _ROUTERS):
            reason = "expert router"
        else:
            chosen.append(layer)
            continue
        dense[layer.info.name] = reason
    return chosen


def _why_not_linear(modules: _Modules, name: str, info: TensorInfo) -> str:
    kind = modules.find(modules.other, name)
    if _EMBEDDINGS.search(name) and len(info.shape) == 2:
        return "embedding"
    if len(info.shape) == 3 and "expert" in info.name:
        return "fused experts (3-D): not supported by this method yet"
    if kind is not None and kind.startswith("Conv"):
        return f"convolution ({kind})"
    if kind is not None:
        return f"not a linear weight ({kind})"
    return f"not a linear module of the model ({len(info.shape)} axes)"


def _inspect(checkpoint: Checkpoint, *, trust_remote_code: bool) -> tuple[_Modules, list[str]]:
    try:
        return _from_model(checkpoint, trust_remote_code=trust_remote_code), []
    except ImportError:
        reason = "torch and transformers are not installed"
    except Exception as error:  # any model class may fail in its own way; the names still serve
        reason = f"the model could not be built ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    return _from_names(checkpoint), [f"linear weights were chosen by their names: {reason}"]


def _from_model(checkpoint: Checkpoint, *, trust_remote_code: bool) -> _Modules:
    import torch
    import transformers
    from transformers.pytorch_utils import Conv1D

    directory = str(checkpoint.directory)
    config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=trust_remote_code)
    names = checkpoint.config.get("architectures") or []
    architecture: Any = getattr(transformers, names[0], None) if names else None
    with torch.device("meta"):
        if architecture is not None and not (trust_remote_code and "auto_map" in checkpoint.config):
            model = architecture(config)
        else:
            model = transformers.AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    model.tie_weights()
    linear: dict[str, str] = {}
    other: dict[str, str] = {}
    owners: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            linear[name] = "linear"
        elif isinstance(module, Conv1D):
            linear[name] = "conv1d"
        else:
            other[name] = type(module).__name__
        weight = module._parameters.get("weight")
        if weight is not None:
            first = owners.setdefault(id(weight), name)
            if first != name:
                tied[name], tied[first] = first, name
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    heads = frozenset(name for name, module in model.named_modules() if head is not None and module is head)
    return _Modules(linear, tied, heads, other, getattr(model, "base_model_prefix", ""))


def _from_names(checkpoint: Checkpoint) -> _Modules:
    linear: dict[str, str] = {}
    family = str(checkpoint.config.get("model_type"))
    for key, info in checkpoint.tensors.items():
        name, _, last = key.rpartition(".")
        parts = name.rsplit(".", 1)[-1]
        if last == "weight" and len(info.shape) == 2 and not _EMBEDDINGS.search(name) and "norm" not in parts.lower():
            transposed = family in _CONV1D_FAMILIES and parts in ("c_attn", "c_proj", "c_fc", "q_attn")
            linear[name] = "conv1d" if transposed else "linear"
    return _Modules(linear)


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
