"""Several trainings at once, each in a process of its own under its own progress bar."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import pool, resumable
from bench.picogpt import data, runs
from bench.picogpt.arms import Arm
from bench.picogpt.runs import Plan


def train(plan: Plan, wanted: Sequence[tuple[Arm, int]], text: Path | None, jobs: int, threads: int) -> bool:
    """Train every arm and seed that is wanted, ``jobs`` at once; whether all went well."""
    file = data.find(text)  # here, so that a download happens once
    return pool.train(work, (plan, file, threads), [(arm.name, seed) for arm, seed in wanted], jobs)


def work(plan: Plan, file: Path | None, threads: int, tasks: Iterator[tuple[str, int]], position: int) -> None:
    """Train arms and seeds, one after the other, under a progress bar."""
    from tqdm import tqdm

    resumable.quiet_torch(threads)
    corpus = data.load(file)
    for name, seed in tasks:
        arm = Arm.of(name)
        with tqdm(
            total=plan.protocol(arm).steps, desc=f"{name} seed {seed}", position=position, mininterval=2, unit="step"
        ) as bar:

            def tick(step: int, loss: float, bar: Any = bar) -> None:
                bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                bar.update(step - bar.n)

            runs.run(plan, arm, seed, corpus, tick)
