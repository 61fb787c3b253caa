"""Results, page and plot from the logs of the runs: nobody types a number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from bench import resumable, timing
from bench.ltransformer import measures, page, plot, runs
from bench.ltransformer.arms import EVERYTHING
from bench.ltransformer.data import TASKS
from bench.ltransformer.runs import Plan

DOCS = timing.RESULTS.parent.parent / "docs"
SPAN = 50  # steps whose mean training loss is kept


def collect(folder: Path) -> list[dict[str, Any]]:
    """Condensed logs of the runs in a folder, unfinished ones included, in the order of tasks and arms."""
    logs = map(resumable.stored_log, folder.glob("*-seed*.safetensors"))
    return ordered([condensed(log) for log in logs if log is not None and "arm" in log])  # not the best checkpoints


def ordered(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs in the order of protocols, tasks, widths and arms."""
    names = {name: index for index, name in enumerate(EVERYTHING)}
    return sorted(
        found,
        key=lambda run: (
            run["kind"], list(TASKS).index(run["task"]), run["width"], names.get(run["arm"], len(names)), run["arm"],
            run["seed"],
        ),
    )  # fmt: skip


def condensed(log: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a log: training losses as means over spans, the rest rounded."""
    keys = ("task", "arm", "kind", "width", "seed", "device", "parameters", "protocol", "step", "best")
    result = {key: log[key] for key in keys}
    losses = log["train"]
    result["train"] = [round(mean(losses[i : i + SPAN]), 4) for i in range(0, len(losses), SPAN)]
    result["validation"] = [
        {"step": v["step"], "loss": round(v["loss"], 5), "accuracy": round(v["accuracy"], 6)} for v in log["validation"]
    ]
    test = log["test"]
    result["test"] = test and {**test, "loss": round(test["loss"], 5), "accuracy": round(test["accuracy"], 6)}
    result["cpu_seconds"] = round(log["cpu_seconds"], 1)
    return result


def write(plan: Plan, *, speed: Sequence[str] = ()) -> None:
    """Write ``bench/results/ltransformer.json``, ``docs/ltransformer.md`` and ``docs/ltransformer.png``.

    ``speed`` names the tasks whose models are timed and weighed, now.
    """
    result = timing.load("ltransformer")
    found = collect(plan.out)
    if found:  # what another folder holds, of another protocol or width, stays
        ours = {(run["kind"], run["task"], run["width"]) for run in found}
        kept = [r for r in result.get("runs", []) if (r["kind"], r["task"], r["width"]) not in ours]
        result["runs"] = ordered(kept + found)
        result["expected"] = runs.wanted(Plan(plan.out), list(TASKS), None, runs.SEEDS)
    result["environment"] = timing.environment("torch", "tokenizers") | {"load": None}
    for task in map(TASKS.__getitem__, speed):
        protocol = plan.protocol(task, 10_000)
        result.setdefault("speed", {})[f"{task.name} {plan.width or task.width}"] = {
            "device": plan.device,
            "rates": measures.speeds(task.name, protocol, plan.device),
            "memory": measures.memories(task.name, plan.device, protocol),
        }
    render(timing.save("ltransformer", result))


def render(file: Path) -> None:
    """Write page and plot from stored results."""
    result = json.loads(file.read_text())
    (DOCS / "ltransformer.md").write_text(page.render(result))
    if any(run["test"] for run in result["runs"]):
        plot.draw(result, DOCS / "ltransformer.png")
