"""Tokens a second, in training and in reading, and memory of a training step, for each kind of model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench import timing
from bench.ltransformer import arms
from bench.ltransformer.arms import Arm
from bench.ltransformer.data import TASKS, Data, Part
from bench.ltransformer.training import Protocol, Trainer, autocast
from bench.resumable import quiet_torch

ARMS = ("std", "t4-dct", "t4-identity", "t4-dct-ln", "t2-dct", "narrow", "shallow")


def trainer(task: str, name: str, protocol: Protocol, device: str) -> Trainer:
    """A fresh model on texts of random tokens, all of the full length."""
    ids = torch.randint(2, protocol.vocabulary, (4 * protocol.batch, protocol.length), dtype=torch.int32)
    part = Part(ids, torch.randint(TASKS[task].classes, (len(ids),)))
    model = arms.build(Arm.of(name), TASKS[task], 0, protocol)
    return Trainer(model, Data(TASKS[task], part, part, part), protocol, 0, device)


def reader(made: Trainer) -> Any:
    """A function that reads one batch without gradients."""

    @torch.no_grad()
    def read() -> None:
        ids, _ = made.batch(0)
        made.model.eval()
        for part in ids.split(made.protocol.chunk if made.device.type == "cpu" else len(ids)):
            with autocast(made.device):
                made.model(part)
        made.model.train()
        if made.device.type == "cuda":
            torch.cuda.synchronize()

    return read


def speeds(task: str, protocol: Protocol, device: str = "cpu", rounds: int = 5) -> dict[str, dict[str, float]]:
    """Median tokens a second of whole training steps (optimiser included) and of reading, all kinds interleaved."""
    quiet_torch(1, device)
    torch.manual_seed(0)
    routines: dict[str, Any] = {}
    for name in ARMS:
        made = trainer(task, name, protocol, device)
        made.advance()
        routines[f"{name} train"] = made.advance
        routines[f"{name} read"] = reader(made)
    tokens = protocol.batch * protocol.length
    found = timing.interleaved(routines, rounds, budget=90)
    return {
        name: {what: round(tokens / median(found[f"{name} {what}"])) for what in ("train", "read")} for name in ARMS
    }


def memory(task: str, name: str, protocol: Protocol, device: str) -> dict[str, float]:
    """Megabytes that a model, its optimiser and two training steps take: of this process, which must be a fresh one."""
    quiet_torch(1, device)
    if device == "cuda":
        made = trainer(task, name, protocol, device)
        torch.cuda.reset_peak_memory_stats()
        made.advance()
        made.advance()
        return {"mb": torch.cuda.max_memory_allocated() / 1e6}
    before = _peak()
    made = trainer(task, name, protocol, device)
    made.advance()
    made.advance()
    return {"mb": _peak() - before}


def _peak() -> float:
    """Megabytes that this process held at most (getrusage would answer with those of the one that started it)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def memories(task: str, device: str, protocol: Protocol) -> dict[str, float]:
    """`memory` of every kind, each in a process of its own."""
    root = Path(__file__).resolve().parent.parent.parent
    found = {}
    for name in ARMS:
        order = [sys.executable, "-m", "bench.ltransformer.measures", task, name, device, json.dumps(protocol.plain())]
        answer = subprocess.run(order, capture_output=True, text=True, check=True, cwd=root)
        found[name] = round(json.loads(answer.stdout)["mb"])
    return found


if __name__ == "__main__":
    _task, _name, _device, _protocol = sys.argv[1:]
    print(json.dumps(memory(_task, _name, Protocol(**json.loads(_protocol)), _device)))
