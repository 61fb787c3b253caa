"""Which trainings there are, in which order, and one of them: each arm and seed has its own checkpoint and log."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from bench.picogpt import arms, training
from bench.picogpt.arms import Arm
from bench.picogpt.data import Corpus
from bench.picogpt.model import count, describe
from bench.picogpt.training import Log, Protocol, Trainer

SOURCE_SEED = 42  # of the dense model that is compressed
Tick = Callable[[int, float], None]


@dataclass(frozen=True)
class Plan:
    """Where the runs are kept and how long they train."""

    out: Path
    full: Protocol = field(default_factory=Protocol)
    tune_steps: int = 80
    tune_lr: float = 1e-3

    def protocol(self, arm: Arm) -> Protocol:
        """How an arm is trained."""
        if arm.tuned:
            return self.full.short(self.tune_steps, self.tune_lr, self.tune_steps)
        return replace(self.full, decay_all=arm.variant != "spared", scale_cores=arm.variant == "scaled")

    def checkpoint(self, arm: Arm, seed: int) -> Path:
        """File of the model, optimiser and log of a run."""
        return self.out / f"{arm.name}-seed{seed}.safetensors"

    def source(self) -> Path:
        """Checkpoint of the dense model that the tuned arms begin from."""
        return self.checkpoint(Arm("dense"), SOURCE_SEED)

    def done(self, arm: Arm, seed: int) -> bool:
        """Whether a run is finished."""
        log = training.stored_log(self.checkpoint(arm, seed))
        return log is not None and log["step"] >= self.protocol(arm).steps


def run(plan: Plan, arm: Arm, seed: int, corpus: Corpus, tick: Tick | None = None) -> Log:
    """Train one arm with one seed to its end, from where it stopped; writes its log beside the checkpoint.

    An arm that begins from the trained dense model trains that first, or waits for the process that does.
    """
    file = plan.checkpoint(arm, seed)
    with locked(file):
        if arm.tuned and not plan.done(Arm("dense"), SOURCE_SEED):
            run(plan, Arm("dense"), SOURCE_SEED, corpus, tick)
        model = arms.build(arm, seed, plan.source())
        trainer = Trainer(model, corpus, plan.protocol(arm), seed)
        trainer.log |= {"arm": arm.name, "parameters": count(model), "size": describe(model.size)}
        log = trainer.run(file, tick)
        part = file.with_name(f"{file.stem}.{os.getpid()}.part")
        part.write_text(json.dumps(log) + "\n")
        part.replace(file.with_suffix(".json"))
    return log


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a run for this process; another process that wants the same waits, and then finds it finished."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def quiet_torch(threads: int) -> None:
    """Settings of a worker: its threads, and no switch that would change bits from run to run."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
