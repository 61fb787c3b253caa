"""The four charts of one kind of module: spectra with the chosen ranks, bytes, errors, latency."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tensorfact.compress._charts import Frame, depth_class, linear_ticks, log_ticks
from tensorfact.compress._grouping import (
    Kind,
    break_even,
    format_bytes,
    format_rank,
    format_speed,
    full_rank,
    is_slower,
    largest_rank,
)
from tensorfact.compress.records import LayerRecord, Spectrum

__all__ = ["errors", "latency", "lowest", "spectra", "stored_bytes"]

_MOST_CURVES = 48
_FLOOR = 1e-6  # a spectrum below this is round-off; it would stretch every scale


def lowest(layers: Sequence[LayerRecord]) -> float:
    """Bottom of the scale of the spectra: above it are all chosen ranks, not the steep ends of the curves."""
    values = [_at(layer.spectrum, largest_rank(layer), _FLOOR) for layer in layers if layer.spectrum]
    values += [_at(layer.spectrum, round(0.85 * layer.spectrum[-1][0]), _FLOOR) for layer in layers if layer.spectrum]
    return max(_FLOOR, 0.8 * min(values, default=0.1))


def spectra(kind: Kind, low: float) -> str:
    drawable = [(i, layer) for i, layer in zip(kind.positions, kind.layers, strict=True) if len(layer.spectrum) > 1]
    places, layers = [i for i, _ in drawable], [layer for _, layer in drawable]
    if not layers:
        return ""
    shown = range(len(layers))
    if len(layers) > _MOST_CURVES:
        shown = [round(i * (len(layers) - 1) / (_MOST_CURVES - 1)) for i in range(_MOST_CURVES)]  # type: ignore[assignment]
    size = max(full_rank(layer) for layer in layers)
    ticks = log_ticks(low)
    frame = Frame(x=(1, size), y=(min(low, ticks[0]), 1.0), log_y=True)
    frame.y_axis(ticks)
    frame.x_axis([(1, "1"), ((1 + size) / 2, str(size // 2)), (size, str(size))])
    even = break_even(layers[0])
    if even < size:
        frame.rule(even, "even", f"break-even: at most rank {even} saves anything")
    marks = []
    for i in shown:
        layer, css = layers[i], _colour(kind, places[i])
        inside = sum(
            value >= low for _, value in layer.spectrum
        )  # up to the first point below the scale, which is clipped
        points = [(float(index), value) for index, value in layer.spectrum[: inside + 1]]
        frame.line(points, f"ln {css}", f"{layer.name}: rank {format_rank(layer)}")
        marks.append((largest_rank(layer), _at(layer.spectrum, largest_rank(layer), low), f"pt {css}", layer))
    for rank, value, css, layer in marks:  # after the lines, so that no line hides one
        frame.dot(rank, value, css, f"{layer.name}: rank {format_rank(layer)}, singular value {value:.3g} of the first")
    return frame.svg(f"singular values of {len(layers)} weights of kind {kind.name}")


def _at(spectrum: Spectrum, index: int, low: float) -> float:
    """Value of a sampled spectrum at `index`, between samples on a straight line in the logarithm."""
    before, after = spectrum[0], spectrum[-1]
    for point in spectrum:
        if point[0] <= index:
            before = point
        if point[0] >= index:
            after = point
            break
    if after[0] <= before[0]:
        return max(before[1], low)
    share = (index - before[0]) / (after[0] - before[0])
    return math.exp((1 - share) * math.log(max(before[1], low)) + share * math.log(max(after[1], low)))


def _span(kind: Kind) -> tuple[int, int]:
    places = (*kind.positions, *kind.dense_positions)
    return min(places), max(places)


def _colour(kind: Kind, position: int) -> str:
    first, last = _span(kind)
    return depth_class(position - first, last - first + 1)


def _blocks(kind: Kind, frame: Frame) -> None:
    first, last = _span(kind)
    frame.x_axis([(first, str(first)), (last, str(last))] if last > first else [(first, "")])


def stored_bytes(kind: Kind) -> str:
    top = max(max(layer.bytes_before, layer.bytes_after) for layer in kind.layers)
    top = max([top, *(record.bytes for record in kind.dense)])
    unit, divisor = next(
        ((u, d) for u, d in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)) if top >= d), ("B", 1)
    )
    ticks = linear_ticks(top / divisor)
    frame = _by_depth(kind, ticks[-1])
    frame.y_axis(ticks, lambda tick: f"{tick:g}" if tick < ticks[-1] else f"{tick:g} {unit}")
    span = 0.72 if _span(kind)[1] > _span(kind)[0] else 0.3
    for i, layer in zip(kind.positions, kind.layers, strict=True):
        tip = f"{layer.name}: {format_bytes(layer.bytes_before)} → {format_bytes(layer.bytes_after)}"
        frame.bar(i, span, layer.bytes_before / divisor, "bb", tip)
        frame.bar(i, span, layer.bytes_after / divisor, "ba", tip)
    for place, record in zip(kind.dense_positions, kind.dense, strict=True):
        tip = f"{record.name}: {format_bytes(record.bytes)}, left dense: {record.reason}"
        frame.bar(place, span, record.bytes / divisor, "bd", tip)
    _blocks(kind, frame)
    return frame.svg(f"bytes before and after of {kind.name}")


def errors(kind: Kind, top: float) -> str:
    known = [(i, layer) for i, layer in zip(kind.positions, kind.layers, strict=True) if layer.error is not None]
    if not known:
        return ""
    ticks = linear_ticks(top)
    frame = _by_depth(kind, ticks[-1])
    frame.y_axis(ticks)
    for i, layer in known:
        if layer.optimal_error is not None:
            frame.dot(i, layer.optimal_error, "opt", f"{layer.name}: optimal {layer.optimal_error:.4f}", 4.4)
    for i, layer in known:
        tip = f"{layer.name}: error {layer.error:.4f} at rank {format_rank(layer)}"
        frame.dot(i, layer.error or 0.0, f"pt {_colour(kind, i)}", tip)
    _blocks(kind, frame)
    return frame.svg(f"relative error of {kind.name}")


def latency(kind: Kind) -> str:
    known = [
        (i, layer, layer.latency_before_ms, layer.latency_after_ms)
        for i, layer in zip(kind.positions, kind.layers, strict=True)
        if layer.latency_before_ms is not None and layer.latency_after_ms is not None
    ]
    if not known:
        return ""
    ticks = linear_ticks(max(max(before, after) for _, _, before, after in known))
    frame = _by_depth(kind, ticks[-1])
    frame.y_axis(ticks)
    for i, layer, before, after in known:
        tip = f"{layer.name}: {before:.3f} → {after:.3f} ms, {format_speed(before, after)}"
        frame.line([(i, before), (i, after)], "pair")
        frame.dot(i, before, "pt bb", tip)
        frame.dot(i, after, "pt slow" if is_slower(layer) else "pt ba", tip)
    _blocks(kind, frame)
    return frame.svg(f"latency before and after of {kind.name}")


def _by_depth(kind: Kind, top: float) -> Frame:
    first, last = _span(kind)
    return Frame(x=(first - 0.6, last + 0.6), y=(0.0, top))
