"""NumPy's basic indexing, vectors and index tuples, translated to the cores of a train."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tensorfact.factor._train_ops import dot, identity, namespace, permute

__all__ = ["contracted_parts", "indexed_parts", "points_of"]


def indexed_parts(cores: Sequence[Any], key: Any) -> list[Any]:
    """Cores and matrices of ``train[key]``: integers give matrices, slices shorter cores, None cores of one index."""
    keys = list(key) if isinstance(key, tuple) else [key]
    if sum(item is Ellipsis for item in keys) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    named = sum(item is not None and item is not Ellipsis for item in keys)
    if named > len(cores):
        raise IndexError(f"too many indices: the train has {len(cores)} modes, but {named} were indexed")
    at = next((i for i, item in enumerate(keys) if item is Ellipsis), len(keys))
    keys[at : at + 1] = [slice(None)] * (len(cores) - named)
    parts, mode = [], 0
    for item in keys:
        if item is None:
            bond = int(cores[mode].shape[0]) if mode < len(cores) else 1
            parts.append(identity(cores[0], bond)[:, None, :])
            continue
        parts.append(_picked(cores[mode], item, mode))
        mode += 1
    return parts


def _picked(core: Any, item: Any, mode: int) -> Any:
    n = int(core.shape[1])
    if isinstance(item, slice):
        chosen = range(*item.indices(n))
        if not chosen:
            raise ValueError(f"a slice must keep at least one index, got {item} of mode {mode} of size {n}")
        if isinstance(core, np.ndarray) or chosen.step > 0:
            stop = chosen.stop if chosen.stop >= 0 else None
            return core[:, chosen.start : stop : chosen.step, :]
        return _taken(core, np.asarray(chosen))  # torch has no negative steps
    several = bool(getattr(item, "shape", None))
    if isinstance(item, (bool, np.bool_)) or several or not hasattr(item, "__index__"):
        raise IndexError(
            f"trains take integers, slices, None and '...' as indices, got {type(item).__name__}; "
            "gather() evaluates at arrays of indices"
        )
    index = operator.index(item)
    if not -n <= index < n:
        raise IndexError(f"index {index} is out of bounds for mode {mode} with size {n}")
    return core[:, index % n, :]


def _taken(core: Any, chosen: np.ndarray) -> Any:
    from array_api_compat import device

    xp = namespace(core)
    return xp.take(core, xp.asarray(chosen, device=device(core)), axis=1)


def contracted_parts(cores: Sequence[Any], vectors: Any) -> list[Any]:
    """Cores and matrices of a train whose modes are contracted with ``vectors``: a sequence with None, or a mapping."""
    d = len(cores)
    if isinstance(vectors, Mapping):
        chosen: list[Any] = [None] * d
        for mode, vector in vectors.items():
            place = operator.index(mode)
            if not -d <= place < d:
                raise ValueError(f"vectors must name modes from {-d} to {d - 1}, got {mode}")
            if chosen[place] is not None:
                raise ValueError(f"vectors must name a mode once, got {mode} twice")
            chosen[place] = vector
    else:
        chosen = list(vectors)
        if len(chosen) != d:
            raise ValueError(f"vectors must hold one vector or None a mode, got {len(chosen)} for {d} modes")
    return [core if v is None else _weighted(core, v, mode) for mode, (core, v) in enumerate(zip(cores, chosen))]  # noqa: B905


def _weighted(core: Any, vector: Any, mode: int) -> Any:
    xp = namespace(core)
    if isinstance(core, np.ndarray):
        vector = np.asarray(vector)
        if vector.dtype.kind in "biu":
            vector = vector.astype(core.dtype)
    if tuple(vector.shape) != (int(core.shape[1]),):
        raise ValueError(
            f"vectors[{mode}] must have shape ({int(core.shape[1])},), the size of its mode, got {tuple(vector.shape)}"
        )
    r, n, s = (int(size) for size in core.shape)
    turned = xp.reshape(permute(core, (0, 2, 1)), (r * s, n))
    dtype = xp.result_type(core.dtype, vector.dtype)
    if dtype != core.dtype or dtype != vector.dtype:
        turned, vector = (x.astype(dtype) if xp is np else xp.astype(x, dtype) for x in (turned, vector))
    return xp.reshape(dot(turned, xp.reshape(vector, (n, 1))), (r, s))


def points_of(indices: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Index tuples (..., d) as an array (B, d) of non-negative integers, and their leading shape."""
    if hasattr(indices, "detach"):
        indices = indices.detach().cpu()
    points = np.asarray(indices)
    if points.ndim == 0 or points.shape[-1] != len(shape):
        raise ValueError(f"indices must have shape (..., {len(shape)}), one index a mode, got {points.shape}")
    if points.size == 0:
        points = points.astype(np.int64)
    if points.dtype.kind not in "iu":
        raise ValueError(f"indices must be integers, got dtype {points.dtype}")
    flat = points.reshape(-1, len(shape)).astype(np.int64)
    sizes = np.asarray(shape)
    wrong = (flat < -sizes) | (flat >= sizes)
    if wrong.any():
        point, mode = np.argwhere(wrong)[0]
        raise IndexError(f"index {flat[point, mode]} is out of bounds for mode {mode} with size {shape[mode]}")
    return np.where(flat < 0, flat + sizes, flat), points.shape[:-1]
