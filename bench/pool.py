"""Several trainings at once, each in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from queue import Empty
from typing import Any


def train(work: Callable[..., None], arguments: Sequence[Any], wanted: Sequence[Any], jobs: int) -> bool:
    """Call ``work(*arguments, tasks, position)`` in ``jobs`` processes; whether all went well.

    ``tasks`` yields what is wanted, each to one process, in order; ``position`` is the line of its progress bar.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    for task in wanted:
        queue.put(task)
    processes = [
        context.Process(target=_work, args=(work, arguments, queue, position))
        for position in range(max(1, min(jobs, len(wanted))))
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return not any(process.exitcode for process in processes)


def _work(work: Callable[..., None], arguments: Sequence[Any], queue: Any, position: int) -> None:
    work(*arguments, _until_empty(queue), position)


def _until_empty(queue: Any) -> Iterator[Any]:
    while True:
        try:
            yield queue.get(timeout=1)
        except Empty:
            return
