"""Several trainings at once, each in a process of its own under its own progress bar."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from queue import Empty
from typing import Any

from bench.picogpt import data, runs
from bench.picogpt.arms import Arm
from bench.picogpt.runs import Plan


def train(plan: Plan, wanted: Sequence[tuple[Arm, int]], text: Path | None, jobs: int, threads: int) -> bool:
    """Train every arm and seed that is wanted, ``jobs`` at once; whether all went well."""
    file = data.find(text)  # here, so that a download happens once
    context = multiprocessing.get_context("spawn")
    tasks = context.Queue()
    for arm, seed in wanted:
        tasks.put((arm.name, seed))
    processes = [
        context.Process(target=work, args=(plan, file, threads, tasks, position))
        for position in range(max(1, min(jobs, len(wanted))))
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return not any(process.exitcode for process in processes)


def work(plan: Plan, file: Path | None, threads: int, tasks: Any, position: int) -> None:
    """Train what the queue holds until it is empty, under a progress bar."""
    from tqdm import tqdm

    runs.quiet_torch(threads)
    corpus = data.load(file)
    while True:
        try:
            name, seed = tasks.get(timeout=1)
        except Empty:
            return
        arm = Arm.of(name)
        with tqdm(
            total=plan.protocol(arm).steps, desc=f"{name} seed {seed}", position=position, mininterval=2, unit="step"
        ) as bar:

            def tick(step: int, loss: float, bar: Any = bar) -> None:
                bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                bar.update(step - bar.n)

            runs.run(plan, arm, seed, corpus, tick)
