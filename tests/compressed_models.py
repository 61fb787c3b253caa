"""Tiny checkpoints compressed by the library, and what to compare a loaded one with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny_models


class Checkpoints:
    """Call with a family (and options of `tiny`) for its dense and its compressed directory, made once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made: dict[str, tuple[Path, Path]] = {}

    def __call__(self, family: str, **options: Any) -> tuple[Path, Path]:
        key = family + json.dumps(options, sort_keys=True)
        if key not in self.made:
            here = self.root / str(len(self.made))
            dense = tiny_models.tiny(family, here / "dense", tokenizer=family != "vit", **options)
            self.made[key] = dense, compress(dense, here / "small")
        return self.made[key]


def compress(dense: Path, out: Path, **options: Any) -> Path:
    """Compress to half of the linear parameters with any rank allowed; return `out`."""
    import tensorfact.compress

    tensorfact.compress.compress(dense, out, param_ratio=0.5, rank_multiple=1, executor="serial", rng=0, **options)
    return out


def outputs(model: Any, family: str) -> Any:
    """Return the first output of a forward pass over `tiny_models.inputs`."""
    import torch

    with torch.no_grad():
        return model.eval()(**tiny_models.inputs(family))[0]


def tensors(directory: Path) -> dict[str, Any]:
    """Return every stored tensor of a directory."""
    from safetensors.torch import load_file

    return {key: value for file in sorted(directory.glob("*.safetensors")) for key, value in load_file(file).items()}


def config_of(directory: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return config


def in_memory(dense: Path, small: Path) -> Any:
    """Return the dense model with the stored factors put into it by hand."""
    import transformers

    from tensorfact.compress.huggingface import module_names
    from tensorfact.torch import LowRankLinear

    config = config_of(small)
    model = getattr(transformers, config["architectures"][0]).from_pretrained(dense)
    stored = tensors(small)
    for name, module_name in module_names(model, config["tensorfact"]["ranks"]).items():
        own = {key.removeprefix(f"{name}."): value for key, value in stored.items() if key.startswith(f"{name}.")}
        layer = LowRankLinear(
            own["down.weight"].shape[1],
            own["up.weight"].shape[0],
            rank=own["up.weight"].shape[1],
            bias="up.bias" in own,
            dtype=own["up.weight"].dtype,
        )
        layer.load_state_dict(own)
        model.set_submodule(module_name, layer)
    return model
