"""The files beside the weights: configuration, copied files, report, and the signed record `tensorfact.json`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from tensorfact.compress._atomic import replace_text
from tensorfact.compress._method import Layer, Method, reading_options
from tensorfact.compress.checkpoint import FOREIGN, INDEX_FILE, Checkpoint
from tensorfact.compress.records import Report
from tensorfact.compress.writer import CheckpointWriter

__all__ = [
    "FORMAT_VERSION",
    "OWN_FILES",
    "describe",
    "digest_of",
    "not_copied",
    "options",
    "other_files",
    "update_report",
    "versions",
    "write_files",
    "write_record",
]

FORMAT_VERSION = 1
OWN_FILES = ("tensorfact.json", "report.json", "report.html", "modeling_tensorfact.py")


def write_files(
    writer: CheckpointWriter,
    checkpoint: Checkpoint,
    layers: Iterable[Layer],
    report: Report,
    method: Method,
    units: Mapping[str, Any] | None = None,
) -> None:
    """Write ``config.json``, the shim and the copied files: after this the directory can be loaded."""
    from tensorfact.compress.huggingface import compressed_config, write_shim

    ranks = {record.name: record.rank for record in report.layers}
    config = compressed_config(checkpoint.config, ranks, method=report.method, units=units)
    layers = list(layers)
    found = reading_options(method)
    if found:
        config["tensorfact"]["options"] = found
    types = {layer.name: layer.info.dtype for layer in layers if layer.name in ranks and _typeless(method, layer, ranks)}
    if types:
        config["tensorfact"]["types"] = types  # what to-dense makes of arrays that have none of the weight's type
    transposed = [layer.name for layer in layers if layer.kind == "conv1d" and layer.name in ranks]
    if transposed:
        config["tensorfact"]["transposed"] = transposed  # to-dense needs no model to put them back
    copy_files(writer, checkpoint, skip=("config.json", *OWN_FILES))
    writer.write_file("config.json", json.dumps(config, indent=2) + "\n")
    write_shim(writer.directory)


def _typeless(method: Method, layer: Layer, ranks: Mapping[str, Any]) -> bool:
    return set(method.layout(layer.shape, ranks[layer.name])) <= set(method.stored_types)


def copy_files(writer: CheckpointWriter, checkpoint: Checkpoint, *, skip: tuple[str, ...]) -> None:
    """Copy every file beside the weights, but the root files in `skip`."""
    for place in other_files(checkpoint)[0]:
        if str(place) not in skip:
            writer.copy_file(checkpoint.directory / place, place)


def other_files(checkpoint: Checkpoint) -> tuple[list[PurePosixPath], list[PurePosixPath]]:
    """Return ``(copied, skipped)``: files beside the weights, relative to the directory.

    Skipped are copies of the dense weights in other formats, which would be stale and as large as the source, what
    a trainer left, and links that lead out of the directory. Hidden files are in neither list.
    """
    copied: list[PurePosixPath] = []
    skipped: list[PurePosixPath] = []
    roots = _own_roots(checkpoint.directory)
    # Links to directories are not followed, for they may be loops.
    for root, folders, names in os.walk(checkpoint.directory):
        relative = PurePosixPath(Path(root).relative_to(checkpoint.directory).as_posix())
        left_out = [f for f in folders if _is_left_out(relative, f)]
        skipped += [relative / folder for folder in sorted(left_out)]
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in left_out)
        for name in sorted(n for n in names if not n.startswith(".") and (Path(root) / n).is_file()):
            file = Path(root) / name
            if file in checkpoint.weight_files or (root == str(checkpoint.directory) and name == INDEX_FILE):
                continue
            inside = any(base in Path(os.path.realpath(file)).parents for base in roots)
            (copied if inside and not _is_stale(relative, name, names) else skipped).append(relative / name)
    return copied, skipped


def _own_roots(directory: Path) -> list[Path]:
    """Directories that files of a checkpoint may really lie in: its own, and the blobs of its Hub cache."""
    own = directory.resolve()
    caches = [place.parents[1] / "blobs" for place in (own, *own.parents) if place.parent.name == "snapshots"]
    return [own, *caches]


def _is_left_out(relative: PurePosixPath, folder: str) -> bool:
    exports = not relative.parts and folder in ("onnx", "openvino", "original", "coreml")
    return exports or re.fullmatch(r"checkpoint-\d+", folder) is not None


def _is_stale(relative: PurePosixPath, name: str, beside: list[str]) -> bool:
    """Whether a file holds the dense weights in some format, or the state of a trainer."""
    if not relative.parts and name.endswith((".safetensors", ".index.json")):
        return True
    # A module of sentence-transformers may have its weights in no other format.
    only = (
        relative.parts and name == "pytorch_model.bin" and "config.json" in beside and "model.safetensors" not in beside
    )
    return not only and name.endswith((*FOREIGN, ".onnx", ".onnx_data"))


def not_copied(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return a remark that names the files of the source that its compressed version lacks, if any."""
    replaced = [name for name in OWN_FILES if (checkpoint.directory / name).is_file()]
    names = [*replaced, *(str(place) for place in other_files(checkpoint)[1] if str(place) != "config.json")]
    if not names:
        return ()
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return (f"not copied from the source: {', '.join(names[:10])}{more}",)


def update_report(directory: Path, report: Report) -> None:
    """Replace the report of a finished checkpoint, and its digests in the record."""
    from tensorfact.compress.report_html import render_html

    record = json.loads((directory / "tensorfact.json").read_bytes())
    for name, text in (("report.json", report.to_json()), ("report.html", render_html(report))):
        replace_text(directory / name, text)
        record["files"][name] = describe(directory / name)
    replace_text(directory / "tensorfact.json", _signed(record))


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
    writer.write_file("tensorfact.json", _signed(content))


def _files(directory: Path) -> list[PurePosixPath]:
    return sorted(PurePosixPath(p.relative_to(directory).as_posix()) for p in directory.rglob("*") if p.is_file())


def _signed(record: Mapping[str, Any]) -> str:
    return json.dumps({**record, "digest": digest_of(record)}, indent=1) + "\n"


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
