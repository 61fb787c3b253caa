"""The page of the experiment: docs/vit.md, made of the stored results alone."""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

from bench.vit.arms import METHODS

Result = dict[str, Any]
NAMES = {"decouple": "decoupling", "svd": "SVD", "drone": "DRONE"}


def finished(result: Result) -> list[str]:
    """Seeds whose students are all there."""
    wanted = [f"{method} {share}" for method in METHODS for share in result["protocol"]["shares"]]
    return [seed for seed in result["teachers"] if all(f"{seed} {arm}" in result["runs"] for arm in wanted)]


def values(result: Result, method: str, share: float, *path: str) -> list[float]:
    """A stored value of every finished seed."""
    found = []
    seeds = finished(result)
    for name, run in result["runs"].items():
        seed, its, kept = name.split()
        if seed in seeds and its == method and float(kept) == share:
            value: Any = run
            for key in path:
                value = value[key]
            found.append(float(value))
    return found


def percent(numbers: list[float]) -> str:
    """Mean in per cent, with the standard deviation where there are several."""
    if not numbers:
        return "-"
    text = f"{100 * mean(numbers):.1f}"
    return text if len(numbers) == 1 else f"{text} ± {100 * stdev(numbers):.1f}"


def table(result: Result, key: str) -> list[str]:
    """Rows of one measure, before and after distillation."""
    head = "| MLP parameters kept | " + " | ".join(
        f"{NAMES[method]}{when}" for when in ("", ", distilled") for method in METHODS
    )
    lines = [head + " |", "| --- |" + " --- |" * (2 * len(METHODS))]
    for share in result["protocol"]["shares"]:
        cells = [
            percent(values(result, method, share, when, key)) for when in ("before", "after") for method in METHODS
        ]
        lines.append(f"| {100 * share:.0f} % | " + " | ".join(cells) + " |")
    return lines


def verdict(result: Result) -> str:
    """Whether decoupling is better after distillation, at half of the MLP parameters and below."""
    told = []
    for share in result["protocol"]["shares"]:
        if share > 0.5:
            continue
        found = {method: values(result, method, share, "after", "accuracy") for method in METHODS}
        if not all(found.values()):
            continue
        best = max((m for m in METHODS if m != "decouple"), key=lambda m: mean(found[m]))
        gap = 100 * (mean(found["decouple"]) - mean(found[best]))
        word = "above" if gap > 0 else "below" if gap < 0 else "level with"
        points = f"{abs(gap):.1f} points {word}" if gap else word
        told.append(f"at {100 * share:.0f} % kept, decoupling is {points} {NAMES[best]}, the better of the two others")
    return "After distillation: " + "; ".join(told) + "." if told else ""


def render(result: Result) -> str:
    """The page as Markdown."""
    teachers = [result["teachers"][seed] for seed in finished(result)]
    first = teachers[0]
    protocol = result["protocol"]
    share = 100 * first["mlp_parameters"] / first["parameters"]
    seeds = f"{len(teachers)} seed" + "s" * (len(teachers) > 1)
    lines = [
        "# A vision transformer with decoupled MLPs",
        "",
        f"A ViT of transformers ({first['parameters']:,} parameters, {share:.0f} % of them in 4 MLPs 48 -> 192 -> 48),",
        f"trained {protocol['epochs']} epochs on 60 % of the digits of scikit-learn reaches "
        f"{percent([t['accuracy'] for t in teachers])} % on the rest ({seeds}).",
        "Its MLPs are then replaced at equal numbers of parameters: by `w g(v^T x) + bias` with learned splines",
        "(`tensorfact.torch.DecoupledMLP`, knots counted as two numbers a branch), by two factors for each weight",
        "from its SVD, or by those that change the outputs on the training data least (DRONE). All then get the same",
        f"{protocol['distil_epochs']} epochs of distillation of all parameters. Made by `python -m bench.vit`.",
        "",
        "Accuracy on the test images, per cent:",
        "",
        *table(result, "accuracy"),
        "",
        "Test images where the student says what the teacher says, per cent:",
        "",
        *table(result, "agreement"),
        "",
        verdict(result),
        "",
        "![accuracy against parameters](vit.png)",
        "",
    ]
    return "\n".join(lines)
