"""Runs whose results are held beside the target until all are there: those with data or with units of many weights.

They go on where they were stopped. The dense model runs once over the data (Gram matrices); spectra and shares are as
always; then stage by stage the units are factored, put into the model, trained on the outputs of their blocks, and
stored. Without refinement the model is not needed after the first pass.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from tensorfact.compress import _store
from tensorfact.compress._grams import StoredEvidence, collect_evidence
from tensorfact.compress._held_result import HeldResult
from tensorfact.compress._job import Job
from tensorfact.compress._method import Layer
from tensorfact.compress._progress import ProgressCallback, steps
from tensorfact.compress._refine import Refinement
from tensorfact.compress._stage_run import StageRun, stage_key
from tensorfact.compress._stages import Stage, make_stages
from tensorfact.compress._state import State
from tensorfact.compress._unit_tasks import run_unit
from tensorfact.compress.executors import Pool, run_tasks
from tensorfact.compress.records import CalibrationRecord

if TYPE_CHECKING:
    from tensorfact.compress._flow import Flow
    from tensorfact.compress.calibration import Batches

__all__ = ["HeldRun"]

_GRAMS = 1 << 30  # bytes of the Gram matrices of one pass: beyond it there are more passes
_HIDDEN = 1 << 28  # bytes of each of the four sets of hidden states in memory: beyond it they are files


@dataclass(slots=True)
class HeldRun:
    """One run; `run` does everything up to the layout of the result, `result` is what there is to write then."""

    job: Job
    state: State
    pool: Pool
    progress: ProgressCallback | None
    data: Any
    refinement: Refinement | None
    seed: int | None
    evidence: StoredEvidence | None = None
    flow: Flow | None = None
    batches: Batches | None = None
    stages: list[Stage] = field(default_factory=list)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self) -> None:
        """Look at the data, share the budget, factor and refine."""
        job = self.job
        for file in (job.checkpoint.directory / "config.json", *job.checkpoint.weight_files):
            job.source_files[file.name] = _store.describe(file)
        if self.data is not None:
            self._open_data()
        content = {
            "method": [job.method.name, _store.options(job.method)],
            "param_ratio": job.param_ratio,
            "layers": [layer.name for layer in job.plan.layers],
            "source": job.source_files,
            "data": self.batches and self.batches.digest(),
            "refinement": self.refinement and dataclasses.asdict(self.refinement),
            "versions": _store.versions(),
        }
        job.seed = self.state.agree(content, self.seed, job.seed)
        if self.state.resumed:
            job.notes.append("the run went on from where an earlier one had stopped")
        if self.flow is not None and self.batches is not None:
            self._observe(self.flow, self.batches)
            job.calibration = CalibrationRecord(
                description=self.batches.description,
                samples=self.batches.samples,
                positions=self.batches.positions,
                refinement=None if self.refinement is None else dataclasses.asdict(self.refinement),
            )
        job.share(self.pool, self.progress, self.evidence)
        start = time.perf_counter()
        blocks = [] if self.flow is None or self.flow.calls is None else [name for name, _ in self.flow.blocks]
        names = {} if self.flow is None else self.flow.names
        self.stages = make_stages(job.units(), names or {layer.name: layer.name for layer in job.replaced()}, blocks)
        if blocks:
            self._by_blocks()
        else:
            self.flow = None  # nothing needs the model any more
            self._at_once(self.stages)
        job.seconds["factor"] = time.perf_counter() - start

    def _open_data(self) -> None:
        from tensorfact.compress._flow import Flow, open_model
        from tensorfact.compress.calibration import open_calibration

        start = time.perf_counter()
        job = self.job
        model = open_model(job.checkpoint.directory, "cpu")
        self.batches = open_calibration(self.data, job.checkpoint.directory, model)
        job.notes += [
            *self.batches.notes,
            f"calibrated on {self.batches.description}: results are tuned to their domain, measure on another one too",
        ]
        self.flow = Flow(
            model,
            [layer.name for layer in job.plan.layers],
            self.batches,
            limit=_HIDDEN,
            folder=self.state.directory,
        )
        lost = [layer.name for layer in job.plan.layers if layer.name not in self.flow.names]
        if lost:
            raise ValueError(f"calibration must reach every targeted layer, the model has none for {lost[0]!r}")
        self.flow.remember(list(job.checkpoint.tensors))
        job.seconds["load"] = time.perf_counter() - start

    def _observe(self, flow: Flow, batches: Batches) -> None:
        """Run the dense model: Gram matrices if there are none yet, and the way through its blocks."""
        start = time.perf_counter()
        job = self.job
        watch = self.refinement is not None and bool(flow.blocks)
        self.evidence = StoredEvidence.read(self.state.directory)
        with steps(self.progress, "calibration", len(batches.inputs)) as step:
            if self.evidence is None:
                self.evidence = collect_evidence(
                    flow.model,
                    flow.names,
                    batches,
                    self.state.directory,
                    samples=job.method.samples,
                    limit=_GRAMS,
                    step=step,
                    watched=flow.watch if watch else lambda run: run(),
                )
            elif watch:
                flow.watch(flow.run)
        if self.refinement is not None and flow.calls is None:
            job.notes.append(
                "no block was refined: the model has no list of blocks that run one after the other, once each"
            )
        _check_counts(self.evidence, job.plan.layers, job.notes)
        job.seconds["calibration"] = time.perf_counter() - start

    def _at_once(self, stages: list[Stage]) -> None:
        """Factor units that need no model, in any order."""
        runner = StageRun(self.job, self.state, self.pool, self.evidence)
        todo = []
        for stage in stages:
            found = self.state.load(stage_key(stage))
            if found is None:
                todo.append(stage)
            else:
                self.facts[stage.name] = found[1]
        ranks = self.job.allocation.ranks
        todo.sort(key=lambda stage: -sum(layer.size for layer in stage.units[0].layers))
        tasks = [(self.job.method, s.units[0], ranks, self.job.seed, self.evidence) for s in todo]
        with (
            steps(self.progress, "factors", len(todo)) as step,
            closing(run_tasks(self.pool, run_unit, tasks)) as results,
        ):
            for index, made in results:
                stage = todo[index]
                self.facts[stage.name] = runner.save(stage, {stage.units[0].name: made})
                step(stage.name)

    def _by_blocks(self) -> None:
        """Factor, train and store the stages in the order of their blocks."""
        flow, options = self.flow, self.refinement
        if flow is None or options is None:
            raise ValueError("blocks are refined with calibration data only")
        outside = [stage for stage in self.stages if stage.first is None]
        self._at_once(outside)
        lost = [layer.name for stage in outside for layer in stage.layers]
        if lost:  # the other stack of a model with two, a pooler
            where = flow.blocks[0][0].rpartition(".")[0]
            self.job.notes.append(
                f"{len(lost)} layers were not trained, for they are not in the blocks of {where}: {', '.join(lost[:3])}"
            )
        flow.start()
        runner = StageRun(self.job, self.state, self.pool, self.evidence)
        staged = {stage.first: stage for stage in self.stages if stage.first is not None}
        total = sum(options.steps for _ in staged)
        with steps(self.progress, "refinement", total) as step:
            index = 0
            while index < len(flow.blocks):
                stage = staged.get(index)
                blocks = range(index, index + 1) if stage is None else stage.blocks
                outputs = flow.teach(blocks)
                if stage is not None:
                    span = flow.span(blocks, outputs, teacher=options.inputs == "teacher")
                    facts = runner.resume(stage, flow)
                    if facts is None:
                        facts = runner.run(stage, flow, span, options, partial(step, stage.name))
                    else:
                        for _ in range(options.steps):
                            step(stage.name)
                    self.facts[stage.name] = facts
                flow.pass_on(blocks, outputs)
                index = blocks[-1] + 1
        self.flow = None

    def result(self) -> HeldResult:
        """Return what is known of the result, with the ranks that the stages settled in the job."""
        return HeldResult(self.job, self.state, {stage_key(stage): self.facts[stage.name] for stage in self.stages})


def _check_counts(evidence: StoredEvidence, layers: Sequence[Layer], notes: list[str]) -> None:
    """Refuse data with fewer positions than the widest input; say which layers saw nothing."""
    seen = [layer for layer in layers if evidence.count(layer.name)]
    most = max((evidence.count(layer.name) for layer in seen), default=0)
    widest = max(layer.shape[1] for layer in layers)
    if most < widest:
        raise ValueError(
            f"calibration must have at least {widest} positions, as many as the widest targeted weight has inputs, "
            f"got {most}"
        )
    unseen = [layer.name for layer in layers if not evidence.count(layer.name)]
    if unseen:
        notes.append(f"calibration never reached {len(unseen)} layers, factored without it: {', '.join(unseen[:3])}")
