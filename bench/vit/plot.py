"""Accuracy against the parameters that the MLPs keep, as one picture."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Any

from bench.vit.page import NAMES, finished, values

STYLE = {"decouple": ("#0b6fb8", "o"), "svd": ("#d1495b", "s"), "drone": ("#3a8f5c", "D")}


def draw(result: dict[str, Any], file: Path) -> None:
    """Write the picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shares = sorted(result["protocol"]["shares"])
    for method, (colour, marker) in STYLE.items():
        for when, line in (("before", ":"), ("after", "-")):
            found = [(share, values(result, method, share, when, "accuracy")) for share in shares]
            found = [(share, numbers) for share, numbers in found if numbers]
            if not found:
                continue
            x = [100 * share for share, _ in found]
            y = [100 * mean(numbers) for _, numbers in found]
            bars = [100 * stdev(numbers) if len(numbers) > 1 else 0.0 for _, numbers in found]
            label = f"{NAMES[method]}, {'distilled' if when == 'after' else 'as it is'}"
            face = colour if when == "after" else "white"
            axes.errorbar(
                x, y, bars, color=colour, marker=marker, ls=line, lw=1.7, ms=6, mfc=face, capsize=3, label=label
            )
    dense = 100 * mean(result["teachers"][seed]["accuracy"] for seed in finished(result))
    axes.axhline(dense, color="#222222", lw=1, ls="--")
    axes.annotate("dense", (0.01, dense), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points")
    axes.set_xlabel("MLP parameters kept, %")
    axes.set_ylabel("test accuracy, %")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(file, metadata={"Software": None})
