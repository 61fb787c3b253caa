"""The report as one self-contained HTML page: inline style, inline SVG, nothing fetched, no script."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape

from tensorfact.compress import _page, _report_charts
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
    title,
)
from tensorfact.compress._report_blocks import blocks_section
from tensorfact.compress.records import LayerRecord, Report

__all__ = ["render_html"]

_OPEN_ROWS = 60


def render_html(report: Report) -> str:
    """Return the report as one HTML document.

    Parameters
    ----------
    report : Report
        What `compress` or `estimate` returned, or `Report.read` read. Whatever was not measured is left out.

    Returns
    -------
    str
        A page that needs no network, no script and no other file; light and dark as the reader's system asks.
    """
    kinds = group_layers(report.layers, report.dense)
    parts = [_head(report), _page.tiles(_tiles(report)), _sizes(report, kinds)]
    if kinds:
        parts += [_kinds(report, kinds), _layer_table(report)]
    parts += [blocks_section(report), _dense(report), _how(report)]
    return _page.page(f"{title(report)}: compression report", "\n".join(parts))


def _head(report: Report) -> str:
    verb = "would keep" if report.dry_run else "keeps"
    words = (
        f"<b>{len(report.layers)} weights</b> of {escape(report.architecture or report.model_type or 'the model')}, "
        f"method <b>{escape(report.method)}</b>: {verb} <b>{report.achieved_ratio:.1%}</b> of the parameters it "
        f"targets (asked for {report.param_ratio:.0%}) and {report.total_ratio:.1%} of the whole checkpoint."
    )
    if report.dry_run:
        words += " An estimate: nothing was written, errors are predictions."
    made = ", ".join(
        part for part in (f"tensorfact {report.versions.get('tensorfact', '')}".strip(), report.created[:10]) if part
    )
    return f'<h1>{escape(title(report))}</h1><p class="lead">{words}<br/><span class="note">{escape(made)}</span></p>'


def _tiles(report: Report) -> list[str]:
    tiles = [
        _page.tile(
            "checkpoint",
            format_bytes(report.bytes_after),
            f"of {format_bytes(report.bytes_before)}, {_share(report.bytes_after, report.bytes_before)} of the bytes",
            share=_quotient(report.bytes_after, report.bytes_before),
        ),
        _page.tile(
            "targeted weights",
            f"{report.achieved_ratio:.1%}",
            f"{report.targeted_after:,} of {report.targeted_before:,} parameters",
            unit="kept",
            share=report.achieved_ratio,
        ),
    ]
    errors = [layer.error for layer in report.layers if layer.error is not None]
    if errors:
        span = f"{min(errors):.3f} to {max(errors):.3f}, relative Frobenius norm"
        tiles.append(_page.tile("mean error of weights", f"{sum(errors) / len(errors):.3f}", span))
    if report.fidelity is not None and report.fidelity.metrics:
        shown = [format_metric(name, value) for name, value in _by_importance(report.fidelity.metrics)]
        others = "; ".join(f"{label} {value}" for label, value in shown[1:3])
        tiles.append(
            _page.tile(shown[0][0], shown[0][1], f"outputs compared; {others}" if others else "outputs compared")
        )
    if report.latency is not None:
        time = report.latency
        small = f"{time.before_ms:.1f} ms before, {time.after_ms:.1f} ms after"
        words = format_speed(time.before_ms, time.after_ms).split(" ", 1)
        tiles.append(_page.tile("one forward pass", words[0], small, unit=" ".join(words[1:])))
    if "total" in report.seconds:
        memory = "" if report.peak_memory_bytes is None else f"peak memory {format_bytes(report.peak_memory_bytes)}, "
        tiles.append(_page.tile("time", f"{report.seconds['total']:.1f} s", f"{memory}{report.executor}"))
    return tiles


def _by_importance(metrics: dict[str, float]) -> list[tuple[str, float]]:
    first = ("top1_agreement", "kl_mean", "sentence_cosine_mean", "cosine_mean", "relative_error")
    return sorted(metrics.items(), key=lambda item: first.index(item[0]) if item[0] in first else len(first))


def _sizes(report: Report, kinds: Sequence[Kind]) -> str:
    """Paired bars, one row a kind of module, then what stays dense: where the bytes were and where they are."""
    rows = []
    for kind in kinds:
        before, after = (sum(getattr(layer, key) for layer in kind.layers) for key in ("bytes_before", "bytes_after"))
        rows.append((f"{kind.name} ({len(kind.layers)})", before, after))
    dense = [(reason, sum(item.bytes for item in items)) for reason, items in group_dense(report.dense).items()]
    listed = sum(row[1] for row in rows) + sum(count for _, count in dense)
    rest = report.bytes_before - listed
    if rest > 0:
        dense.append(("vectors: biases, norms", rest))
    widest = max([row[1] for row in rows] + [row[2] for row in rows] + [count for _, count in dense], default=0) or 1
    lines = []
    for name, before, after in rows:
        pair = (("b", before), ("a", after))
        bars = "".join(f'<i class="{css}" style="width:{100 * count / widest:.2f}%"></i>' for css, count in pair)
        lines.append((name, bars, f"{format_bytes(before)} → {format_bytes(after)} ({_share(after, before)})"))
    for name, count in dense:
        bars = f'<i class="d" style="width:{100 * count / widest:.2f}%"></i>'
        lines.append((f"dense: {name}", bars, format_bytes(count)))
    body = "".join(
        f'<span class="n">{escape(name)}</span><span class="two">{bars}</span><span class="q">{escape(size)}</span>'
        for name, bars, size in lines
    )
    legend = (
        '<div class="legend"><span><i class="sw b"></i>before</span><span><i class="sw a"></i>after</span>'
        "<span>hatched: left as it was</span></div>"
    )
    return _page.section("Where the bytes are", "", f'<div class="card"><div class="sizes">{body}</div>{legend}</div>')


def _kinds(report: Report, kinds: Sequence[Kind]) -> str:
    low = _report_charts.lowest(report.layers)
    errors = [layer.error for layer in report.layers if layer.error is not None]
    error_top = max([*errors, *(layer.optimal_error or 0.0 for layer in report.layers)], default=1.0)
    cards = []
    for kind in kinds:
        known = mean_error(kind.layers)
        about = [
            f"{format_count(len(kind.layers), 'weight')}, {kind.shapes.replace('x', _page.TIMES)}",
            f"rank {kind.ranks.replace('-', ' to ')} of {full_rank(kind.layers[0])}",
            "" if known is None else f"mean error {known:.3f}",
            f"{len(kind.dense)} left dense" if kind.dense else "",
            f"{slower} slower than dense" if (slower := sum(map(is_slower, kind.layers))) else "",
        ]
        header = f"<h3>{escape(kind.name)}</h3>" + "".join(f"<span>{escape(text)}</span>" for text in about if text)
        charts = [
            ("singular values σᵢ / σ₁, rank marked", _report_charts.spectra(kind, low)),
            ("stored bytes", _report_charts.stored_bytes(kind)),
            ("relative error", _report_charts.errors(kind, error_top)),
            ("latency of one layer, ms", _report_charts.latency(kind)),
        ]
        figures = "".join(f"<figure><figcaption>{cap}</figcaption>{svg}</figure>" for cap, svg in charts if svg)
        cards.append(f'<div class="card kind"><header>{header}</header><div class="charts">{figures}</div></div>')
    legend = (
        '<div class="legend"><span><i class="ramp"></i>first to last block</span>'
        '<span><i class="sw r"></i>chosen rank; achieved error; after</span>'
        '<span><i class="sw o"></i>smallest error possible at that rank</span>'
        '<span><i class="sw b"></i>before</span><span><i class="sw d"></i>left dense</span>'
        '<span><i class="sw s"></i>after, slower than dense</span>'
        '<span><i class="sw dash"></i>break-even: above this rank nothing is saved</span></div>'
    )
    text = (
        "One row for each kind of module, its layers from the first block to the last. Spectra and errors have one "
        "scale on the whole page; bytes and latency have their own in every row. Point at a mark for its layer."
    )
    if report.latency is not None and report.latency.layer_input:
        text += f" Latency of single layers: {escape(report.latency.layer_input)}."
    return _page.section("Layer by layer", text, legend + "".join(cards))


def _layer_table(report: Report) -> str:
    prefix = common_prefix(layer.name for layer in report.layers)
    headers = (
        "layer",
        "shape",
        "rank",
        "error",
        "optimal",
        "bytes before",
        "after",
        "kept",
        "ms before",
        "after",
        "algorithm",
        "notes",
    )
    body = _page.table(headers, (_row(layer, len(prefix)) for layer in report.layers), left=(10,), wrap=(11,))
    state = " open" if len(report.layers) <= _OPEN_ROWS else ""
    text = f"Names without the leading <b>{escape(prefix)}</b>" if prefix else ""
    summary = f"<summary>All {len(report.layers)} layers</summary>"
    return _page.section("Table of layers", text, f'<details class="card"{state}>{summary}{body}</details>')


def _row(layer: LayerRecord, skip: int) -> tuple[str, ...]:
    def number(value: float | None, spec: str) -> str:
        return "" if value is None else format(value, spec)

    m, n = layer.shape
    return (
        layer.name[skip:],
        f"{m} {_page.TIMES} {n}",
        f"{format_rank(layer)} / {full_rank(layer)}",
        number(layer.error, ".4f"),
        number(layer.optimal_error, ".4f"),
        format_bytes(layer.bytes_before),
        format_bytes(layer.bytes_after),
        _share(layer.bytes_after, layer.bytes_before),
        number(layer.latency_before_ms, ".3f"),
        number(layer.latency_after_ms, ".3f") + (" slower" if is_slower(layer) else ""),
        layer.path,
        "; ".join(layer.notes),
    )


def _dense(report: Report) -> str:
    if not report.dense:
        return ""
    groups = []
    for reason, records in group_dense(report.dense).items():
        size = format_bytes(sum(record.bytes for record in records))
        rows = ((r.name, f" {_page.TIMES} ".join(map(str, r.shape)), r.dtype, format_bytes(r.bytes)) for r in records)
        table = _page.table(("tensor", "shape", "type", "bytes"), rows)
        state = " open" if len(records) <= 12 else ""
        groups.append(f"<details{state}><summary>{escape(reason)}: {len(records)}, {size}</summary>{table}</details>")
    text = "Tensors of two or more axes that were not compressed, and why. Vectors are never compressed."
    return _page.section("Left dense", text, f'<div class="card">{"".join(groups)}</div>')


def _how(report: Report) -> str:
    items = [
        ("source", report.source),
        ("output", report.output or ("none: estimate" if report.dry_run else "")),
        ("options", ", ".join(f"{key} = {value}" for key, value in report.options.items())),
        ("phases", ", ".join(f"{key} {value:.1f} s" for key, value in report.seconds.items())),
        ("executor", report.executor),
        ("algorithms", _count([layer.path for layer in report.layers])),
        ("versions", ", ".join(f"{key} {value}" for key, value in report.versions.items())),
        ("created", report.created),
    ]
    if report.fidelity is not None:
        values = ", ".join(" ".join(format_metric(name, value)) for name, value in report.fidelity.metrics.items())
        items.append(("outputs", f"{values}; {report.fidelity.output} on {report.fidelity.input}"))
    if report.latency is not None:
        time = report.latency
        words = f"median of {time.repeats} interleaved runs, {format_count(time.threads, 'thread')}; {time.input}"
        items.append(("forward pass", f"{time.before_ms:.2f} ms before, {time.after_ms:.2f} ms after; {words}"))
    speeds = [
        layer.latency_before_ms / layer.latency_after_ms
        for layer in report.layers
        if layer.latency_before_ms and layer.latency_after_ms
    ]
    if speeds:
        slower = sum(map(is_slower, report.layers))
        words = f"median {statistics.median(speeds):.2f} times as fast as dense; {slower} of {len(speeds)} are slower"
        items.append(("single layers", words))
    if report.calibration is not None:
        refinement = report.calibration.refinement
        words = "" if refinement is None else "; ".join(f"{key} {value}" for key, value in refinement.items())
        items.append(("calibration", report.calibration.description))
        items.append(("refinement", words or "none"))
    items += [("note", note) for note in report.notes]
    return _page.section("How this was made", "", f'<div class="card">{_page.facts(items)}</div>')


def _count(names: Sequence[str]) -> str:
    return ", ".join(f"{name} ({names.count(name)})" for name in dict.fromkeys(names) if name)


def _quotient(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def _share(part: float, whole: float) -> str:
    return f"{_quotient(part, whole):.0%}"
