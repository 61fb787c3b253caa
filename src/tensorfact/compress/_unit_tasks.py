"""Tasks on units: read their weights, factor them, cast to what is stored, and measure on what is stored."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorfact.compress._method import Arrays, Layer, Method, Rank, owner
from tensorfact.compress._types import FLOAT_TYPES, decode, encode, stored_type
from tensorfact.compress._units import Evidence, FactoredUnit, Unit
from tensorfact.compress.executors import read_layer, single_threaded, task_rng

__all__ = ["StoredUnit", "decoded", "encoded", "layer_errors", "run_unit"]


@dataclass(frozen=True, slots=True)
class StoredUnit:
    """What a task makes of a unit: arrays as they are stored, with their safetensors types."""

    factored: FactoredUnit
    types: dict[str, str]
    seconds: float


def run_unit(method: Method, unit: Unit, ranks: Mapping[str, Rank], seed: int, evidence: Evidence | None) -> StoredUnit:
    """Read the weights of a unit, replace them, cast the arrays to the type of the source."""
    start = time.perf_counter()
    with single_threaded():
        weights = {layer.name: read_layer(layer) for layer in unit.layers}
        made = method.factor_unit(unit, weights, ranks, rng=task_rng(seed, unit.name), evidence=evidence)
    arrays, types = encoded(made.arrays, unit.layers[0].info.dtype, method)
    factored = FactoredUnit(
        arrays, made.errors, made.path, made.spectra, made.ranks, made.dropped, made.recipe, made.start, made.notes
    )
    return StoredUnit(factored, types, time.perf_counter() - start)


def encoded(
    arrays: Mapping[str, npt.NDArray[Any]], dtype: str, method: Method | None = None
) -> tuple[Arrays, dict[str, str]]:
    """Return arrays in their stored type, and the names of the types; integers keep theirs.

    Floating arrays are stored as `dtype`, unless the method has another type for them.

    Raises
    ------
    ValueError
        If a number is not finite in its stored type.
    """
    own = {} if method is None else {name: found[1] for name in arrays if (found := owner(method, name)) is not None}
    special = {} if method is None else method.stored_types
    types = {k: stored_type(values, special.get(own.get(k, ""), dtype)) for k, values in arrays.items()}
    found: Arrays = {}
    for name, values in arrays.items():
        if types[name] not in FLOAT_TYPES:
            found[name] = np.ascontiguousarray(values)
            continue
        with np.errstate(over="ignore"):  # said below, by name
            found[name] = encode(values, types[name])
        if not np.isfinite(decode(found[name], types[name])).all():
            raise ValueError(f"{name} does not fit {types[name]}: it must be finite")
    return found, types


def decoded(arrays: Mapping[str, npt.NDArray[Any]], types: Mapping[str, str]) -> Arrays:
    """Return stored arrays as numbers."""
    return {k: decode(values, types[k]) if types[k] in FLOAT_TYPES else values for k, values in arrays.items()}


def layer_errors(
    method: Method,
    unit: Unit,
    ranks: Mapping[str, Rank],
    arrays: Mapping[str, npt.NDArray[Any]],
    ties: Mapping[str, str],
    evidence: Evidence | None,
) -> dict[str, tuple[float, float | None]]:
    """Return by layer the relative Frobenius error of the weight, and that of its outputs on the calibration data.

    Layers without a dense weight that stands for their arrays are left out; without evidence the second is None.
    """
    found: dict[str, tuple[float, float | None]] = {}
    for layer in unit.layers:
        keys = {suffix: f"{layer.name}.{suffix}" for suffix in method.layout(layer.shape, ranks[layer.name])}
        own = {suffix: arrays.get(ties.get(key, key)) for suffix, key in keys.items()}
        if any(values is None for values in own.values()):
            continue
        try:
            dense = method.expand({suffix: values for suffix, values in own.items() if values is not None})
        except ValueError:
            continue
        found[layer.name] = _errors(layer, dense, evidence)
    return found


def _errors(layer: Layer, dense: npt.NDArray[Any], evidence: Evidence | None) -> tuple[float, float | None]:
    with single_threaded():
        weight = read_layer(layer).astype(np.float64)
        lost = weight - dense
        plain = _root(float(np.vdot(lost, lost)), float(np.vdot(weight, weight)))
        if evidence is None or not evidence.count(layer.name):
            return plain, None
        gram = evidence.gram(layer.name)
        return plain, _root(float(np.vdot(lost @ gram, lost)), float(np.vdot(weight @ gram, weight)))


def _root(part: float, whole: float) -> float:
    return math.sqrt(max(0.0, part) / whole) if whole > 0 else 0.0
