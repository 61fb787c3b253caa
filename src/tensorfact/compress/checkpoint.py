"""Read a Hugging Face checkpoint directory one tensor at a time, trusting nothing in it.

Only safetensors files are read, and only from a local directory: nothing is unpickled and nothing is fetched. Every
header is checked in full before the first weight is used, so a damaged file is named before any work is done.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorfact.compress._types import BITS, FLOAT_TYPES, INTEGER_TYPES, decode, storage

__all__ = [
    "FOREIGN",
    "INDEX_FILE",
    "Checkpoint",
    "CheckpointError",
    "TensorInfo",
    "iter_raw",
    "read_array",
    "read_header",
    "read_raw",
    "read_weight",
]

_SINGLE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
_MAX_HEADER = 100_000_000  # the limit of the safetensors format itself
FOREIGN = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".h5", ".msgpack", ".npz", ".pkl")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or trusted; the message names the file or tensor."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies: enough for a task in another process to read it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    nbytes: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checked checkpoint directory: its configuration and the place of each tensor, no weights.

    Parameters
    ----------
    directory : Path
        Local directory.
    config : dict
        Content of ``config.json``.
    tensors : dict of str to TensorInfo
        In file order.
    weight_files : tuple of Path
        safetensors files that hold them.
    """

    directory: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    weight_files: tuple[Path, ...]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """Check a directory and list its tensors.

        Raises
        ------
        CheckpointError
            If `path` is no local directory, has no ``config.json``, is not stored as safetensors, lacks a shard, or a
            header does not describe its file exactly.
        """
        directory = Path(path).absolute()  # a task may run in another working directory
        if not directory.is_dir():
            raise CheckpointError(
                f"model must be a local checkpoint directory (nothing is downloaded), got {str(path)!r}"
            )
        config = _read_json(directory / "config.json", "every Hugging Face checkpoint has one")
        files, index = _weight_files(directory)
        _check_name(directory, config, files, index)
        tensors: dict[str, TensorInfo] = {}
        for file in files:
            for info in read_header(file):
                if info.name in tensors:
                    raise CheckpointError(
                        f"tensor {info.name!r} is stored twice: in {tensors[info.name].file} and {file}"
                    )
                tensors[info.name] = info
        for name, shard in index.items():
            if name not in tensors or Path(tensors[name].file).name != shard:
                raise CheckpointError(f"{directory / shard} must hold tensor {name!r} as the index says, but does not")
        if not tensors:
            raise CheckpointError(f"{files[0]} must hold at least one tensor, got none")
        return cls(directory, config, tensors, files)

    @property
    def size(self) -> int:
        """Numbers stored."""
        return sum(info.size for info in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors (headers not included)."""
        return sum(info.nbytes for info in self.tensors.values())


def read_header(file: Path) -> list[TensorInfo]:
    """Read and check the header of one safetensors file; tensors come in file order.

    Raises
    ------
    CheckpointError
        If the header is damaged, names an unknown type, or its offsets do not tile the file exactly.
    """
    try:
        total = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if total < 8 or length > min(_MAX_HEADER, total - 8):
                raise CheckpointError(f"{file} is truncated or not safetensors: header of {length} bytes in {total}")
            raw = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    try:
        content = json.loads(raw, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} has a damaged safetensors header: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} has a damaged safetensors header: not a JSON object")
    content.pop("__metadata__", None)
    start = 8 + length
    infos = sorted(
        (_tensor(file, start, name, entry) for name, entry in content.items()), key=lambda i: (i.offset, i.nbytes)
    )
    end = start
    for info in infos:
        if info.offset != end:
            raise CheckpointError(
                f"{file} has a tampered header: tensor {info.name!r} begins at {info.offset}, not {end}"
            )
        end += info.nbytes
    if end != total:
        kind = "truncated" if end > total else "longer than its header says"
        raise CheckpointError(f"{file} is {kind}: it must have {end} bytes, got {total}")
    return infos


def read_raw(info: TensorInfo) -> npt.NDArray[np.uint8]:
    """Read the bytes of one tensor, shape (nbytes,)."""
    out = np.empty(info.nbytes, dtype=np.uint8)
    for start, block in iter_raw(info, chunk=info.nbytes or 1):
        out[start : start + block.size] = block
    return out


def iter_raw(info: TensorInfo, chunk: int = 1 << 24) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """Yield ``(start, bytes)`` of one tensor in blocks of at most `chunk` bytes."""
    with open(info.file, "rb") as stream:
        stream.seek(info.offset)
        for start in range(0, info.nbytes, chunk):
            count = min(chunk, info.nbytes - start)
            block = np.fromfile(stream, dtype=np.uint8, count=count)
            if block.size != count:
                raise CheckpointError(
                    f"{info.file} is truncated: tensor {info.name!r} ends after {start + block.size} bytes"
                )
            yield start, block


def read_weight(info: TensorInfo) -> npt.NDArray[Any]:
    """Read one floating tensor as float32 (float64 stays), in its stored shape, and refuse NaN and infinity.

    Raises
    ------
    CheckpointError
        If a value is not finite; the message names tensor and file.
    """
    # np.fromfile goes straight into the result: one copy of the tensor, plus the half-width bytes for 16-bit types.
    with open(info.file, "rb") as stream:
        stream.seek(info.offset)
        stored = np.fromfile(stream, dtype=storage(info.dtype), count=info.size)
    if stored.size != info.size:
        raise CheckpointError(
            f"{info.file} is truncated: tensor {info.name!r} has {stored.size} of {info.size} numbers"
        )
    values = decode(stored, info.dtype).reshape(info.shape)
    # min and max carry NaN and infinity without a temporary of the size of the tensor
    if values.size and not (np.isfinite(values.min()) and np.isfinite(values.max())):
        raise CheckpointError(f"tensor {info.name!r} in {info.file} must be finite, got NaN or infinity")
    return values


def read_array(info: TensorInfo) -> npt.NDArray[Any]:
    """Read one tensor as `read_weight` does, or in its own type where that is an integer one (a mask, indices)."""
    if info.dtype in FLOAT_TYPES:
        return read_weight(info)
    if info.dtype not in INTEGER_TYPES:
        raise CheckpointError(f"tensor {info.name!r} in {info.file} must be of a type that NumPy has, got {info.dtype}")
    return read_raw(info).view(INTEGER_TYPES[info.dtype]).reshape(info.shape)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name occurs twice")
    return content


def _tensor(file: Path, start: int, name: str, entry: Any) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} has a tampered header: entry {name!r} is incomplete") from error
    if not isinstance(dtype, str) or dtype not in BITS:
        raise CheckpointError(f"{file} has a tampered header: tensor {name!r} has unknown type {dtype!r}")
    # 64 is the most that NumPy can hold; elements of less than a byte must fill whole ones
    if not whole or len(shape) > 64 or 8 * (end - begin) != BITS[dtype] * math.prod(shape):
        raise CheckpointError(
            f"{file} has a tampered header: {name!r}, {dtype} of shape {shape}, cannot take bytes {begin} to {end}"
        )
    return TensorInfo(name, dtype, tuple(shape), str(file), start + begin, end - begin)


def _read_json(file: Path, hint: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing: {hint}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} must be readable JSON, got {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} must be a JSON object, got {type(content).__name__}")
    return content


def _shards(directory: Path) -> dict[str, str]:
    file = directory / INDEX_FILE
    if not file.exists():
        return {}
    shards = _read_json(file, "").get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise CheckpointError(f"{file} must map tensor names to files under 'weight_map'")
    for name in shards.values():
        if PurePosixPath(name).name != name or "\\" in name or name in ("", ".", ".."):
            raise CheckpointError(f"{file} must name files of its own directory, got {name!r}")
    return shards


def _weight_files(directory: Path) -> tuple[tuple[Path, ...], dict[str, str]]:
    """Return the files that hold the tensors, and which tensor is in which where an index says so."""
    single = directory / _SINGLE
    if single.is_file():  # as in transformers, it is read before a look at the index, which may be an old one
        return (single,), {}
    shards = _shards(directory)
    if shards:
        files = tuple(directory / name for name in sorted(set(shards.values())))
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise CheckpointError(f"{directory} lacks {len(missing)} of {len(files)} shards: {', '.join(missing[:5])}")
        return files, shards
    found = sorted(f.name for f in directory.iterdir() if f.name.endswith((*FOREIGN, ".safetensors")))
    stored = f"only {', '.join(found[:5])}" if found else "no weights at all"
    raise CheckpointError(
        f"{directory} must hold model.safetensors or model.safetensors.index.json, got {stored}; "
        "other formats are not read because loading them can run code: convert with save_pretrained first"
    )


def _check_name(directory: Path, config: dict[str, Any], files: tuple[Path, ...], index: dict[str, str]) -> None:
    """Refuse a configuration that sends transformers to other weights than those read here."""
    name = config.get("transformers_weights")  # our own checkpoints have a sentence there, for who lacks this package
    if config.get("model_type") != "tensorfact" and name not in (None, INDEX_FILE if index else files[0].name):
        raise CheckpointError(
            f"{directory / 'config.json'} must not name its own weights file, got transformers_weights = {name!r}: "
            "load and save the model with transformers first"
        )
