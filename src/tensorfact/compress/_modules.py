"""What the modules of a model are, under the names of its checkpoint.

The model is built on the meta device (no memory, no weights), and each key of the checkpoint is taken through the
renamings that `from_pretrained` would apply. Where that is not possible, names decide.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from tensorfact.compress._hf_classes import architecture_class, loaded_keys
from tensorfact.compress.checkpoint import Checkpoint

__all__ = ["Modules", "inspect_modules", "is_embedding"]

_EMBEDDINGS = re.compile(r"embed|(^|\.)(wte|wpe|shared)(\.|$)|relative_attention_bias")
_CONV1D_FAMILIES = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")


@dataclass(frozen=True, slots=True)
class Modules:
    """Modules by checkpoint name (the key without ``.weight``).

    `linear` maps to ``"linear"`` or ``"conv1d"``, `reasons` says why another one is not, `tied` names the other end
    of a tie, `heads` are output heads. `absent` are linear modules whose weight is not stored because it is tied.
    """

    linear: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    heads: frozenset[str] = frozenset()
    absent: dict[str, str] = field(default_factory=dict)


def inspect_modules(checkpoint: Checkpoint, *, trust_remote_code: bool) -> tuple[Modules, list[str]]:
    """Return the modules and remarks for the report."""
    try:
        return _from_model(checkpoint, trust_remote_code=trust_remote_code), []
    except Exception as error:  # any model class may fail in its own way; the names still serve
        if isinstance(error, ModuleNotFoundError) and error.name in ("torch", "transformers"):
            reason = f"{error.name} is not installed"
        else:
            reason = f"the model could not be built ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    return _from_names(checkpoint), [f"linear weights were chosen by their names: {reason}"]


def is_embedding(name: str) -> bool:
    """Return whether a module is an embedding, judged by its name."""
    return _EMBEDDINGS.search(name) is not None


def _from_model(checkpoint: Checkpoint, *, trust_remote_code: bool) -> Modules:
    import torch
    from transformers.pytorch_utils import Conv1D

    model = _meta_model(checkpoint, trust_remote_code=trust_remote_code)
    model.tie_weights()
    modules = dict(model.named_modules())
    owners: dict[int, str] = {}
    ties: dict[str, str] = {}
    for name, module in modules.items():
        weight = module._parameters.get("weight")
        if weight is not None and (first := owners.setdefault(id(weight), name)) != name:
            ties[name], ties[first] = first, name
    head = model.get_output_embeddings()
    kinds = {name: "conv1d" if isinstance(m, Conv1D) else "linear" for name, m in modules.items()
             if isinstance(m, torch.nn.Linear | Conv1D)}  # fmt: skip
    matrices = [key for key, info in checkpoint.tensors.items() if len(info.shape) >= 2]
    found = loaded_keys(model, matrices, model.state_dict())
    linear, reasons, tied, heads = {}, {}, {}, set()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for key, (target, merged) in found.items():
        name, module_name = key.removesuffix(".weight"), target.removesuffix(".weight")
        if merged is not None:
            fused = target in parameters and parameters[target].ndim == 3
            reasons[name] = (
                f"loaded into one {'3-D expert weight' if fused else 'tensor'} with others: not supported yet"
            )
        elif module_name in kinds:
            linear[name] = kinds[module_name]
        elif module_name in modules:
            reasons[name] = _reason(type(modules[module_name]).__name__, module_name)
        elif target in parameters:
            fused = parameters[target].ndim == 3 and "expert" in target
            reasons[name] = "fused experts (3-D): not supported yet" if fused else "a parameter, not a linear module"
        if module_name in ties:
            tied[name] = ties[module_name]
        if head is not None and modules.get(module_name) is head:
            heads.add(name)
    stored = {target.removesuffix(".weight") for target, _ in found.values()}
    absent = {name: end for name, end in ties.items() if name in kinds and name not in stored}
    return Modules(linear, reasons, tied, frozenset(heads), absent)


def _meta_model(checkpoint: Checkpoint, *, trust_remote_code: bool) -> Any:
    import torch
    import transformers

    auto_map = checkpoint.config.get("auto_map") or {}
    if trust_remote_code and "--" in str(auto_map):  # OWNER/NAME--module.Class: AutoModel would fetch it
        raise ValueError(f"auto_map must name code in the checkpoint itself, got {auto_map}")
    config = transformers.AutoConfig.from_pretrained(
        str(checkpoint.directory), local_files_only=True, trust_remote_code=trust_remote_code
    )
    architecture = architecture_class(checkpoint.config.get("architectures"))
    with torch.device("meta"):
        if architecture is not None and not (trust_remote_code and auto_map):
            return architecture(config)
        auto: Any = transformers.AutoModel
        return auto.from_config(config, trust_remote_code=trust_remote_code)


def _from_names(checkpoint: Checkpoint) -> Modules:
    linear: dict[str, str] = {}
    family = str(checkpoint.config.get("model_type"))
    for key, info in checkpoint.tensors.items():
        name, _, last = key.rpartition(".")
        part = name.rsplit(".", 1)[-1]
        if last == "weight" and len(info.shape) == 2 and not is_embedding(name) and "norm" not in part.lower():
            transposed = family in _CONV1D_FAMILIES and part in ("c_attn", "c_proj", "c_fc", "q_attn")
            linear[name] = "conv1d" if transposed else "linear"
    return Modules(linear)


def _reason(kind: str, name: str) -> str:
    if kind.startswith("Embedding") or is_embedding(name.rsplit(".", 1)[-1]):
        return "embedding"
    return f"convolution ({kind})" if kind.startswith("Conv") else f"not a linear weight ({kind})"
