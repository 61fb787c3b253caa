"""What the results of t-SVDs share: shapes, faces, types, and their form in a file of arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from tensorfact.factor._transform import Transform
from tensorfact.factor._tubes import Tubes

__all__ = ["all_faces", "cast_to", "dense_shape", "dtype_like", "frozen", "header", "read_header", "transform_names"]


def cast_to(x: Any, dtype: Any) -> Any:
    """``x`` in ``dtype``, of its own library."""
    if x.dtype == dtype:
        return x
    if isinstance(x, np.ndarray):
        return x.astype(dtype)
    from array_api_compat import array_namespace

    return array_namespace(x).astype(x, dtype)


def all_faces(stored: np.ndarray, tubes: Tubes) -> np.ndarray:
    """Numbers of the stored faces ``(stored, ...)`` as ``(..., *lengths)``, conjugate faces listed too."""
    full = np.moveaxis(stored[tubes.stored_of], 0, -1)
    return np.ascontiguousarray(full.reshape((*stored.shape[1:], *tubes.lengths)))


def dense_shape(tubes: Tubes, rest: tuple[Any, ...]) -> tuple[int, ...]:
    """Shape with tubes at their axes and ``rest``, batch axes, rows and columns, in between."""
    ndim = len(rest) + len(tubes.axes)
    places = {axis % ndim: t.length for axis, t in zip(tubes.axes, tubes.transforms, strict=True)}
    others = iter(rest)
    return tuple(places[k] if k in places else int(next(others)) for k in range(ndim))


def frozen(part: Any) -> Any:
    """A NumPy part that cannot be written to."""
    if isinstance(part, np.ndarray):  # a view: the caller's own array stays as writeable as it was
        part = part.view()
        part.setflags(write=False)
    return part


def transform_names(tubes: Tubes) -> str:
    """For a repr."""
    return " x ".join(f"{t.name}({t.length})" for t in tubes.transforms)


def header(tubes: Tubes, dtype: Any, extra: dict[str, Any]) -> dict[str, Any]:
    """Everything but the factors, as arrays."""
    meta = {
        "transforms": [[t.name, t.length] for t in tubes.transforms],
        "axes": list(tubes.axes),
        "real": tubes.real,
        "dtype": str(dtype).rpartition(".")[2],
        **extra,
    }
    given = {f"matrix.{k}": t.given for k, t in enumerate(tubes.transforms) if t.given is not None}
    return {"meta": np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8), **given}


def read_header(arrays: Mapping[str, Any], names: tuple[str, ...]) -> tuple[Tubes, dict[str, Any]]:
    """What :func:`header` wrote; a missing part raises ``ValueError``."""
    missing = {*names, "meta"} - set(arrays)
    if missing:
        raise ValueError(f"arrays must hold {', '.join(names)} and meta, missing {sorted(missing)}")
    meta = json.loads(np.asarray(arrays["meta"]).tobytes())
    transforms = tuple(
        Transform(name, length, arrays.get(f"matrix.{k}")) for k, (name, length) in enumerate(meta["transforms"])
    )
    return Tubes(transforms, tuple(meta["axes"]), bool(meta["real"])), meta


def dtype_like(name: str, like: Any) -> Any:
    """The type called ``name`` in the library of ``like``."""
    if isinstance(like, np.ndarray):
        if name == "bfloat16":
            import ml_dtypes

            return np.dtype(ml_dtypes.bfloat16)
        return np.dtype(name)
    from array_api_compat import array_namespace

    return getattr(array_namespace(like), name)
