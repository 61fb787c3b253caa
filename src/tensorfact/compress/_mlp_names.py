"""Which linear weights belong to the MLPs of transformer blocks, and to which block: judged by names and shapes."""

from __future__ import annotations

import re

__all__ = ["block_of", "is_mlp"]

_OTHERS = re.compile(
    r"att(n|ention)|downsample|reduction|patch|pooler|router|(^|\.)(gate|q|k|v|o|query|key|value|qkv|embed\w*)(\.|$)",
    re.IGNORECASE,
)


def block_of(name: str) -> tuple[str, int] | None:
    """Split a module name at its last number: ``encoder.layer.3.output.dense`` is (``encoder.layer``, 3)."""
    found = re.fullmatch(r"(.+)\.(\d+)\..+", name)
    return (found[1], int(found[2])) if found else None


def is_mlp(name: str, shape: tuple[int, int]) -> bool:
    """Whether a linear weight (out, in) is one of an MLP: in a block, not square, and not named as something else.

    The names of attention, routers, pooling and patch merging differ by family, but say what they are.
    """
    return block_of(name) is not None and shape[0] != shape[1] and _OTHERS.search(name) is None
