"""Test accuracy against parameters of the encoder, one panel a task, as one picture."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from bench.ltransformer.page import TITLES, accuracies, finished, groups, label

COLOURS = {
    "std": "#222222", "narrow": "#3a8f5c", "shallow": "#7fb069", "t4-dct": "#0b6fb8", "t4-identity": "#d1495b",
    "t4-random": "#e0a100", "t2-dct": "#5aa9e6", "t4-dct-ln": "#5a3fa0",
}  # fmt: skip


def draw(result: dict[str, Any], file: Path) -> None:
    """Write the picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [(key, runs) for key, runs in groups(result).items() if any(run["test"] for run in runs)]
    figure = Figure(figsize=(6.5 * max(1, len(panels)), 4.6), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    for place, ((task, width, kind), runs) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), place)
        arms = [arm for arm in dict.fromkeys(run["arm"] for run in runs) if finished(runs, arm)]
        at: dict[int, int] = {}
        for arm in arms:
            done = finished(runs, arm)
            size, y = done[0]["parameters"]["encoder"], accuracies(done)
            turn = at[size] = at.get(size, -1) + 1  # encoders of one size side by side
            x = size * 1.06**turn
            colour = COLOURS.get(arm, "#888888")
            axes.plot([x] * len(y), y, "o", color=colour, ms=4, alpha=0.5, mec="none")
            axes.plot([x], [mean(y)], "_", color=colour, ms=15, mew=2.5, label=label(arm).replace("`", ""))
        axes.set_xscale("log")
        sizes = sorted({finished(runs, arm)[0]["parameters"]["encoder"] for arm in arms})
        low, high = sizes[0] / 1.25, sizes[-1] * 1.4
        axes.set_xlim(low, high)
        ticks = [size for i, size in enumerate(sizes) if i == 0 or size > 1.25 * sizes[i - 1]]
        axes.set_xticks(ticks, [f"{size / 1000:,.0f}K" for size in ticks])
        axes.minorticks_off()
        axes.set_title(f"{TITLES[task]}, width {width}{', full protocol' * (kind == 'paper')}", fontsize=10)
        axes.set_xlabel("parameters of the encoder")
        axes.set_ylabel("test accuracy, %")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        box = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 2, "frameon": False}
        axes.legend(**box, fontsize=7.5, title="dash: mean over seeds, dots: seeds", title_fontsize=7)
    figure.savefig(file, metadata={"Software": None})
