"""Names, kinds and units that the terminal table and the HTML page share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from tensorfact.compress.records import DenseRecord, LayerRecord, Report

__all__ = [
    "Kind",
    "break_even",
    "common_prefix",
    "format_bytes",
    "format_rank",
    "full_rank",
    "group_dense",
    "group_layers",
    "title",
    "true_width",
]


@dataclass(frozen=True, slots=True)
class Kind:
    """Layers that play the same part in every block: their names differ in numbers only.

    `dense` holds the weights of this kind that the budget left as they were. `positions` and `dense_positions` are the
    block numbers, or places in the list where the names do not give one number to each.
    """

    name: str
    layers: tuple[LayerRecord, ...]
    dense: tuple[DenseRecord, ...] = ()
    positions: tuple[int, ...] = ()
    dense_positions: tuple[int, ...] = ()

    @property
    def shapes(self) -> str:
        """Distinct shapes, ``out x in``."""
        seen = list(dict.fromkeys(f"{m} x {n}" for m, n in (layer.shape for layer in self.layers)))
        return seen[0] if len(seen) == 1 else f"{seen[0]}, +{len(seen) - 1} more"

    @property
    def ranks(self) -> str:
        """Smallest to largest rank."""
        ranks = [largest_rank(layer) for layer in self.layers]
        return str(ranks[0]) if min(ranks) == max(ranks) else f"{min(ranks)}-{max(ranks)}"


def largest_rank(layer: LayerRecord) -> int:
    """The rank, or the largest one of a method with several bonds."""
    return layer.rank if isinstance(layer.rank, int) else max(layer.rank, default=0)


def full_rank(layer: LayerRecord) -> int:
    """The rank, or largest bond, at which nothing would be lost."""
    return min(layer.shape) if layer.full_rank is None else layer.full_rank


def break_even(layer: LayerRecord) -> int:
    """The largest rank, or largest bond, at which the layer takes fewer numbers than its weight."""
    m, n = layer.shape
    return (m * n - 1) // (m + n) if layer.break_even is None else layer.break_even


def format_rank(layer: LayerRecord) -> str:
    """Rank as text: one number, or the bonds joined by commas."""
    return str(layer.rank) if isinstance(layer.rank, int) else ",".join(map(str, layer.rank))


def group_layers(layers: Iterable[LayerRecord], dense: Iterable[DenseRecord] = ()) -> tuple[Kind, ...]:
    """Group layers by name with every number as ``*``, in the order of first appearance, without the shared prefix.

    Records of `dense` that count in the budget join the kind that they would have been of.
    """
    groups: dict[str, tuple[list[LayerRecord], list[DenseRecord]]] = {}
    for layer in layers:
        groups.setdefault(_pattern(layer.name), ([], []))[0].append(layer)
    for record in dense:
        if record.targeted and (name := _pattern(record.name.removesuffix(".weight"))) in groups:
            groups[name][1].append(record)
    prefix = len(common_prefix(groups))
    return tuple(_kind(name[prefix:], *members) for name, members in groups.items())


_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def _pattern(name: str) -> str:
    return _NUMBER.sub("*", name)


def _kind(name: str, layers: list[LayerRecord], dense: list[DenseRecord]) -> Kind:
    names = [layer.name for layer in layers] + [record.name for record in dense]
    numbers = [tuple(map(int, _NUMBER.findall(name))) for name in names]
    if {len(found) for found in numbers} == {1} and len(set(numbers)) == len(numbers):
        places = tuple(found[0] for found in numbers)
    else:
        places = tuple(range(len(numbers)))
    return Kind(name, tuple(layers), tuple(dense), places[: len(layers)], places[len(layers) :])


def group_dense(dense: Iterable[DenseRecord]) -> dict[str, list[DenseRecord]]:
    """Dense tensors by reason, most bytes first."""
    groups: dict[str, list[DenseRecord]] = {}
    for record in dense:
        groups.setdefault(record.reason, []).append(record)
    return dict(sorted(groups.items(), key=lambda item: -sum(record.bytes for record in item[1])))


def common_prefix(names: Iterable[str]) -> str:
    """Longest shared run of leading dotted parts, with its final dot; the last part of a name is never in it."""
    parts = [name.split(".")[:-1] for name in names]
    shared = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return ".".join(shared) + "." if shared else ""


def title(report: Report) -> str:
    """Short name of the source model, never its whole path."""
    parts = PurePath(report.source).parts
    # A Hugging Face cache path ends in .../models--owner--name/snapshots/<hash>.
    for part in reversed(parts):
        if part.startswith("models--"):
            return part.split("--")[-1]
    if parts and parts[-1] not in _NAMELESS:
        return parts[-1]
    return PurePath(report.output).name if report.output else report.architecture or report.model_type or "model"


_NAMELESS = frozenset({"/", ".", "model", "models", "checkpoint", "weights", "snapshot"})
"""Directories that say nothing of the model in them; the name of the output does, as a person chose it."""


def format_bytes(count: float) -> str:
    """Three significant digits and a binary unit."""
    value, units = float(count), ("B", "KiB", "MiB", "GiB", "TiB")
    unit = 0
    while value >= 999.5 and unit < len(units) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} B" if unit == 0 else f"{_three_digits(value)} {units[unit]}"


def _three_digits(value: float) -> str:
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def true_width(rows: Sequence[Sequence[str]], column: int) -> int:
    """Width that a column of text needs."""
    return max((len(row[column]) for row in rows), default=0)


METRICS: dict[str, tuple[str, str]] = {
    "cosine_mean": ("cosine of outputs", ".4f"),
    "sentence_cosine_mean": ("cosine of sentences", ".4f"),
    "relative_error": ("relative error", ".4f"),
    "top1_agreement": ("same first choice", ".1%"),
    "kl_mean": ("KL divergence, nats", ".4f"),
    "perplexity_before": ("perplexity before", ".2f"),
    "perplexity_after": ("perplexity after", ".2f"),
}
"""Words and format of the measures that `fidelity.py` takes; others are shown under their own name."""


def format_metric(name: str, value: float) -> tuple[str, str]:
    """Label and value of one measure of fidelity as text."""
    label, spec = METRICS.get(name, (name.replace("_", " "), ".4g"))
    return label, format(value, spec if abs(value) < 1e4 else ".3g")


def mean_error(layers: Iterable[LayerRecord]) -> float | None:
    """Mean of the known errors, None where none is known."""
    known = [layer.error for layer in layers if layer.error is not None]
    return sum(known) / len(known) if known else None


def format_speed(before_ms: float, after_ms: float) -> str:
    """Quotient of two times in words that cannot be read the wrong way round."""
    if not (before_ms > 0 and after_ms > 0):
        return "not measured"
    quotient = before_ms / after_ms
    if 0.97 < quotient < 1.03:
        return "no change"
    return f"{quotient:.2f}x faster" if quotient > 1 else f"{1 / quotient:.2f}x slower"


def is_slower(layer: LayerRecord) -> bool:
    """Whether the layer alone was measured and took longer than the dense one, by more than noise."""
    before, after = layer.latency_before_ms, layer.latency_after_ms
    return before is not None and after is not None and format_speed(before, after).endswith("slower")


def printable(text: str) -> str:
    """Replace control characters by ``?``: names come from files, and a terminal would obey them."""
    return "".join(character if character.isprintable() else "?" for character in text)


def format_count(count: int, noun: str) -> str:
    """``1 thread``, ``2 threads``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
