"""Back to a plain checkpoint: all factors multiplied out, the original names, nothing of ours left."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy.typing as npt

from tensorfact.compress import _store
from tensorfact.compress._method import Method, owner, reader
from tensorfact.compress._progress import ProgressCallback, progress_of, steps
from tensorfact.compress._types import FLOAT_TYPES, encode
from tensorfact.compress.checkpoint import Checkpoint, CheckpointError, read_array
from tensorfact.compress.writer import CheckpointWriter, Entry, parse_size

__all__ = ["to_dense"]


def to_dense(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    max_shard_size: int | str = "5GB",
    progress: bool | ProgressCallback | None = None,
) -> None:
    """Write a compressed checkpoint as a plain one, which any tool reads.

    The weights are those of the compressed model, of the original size and under the original names; ``config.json``
    is that of the source. One weight is in memory at a time.

    Parameters
    ----------
    path : path
        Directory written by `compress`, or by ``save_pretrained`` of a loaded model.
    out : path
        Target directory; it appears when it is complete.
    overwrite, max_shard_size, progress
        As in `compress`.

    Raises
    ------
    ValueError
        If `path` is no compressed checkpoint or is damaged.
    FileExistsError
        If `out` exists and `overwrite` is false.
    """
    shard_size = parse_size(max_shard_size)
    checkpoint = Checkpoint.open(path)
    if checkpoint.config.get("model_type") != "tensorfact":
        raise CheckpointError(f"{checkpoint.directory} must be a checkpoint written by tensorfact, got a plain one")
    config = _config(checkpoint)
    recipe = checkpoint.config["tensorfact"]
    names: dict[str, Any] = dict(recipe["ranks"])
    transposed = set(recipe.get("transposed", ()))
    types: dict[str, str] = recipe.get("types") or {}
    method = reader(recipe.get("method", "lowrank"), recipe)
    entries, sources = [], {}
    # By layer, each array by its suffix and the name that it is stored under: another layer's where they share it.
    factors: dict[str, dict[str, str]] = {name: {} for name in names}
    biases = {f"{name}.{method.bias}": f"{name}.bias" for name in names}
    for key, info in checkpoint.tensors.items():
        found = owner(method, key)
        if found is not None and found[0] in names:
            factors[found[0]][found[1]] = key
        else:
            target = biases.get(key, key)
            entries.append(Entry(target, info.dtype, info.shape))
            sources[target] = key
    for end, origin in method.ties(recipe).items():
        place = owner(method, end)
        if place is not None and place[0] in names and origin in checkpoint.tensors:
            factors[place[0]][place[1]] = origin
    for name, keys in factors.items():
        entries.append(_dense_entry(checkpoint, method, name, keys, name in transposed, types.get(name)))
    with (
        CheckpointWriter(out, overwrite=overwrite, source=checkpoint.directory) as writer,
        steps(progress_of(progress), "dense", len(factors)) as step,
    ):
        writer.layout(sorted(entries, key=lambda entry: entry.name), max_shard_size=shard_size)
        for key, source in sources.items():
            writer.copy(key, checkpoint.tensors[source])
        for name, keys in factors.items():
            weight: npt.NDArray[Any] = method.expand(
                {suffix: read_array(checkpoint.tensors[key]) for suffix, key in keys.items()}
            )
            dtype = _dtype(checkpoint, keys, types.get(name))
            writer.write(f"{name}.weight", encode(weight.T if name in transposed else weight, dtype))
            step(name)
        writer.finish_tensors()
        _store.copy_files(writer, checkpoint, skip=("config.json", *_store.OWN_FILES))
        writer.write_file("config.json", json.dumps(config, indent=2) + "\n")
        writer.commit()


def _dense_entry(
    checkpoint: Checkpoint, method: Method, name: str, keys: dict[str, str], transposed: bool, dtype: str | None
) -> Entry:
    found = {suffix: checkpoint.tensors[key] for suffix, key in keys.items()}
    if not any(info.dtype in FLOAT_TYPES for info in found.values()):
        raise CheckpointError(f"{checkpoint.directory} must hold the factors of {name!r}, got none")
    try:
        shape = method.dense_shape({suffix: info.shape for suffix, info in found.items()})
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.directory} must hold the factors of {name!r}: {error}") from error
    return Entry(f"{name}.weight", _dtype(checkpoint, keys, dtype), shape[::-1] if transposed else shape)


def _dtype(checkpoint: Checkpoint, keys: dict[str, str], given: str | None) -> str:
    """Return the type of the dense weight: the one that the recipe gives, or that of its first floating array."""
    if given is not None:
        if given not in FLOAT_TYPES:
            raise CheckpointError(f"the recipe must give a weight a floating type, got {given!r}")
        return given
    return next(t for key in keys.values() if (t := checkpoint.tensors[key].dtype) in FLOAT_TYPES)


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the configuration of the source; a recipe that this version does not read is refused."""
    from tensorfact.compress.huggingface import dense_config

    try:
        return dense_config(checkpoint.config)
    except KeyError as error:
        raise CheckpointError(f"the recipe in {checkpoint.directory / 'config.json'} lacks {error}") from error
