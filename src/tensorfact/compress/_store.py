"""The files beside the weights: configuration, copied files, report, and the signed record `tensorfact.json`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from tensorfact.compress._method import Layer, Method
from tensorfact.compress.checkpoint import Checkpoint
from tensorfact.compress.records import Report
from tensorfact.compress.writer import CheckpointWriter

__all__ = ["FORMAT_VERSION", "OWN_FILES", "describe", "digest_of", "options", "versions", "write_files", "write_record"]

FORMAT_VERSION = 1
OWN_FILES = ("tensorfact.json", "report.json", "report.html", "modeling_tensorfact.py")


def write_files(writer: CheckpointWriter, checkpoint: Checkpoint, layers: Iterable[Layer], report: Report) -> None:
    """Write ``config.json``, the shim and the copied files: after this the directory can be loaded."""
    from tensorfact.compress.huggingface import compressed_config, write_shim

    ranks = {record.name: record.rank for record in report.layers}
    config = compressed_config(checkpoint.config, ranks, method=report.method)  # type: ignore[arg-type]
    transposed = [layer.name for layer in layers if layer.kind == "conv1d" and layer.name in ranks]
    if transposed:
        config["tensorfact"]["transposed"] = transposed  # to-dense needs no model to put them back
    copy_files(writer, checkpoint, skip=("config.json", *OWN_FILES))
    writer.write_file("config.json", json.dumps(config, indent=2) + "\n")
    write_shim(writer.directory)


def copy_files(writer: CheckpointWriter, checkpoint: Checkpoint, *, skip: tuple[str, ...]) -> None:
    """Copy every file beside the weights, but the root files in `skip`."""
    for place in checkpoint.other_files()[0]:
        if str(place) not in skip:
            writer.copy_file(checkpoint.directory / place, place)


def write_record(
    writer: CheckpointWriter, checkpoint: Checkpoint, report: Report, source_files: Mapping[str, dict[str, Any]]
) -> None:
    """Write ``report.json``, ``report.html`` and, last, ``tensorfact.json`` with the digest of every other file."""
    from tensorfact.compress.report_html import render_html

    writer.write_file("report.json", report.to_json())
    writer.write_file("report.html", render_html(report))
    fields = (
        "name",
        "kind",
        "shape",
        "rank",
        "error",
        "path",
        "params_before",
        "params_after",
        "bytes_before",
        "bytes_after",
    )
    content = {
        "format_version": FORMAT_VERSION,
        "tensorfact_version": version("tensorfact"),
        "method": report.method,
        "options": {**report.options, "param_ratio": report.param_ratio},
        "source": {"files": dict(source_files)},
        "layers": [{name: getattr(record, name) for name in fields} for record in report.layers],
        "dense": [{"name": r.name, "reason": r.reason, "shape": r.shape} for r in report.dense],
        "files": {str(place): describe(writer.directory / place) for place in _files(writer.directory)},
    }
    content = json.loads(json.dumps(content, allow_nan=False))
    writer.write_file("tensorfact.json", json.dumps({**content, "digest": digest_of(content)}, indent=1) + "\n")


def _files(directory: Path) -> list[PurePosixPath]:
    return sorted(PurePosixPath(p.relative_to(directory).as_posix()) for p in directory.rglob("*") if p.is_file())


def digest_of(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the canonical JSON of `content`, its own ``digest`` left out."""
    rest = {name: value for name, value in content.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def describe(file: Path) -> dict[str, Any]:
    """Return SHA-256 and size of a file."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"sha256": digest, "bytes": stream.tell()}


def options(method: Method) -> dict[str, Any]:
    """Return the options of a method as JSON values."""
    fields = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}  # type: ignore[arg-type]
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in fields.items()}


def versions() -> dict[str, str]:
    """Return the versions that decide the bits."""
    return {name: version(name) for name in ("tensorfact", "numpy", "scipy")}
