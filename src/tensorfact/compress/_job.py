"""One run: its state and its phases, in order: open, share, factor, report."""

from __future__ import annotations

import dataclasses
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorfact import kernels
from tensorfact.compress import _store
from tensorfact.compress._few_bits import wide_note
from tensorfact.compress._method import Allocation, Layer, Method, create, reading_options
from tensorfact.compress._progress import ProgressCallback, steps
from tensorfact.compress._types import FLOAT_TYPES
from tensorfact.compress._units import Evidence, Size, Unit, recipe_units, stored_sizes
from tensorfact.compress.checkpoint import Checkpoint, CheckpointError, TensorInfo
from tensorfact.compress.executors import Pool, Stored, run_analysis, run_factor, run_tasks
from tensorfact.compress.plan import Plan, make_plan, require_dense
from tensorfact.compress.records import (
    BlockRecord,
    CalibrationRecord,
    DenseRecord,
    LayerRecord,
    Report,
    downsample_spectrum,
)
from tensorfact.compress.writer import CheckpointWriter, Entry

__all__ = ["Job", "Modules", "RNGLike", "free_memory", "make_job"]

Modules = str | Sequence[str] | None
RNGLike = int | np.random.Generator | np.random.SeedSequence | None


@dataclass(slots=True)
class Job:
    """State of one run; each method is one phase."""

    method: Method
    param_ratio: float
    seed: int
    checkpoint: Checkpoint = field(init=False)
    plan: Plan = field(init=False)
    allocation: Allocation = field(default_factory=lambda: Allocation({}))
    analyses: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    unit_recipes: dict[str, Any] | None = None
    made: dict[str, LayerRecord] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    source_files: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    calibration: CalibrationRecord | None = None
    blocks: list[BlockRecord] = field(default_factory=list)
    dropped: tuple[TensorInfo, ...] = ()

    def open(self, source: Path, targets: Modules, excluded: Modules, trust_remote_code: bool) -> None:
        start = time.perf_counter()
        self.checkpoint = Checkpoint.open(source)
        require_dense(self.checkpoint)
        family = self.checkpoint.config.get("model_type")
        if not isinstance(family, str) or not family:  # the result could not be loaded, nor made dense again
            raise CheckpointError(f"{source / 'config.json'} must name a model_type, got {family!r}")
        self.plan = make_plan(
            self.checkpoint,
            self.method,
            target_modules=targets,
            exclude_modules=excluded,
            trust_remote_code=trust_remote_code,
        )
        self.notes += [
            *([self.method.remark] if self.method.remark else []),
            *self.plan.notes,
            *_unloadable(self.checkpoint.config),
            *_store.not_copied(self.checkpoint),
        ]
        self.seconds["plan"] = time.perf_counter() - start

    def share(self, pool: Pool, progress: ProgressCallback | None, evidence: Evidence | None = None) -> None:
        start = time.perf_counter()
        if self.method.needs_analysis:
            order = sorted(
                self.plan.layers, key=lambda layer: -layer.size
            )  # the longest tasks first: workers end together
            tasks = [(self.method, layer, evidence) for layer in order]
            with (
                steps(progress, "spectra", len(order)) as step,
                closing(run_tasks(pool, run_analysis, tasks)) as results,
            ):
                for index, analysed in results:
                    name = order[index].name
                    self.analyses[name] = analysed.values
                    self.spent[name] = analysed.seconds
                    step(name)
        self.allocation = self.method.allocate(self.plan.layers, self.param_ratio, self.analyses)
        self.seconds["spectra"] = time.perf_counter() - start

    def most_workers(self) -> int | None:
        """How many of the largest tasks fit in memory: each has its weight and the method's work space."""
        free = free_memory()
        sizes = (layer.size * np.dtype(FLOAT_TYPES[layer.info.dtype]).itemsize for layer in self.plan.layers)
        return None if free is None else free // (self.method.memory * max(sizes))

    def entries(self) -> list[Entry]:
        """Every tensor of the result, in the order of the source."""
        layers = {layer.info.name: layer for layer in self.replaced()}
        biases = {layer.bias.name: layer for layer in layers.values() if layer.bias is not None}
        entries = []
        for key, info in self.checkpoint.tensors.items():
            if key in layers:
                layer = layers[key]
                shapes = self.method.layout(layer.shape, self.allocation.ranks[layer.name])
                types = self.method.stored_types
                entries += [
                    Entry(f"{layer.name}.{suffix}", types.get(suffix, info.dtype), shape)
                    for suffix, shape in shapes.items()
                ]
            else:
                name = f"{biases[key].name}.{self.method.bias}" if key in biases else key
                entries.append(Entry(name, info.dtype, info.shape))
        return entries

    def replaced(self) -> list[Layer]:
        return [layer for layer in self.plan.layers if layer.name in self.allocation.ranks]

    def require(self, calibration: Any) -> None:
        """Refuse a method that cannot do without data."""
        if self.method.needs_calibration and calibration is None:
            raise ValueError(f"calibration must be given: the {self.method.name} method cannot do without data")

    def has_groups(self) -> bool:
        """Whether the method factors several weights at once."""
        return any(len(unit.layers) > 1 for unit in self.method.units(self.plan.layers))

    def units(self) -> tuple[Unit, ...]:
        return self.method.units(self.replaced())

    def recipe(self) -> dict[str, Any]:
        """What loading needs to know, as in ``config.json``."""
        units = recipe_units(self.units(), {}) if self.unit_recipes is None else self.unit_recipes
        options = reading_options(self.method)
        return {"ranks": self.allocation.ranks, "units": units, **({"options": options} if options else {})}

    def factor(self, pool: Pool, writer: CheckpointWriter, progress: ProgressCallback | None) -> None:
        start = time.perf_counter()
        order = sorted(self.replaced(), key=lambda layer: -layer.size)
        sizes = self.sizes()
        tasks = [(self.method, layer, self.allocation.ranks[layer.name], self.seed) for layer in order]
        with (
            steps(progress, "factors", len(order)) as step,
            closing(run_tasks(pool, run_factor, tasks, meanwhile=lambda: self._copy(writer))) as results,
        ):
            for index, stored in results:
                layer = order[index]
                for suffix, values in stored.factored.arrays.items():
                    writer.write(f"{layer.name}.{suffix}", values)
                self.made[layer.name] = self.record(layer, sizes[layer.name], stored)
                del stored
                step(layer.name)
        self.seconds["factor"] = time.perf_counter() - start

    def _copy(self, writer: CheckpointWriter) -> None:
        """Copy what stays dense while the workers are busy, and take the digests of the source."""
        layers = {layer.info.name for layer in self.replaced()}
        suffix = self.method.bias
        biases = {layer.bias.name: f"{layer.name}.{suffix}" for layer in self.replaced() if layer.bias is not None}
        for key, info in self.checkpoint.tensors.items():
            if key not in layers:
                writer.copy(biases.get(key, key), info)
        for file in (self.checkpoint.directory / "config.json", *self.checkpoint.weight_files):
            self.source_files[file.name] = _store.describe(file)

    def record(self, layer: Layer, after: Size, stored: Stored | None) -> LayerRecord:
        rank = self.allocation.ranks[layer.name]
        analysis = self.analyses.get(layer.name, np.empty(0))
        predicted = self.method.predicted_error(analysis, rank)
        found = stored.factored.spectrum if stored is not None else np.empty(0)
        return LayerRecord(
            name=layer.name,
            kind=layer.kind,
            shape=layer.shape,
            dtype=layer.info.dtype,
            rank=rank,
            full_rank=self.method.full_rank(layer.shape),
            break_even=self.method.break_even(layer.shape),
            error=predicted if stored is None else stored.factored.error,
            optimal_error=self.method.optimal_error(analysis, rank),
            path="predicted" if stored is None else stored.factored.path,
            params_before=layer.size,
            params_after=after.numbers,
            bytes_before=layer.info.nbytes,
            bytes_after=after.nbytes,
            seconds=self.spent.get(layer.name, 0.0) + (0.0 if stored is None else stored.seconds),
            spectrum=downsample_spectrum(self.method.spectrum(analysis) if analysis.size else found),
            notes=() if stored is None else stored.factored.notes,
        )

    def sizes(self) -> dict[str, Size]:
        """What is stored for each layer, in equal parts where layers share it."""
        return stored_sizes(self.method, self.replaced(), self.allocation.ranks, self.recipe())

    def report(self, label: str, out: str | None, executor: str) -> Report:
        sizes = self.sizes()
        replaced = [self.made.get(la.name) or self.record(la, sizes[la.name], None) for la in self.replaced()]
        targeted = {layer.info.name: layer for layer in self.plan.layers}
        dense = []
        for key, info in self.checkpoint.tensors.items():
            layer = targeted.get(key)
            if layer is None and key in self.plan.dense:
                dense.append(_dense(info, key.removesuffix(".weight"), self.plan.dense[key]))
            elif layer is not None and layer.name in self.allocation.dense:
                spectrum = downsample_spectrum(self.method.spectrum(self.analyses.get(layer.name, np.empty(0))))
                record = _dense(info, layer.name, self.allocation.dense[layer.name])
                dense.append(dataclasses.replace(record, targeted=True, spectrum=spectrum))
        saved = sum(record.params_before - record.params_after for record in replaced)
        saved_bytes = sum(record.bytes_before - record.bytes_after for record in replaced)
        before = sum(layer.size for layer in self.plan.layers)
        gone, gone_bytes = (sum(getattr(info, key) for info in self.dropped) for key in ("size", "nbytes"))
        told = wide_note(getattr(self.method, "factor_bits", None), replaced, dense)
        return Report(
            method=self.method.name,
            options={**_store.options(self.method), "rng": self.seed},
            source=label,
            output=out,
            model_type=str(self.checkpoint.config.get("model_type", "")),
            architecture=str(_architectures(self.checkpoint.config)[0]),
            param_ratio=self.param_ratio,
            targeted_before=before,
            targeted_after=before - saved,
            params_before=self.checkpoint.size,
            params_after=self.checkpoint.size - saved - gone,
            bytes_before=self.checkpoint.nbytes,
            bytes_after=self.checkpoint.nbytes - saved_bytes - gone_bytes,
            layers=tuple(replaced),
            dense=tuple(dense),
            seconds=dict(self.seconds),
            executor=executor,
            notes=(*self.notes, *told, *_kernel_note()),
            versions=_store.versions(),
            dry_run=out is None,
            calibration=self.calibration,
            blocks=tuple(self.blocks),
        )


