"""The report as plain text for a terminal of any width."""

from __future__ import annotations

import re
import shutil
import statistics
from collections.abc import Sequence

from tensorfact.compress._grouping import (
    Kind,
    common_prefix,
    format_bytes,
    format_count,
    format_metric,
    format_rank,
    format_speed,
    full_rank,
    group_dense,
    group_layers,
    is_slower,
    mean_error,
    printable,
    title,
    true_width,
)
from tensorfact.compress._report_blocks import learned
from tensorfact.compress.records import LayerRecord, Report

__all__ = ["render_terminal"]

_MOST_ROWS = 60
_HEADERS = ("layer", "shape", "rank", "error", "bytes", "latency, ms")
_DROP_FIRST = (5, 1, 4)  # columns to give up, in this order, where even shortened names leave no room
_GAP = "  "


def render_terminal(report: Report, *, width: int | None = None, condensed: bool | None = None) -> str:
    """Return the report as a plain-text table.

    Parameters
    ----------
    report : Report
        What `compress` or `estimate` returned, or `Report.read` read.
    width : int, optional
        Columns of the terminal. By default those of the terminal at hand, 100 where there is none.
    condensed : bool, optional
        One row for each kind of module instead of one for each layer. By default beyond 60 layers.

    Returns
    -------
    str
        Lines joined by newlines, none longer than `width` (at least 40), ASCII apart from the names themselves.
    """
    if width is None:
        width = shutil.get_terminal_size((100, 24)).columns
    width = max(40, width)
    if condensed is None:
        condensed = len(report.layers) > _MOST_ROWS
    lines = _head(report)
    if report.layers:
        rows = _kind_rows(report.layers) if condensed else _layer_rows(report.layers)
        prefix = common_prefix(layer.name for layer in report.layers)
        if prefix:
            lines.append(f"names without the leading {prefix!r}")
        lines += ["", *_table(rows, _totals(report), width)]
    else:
        lines += ["", "no weight was compressed", *(_GAP.join(row).rstrip() for row in _totals(report))]
    lines += [
        "",
        *_dense_lines(report),
        *learned(report),
        *_measured(report),
        *(f"note: {note}" for note in report.notes),
    ]
    return "\n".join(piece for line in lines for piece in _wrap(printable(line), width)).rstrip() + "\n"


def _head(report: Report) -> list[str]:
    what = "estimate, nothing was written" if report.dry_run else report.output or ""
    head = [title(report), report.architecture or report.model_type, f"method {report.method}"]
    lines = [", ".join(part for part in head if part) + f", param_ratio {report.param_ratio:g}"]
    return lines + ([what if report.dry_run else f"written to {what}"] if what else [])


def _layer_rows(layers: Sequence[LayerRecord]) -> list[tuple[str, ...]]:
    skip = len(common_prefix(layer.name for layer in layers))
    rows: list[tuple[str, ...]] = []
    for layer in layers:
        m, n = layer.shape
        rank = f"{format_rank(layer)}/{full_rank(layer)}"
        error = "-" if layer.error is None else f"{layer.error:.4f}"
        sizes = f"{format_bytes(layer.bytes_before)} -> {format_bytes(layer.bytes_after)}"
        rows.append((layer.name[skip:], f"{m} x {n}", rank, error, sizes, _times([layer])))
    return rows


def _kind_rows(layers: Sequence[LayerRecord]) -> list[tuple[str, ...]]:
    return [_kind_row(kind) for kind in group_layers(layers)]


def _kind_row(kind: Kind) -> tuple[str, ...]:
    errors = [layer.error for layer in kind.layers if layer.error is not None]
    span = f"{min(errors):.3f}-{max(errors):.3f}" if errors else "-"
    before, after = (sum(getattr(layer, key) for layer in kind.layers) for key in ("bytes_before", "bytes_after"))
    name = f"{kind.name} ({len(kind.layers)})"
    full = full_rank(kind.layers[0])
    sizes = f"{format_bytes(before)} -> {format_bytes(after)}"
    return name, kind.shapes, f"{kind.ranks}/{full}", span, sizes, _times(kind.layers)


def _times(layers: Sequence[LayerRecord]) -> str:
    """Latency of one layer, the median of several, after a mark where that is no gain."""
    before = [layer.latency_before_ms for layer in layers if layer.latency_before_ms is not None]
    after = [layer.latency_after_ms for layer in layers if layer.latency_after_ms is not None]
    if not before or not after:
        return ""
    slower = sum(map(is_slower, layers))
    mark = "" if not slower else "slower: " if len(layers) == 1 else f"{slower} slower: "
    return f"{mark}{statistics.median(before):.3f} -> {statistics.median(after):.3f}"


