"""Which trainings there are, in which order, and one of them: each has its own checkpoint and log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench import resumable
from bench.ltransformer import arms, data
from bench.ltransformer.arms import CONTROLS, EVERYTHING, FIRST, Arm
from bench.ltransformer.data import TASKS, Data, Task
from bench.ltransformer.model import sizes
from bench.ltransformer.training import Protocol, Trainer
from bench.resumable import Log

SEEDS = (1, 2, 3)
STEPS = {"imdb": 400, "ag_news": 400}  # of the CPU subset: 12,800 texts, most of one epoch
EPOCHS = {"imdb": 20, "ag_news": 5}  # of the paper
Tick = Callable[[int, float], None]
Job = tuple[str, str, int]  # task, arm, seed


@dataclass(frozen=True)
class Plan:
    """Where the runs are kept, and how they are made."""

    out: Path
    kind: str = "cpu"  # or "paper"
    folder: Path | None = None
    device: str = "cpu"
    width: int | None = None
    steps: int | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)  # of the protocol

    def protocol(self, task: Task, examples: int) -> Protocol:
        """How a model of a task is trained, with so many texts."""
        if self.kind == "cpu":
            steps = self.steps or STEPS[task.name]
            found = Protocol(steps=steps, width=self.width, evaluate_every=-(-steps // 2), test_examples=10_000)
        else:
            wide = (self.width or task.width) > 256
            batch = 64 if wide else 128
            epoch = max(1, examples // batch)
            steps = self.steps or EPOCHS[task.name] * epoch
            found = Protocol(
                steps=steps,
                width=self.width,
                heads=8 if wide else 4,
                batch=batch,
                test_batch=2 * batch,
                lr=3e-4,
                last_lr=1e-5,
                dropout=0.1,
                attention_dropout=0.1,
                evaluate_every=epoch,
                save_every=500,
            )
        return replace(found, **self.changes)

    def data(self, task: Task) -> Data:
        """The texts of a task."""
        like = self.protocol(task, 1)
        return data.load(task, self.out, self.folder, vocabulary=like.vocabulary, length=like.length)

    def checkpoint(self, job: Job) -> Path:
        """File of the model, optimiser and log of a run."""
        task, arm, seed = job
        width = "" if self.width is None else f"-d{self.width}"
        return self.out / f"{task}{width}-{arm}-seed{seed}.safetensors"


def wanted(plan: Plan, tasks: Sequence[str], names: Sequence[str] | None, seeds: Sequence[int]) -> list[Job]:
    """The runs of a plan in their order: what the main table needs first, every seed once and then again."""
    if names is not None:
        return [(task, Arm.of(name).name, seed) for task in tasks for seed in seeds for name in names]
    found: list[Job] = []
    for task in tasks:
        found += [(task, name, seed) for seed in seeds for name in FIRST]
        rest = [name for name in EVERYTHING if name not in FIRST]
        if plan.kind == "cpu":
            found += [(task, name, seeds[0]) for name in CONTROLS]
        else:
            found += [(task, name, seed) for seed in seeds for name in rest]
    return found


def run(plan: Plan, job: Job, texts: Data, tick: Tick | None = None) -> Log:
    """Train one arm with one seed to its end, from where it stopped; writes its log beside the checkpoint."""
    task, name, seed = TASKS[job[0]], job[1], job[2]
    file = plan.checkpoint(job)
    with resumable.locked(file):
        protocol = plan.protocol(task, len(texts.train))
        model = arms.build(Arm.of(name), task, seed, protocol)
        trainer = Trainer(model, texts, protocol, seed, plan.device)
        trainer.log |= {"task": task.name, "arm": name, "kind": plan.kind, "parameters": sizes(model)}
        trainer.log["width"] = model.embedding.embedding_dim
        log = trainer.run(file, tick)
        resumable.write_json(file.with_suffix(".json"), log)
    return log


def work(plan: Plan, threads: int, jobs: Iterator[Job], position: int) -> None:
    """Run jobs, one after the other, each under a progress bar."""
    from tqdm import tqdm

    resumable.quiet_torch(threads, plan.device)
    texts: dict[str, Any] = {}
    for job in jobs:
        if job[0] not in texts:
            texts = {job[0]: plan.data(TASKS[job[0]])}
        total = plan.protocol(TASKS[job[0]], len(texts[job[0]].train)).steps
        with tqdm(total=total, desc=" ".join(map(str, job)), position=position, mininterval=2, unit="step") as bar:

            def tick(step: int, loss: float, bar: Any = bar) -> None:
                bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                bar.update(step - bar.n)

            run(plan, job, texts[job[0]], tick)
