"""What a checkpoint directory holds, in a few lines, from its headers alone."""

from __future__ import annotations

import os
from collections import Counter

from tensorfact.compress.checkpoint import Checkpoint
from tensorfact.compress.records import Report

__all__ = ["describe_checkpoint"]


def describe_checkpoint(path: str | os.PathLike[str]) -> str:
    """Return a description of a dense or compressed checkpoint; no weight is read.

    Raises
    ------
    ValueError
        If `path` is not a readable checkpoint directory.
    """
    checkpoint = Checkpoint.open(path)
    config = checkpoint.config
    recipe = config.get("tensorfact") or {}
    sizes: Counter[str] = Counter()
    for info in checkpoint.tensors.values():
        sizes[info.dtype] += info.size
    rows = [
        ("model type", recipe.get("base_model_type") or config.get("model_type", "unknown")),
        ("architecture", ", ".join(config.get("architectures") or ["not named"])),
        ("tensors", f"{len(checkpoint.tensors):,} in {len(checkpoint.weight_files)} files"),
        (
            "parameters",
            f"{checkpoint.size:,} ({', '.join(f'{count:,} {dtype}' for dtype, count in sizes.most_common())})",
        ),
        ("bytes", f"{checkpoint.nbytes:,}"),
    ]
    if config.get("quantization_config"):
        rows.append(("quantised", str(config["quantization_config"].get("quant_method", "yes"))))
    if recipe:
        rows += _compressed(checkpoint, recipe)
    return "\n".join(f"{name:14}{value}" for name, value in rows)


def _compressed(checkpoint: Checkpoint, recipe: dict[str, object]) -> list[tuple[str, str]]:
    ranks = recipe.get("ranks")
    found = list(ranks.values()) if isinstance(ranks, dict) else []
    values = [rank for item in found for rank in (item if isinstance(item, list) else [item]) if isinstance(rank, int)]
    noun = "bonds" if any(isinstance(item, list) for item in found) else "ranks"
    span = f", {noun} {min(values)} to {max(values)}" if values else ""
    rows = [("compressed", f"{recipe.get('method')}, {len(found)} layers{span}")]
    if (checkpoint.directory / "report.json").is_file():
        report = Report.read(checkpoint.directory)
        rows += [
            (
                "targeted",
                f"{report.targeted_after:,} of {report.targeted_before:,} parameters ({report.achieved_ratio:.1%})",
            ),
            ("whole", f"{report.params_after:,} of {report.params_before:,} parameters ({report.total_ratio:.1%})"),
            ("source", report.source),
        ]
    return rows
