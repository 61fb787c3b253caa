"""Quality against kept bytes, one panel a model, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.fips.arms import FEW, FULL
from bench.fips.subjects import SUBJECTS
from bench.fips.verdicts import Rows

COMPARED = 4  # rows of a model, from which on there is something to see
STYLE = {  # arm without refinement: colour, marker
    "SVD": ("#888888", "v"),
    "whitened SVD": ("#e0a100", "^"),
    "own basis": ("#3a8f5c", "D"),
    "FiPS": ("#0b6fb8", "o"),
}
FEW_STYLE = {"quantised": ("#7a3fa0", "*"), "FiPS, 8 bits": ("#5bb0e8", "s"), "FiPS, 4 bits": ("#083d6b", "s")}


def draw(result: dict[str, Any], file: Path) -> None:
    """Write the picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name in SUBJECTS if len(result["models"].get(name, {}).get("rows", ())) >= COMPARED]
    columns = min(3, max(1, len(names)))
    lines = -(-max(1, len(names)) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * lines + 0.7), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        _panel(axes, Rows(SUBJECTS[name], result["models"][name], SUBJECTS[name].measures[0]))
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    labels: dict[str, Any] = {}
    for axes in panels[: len(names)]:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            labels.setdefault(label, handle)
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    figure.savefig(file, metadata={"Software": None})


def _panel(axes: Any, rows: Rows) -> None:
    for start, (colour, marker) in STYLE.items():
        _line(axes, rows, start, FULL, color=colour, marker=marker, ls=":", mfc="white")
        _line(axes, rows, f"{start}, refined", FULL, color=colour, marker=marker, ls="-")
    for arm, (colour, marker) in FEW_STYLE.items():
        _line(axes, rows, arm, FEW, color=colour, marker=marker, ls="-.")
    if rows.dense is not None:
        axes.axhline(rows.dense, color="#222222", lw=1, ls="--", label="dense")
    if not rows.measure.higher:
        axes.set_yscale("log")
    axes.set_title(rows.subject.name, fontsize=10)
    axes.set_xlabel("share of the MLPs' bytes kept", fontsize=8)
    axes.set_ylabel(rows.measure.words, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)


def _line(axes: Any, rows: Rows, arm: str, among: Sequence[str], **style: Any) -> None:
    points = [(ratio, value) for ratio in rows.ratios(among) if (value := rows.value(arm, ratio)) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), lw=1.6, ms=5, label=arm, **style)
