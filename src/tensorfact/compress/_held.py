"""Runs whose results are held beside the target until all are there: those with data or with units of many weights.

They go on where they were stopped. The dense model runs once over the data (Gram matrices); spectra and shares are as
always; then stage by stage the units are factored, put into the model, trained on the outputs of their blocks, and
stored. Without refinement the model is not needed after the first pass.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tensorfact.compress import _store
from tensorfact.compress._grams import StoredEvidence, collect_evidence
from tensorfact.compress._held_result import HeldResult
from tensorfact.compress._job import Job
from tensorfact.compress._method import Layer, as_rank
from tensorfact.compress._progress import ProgressCallback, Step, steps
from tensorfact.compress._refine import Refinement, Span, block_loss, held_out, refine
from tensorfact.compress._stages import Stage, make_stages
from tensorfact.compress._state import State
from tensorfact.compress._types import FLOAT_TYPES
from tensorfact.compress._unit_tasks import StoredUnit, decoded, encoded, layer_errors, run_unit
from tensorfact.compress._units import Trainer, recipe_units
from tensorfact.compress.executors import Pool, run_tasks, task_rng
from tensorfact.compress.records import CalibrationRecord, downsample_spectrum

if TYPE_CHECKING:
    from tensorfact.compress._flow import Flow
    from tensorfact.compress.calibration import Batches

__all__ = ["HeldRun"]

_MEMORY = 1 << 30  # bytes of Gram matrices in one pass, and of each set of hidden states; beyond it they go to disk


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
                refinement=self.refinement and dataclasses.asdict(self.refinement),
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
            limit=_MEMORY,
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
                    limit=_MEMORY,
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
        todo = []
        for stage in stages:
            found = self.state.load(_key(stage))
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
                self._save(stage, {stage.units[0].name: made}, None)
                step(stage.name)

    def _by_blocks(self) -> None:
        """Factor, train and store the stages in the order of their blocks."""
        flow, options = self.flow, self.refinement
        if flow is None or options is None:
            raise ValueError("blocks are refined with calibration data only")
        outside = [stage for stage in self.stages if stage.first is None]
        self._at_once(outside)
        flow.start()
        staged = {stage.first: stage for stage in self.stages if stage.first is not None}
        total = sum(options.steps for _ in staged)
        with steps(self.progress, "refinement", total) as step:
            index = 0
            while index < len(flow.blocks):
                stage = staged.get(index)
                blocks = range(index, index + 1) if stage is None else stage.blocks
                outputs = flow.teach(blocks)
                if stage is not None:
                    self._stage(stage, flow, flow.span(blocks, outputs, teacher=options.inputs == "teacher"), step)
                flow.pass_on(blocks, outputs)
                index = blocks[-1] + 1
        self.flow = None

    def _stage(self, stage: Stage, flow: Flow, span: Span, step: Step) -> None:
        found = self.state.load(_key(stage))
        if found is not None:
            arrays, facts = found
            self.facts[stage.name] = facts
            self._install(stage, flow, facts)
            flow.fill(decoded(arrays, facts["types"]))
            for _ in range(self.refinement.steps if self.refinement else 0):
                step(stage.name)
            return
        ranks = self.job.allocation.ranks
        tasks = [(self.job.method, unit, ranks, self.job.seed, self.evidence) for unit in stage.units]
        made: dict[str, StoredUnit] = {}
        with closing(run_tasks(self.pool, run_unit, tasks)) as results:
            for index, result in results:
                made[stage.units[index].name] = result
        block = self._refined(stage, flow, span, made, step)
        self._save(stage, made, block)

    def _install(self, stage: Stage, flow: Flow, facts: Mapping[str, Any]) -> None:
        names = {layer.name: flow.names[layer.name] for unit in stage.units for layer in unit.layers}
        ranks = {**self.job.allocation.ranks, **{k: as_rank(v) for k, v in facts["ranks"].items()}}
        biases = {name: flow.model.get_submodule(place).bias for name, place in names.items()}
        self.job.method.install(flow.model, names, ranks, {"ranks": ranks, "units": facts["units"]})
        flow.keep_biases({names[name]: bias for name, bias in biases.items() if bias is not None}, self.job.method.bias)

    def _refined(
        self, stage: Stage, flow: Flow, span: Span, made: dict[str, StoredUnit], step: Step
    ) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str], dict[str, Any]] | None:
        """Train the blocks of a stage; return changed arrays with their types, and what happened."""
        job, options = self.job, self.refinement
        if options is None:
            return None
        begin = time.perf_counter()
        factored = {name: unit.factored for name, unit in made.items()}
        start_arrays = {k: v for unit in made.values() for k, v in decoded(unit.factored.arrays, unit.types).items()}
        facts = {
            "ranks": {name: rank for unit in factored.values() for name, rank in unit.ranks.items()},
            "units": recipe_units(stage.units, factored),
        }
        self._install(stage, flow, facts)
        flow.fill(start_arrays)
        span = dataclasses.replace(span, blocks=[flow.block(index) for index in stage.blocks])
        _, measure = held_out(len(span.inputs))
        before = block_loss(span, measure, flow.device)
        untouched = copy.deepcopy([flow.block(index) for index in stage.blocks])
        layers = {layer.name: layer for unit in stage.units for layer in unit.layers}
        modules = {name: flow.model.get_submodule(flow.names[name]) for name in layers}
        rng = task_rng(job.seed, f"refine {stage.name}")
        trainers: list[Trainer] = [
            job.method.trainer(
                unit,
                {layer.name: modules[layer.name] for layer in unit.layers},
                factored[unit.name],
                steps=options.steps,
                rng=rng,
            )
            for unit in stage.units
        ]
        trained = flow.parameters(stage.blocks, [flow.names[name] for name in layers])
        for parameter in trained.values():
            parameter.requires_grad_(True)
        parameters = list({id(p): p for p in trained.values()}.values())
        log = refine(span, parameters, trainers, options, rng=rng, step=lambda: step(stage.name), device=flow.device)
        flow.model.requires_grad_(False)
        # What counts is the loss of what is stored: rounded, in the form that is stored.
        arrays = flow.collect(start_arrays)
        keys = self._changed_keys(stage, flow, trained)
        changed = flow.collect(keys)
        dtype = stage.units[0].layers[0].info.dtype
        stored, types = encoded(arrays, dtype)
        others: dict[str, npt.NDArray[Any]] = {}
        for key, values in changed.items():
            one, kind = encoded({key: values}, keys[key])
            others |= one
            types |= kind
        flow.fill(decoded({**stored, **others}, types))
        after = block_loss(span, measure, flow.device)
        kept = log["checks"] != [] and after < before
        if not kept:
            for index, block in zip(stage.blocks, untouched, strict=True):
                flow.model.set_submodule(flow.blocks[index][0], block)
        else:
            for unit, trainer in zip(stage.units, trainers, strict=True):
                before_training = made[unit.name].factored
                factors = dataclasses.replace(
                    before_training,
                    arrays={key: stored[key] for key in before_training.arrays},
                    ranks={**before_training.ranks, **trainer.ranks()},
                )
                made[unit.name] = dataclasses.replace(made[unit.name], factored=factors)
        record = {
            "name": stage.name,
            "layers": len(layers),
            "loss_before": before,
            "loss_after": after if kept else before,
            "steps": log["steps"],
            "seconds": time.perf_counter() - begin,
        }
        return (others, types, record) if kept else ({}, {}, record)

    def _changed_keys(self, stage: Stage, flow: Flow, trained: Mapping[str, Any]) -> dict[str, str]:
        """Return stored names of the trained norms and biases, and the types that they are stored in."""
        tensors = self.job.checkpoint.tensors
        found = {}
        for name in trained:
            key = flow.source_key(name)
            if key is not None and tensors[key].dtype in FLOAT_TYPES:
                found[key] = tensors[key].dtype
        for unit in stage.units:
            for layer in unit.layers:
                place = f"{flow.names[layer.name]}.{self.job.method.bias}"
                if layer.bias is not None and place in trained:
                    found[f"{layer.name}.{self.job.method.bias}"] = layer.bias.dtype
        return found

    def _save(
        self,
        stage: Stage,
        made: Mapping[str, StoredUnit],
        block: tuple[dict[str, npt.NDArray[Any]], dict[str, str], dict[str, Any]] | None,
    ) -> None:
        """Measure what was made of a stage and store it."""
        factored = {name: unit.factored for name, unit in made.items()}
        arrays = {key: values for unit in factored.values() for key, values in unit.arrays.items()}
        types = {key: kind for unit in made.values() for key, kind in unit.types.items()}
        units = recipe_units(stage.units, factored)
        ties = self.job.method.ties({"ranks": self.job.allocation.ranks, "units": units})
        layers: dict[str, Any] = {}
        numbers = decoded(arrays, types)
        for unit in stage.units:
            own = factored[unit.name]
            ranks = {**self.job.allocation.ranks, **own.ranks}
            errors = layer_errors(self.job.method, unit, ranks, numbers, ties, self.evidence)
            for layer in unit.layers:
                error, output_error = errors.get(layer.name, (own.errors.get(layer.name), None))
                layers[layer.name] = {
                    "rank": ranks[layer.name],
                    "error": error,
                    "output_error": output_error,
                    "path": own.path,
                    "seconds": made[unit.name].seconds / len(unit.layers),
                    "spectrum": downsample_spectrum(own.spectra.get(layer.name, np.empty(0))),
                    "notes": own.notes,
                }
        facts = {
            "types": {**types, **(block[1] if block else {})},
            "shapes": {key: values.shape for key, values in [*arrays.items(), *(block[0] if block else {}).items()]},
            "changed": sorted(block[0]) if block else [],
            "ranks": {name: rank for unit in factored.values() for name, rank in unit.ranks.items()},
            "units": units,
            "layers": layers,
            "dropped": [name for unit in factored.values() for name in unit.dropped],
            "block": block[2] if block else None,
        }
        self.state.save(_key(stage), {**arrays, **(block[0] if block else {})}, facts)
        # As read from JSON, so that a run that goes on has the same.
        loaded = self.state.load(_key(stage))
        if loaded is not None:
            self.facts[stage.name] = loaded[1]

    def result(self) -> HeldResult:
        """Return what is known of the result, with the ranks that the stages settled in the job."""
        return HeldResult(self.job, self.state, {_key(stage): self.facts[stage.name] for stage in self.stages})


def _key(stage: Stage) -> str:
    return f"stage-{hashlib.sha256(stage.name.encode()).hexdigest()[:16]}"


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
