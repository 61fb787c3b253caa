"""Trains as named arrays and as safetensors files, written in one step and checked when read."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tensorfact.factor._train_ops import is_complex, ops_of

__all__ = ["built", "load", "packed", "save", "unpacked"]

_VERSION = "1"


def packed(train: Any, canonical: str) -> dict[str, Any]:
    """What a train knows beside its cores, as arrays."""
    text = json.dumps({"canonical": canonical, **asdict(train.info)})
    return {
        "error": np.asarray(train.error, dtype=np.float64),
        "info": np.frombuffer(text.encode(), dtype=np.uint8),
    }


def unpacked(arrays: Mapping[str, Any]) -> tuple[tuple[Any, ...], float, Any, dict[str, Any]]:
    """Cores, error, canonical side and info of :func:`packed` arrays beside ``cores.0``, ``cores.1``, ..."""
    count = sum(name.startswith("cores.") for name in arrays)
    missing = [name for name in ("error", *(f"cores.{k}" for k in range(max(1, count)))) if name not in arrays]
    if missing:
        raise ValueError(f"arrays must hold cores.0, cores.1, ... and error, missing {missing}")
    stored = json.loads(np.asarray(arrays["info"]).tobytes()) if "info" in arrays else {}
    cores = tuple(arrays[f"cores.{k}"] for k in range(count))
    return cores, float(arrays["error"]), stored.pop("canonical", "none"), _tuples(stored)


def _tuples(stored: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}


def save(train: Any, path: str | os.PathLike[str], kind: str, canonical: str) -> None:
    """Write the cores of ``train`` beside ``path`` and rename them into place."""
    known = {"canonical": canonical, "error": None if math.isnan(train.error) else train.error, **asdict(train.info)}
    about = {"tensorfact": kind, "version": _VERSION, "train": json.dumps(known)}
    content = _serialised(train.cores, about)
    place = Path(os.path.realpath(path))
    temporary = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, place)
    finally:
        temporary.unlink(missing_ok=True)


def _serialised(cores: tuple[Any, ...], about: dict[str, str]) -> bytes:
    about = {**about, "complex": str(is_complex(cores[0])).lower()}
    if type(cores[0]).__module__.startswith("torch"):
        from safetensors import torch as format_of

        tensors = (_as_real_tensor(core.detach().cpu()).contiguous().clone() for core in cores)
        return bytes(format_of.save({f"cores.{k}": core for k, core in enumerate(tensors)}, about))
    from safetensors import numpy as format_for

    host = (np.ascontiguousarray(ops_of(core).to_numpy(core)) for core in cores)
    return bytes(format_for.save({f"cores.{k}": _as_real(core) for k, core in enumerate(host)}, about))


def _as_real(core: np.ndarray) -> np.ndarray:
    """A complex core with its parts in a last axis: the format has no complex128."""
    return core.view(core.real.dtype).reshape(*core.shape, 2) if core.dtype.kind == "c" else core


def _as_real_tensor(core: Any) -> Any:
    if not core.is_complex():
        return core
    import torch

    return torch.view_as_real(core)


def load(path: str | os.PathLike[str], cls: Any, info_type: Any, framework: str) -> Any:
    """The train of a file; ``ValueError`` where it is broken or of another kind."""
    if framework not in ("numpy", "torch"):
        raise ValueError(f"framework must be 'numpy' or 'torch', got {framework!r}")
    from safetensors import SafetensorError, safe_open

    kind, name = cls.__name__, os.fspath(path)
    try:
        with safe_open(name, framework="np" if framework == "numpy" else "pt") as file:
            about = file.metadata() or {}
            if about.get("tensorfact") != kind:
                raise ValueError(f"it holds {about.get('tensorfact', 'no train')}")
            if about.get("version") != _VERSION:
                raise ValueError(f"its format version is {about.get('version')}, this library reads {_VERSION}")
            stored = json.loads(about["train"])
            cores = tuple(file.get_tensor(f"cores.{k}") for k in range(len(file.keys())))
        if about["complex"] == "true":
            cores = tuple(_as_complex(core) for core in cores)
        error, side = stored.pop("error"), stored.pop("canonical")
        return built(cls, info_type, cores, math.nan if error is None else float(error), side, _tuples(stored))
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as wrong:
        raise ValueError(f"path must hold a {kind}, got {name!r}: {wrong}") from wrong


def built(cls: Any, info_type: Any, cores: tuple[Any, ...], error: float, side: Any, info: dict[str, Any]) -> Any:
    """An object of class ``cls`` from what :func:`unpacked` returns."""
    return cls(cores=cores, error=error, canonical=side, info=info_type(**info))


def _as_complex(core: Any) -> Any:
    if isinstance(core, np.ndarray):
        wide = np.complex64 if core.dtype == np.float32 else np.complex128
        return np.ascontiguousarray(core).view(wide)[..., 0]
    import torch

    return torch.view_as_complex(core.contiguous())
