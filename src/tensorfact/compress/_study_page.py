"""The study of the demo as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tensorfact.compress import _page
from tensorfact.compress._charts import Frame, linear_ticks, log_ticks
from tensorfact.compress._grouping import format_bytes
from tensorfact.compress._study import DEFAULT, EXACT

__all__ = ["render_study"]

_COLOURS = {"q = 1": "d7", "q = 2": "d5", "q = 3": "d3", "q = 4": "d1", DEFAULT: "d0", EXACT: "ink"}


def render_study(content: Mapping[str, Any]) -> str:
    """Return the page of a ``demo.json``, given as the decoded object."""
    rows: list[dict[str, Any]] = list(content["rows"])
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    ratios = sorted({row["param_ratio"] for row in rows})
    best = {row["param_ratio"]: row["frobenius"] for row in rows if row["variant"] == EXACT}
    excess = [
        {**row, "excess": 100 * (row["frobenius"] / best[row["param_ratio"]] - 1)}
        for row in rows
        if row["param_ratio"] in best
    ]
    charts = [
        _figure(
            "spectral error over the best possible (log scale, 1 is optimal)",
            rows,
            "spectral",
            variants,
            ratios,
            log=True,
        ),
        _figure("Frobenius error above that of the exact SVD, %", excess, "excess", variants, ratios),
        _figure("cosine of sentence embeddings to the dense model's", rows, "cosine", variants, ratios),
        _figure(
            "STS-B Spearman correlation, %",
            rows,
            "spearman",
            variants,
            ratios,
            base=None,
            level=content.get("dense_spearman"),
        ),
    ]
    legend = "".join(
        f'<span><i class="sw line {_COLOURS.get(name, "d4")}"></i>{escape(name)}</span>' for name in variants
    )
    figures = "".join(f'<figure class="card">{chart}</figure>' for chart in charts if chart)
    text = (
        "Every variant has the same ranks, the same for all weights of a shape; only the way to the factors differs. "
        "q counts the applications of the weight: q = 1 is plain randomized SVD, its sketch as wide as the rank."
    )
    body = [
        f"<h1>How many power iterations do the weights of {escape(str(content['model']))} need?</h1>",
        f'<p class="lead">{_lead(rows, ratios)}</p>',
        _page.tiles(_tiles(content)),
        _page.section(
            "By share of parameters kept",
            text,
            f'<div class="legend">{legend}</div><div class="charts wide">{figures}</div>',
        ),
        _page.section("All numbers", "", f'<div class="card">{_table(rows)}</div>'),
        _page.section("How this was made", "", f'<div class="card">{_page.facts(_facts(content))}</div>'),
    ]
    return _page.page(f"Power iterations on {content['model']}", "\n".join(body))


def _lead(rows: Sequence[Mapping[str, Any]], ratios: Sequence[float]) -> str:
    """One sentence with the numbers of the smallest budget."""
    at = {row["variant"]: row for row in rows if row["param_ratio"] == ratios[0]}
    if not {"q = 1", "q = 3", EXACT} <= set(at):
        return "Randomized subspace iteration against plain randomized SVD and the exact SVD."
    one, three, exact = at["q = 1"], at["q = 3"], at[EXACT]
    words = (
        f"With {ratios[0]:.0%} of the parameters, plain randomized SVD leaves a spectral error "
        f"<b>{one['spectral']:.2f} times</b> the best possible; two power iterations bring that to "
        f"<b>{three['spectral']:.2f}</b>."
    )
    if one["spearman"] is not None:
        words += f" STS-B: <b>{one['spearman']:.1f}</b> against {three['spearman']:.1f}"
        words += f", and {exact['spearman']:.1f} with the exact SVD."
    return words + f" Cosine to the dense embeddings: {one['cosine']:.3f} against {three['cosine']:.3f}."


def _tiles(content: Mapping[str, Any]) -> list[str]:
    done = content["compressed"]
    before, after = done["bytes_before"], done["bytes_after"]
    tiles = [
        _page.tile("checkpoint", format_bytes(after), f"of {format_bytes(before)}", share=after / before),
        _page.tile(
            "mean error of weights", f"{done['mean_error']:.3f}", f"{done['layers']} weights, ranks by spectrum"
        ),
        _page.tile("compressed in", f"{done['seconds'].get('total', 0.0):.1f} s", "comparison of outputs included"),
    ]
    if content.get("dense_spearman") is not None:
        words = f"dense {content['dense_spearman']:.2f}; {content['sentences']}"
        tiles.append(_page.tile("STS-B Spearman, compressed", f"{done['spearman']:.2f}", words))
    tiles.append(_page.tile("cosine to dense embeddings", f"{done['cosine']:.3f}", "mean over the sentences"))
    return tiles


def _figure(
    caption: str,
    rows: Sequence[Mapping[str, Any]],
    key: str,
    variants: Sequence[str],
    ratios: Sequence[float],
    *,
    log: bool = False,
    base: float | None = 0.0,
    level: float | None = None,
) -> str:
    values = [row[key] for row in rows if row[key] is not None]
    if not values:
        return ""
    high = max([*values, *([] if level is None else [level])])
    if log:
        ticks = sorted({1.0, *(tick for tick in log_ticks(1.0, high * 2) if tick <= high * 2), 1.5, 3.0})
        ticks = [tick for i, tick in enumerate(ticks) if i == 0 or ticks[i - 1] < high]
        span = (0.97, ticks[-1])
    elif base is None:  # a score: zero is not a natural end of its scale
        low = min(values)
        step = 5.0 if high - low < 40 else 10.0
        ticks = [step * i for i in range(int(low // step), int(-(-high // step)) + 1)]
        span = (ticks[0], ticks[-1])
    else:
        ticks = linear_ticks(high)
        span = (base, ticks[-1])
    pad = 0.04 * (ratios[-1] - ratios[0] or 1.0)
    frame = Frame(
        x=(ratios[0] - pad, ratios[-1] + pad), y=span, width=420, height=230, left=40, bottom=24, right=12, log_y=log
    )
    frame.y_axis(ticks)
    for ratio in ratios:
        frame.text(ratio, span[0], f"{ratio:.0%}", "t m", dy=16)
    if level is not None:
        frame.level(level, "even", f"dense {level:.2f}")
        frame.text(ratios[0] - pad, level, f"dense {level:.2f}", "t", dx=4, dy=-4)
    _lines(frame, rows, key, variants)
    return f"<figcaption>{escape(caption)}</figcaption>{frame.svg(caption)}"


def _lines(frame: Frame, rows: Sequence[Mapping[str, Any]], key: str, variants: Sequence[str]) -> None:
    marks: list[tuple[float, float, str, str]] = []
    for name in variants:
        css = _COLOURS.get(name, "d4")
        points = sorted(
            (row["param_ratio"], row[key]) for row in rows if row["variant"] == name and row[key] is not None
        )
        frame.line(points, f"st {css}{' dim' if name == EXACT else ''}", name)
        marks += [(x, y, css, f"{name} at {x:.0%}: {y:.4g}") for x, y in points]
    for x, y, css, tip in marks:  # after the lines, so that no line hides one
        frame.dot(x, y, f"pt {css}", tip, 3.6)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    headers = ("kept", "variant", "Frobenius", "spectral / best", "worst", "cosine", "STS-B", "seconds")

    def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
        score = "" if row["spearman"] is None else f"{row['spearman']:.2f}"
        errors = (f"{row['frobenius']:.4f}", f"{row['spectral']:.3f}", f"{row['spectral_worst']:.3f}")
        return (
            f"{row['param_ratio']:.0%}",
            row["variant"],
            *errors,
            f"{row['cosine']:.4f}",
            score,
            f"{row['seconds']:.2f}",
        )

    return _page.table(headers, map(cells, rows), left=(1,))


def _facts(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("model", str(content["model"])),
        ("sentences", str(content["sentences"])),
        ("ranks", "uniform: the largest whose two factors hold at most the share of the weight's parameters"),
        ("sketches", f"Gaussian, as wide as the rank for q = 1 to 4; seed {content['seed']}"),
        (DEFAULT, "randomized_svd(w, rank=r): oversampled, or the exact path where that costs no more"),
        (EXACT, "LAPACK; its seconds are for all singular values, shared by every budget"),
        ("environment", ", ".join(f"{key} {value}" for key, value in content["environment"].items())),
    ]