def _totals(report: Report) -> list[tuple[str, ...]]:
    before, after = (sum(getattr(layer, key) for layer in report.layers) for key in ("bytes_before", "bytes_after"))
    mean = mean_error(report.layers)
    return [
        (
            f"{len(report.layers)} weights",
            "",
            "",
            "" if mean is None else f"mean {mean:.4f}",
            f"{format_bytes(before)} -> {format_bytes(after)}",
            "",
        ),
        (
            "checkpoint",
            "",
            "",
            "",
            f"{format_bytes(report.bytes_before)} -> {format_bytes(report.bytes_after)}",
            "",
        ),
    ]


def _table(rows: list[tuple[str, ...]], totals: list[tuple[str, ...]], width: int) -> list[str]:
    columns = [i for i in range(len(_HEADERS)) if i < 5 or any(row[i] for row in rows)]
    everything = [_HEADERS, *rows, *totals]
    widths = {i: true_width(everything, i) for i in columns}

    def rest() -> int:
        return sum(widths[i] + len(_GAP) for i in columns if i)

    for column in _DROP_FIRST:
        if column in columns and width - rest() < min(widths[0], 20):
            columns.remove(column)
    widths[0] = max(12, min(widths[0], width - rest()))
    rule = "-" * min(width, widths[0] + rest())

    def line(row: Sequence[str]) -> str:
        cells = [shorten(row[0], widths[0]).ljust(widths[0])]
        cells += [row[i].rjust(widths[i]) for i in columns if i]
        return _GAP.join(cells).rstrip()

    return [line(_HEADERS), rule, *map(line, rows), rule, *map(line, totals)]


def shorten(name: str, width: int) -> str:
    """Cut `name` to `width`: its end says the role of the layer, a number at its start the block; both stay."""
    if len(name) <= width:
        return name
    block = re.match(r"\d+\.", name)
    head = block[0] if block and len(block[0]) + 6 <= width else ""
    return f"{head}..{name[len(name) - max(1, width - 2 - len(head)) :]}"[:width]


def _dense_lines(report: Report) -> list[str]:
    lines = [
        f"kept: {report.achieved_ratio:.1%} of the {report.targeted_before:,} targeted parameters, "
        f"{report.total_ratio:.1%} of all {report.params_before:,}; "
        f"{format_bytes(report.bytes_before)} -> {format_bytes(report.bytes_after)}"
    ]
    for reason, records in group_dense(report.dense).items():
        size = format_bytes(sum(record.bytes for record in records))
        names = [record.name for record in records[:3]] + (["..."] if len(records) > 3 else [])
        lines.append(f"left dense, {reason}: {len(records)} ({size}): {', '.join(names)}")
    return lines


def _measured(report: Report) -> list[str]:
    lines = []
    if report.fidelity is not None:
        values = [" ".join(format_metric(name, value)) for name, value in report.fidelity.metrics.items()]
        lines.append(f"outputs: {', '.join(values)} ({report.fidelity.output}; {report.fidelity.input})")
    if report.latency is not None:
        time = report.latency
        speed = format_speed(time.before_ms, time.after_ms)
        lines.append(
            f"latency: {time.before_ms:.1f} -> {time.after_ms:.1f} ms a forward pass, {speed} "
            f"({time.input}; {format_count(time.threads, 'thread')}, median of {time.repeats} interleaved runs)"
        )
        if time.layer_input:
            lines.append(f"latency of single layers: {time.layer_input}")
    slower = [layer.name for layer in report.layers if is_slower(layer)]
    if slower:
        names = ", ".join(slower[:3] + (["..."] if len(slower) > 3 else []))
        lines.append(
            f"slower than dense when timed alone: {len(slower)} of {len(report.layers)}: {names}; "
            "leave them dense with a larger min_saving or exclude_modules"
        )
    phases = ", ".join(f"{name} {value:.1f} s" for name, value in report.seconds.items())
    memory = "" if report.peak_memory_bytes is None else f"; peak memory {format_bytes(report.peak_memory_bytes)}"
    if phases:
        lines.append(f"time: {phases}; {report.executor}{memory}")
    return lines


def _wrap(line: str, width: int) -> list[str]:
    """Break a sentence at spaces, later pieces indented; rows of the table fit already and pass untouched."""
    pieces = []
    while len(line) > width:
        cut = line.rfind(" ", 4, width + 1)
        cut = width if cut < 5 else cut
        pieces.append(line[:cut].rstrip())
        line = "    " + line[cut:].lstrip()
    return [*pieces, line]
