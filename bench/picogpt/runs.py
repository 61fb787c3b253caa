"""Which trainings there are, in which order, and one of them: each arm and seed has its own checkpoint and log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench import resumable
from bench.picogpt import arms
from bench.picogpt.arms import Arm
from bench.picogpt.data import Corpus
from bench.picogpt.model import count, describe
from bench.picogpt.training import Protocol, Trainer
from bench.resumable import Log

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
        log = resumable.stored_log(self.checkpoint(arm, seed))
        return log is not None and log["step"] >= self.protocol(arm).steps


def run(plan: Plan, arm: Arm, seed: int, corpus: Corpus, tick: Tick | None = None) -> Log:
    """Train one arm with one seed to its end, from where it stopped; writes its log beside the checkpoint.

    An arm that begins from the trained dense model trains that first, or waits for the process that does.
    """
    file = plan.checkpoint(arm, seed)
    with resumable.locked(file):
        if arm.tuned and not plan.done(Arm("dense"), SOURCE_SEED):
            run(plan, Arm("dense"), SOURCE_SEED, corpus, tick)
        model = arms.build(arm, seed, plan.source())
        trainer = Trainer(model, corpus, plan.protocol(arm), seed)
        trainer.log |= {"arm": arm.name, "parameters": count(model), "size": describe(model.size)}
        log = trainer.run(file, tick)
        resumable.write_json(file.with_suffix(".json"), log)
    return log
