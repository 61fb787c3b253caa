"""Write a checkpoint directory so that it appears complete or not at all.

Everything goes into a hidden directory beside the target, which is renamed at the end. The sizes of all tensors are
known before the first one is computed, so headers are written first, disk space is reserved, and each tensor is then
written at its own offset, in any order, and forgotten.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from tensorfact.compress._atomic import (
    check_replaceable,
    check_target,
    exchange,
    make_hidden,
    remove_abandoned,
    reserve,
    sync,
)
from tensorfact.compress._types import nbytes
from tensorfact.compress.checkpoint import TensorInfo, iter_raw

__all__ = ["CheckpointWriter", "Entry", "parse_size"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor to be written: name, safetensors type, shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes stored."""
        return nbytes(self.dtype, self.size)


class CheckpointWriter:
    """Context manager that owns the temporary directory beside `out`.

    Leaving the block without `commit` (an error, Ctrl-C) removes what was written; the target is untouched until then.

    Parameters
    ----------
    out : path
        Target directory.
    overwrite : bool
        Replace an existing checkpoint; it stays in place until the new one is complete.
    source : path, optional
        Refuse a target that is, contains or lies in this directory, or that one of its links leads into.

    Raises
    ------
    FileExistsError
        If `out` exists and `overwrite` is false.
    ValueError
        If `out` cannot be a target.
    OSError
        If the parent directory is missing or cannot be written.
    """

    def __init__(self, out: str | os.PathLike[str], *, overwrite: bool = False, source: Path | None = None) -> None:
        self.out = Path(out).resolve()
        self.directory: Path
        self.committed = False
        self._offsets: dict[str, tuple[str, int, int]] = {}
        self._streams: dict[str, BinaryIO] = {}
        self._written: set[str] = set()
        self._lock: int | None = None
        self.overwrite = overwrite
        check_target(self.out, overwrite=overwrite, source=source)

    def __enter__(self) -> Self:
        """Make the temporary directory."""
        remove_abandoned(self.out)
        self.directory, self._lock = make_hidden(self.out)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the temporary directory, or after an exchange what was replaced."""
        try:
            self._close()
            shutil.rmtree(self.directory, ignore_errors=True)
        except BaseException as interruption:
            error = interruption
            raise
        finally:
            if self.committed and error is not None:
                error.add_note(f"{self.out} is complete")
            if self._lock is not None:
                os.close(self._lock)

    def layout(self, entries: Iterable[Entry], *, max_shard_size: int) -> None:
        """Write the headers, the index when there are several shards, and reserve the space of every tensor.

        A disk that is too small fails here, before any work.
        """
        shards: list[list[Entry]] = [[]]
        filled = 0
        for entry in entries:
            if shards[-1] and filled + entry.nbytes > max_shard_size:
                shards.append([])
                filled = 0
            shards[-1].append(entry)
            filled += entry.nbytes
        names = ["model.safetensors"]
        if len(shards) > 1:
            names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
            weight_map = {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard}
            total = sum(entry.nbytes for shard in shards for entry in shard)
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            self.write_file("model.safetensors.index.json", json.dumps(index, indent=2) + "\n")
        with self._named():
            for name, shard in zip(names, shards, strict=True):
                self._start_shard(name, shard)

    def _start_shard(self, name: str, shard: list[Entry]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        # Wide types first, as safetensors itself does: every tensor is then aligned to its element.
        ordered = sorted(shard, key=lambda e: -nbytes(e.dtype, 8))
        end = 0
        for entry in ordered:
            header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [end, end + entry.nbytes]}
            end += entry.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        stream = (self.directory / name).open("w+b", buffering=0)
        self._streams[name] = stream
        stream.write(len(text).to_bytes(8, "little") + text)
        start = 8 + len(text)
        if end:
            reserve(stream.fileno(), start + end)
        for entry in ordered:
            self._offsets[entry.name] = (name, start + header[entry.name]["data_offsets"][0], entry.nbytes)

    def write(self, name: str, values: npt.NDArray[Any]) -> None:
        """Write one whole tensor, given in its stored type."""
        raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        self._put(name, 0, raw)
        self._finish(name, raw.size)

    def copy(self, name: str, info: TensorInfo) -> None:
        """Copy one tensor of the source unchanged, in blocks."""
        for start, block in iter_raw(info):
            self._put(name, start, block)
        self._finish(name, info.nbytes)

    def _put(self, name: str, start: int, block: npt.NDArray[np.uint8]) -> None:
        file, offset, size = self._offsets[name]
        if start + block.size > size:
            raise ValueError(f"tensor {name!r} must take {size} bytes, got {start + block.size}")
        view = memoryview(block.data)
        stream = self._streams[file]
        with self._named():
            stream.seek(offset + start)
            while view:
                view = view[stream.write(view) :]

    def _finish(self, name: str, size: int) -> None:
        if size != self._offsets[name][2]:
            raise ValueError(f"tensor {name!r} must take {self._offsets[name][2]} bytes, got {size}")
        self._written.add(name)

    def finish_tensors(self) -> None:
        """Close the weight files.

        Raises
        ------
        RuntimeError
            If a tensor of the layout was not written.
        """
        missing = sorted(self._offsets.keys() - self._written)
        if missing:
            raise RuntimeError(f"tensors were laid out but not written: {', '.join(missing[:5])}")
        self._close()

    def write_file(self, name: str, text: str) -> None:
        """Write a text file into the directory."""
        with self._named():
            (self.directory / name).write_text(text, encoding="utf-8")

    def copy_file(self, source: Path, place: PurePosixPath) -> None:
        """Copy a file (content only: a link becomes a file) to its relative place."""
        target = self.directory / place
        with source.open("rb") as content, self._named():
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as stream:
                shutil.copyfileobj(content, stream, 1 << 20)

    def commit(self) -> None:
        """Flush everything to disk and let the target appear."""
        for root, _, names in os.walk(self.directory):
            for path in [Path(root) / name for name in names] + [Path(root)]:
                sync(path)
        if self.overwrite and self.out.exists():
            check_replaceable(self.out)  # it was checked before hours of work
            exchange(self.directory, self.out)  # the old content is now in self.directory and goes with it
        else:
            try:
                os.rename(self.directory, self.out)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise FileExistsError(
                        errno.EEXIST, "out appeared while it was being written", str(self.out)
                    ) from error
                raise
        self.committed = True
        sync(self.out.parent)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Let an error of the disk name the target and not the hidden directory."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, f"out cannot be written: {error.strerror}", str(self.out)) from error

    def _close(self) -> None:
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()


def parse_size(size: int | str) -> int:
    """Return bytes for ``5_000_000``, ``"5GB"``, ``"500MiB"``."""
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    match = re.fullmatch(r"([0-9.]+)\s*([KMGT]?)(i?)B?", str(size).strip(), flags=re.IGNORECASE)
    try:
        value = (
            float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2].upper() or " ") if match else 0.0
        )
    except ValueError:
        value = 0.0
    if value < 1:
        raise ValueError(f"max_shard_size must be a positive size such as '5GB' or 500000, got {size!r}")
    return int(value)