def make_job(method: str | Method, options: Mapping[str, Any], param_ratio: float, rng: RNGLike) -> Job:
    if isinstance(param_ratio, bool) or not isinstance(param_ratio, int | float) or not 0 < param_ratio <= 1:
        raise ValueError(f"param_ratio must be in (0, 1]: the share of the parameters that stays, got {param_ratio!r}")
    made = create(method, options)
    try:
        generator = np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise ValueError(f"rng must be None, an integer >= 0, a Generator or a SeedSequence, got {rng!r}") from error
    seed = int(rng) if isinstance(rng, int | np.integer) else int(generator.integers(2**53))
    return Job(made, float(param_ratio), seed)


def _dense(info: TensorInfo, name: str, reason: str) -> DenseRecord:
    return DenseRecord(
        name=name, reason=reason, shape=info.shape, dtype=info.dtype, params=info.size, bytes=info.nbytes
    )


def _architectures(config: Mapping[str, Any]) -> list[Any]:
    names = config.get("architectures")
    return names if isinstance(names, list) and names else [""]


def _unloadable(config: Mapping[str, Any]) -> list[str]:
    """Say beforehand what `load` will refuse. The plan has imported transformers, or it is not there."""
    found = []
    auto = sys.modules.get("transformers.models.auto.configuration_auto")
    if auto is not None and config["model_type"] not in auto.CONFIG_MAPPING:
        found.append(
            f"transformers itself does not know the family {config['model_type']!r}: the result cannot be loaded, "
            "but to-dense makes a checkpoint of the original kind of it"
        )
    elif not _architectures(config)[0]:
        found.append("config.json names no architecture: load needs auto_class")
    return found


def _kernel_note() -> tuple[str, ...]:
    found = kernels.active()
    return () if found == "cpp" else (f"the compiled kernels were not used but the {found} ones, which are slower",)


def free_memory() -> int | None:
    """Bytes that this process may still take, of the machine and of its control group; None where unknown."""
    found = []
    try:
        words = Path("/proc/meminfo").read_text().split()
        found.append(1024 * int(words[words.index("MemAvailable:") + 1]))
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / f"memory.{name}").read_text() for name in ("max", "current"))
        inactive = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
        # Pages of files that were read count as used, but are given up on demand.
        found.append(int(limit) - int(used) + (int(inactive[1]) if inactive else 0))
    except (OSError, ValueError):  # another system, or no limit
        pass
    return max(0, min(found)) if found else None
