"""The page of the experiment: docs/fips.md, made of the stored results alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.fips import plot
from bench.fips.arms import FEW, FULL, MAIN
from bench.fips.subjects import SUBJECTS
from bench.fips.verdicts import Rows, block_losses

Result = dict[str, Any]
INTRODUCTION = """# MLPs in fewer bytes

The MLP weights of pretrained models are replaced at equal bytes (values, bases and the bits of masks counted as they
are stored; the rest of each model stays as it is) and the model is scored. All by `python -m bench.fips`, which writes
this page from `bench/results/fips.json`.

* SVD: two factors a weight, ranks shared by the spectra. whitened SVD: the same for the outputs on calibration data.
* FiPS: one dense basis for the MLP weights of up to four neighbouring blocks, sparse codes for each, fitted to the
  outputs on calibration data. own basis: the same without sharing, a basis for each weight.
* refined: then every block (or group of blocks with one basis) is trained towards the dense model's outputs, {steps}
  steps each.
* n bits: factors in n bits a number, with a scale for every 64. quantised: the weights themselves, without factors, at
  the same bytes.

One seed each, so a difference as small as that between neighbouring rows may be chance."""


def rows_of(result: Result, name: str, measure: int = 0) -> Rows:
    """The rows of one model, through one of its measures."""
    subject = SUBJECTS[name]
    return Rows(subject, result["models"][name], subject.measures[measure])


def models(result: Result) -> list[str]:
    """Models with rows."""
    return [name for name in SUBJECTS if result.get("models", {}).get(name, {}).get("rows")]


def steps_of(result: Result) -> list[int]:
    """Steps of refinement that were taken."""
    return sorted({row["steps"] for m in result["models"].values() for row in m["rows"].values() if "steps" in row})


def table(rows: Rows, among: Sequence[str] = FULL) -> str:
    """One measure of every arm that was run, one column a ratio; the best of each column is bold."""
    ratios, measure, arms = rows.ratios(among), rows.measure, rows.arms(among)
    lines = [
        "| method | " + " | ".join(f"{ratio:g}" for ratio in ratios) + " |",
        "| --- |" + " --- |" * len(ratios),
    ]
    best = {ratio: rows.best(ratio, arms) for ratio in ratios}
    for arm in arms:
        words = []
        for ratio in ratios:
            value = rows.value(arm, ratio)
            text = "" if value is None else shown(value, measure.digits)
            words.append(f"**{text}**" if text and best[ratio] == arm else text)
        lines.append(f"| {arm} | " + " | ".join(words) + " |")
    return "\n".join(lines)


def shown(value: float, digits: int) -> str:
    """A number, with fewer digits where it is large."""
    return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:,.0f}"


def gains(found: Mapping[str, float], digits: int) -> str:
    """Gains by name, with their signs."""
    texts = (f"{name} {'+' if gain > 0 else ''}{shown(gain, digits)}" for name, gain in found.items())
    return ", ".join(texts) or "not run"


def verdict(rows: Rows) -> str:
    """For each ratio what wins and by how much, as a table; a gain is positive where the first is better."""
    digits = rows.measure.digits
    lines = [
        "| kept | best | gain of the best over | gain by refinement | gain by sharing |",
        "| --- | --- | --- | --- | --- |",
    ]
    for ratio in rows.ratios():
        refined, sharing = rows.refinements(ratio), rows.sharing(ratio)
        lines.append(
            f"| {ratio:g} | {rows.best(ratio) or '-'} | {gains(rows.over_svd(ratio), digits)} | "
            f"{gains(refined, digits)} | {gains(sharing, digits)} |"
        )
    return "\n".join(lines)


def sentence(rows: Rows) -> str:
    """The counts of all ratios in words."""
    ratios = rows.ratios()
    refined = [gain for ratio in ratios for gain in rows.refinements(ratio).values()]
    sharing = [gain for ratio in ratios for gain in rows.sharing(ratio).values()]
    over = [gain for ratio in ratios for gain in rows.over_svd(ratio).values()]
    stages, better = block_losses(rows.found)
    wins: dict[str, list[str]] = {}
    for ratio in ratios:
        if best := rows.best(ratio):
            wins.setdefault(best, []).append(f"{ratio:g}")
    if not wins:
        return "Too few arms were run to say which is best."
    return (
        "Best: "
        + "; ".join(f"{arm} at {', '.join(at)}" for arm, at in wins.items())
        + f". The best is better than plain and whitened SVD in {sum(g > 0 for g in over)} of {len(over)} comparisons. "
        f"Refinement improves the score of its start in {sum(g > 0 for g in refined)} of {len(refined)} pairs, and the "
        f"held-out loss of the blocks in {better} of {stages} stages. A shared basis is better than its control of the "
        f"same bytes without sharing in {sum(g > 0 for g in sharing)} of {len(sharing)} pairs."
    )


def section(result: Result, name: str) -> list[str]:
    """All of one model."""
    lines = [f"## {name}", "", SUBJECTS[name].protocol, ""]
    for number, measure in enumerate(SUBJECTS[name].measures):
        rows = rows_of(result, name, number)
        dense = "" if rows.dense is None else f"; dense {shown(rows.dense, measure.digits)}"
        which = "more is better" if measure.higher else "less is better"
        lines += [f"{measure.words[0].upper()}{measure.words[1:]} ({which}{dense}), by share of the bytes kept:", ""]
        lines += [table(rows), ""]
        if rows.ratios(FEW):
            lines += ["In few bits:", "", table(rows, FEW), ""]
    first = rows_of(result, name)
    lines += [f"By {first.measure.words}:", "", verdict(first), "", sentence(first), ""]
    if lost := first.missing():
        texts = (f"{arm} at {', '.join(f'{ratio:g}' for ratio in ratios)}" for arm, ratios in lost.items())
        lines += ["Not run: " + "; ".join(texts) + ".", ""]
    return lines


def render(result: Result) -> str:
    """The page as Markdown."""
    lines = [
        INTRODUCTION.format(steps=" or ".join(map(str, steps_of(result)))),
        "",
        "![quality against bytes](fips.png)",
        "",
    ]
    for name in models(result):
        lines += section(result, name)
    return "\n".join(lines)


def overview(result: Result, names: Sequence[str]) -> str:
    """One row a model and ratio with the first measure of the main arms, for README.md."""
    lines = [
        "| model | kept | " + " | ".join(MAIN) + " |",
        "| --- | --- |" + " --- |" * len(MAIN),
    ]
    for name in names:
        rows = rows_of(result, name)
        arrow = "more is better" if rows.measure.higher else "less is better"
        for number, ratio in enumerate(rows.ratios()):
            best = rows.best(ratio)
            words = []
            for arm in MAIN:
                value = rows.value(arm, ratio)
                text = "-" if value is None else shown(value, rows.measure.digits)
                words.append(f"**{text}**" if arm == best and value is not None else text)
            label = f"{name}: {rows.measure.words}, {arrow}; dense {shown(rows.dense or 0.0, rows.measure.digits)}"
            lines.append(f"| {label if not number else ''} | {ratio:g} | " + " | ".join(words) + " |")
    return "\n".join(lines)


def write(file: Path, docs: Path) -> None:
    """Write page and plot from stored results."""
    result = json.loads(file.read_text())
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "fips.md").write_text(render(result))
    plot.draw(result, docs / "fips.png")
