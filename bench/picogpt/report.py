"""Results, page and plot from the logs of the runs: nobody types a number."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

from bench import resumable, timing
from bench.picogpt import data, measures, page, plot
from bench.picogpt.arms import EVERYTHING, Arm
from bench.picogpt.runs import Plan

DOCS = timing.RESULTS.parent.parent / "docs"
SPAN = 50  # steps whose mean training loss is kept


def collect(plan: Plan) -> list[dict[str, Any]]:
    """Condensed logs of the runs in the folder of the plan, unfinished ones included, in the order of the arms."""
    names = {name: index for index, name in enumerate(EVERYTHING)}
    found = []
    for file in plan.out.glob("*-seed*.safetensors"):
        log = resumable.stored_log(file)
        if log is not None and log["step"] > 0:
            found.append(condensed(log))
    return sorted(found, key=lambda run: (names.get(run["arm"], len(names)), run["arm"], run["seed"]))


def condensed(log: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a log: training losses as means over spans, validation rounded."""
    losses = log["train"]
    result = {key: log[key] for key in ("arm", "seed", "parameters", "size", "protocol", "step")}
    result["train"] = [round(mean(losses[i : i + SPAN]), 4) for i in range(0, len(losses), SPAN)]
    result["validation"] = [
        {"step": v["step"], "loss": round(v["loss"], 5), "accuracy": round(v["accuracy"], 6)} for v in log["validation"]
    ]
    result["cpu_seconds"] = round(log["cpu_seconds"], 1)
    return result


def write(plan: Plan, text: Path | None = None, *, speed: bool = False) -> None:
    """Write ``bench/results/picogpt.json``, ``docs/picogpt.md`` and ``docs/picogpt.png``."""
    result = timing.load("picogpt")
    found = collect(plan)
    if found:
        result["runs"] = found
        result["expected"] = {name: 3 if Arm.of(name).tuned else 1 for name in EVERYTHING}
        result["errors"] = measures.errors(plan)
    result["environment"] = timing.environment("torch") | {"load": None}
    if speed:
        result["step_seconds"] = measures.step_seconds(data.load(text))
    file = timing.save("picogpt", result)
    render(file)


def render(file: Path) -> None:
    """Write page and plot from stored results."""
    result = json.loads(file.read_text())
    (DOCS / "picogpt.md").write_text(page.render(result))
    plot.draw(result, DOCS / "picogpt.png")
