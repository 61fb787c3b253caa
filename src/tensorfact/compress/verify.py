"""Check a compressed checkpoint against its own record."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

from tensorfact.compress._method import as_rank, reader
from tensorfact.compress._store import FORMAT_VERSION, describe, digest_of
from tensorfact.compress.checkpoint import Checkpoint, CheckpointError

__all__ = ["verify"]


def verify(path: str | os.PathLike[str], *, deep: bool = False) -> list[str]:
    """Return the problems of a compressed checkpoint; an empty list means that it is as it was written.

    Checked are the version and the digest of ``tensorfact.json``, size and SHA-256 of every file that it lists, files
    and links that it does not list (but those of git and of the Hub's tools), the headers, and the shapes of the
    factors against the ranks of record and configuration.

    Parameters
    ----------
    path : path
        Directory written by `compress`.
    deep : bool
        Also load the model (needs torch and transformers) and report missing and unexpected tensors.

    Raises
    ------
    ValueError
        If `path` is no directory.

    Notes
    -----
    The digest protects against damage, not against someone who rewrites the record as well. Reads every byte once.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise ValueError(f"path must be a directory written by tensorfact, got {str(path)!r}")
    record, problems = _record(directory)
    if record is None:
        return problems
    problems += _files(directory, record)
    problems += _tensors(directory, record)
    if deep and not problems:
        problems += _model(directory)
    return problems


def _record(directory: Path) -> tuple[dict[str, Any] | None, list[str]]:
    file = directory / "tensorfact.json"
    try:
        record = json.loads(file.read_bytes())
        version, digest = record["format_version"], record["digest"]
        files, layers, method = record["files"], record["layers"], record["method"]
    except FileNotFoundError:
        return None, ["tensorfact.json is missing"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, [f"tensorfact.json is damaged: {error!r}"]
    if version != FORMAT_VERSION:
        return None, [f"tensorfact.json has format_version {version!r}, this tensorfact reads {FORMAT_VERSION}"]
    if digest != digest_of(record):
        return None, ["tensorfact.json was changed: its digest does not fit"]
    if not isinstance(files, dict) or not all(map(_is_file, files.values())):
        return None, ["tensorfact.json is damaged: files must map names to sha256 and bytes"]
    if not isinstance(method, str) or not isinstance(layers, list) or not all(map(_is_layer, layers)):
        return None, [
            "tensorfact.json is damaged: layers must have a name, a shape and a rank, and there is one method"
        ]
    return record, []


def _is_file(entry: Any) -> bool:
    return isinstance(entry, dict) and {"sha256", "bytes"} <= entry.keys()


def _is_layer(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return False
    shape, rank = entry.get("shape"), entry.get("rank")
    if not isinstance(shape, list) or not shape or rank == []:
        return False
    parts = rank if isinstance(rank, list) else []  # one of several may be 0: a face or a code of zeros
    sizes = shape if parts else [*shape, rank]
    return all(type(n) is int and n > 0 for n in sizes) and all(type(n) is int and n >= 0 for n in parts)


def _files(directory: Path, record: dict[str, Any]) -> list[str]:
    problems = []
    for name, expected in record["files"].items():
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts:
            problems.append(f"{name} lies outside of the directory")
            continue
        file = directory / place
        if not file.is_file():
            problems.append(f"{name} is missing")
            continue
        found = describe(file)
        if found["bytes"] != expected["bytes"]:
            problems.append(f"{name} has {found['bytes']} bytes, {expected['bytes']} were written")
        elif found["sha256"] != expected["sha256"]:
            problems.append(f"{name} was changed: its SHA-256 does not fit")
    stray = _entries(directory) - set(record["files"]) - {"tensorfact.json"}
    return problems + [f"{name} was not written by tensorfact" for name in sorted(stray)]


def _entries(directory: Path) -> set[str]:
    """Every file and every link, but for what git and the Hub's tools keep beside a checkpoint and nothing loads."""
    found: set[str] = set()
    for root, folders, names in os.walk(directory):
        relative = PurePosixPath(Path(root).relative_to(directory).as_posix())
        if not relative.parts:
            folders[:] = [f for f in folders if f not in (".git", ".cache")]
            names = [n for n in names if n != ".gitattributes"]
        links = [f for f in folders if os.path.islink(os.path.join(root, f))]
        found.update(str(relative / name) for name in [*names, *links])
    return found


def _tensors(directory: Path, record: dict[str, Any]) -> list[str]:
    try:
        checkpoint = Checkpoint.open(directory)
        recipe = checkpoint.config.get("tensorfact")
        method = reader(record["method"], recipe if isinstance(recipe, dict) else {})
    except ValueError as error:
        return [str(error)]
    problems = []
    ranks = recipe.get("ranks") if isinstance(recipe, dict) else None
    if ranks != {layer["name"]: layer["rank"] for layer in record["layers"]}:
        problems.append("config.json and tensorfact.json name different ranks")
    ties = method.ties(recipe) if isinstance(recipe, dict) and not problems else {}
    for layer in record["layers"]:
        rank = as_rank(layer["rank"])
        try:
            shapes = method.layout(tuple(layer["shape"]), rank)
        except ValueError as error:
            problems.append(f"{layer['name']}: {error}")
            continue
        for suffix, shape in shapes.items():
            key = f"{layer['name']}.{suffix}"
            found = checkpoint.tensors.get(ties.get(key, key))
            if found is None:
                problems.append(f"tensor {layer['name']}.{suffix} is missing")
            elif found.shape != shape:
                problems.append(f"tensor {found.name} has shape {found.shape}, rank {rank} makes {shape}")
        if f"{layer['name']}.weight" in checkpoint.tensors:
            problems.append(f"tensor {layer['name']}.weight is stored beside its factors")
    return problems


def _model(directory: Path) -> list[str]:
    from tensorfact.compress._hf_classes import architecture_class, model_class
    from tensorfact.compress._inputs import quiet_loading
    from tensorfact.compress.huggingface import register

    try:
        import transformers

        register()
        safe = {"local_files_only": True, "trust_remote_code": False}
        with quiet_loading():
            config: Any = transformers.AutoConfig.from_pretrained(directory, **safe)
            base = architecture_class(config.architectures)
            if base is None:
                return [f"config.json names no model class of transformers: architectures = {config.architectures}"]
            made: Any = model_class(base, config.__class__)
            _, info = made.from_pretrained(directory, use_safetensors=True, output_loading_info=True, **safe)
    except (ImportError, CheckpointError, ValueError, RuntimeError, OSError) as error:
        return [f"the model does not load: {error}"]
    return [
        f"{kind.replace('_', ' ')}: {key}" for kind in ("missing_keys", "unexpected_keys") for key in sorted(info[kind])
    ]
