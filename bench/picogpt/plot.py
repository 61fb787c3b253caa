"""Accuracy against parameters, as one picture."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Any

from bench.picogpt.arms import BONDS, COUNTS
from bench.picogpt.page import BAR, at_end, dense_accuracy, runs_of

INK, FAINT = "#222222", "#888888"
SERIES = {  # label: arm by bond, colour, marker, line
    "MPO from scratch": ("mpo{}", "#0b6fb8", "o", "-"),
    "MPO from scratch, learning rates scaled": ("mpo{}-scaled", "#5a3fa0", "P", "-"),
    "MPO of the trained model, tuned": ("svd{}", "#d1495b", "s", "-"),
    "low-rank of the trained model, tuned": ("lowrank{}", "#e0a100", "^", "-"),
    "narrower dense from scratch": ("narrow{}", "#3a8f5c", "D", "-"),
}


def draw(result: dict[str, Any], file: Path) -> None:
    """Write the picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for label, (family, colour, marker, line) in SERIES.items():
        points = [(bond, runs_of(result, family.format(bond))) for bond in BONDS]
        points = [(bond, runs) for bond, runs in points if runs]
        if not points:
            continue
        x = [runs[0]["parameters"] for _, runs in points]
        y = [100 * mean(at_end(runs, "accuracy")) for _, runs in points]
        bars = [100 * stdev(at_end(runs, "accuracy")) if len(runs) > 1 else 0.0 for _, runs in points]
        axes.errorbar(x, y, bars, color=colour, marker=marker, ls=line, lw=1.8, ms=6, capsize=3, label=label)
        if family in ("svd{}", "lowrank{}"):
            raw = [100 * runs[0]["validation"][0]["accuracy"] for _, runs in points]
            axes.plot(
                x, raw, color=colour, marker=marker, ls=":", lw=1.4, ms=5, mfc="white", label=f"{label[:-5]}not tuned"
            )
    dense = dense_accuracy(result)
    if dense is not None:
        parameters = runs_of(result, "dense")[0]["parameters"]
        axes.plot([parameters], [100 * dense], "*", color=INK, ms=13, label="dense")
        axes.axhline(BAR * dense, color=FAINT, lw=1, ls="--")
        axes.annotate(
            f"{BAR} % of dense", (0.01, BAR * dense), (0, 3), xycoords=("axes fraction", "data"),
            textcoords="offset points", color=FAINT,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(36_000, 950_000)
    axes.set_xticks(
        list(COUNTS.values()), [f"{f'bond {bond}' if bond else 'dense'}\n{count:,}" for bond, count in COUNTS.items()]
    )
    axes.minorticks_off()
    axes.set_xlabel("parameters")
    axes.set_ylabel("validation accuracy, %")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(file, metadata={"Software": None})
