"""One stage: factor its units, put them into the model, train its blocks, and store what came of it."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tensorfact.compress._job import Job
from tensorfact.compress._method import Arrays, Rank, as_rank
from tensorfact.compress._refine import Refinement, Span, block_loss, held_out, refine
from tensorfact.compress._stages import Stage
from tensorfact.compress._state import State
from tensorfact.compress._types import FLOAT_TYPES
from tensorfact.compress._unit_tasks import StoredUnit, decoded, encoded, layer_errors, run_unit
from tensorfact.compress._units import Evidence, FactoredUnit, Trainer, recipe_units
from tensorfact.compress.executors import Pool, run_tasks, task_rng
from tensorfact.compress.records import downsample_spectrum

if TYPE_CHECKING:
    from tensorfact.compress._flow import Flow

__all__ = ["StageRun", "stage_key"]


@dataclass(frozen=True, slots=True)
class _Trained:
    """What training changed beside the units: norms and biases, stored, with their types; and the block's record."""

    arrays: Arrays = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    record: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class StageRun:
    """Runs stages of one job."""

    job: Job
    state: State
    pool: Pool
    evidence: Evidence | None

    def resume(self, stage: Stage, flow: Flow) -> dict[str, Any] | None:
        """Put a finished stage into the model and return its facts; None if it is not finished."""
        found = self.state.load(stage_key(stage))
        if found is None:
            return None
        arrays, facts = found
        self._install(stage, flow, {k: as_rank(v) for k, v in facts["ranks"].items()}, facts["units"])
        flow.fill(decoded(arrays, facts["types"]))
        return facts

    def run(
        self, stage: Stage, flow: Flow, span: Span, options: Refinement, step: Callable[[], object]
    ) -> dict[str, Any]:
        """Factor the units, train the blocks of `span`, keep the better of both, and store it; return the facts."""
        begin = time.perf_counter()
        ranks = self.job.allocation.ranks
        tasks = [(self.job.method, unit, ranks, self.job.seed, self.evidence) for unit in stage.units]
        made: dict[str, StoredUnit] = {}
        with closing(run_tasks(self.pool, run_unit, tasks)) as results:
            for index, result in results:
                made[stage.units[index].name] = result
        factored = [unit.factored for unit in made.values()]
        self._install(stage, flow, _ranks(factored), _units(stage, made))
        flow.fill({k: v for unit in made.values() for k, v in decoded(unit.factored.arrays, unit.types).items()})
        span = dataclasses.replace(span, blocks=[flow.block(index) for index in stage.blocks])
        _, measure = held_out(len(span.inputs))
        before = block_loss(span, measure, flow.device)
        untouched = copy.deepcopy(list(span.blocks))
        taken, found = self._trained(stage, flow, span, made, options, step)
        after = before if found is None else block_loss(span, measure, flow.device)
        others = _Trained()
        if found is not None and after < before:
            made, others = found
        else:
            after = before
            for index, block in zip(stage.blocks, untouched, strict=True):
                flow.model.set_submodule(flow.blocks[index][0], block)
        record = {
            "name": stage.name,
            "layers": len(stage.layers),
            "loss_before": before,
            "loss_after": after,
            "steps": taken,
            "seconds": time.perf_counter() - begin,
        }
        return self.save(stage, made, dataclasses.replace(others, record=record))

    def _install(self, stage: Stage, flow: Flow, changed: Mapping[str, Rank], units: Mapping[str, Any]) -> None:
        names = {layer.name: flow.names[layer.name] for layer in stage.layers}
        ranks = {**self.job.allocation.ranks, **changed}
        biases = {place: flow.model.get_submodule(place).bias for place in names.values()}
        self.job.method.install(flow.model, names, ranks, {"ranks": ranks, "units": units})
        flow.keep_biases({place: bias for place, bias in biases.items() if bias is not None}, self.job.method.bias)

    def _trained(
        self,
        stage: Stage,
        flow: Flow,
        span: Span,
        made: Mapping[str, StoredUnit],
        options: Refinement,
        step: Callable[[], object],
    ) -> tuple[int, tuple[dict[str, StoredUnit], _Trained] | None]:
        """Train, and leave in the model what would be stored: rounded, in the form that is stored.

        Returns the steps taken and the result, None where there is nothing that may be kept.
        """
        method, names = self.job.method, {layer.name: flow.names[layer.name] for layer in stage.layers}
        modules = {name: flow.model.get_submodule(place) for name, place in names.items()}
        rng = task_rng(self.job.seed, f"refine {stage.name}")
        trainers: list[Trainer] = []
        for unit in stage.units:
            own = {layer.name: modules[layer.name] for layer in unit.layers}
            trainers.append(method.trainer(unit, own, made[unit.name].factored, steps=options.steps, rng=rng))
        trained = self._storable(stage, flow, flow.parameters(stage.blocks, names.values()))
        for parameter in trained.values():
            parameter.requires_grad_(True)
        parameters = list({id(parameter): parameter for parameter in trained.values()}.values())
        taken, usable = refine(span, parameters, trainers, options, rng=rng, step=step, device=flow.device)
        flow.model.requires_grad_(False)
        if not usable:
            return taken, None
        better = {}
        for unit, trainer in zip(stage.units, trainers, strict=True):
            found = made[unit.name]
            arrays, types = encoded(flow.collect(found.factored.arrays), unit.layers[0].info.dtype, method)
            ranks = {**found.factored.ranks, **trainer.ranks()}
            factored = dataclasses.replace(found.factored, arrays=arrays, ranks=ranks)
            better[unit.name] = dataclasses.replace(found, factored=factored, types=types)
            flow.fill(decoded(arrays, types))
        others = _Trained()
        for key, dtype in self._other_keys(stage, flow, trained).items():
            arrays, types = encoded(flow.collect([key]), dtype)
            others.arrays.update(arrays)
            others.types.update(types)
        flow.fill(decoded(others.arrays, others.types))
        return taken, (better, others)

    def _storable(self, stage: Stage, flow: Flow, found: dict[str, Any]) -> dict[str, Any]:
        """Leave out norms and biases that have no tensor of their own in the checkpoint: they could not be stored."""
        own = tuple(f"{flow.names[layer.name]}." for layer in stage.layers)
        return {key: p for key, p in found.items() if key.startswith(own) or flow.source_key(key) is not None}

    def _other_keys(self, stage: Stage, flow: Flow, trained: Iterable[str]) -> dict[str, str]:
        """Return stored names of the trained norms and biases, and the types that they are stored in."""
        tensors, suffix = self.job.checkpoint.tensors, self.job.method.bias
        sources = [key for name in trained if (key := flow.source_key(name)) is not None]
        found = {key: tensors[key].dtype for key in sources if tensors[key].dtype in FLOAT_TYPES}
        for layer in stage.layers:
            if layer.bias is not None and f"{flow.names[layer.name]}.{suffix}" in trained:
                found[f"{layer.name}.{suffix}"] = layer.bias.dtype
        return found

    def save(self, stage: Stage, made: Mapping[str, StoredUnit], others: _Trained | None = None) -> dict[str, Any]:
        """Measure what was made of a stage, store it, and return the facts as they will be read."""
        others = others or _Trained()
        factored = [unit.factored for unit in made.values()]
        arrays = {key: values for unit in factored for key, values in unit.arrays.items()}
        types = {key: kind for unit in made.values() for key, kind in unit.types.items()}
        units = _units(stage, made)
        ranks = {**self.job.allocation.ranks, **_ranks(factored)}
        ties = self.job.method.ties({"ranks": ranks, "units": units})
        numbers = decoded(arrays, types)
        layers: dict[str, Any] = {}
        for unit in stage.units:
            own = made[unit.name].factored
            errors = layer_errors(self.job.method, unit, ranks, numbers, ties, self.evidence)
            for layer in unit.layers:
                error, output_error = errors.get(layer.name, (own.errors.get(layer.name), None))
                layers[layer.name] = {
                    "error": error,
                    "output_error": output_error,
                    "path": own.path,
                    "seconds": made[unit.name].seconds / len(unit.layers),
                    "spectrum": downsample_spectrum(own.spectra.get(layer.name, np.empty(0))),
                    "notes": own.notes,
                }
        everything = {**arrays, **others.arrays}
        facts = {
            "types": {**types, **others.types},
            "shapes": {key: values.shape for key, values in everything.items()},
            "changed": sorted(others.arrays),
            "ranks": _ranks(factored),
            "units": units,
            "layers": layers,
            "dropped": [name for unit in factored for name in unit.dropped],
            "block": others.record,
        }
        return self.state.save(stage_key(stage), everything, facts)


def stage_key(stage: Stage) -> str:
    """Return the name of the file that holds a stage."""
    return f"stage-{hashlib.sha256(stage.name.encode()).hexdigest()[:16]}"


def _ranks(factored: Iterable[FactoredUnit]) -> dict[str, Rank]:
    return {name: rank for unit in factored for name, rank in unit.ranks.items()}


def _units(stage: Stage, made: Mapping[str, StoredUnit]) -> dict[str, Any]:
    return recipe_units(stage.units, {name: unit.factored for name, unit in made.items()})
