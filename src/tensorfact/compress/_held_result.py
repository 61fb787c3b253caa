"""The result of a run that was held: its tensors in order, the records of its layers, and the copy of the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from tensorfact.compress._job import Job
from tensorfact.compress._method import Rank, as_rank, owner
from tensorfact.compress._state import State
from tensorfact.compress._types import BITS
from tensorfact.compress._units import Size, deal, layer_sizes
from tensorfact.compress.records import BlockRecord
from tensorfact.compress.writer import CheckpointWriter, Entry

__all__ = ["HeldResult"]


class HeldResult:
    """Stages that are all done.

    Parameters
    ----------
    job : Job
        Gets the final ranks and the records of layers and blocks.
    facts : mapping
        By stage, in order: what `State.load` gives beside the arrays.
    """

    def __init__(self, job: Job, state: State, facts: Mapping[str, dict[str, Any]]) -> None:
        self.job, self.state, self.facts = job, state, facts
        ranks: dict[str, Rank] = dict(job.allocation.ranks)
        units: dict[str, Any] = {}
        dropped: set[str] = set()
        self.made: dict[str, Entry] = {}
        self.changed: set[str] = set()
        for stage in facts.values():
            ranks |= {name: as_rank(rank) for name, rank in stage["ranks"].items()}
            units |= stage["units"]
            dropped |= set(stage["dropped"])
            self.changed |= set(stage["changed"])
            for key, shape in stage["shapes"].items():
                self.made[key] = Entry(key, stage["types"][key], tuple(shape))
        job.allocation = dataclasses.replace(job.allocation, ranks=ranks)
        job.unit_recipes = units
        job.dropped = tuple(job.checkpoint.tensors[key] for key in sorted(dropped))
        self.dropped = dropped
        self._record()

    def entries(self) -> list[Entry]:
        """Every tensor of the result: the arrays of a layer where its weight was, others of a stage at the end."""
        layers = {layer.info.name: layer for layer in self.job.replaced()}
        places = self._places()
        by_layer: dict[str, list[Entry]] = {}
        rest = []
        for key, entry in self.made.items():
            found = owner(self.job.method, key)
            if key in self.changed:
                continue
            if found is not None and found[0] in self.job.allocation.ranks:
                by_layer.setdefault(found[0], []).append(entry)
            else:
                rest.append(entry)
        entries: list[Entry] = []
        for key, info in self.job.checkpoint.tensors.items():
            if key in layers:
                entries += by_layer.get(layers[key].name, [])
            elif key not in self.dropped:
                name = places.get(key, key)
                entries.append(self.made.get(name, Entry(name, info.dtype, info.shape)))
        placed = {entry.name for entry in entries}  # a unit may give a bias of its own
        return entries + [entry for entry in rest if entry.name not in placed]

    def write(self, writer: CheckpointWriter) -> None:
        """Write all tensors: stage by stage what was made, then what stays as it was."""
        written = set()
        for key in self.facts:
            found = self.state.load(key)
            if found is None:
                raise RuntimeError(f"{self.state.directory} was changed while the run was using it")
            for name, values in found[0].items():
                writer.write(name, values)
                written.add(name)
        layers = {layer.info.name for layer in self.job.replaced()}
        places = self._places()
        for key, info in self.job.checkpoint.tensors.items():
            name = places.get(key, key)
            if key not in layers and key not in self.dropped and name not in written:
                writer.copy(name, info)

    def _places(self) -> dict[str, str]:
        """Return where biases of replaced layers go."""
        suffix = self.job.method.bias
        return {la.bias.name: f"{la.name}.{suffix}" for la in self.job.replaced() if la.bias is not None}

    def _record(self) -> None:
        job = self.job
        sizes = self._sizes()
        layers = {layer.name: layer for layer in job.replaced()}
        for stage in self.facts.values():
            for name, found in stage["layers"].items():
                record = job.record(layers[name], sizes[name], None)
                job.made[name] = dataclasses.replace(
                    record,
                    error=found["error"],
                    optimal_error=None,
                    output_error=found["output_error"],
                    path=found["path"],
                    seconds=record.seconds + found["seconds"],
                    spectrum=record.spectrum or tuple((int(i), float(v)) for i, v in found["spectrum"]),
                    notes=tuple(found["notes"]),
                )
            if stage["block"] is not None:
                job.blocks.append(BlockRecord(**stage["block"]))

    def _sizes(self) -> dict[str, Size]:
        """Count what is stored for each layer; shared arrays in equal parts."""
        job = self.job
        layers = {layer.name: layer for layer in job.replaced()}
        sharers: dict[str, list[str]] = {}
        for end, source in job.method.ties(job.recipe()).items():
            found = owner(job.method, end)
            if found is not None:
                sharers.setdefault(source, []).append(found[0])
        bits = dict.fromkeys(layers, 0)
        biases = set(self._places().values())
        for stage in self.facts.values():
            mine = list(stage["layers"])
            for key, shape in stage["shapes"].items():
                if key in stage["changed"] or key in biases:  # those are the source's own tensors with other values
                    continue
                found = owner(job.method, key)
                names = mine if found is None or found[0] not in layers else [found[0], *sharers.get(key, [])]
                deal(bits, int(np.prod(shape, dtype=np.int64)) * BITS[stage["types"][key]], names)
        return layer_sizes(job.method, list(layers.values()), job.allocation.ranks, bits)
