"""Compress a checkpoint: plan, spectra, shares, factors, report; and the same without writing.

The largest weight, its factors and the workspace of the method are in memory once for each worker, whatever the size
of the checkpoint: workers read their own weight, the writer puts each result at its place in the file and forgets it.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorfact.compress import _store
from tensorfact.compress._method import Allocation, Layer, Method, Rank, create
from tensorfact.compress._progress import ProgressCallback, progress_of, steps
from tensorfact.compress.checkpoint import Checkpoint, TensorInfo, nbytes
from tensorfact.compress.executors import Pool, Stored, open_pool, run_analysis, run_factor, run_tasks
from tensorfact.compress.plan import Plan, make_plan, require_dense
from tensorfact.compress.records import DenseRecord, LayerRecord, Report, downsample_spectrum
from tensorfact.compress.writer import CheckpointWriter, Entry, check_target, parse_size

__all__ = ["compress", "estimate", "load"]

_COMPARE_LIMIT = 4 << 30  # bytes: the comparison holds both models in memory
Modules = str | Sequence[str] | None
RNGLike = int | np.random.Generator | np.random.SeedSequence | None


def compress(
    model_or_path: Any,
    out: str | os.PathLike[str],
    *,
    param_ratio: float,
    method: str | Method = "lowrank",
    allocation: str | None = None,
    rank_pattern: Mapping[str, int] | None = None,
    rank_multiple: int | None = None,
    options: Mapping[str, Any] | None = None,
    calibration: Any = None,
    target_modules: Modules = None,
    exclude_modules: Modules = None,
    executor: str | Executor | None = None,
    progress: bool | ProgressCallback | None = None,
    rng: RNGLike = None,
    overwrite: bool = False,
    max_shard_size: int | str = "5GB",
    compare: bool | None = False,
    trust_remote_code: bool = False,
) -> Report:
    """Write a smaller version of a Hugging Face checkpoint and say what it cost.

    Parameters
    ----------
    model_or_path : path or transformers.PreTrainedModel
        Local checkpoint directory in safetensors format, or a model in memory, which is saved to a temporary
        directory first.
    out : path
        Target directory. It appears when it is complete; a run that fails or is interrupted leaves nothing.
    param_ratio : float
        Share of the parameters of the *targeted linear weights* that stays, in (0, 1]. It is a bound: what is
        achieved is never above, and within one `rank_multiple` step of it where the ranks are shared by the spectra.
        Embeddings, norms, biases and heads are not in this number; the report has the ratio of the whole checkpoint
        too.
    method : str or Method
        ``"lowrank"``, or an instance such as ``LowRankMethod(solver="krylov")``.
    allocation : {"spectrum", "uniform"}, optional
        How the budget is shared among the weights.
    rank_pattern : dict of str to int, optional
        Name, suffix or ``re:`` expression -> rank.
    rank_multiple : int, optional
        Ranks are multiples of it (8); less for small matrices.
    options : dict, optional
        Further options of the method by name.
    calibration : None
        Reserved for methods that use data.
    target_modules, exclude_modules : str or list of str, optional
        Names, dotted suffixes (``"q_proj"``) or ``re:`` expressions. None targets every linear weight except output
        heads, expert routers and tied weights.
    executor : str or concurrent.futures.Executor, optional
        ``"serial"``, ``"threads:N"``, ``"processes:N"``, ``"dask:ADDRESS"`` or an executor. None means threads, one a
        core. The result has the same bits on each. Processes need ``if __name__ == "__main__"`` in scripts.
    progress : bool or callable, optional
        True for a bar on a terminal, or ``progress(phase, done, total, name)``.
    rng : None, int, Generator or SeedSequence
        Seed of the run; the one used is in ``report.options["rng"]``.
    overwrite : bool
        Replace an existing checkpoint; it stays in place until the new one is complete.
    max_shard_size : int or str
        Bytes, or text such as ``"5GB"``.
    compare : bool or None
        Load both models and measure outputs and latency (needs torch and the memory of both). None does so up to 4 GiB.
    trust_remote_code : bool
        Let code that lies in the checkpoint run to find its linear modules.

    Returns
    -------
    Report
        Also stored as ``report.json`` and ``report.html``.

    Raises
    ------
    ValueError
        If an argument is out of range, a pattern matches nothing, or the checkpoint cannot be trusted
        (`CheckpointError`).
    FileExistsError
        If `out` exists and `overwrite` is false.
    OSError
        If `out` cannot be written or the disk is full.

    Notes
    -----
    Peak memory is that of the largest weight and its workspace, once for each worker. The source is read twice when
    ranks are shared by the spectra, else once.
    """
    begin = time.perf_counter()
    shard_size = parse_size(max_shard_size)
    report_progress = progress_of(progress)
    check_target(Path(out).resolve(), overwrite=overwrite, source=None)
    extra = _given(allocation=allocation, rank_pattern=rank_pattern, rank_multiple=rank_multiple)
    job = _job(method, {**(options or {}), **extra}, param_ratio, calibration, rng)
    with _directory(model_or_path, beside=Path(out).resolve().parent) as (source, label):
        job.open(source, target_modules, exclude_modules, trust_remote_code)
        with CheckpointWriter(out, overwrite=overwrite, source=source) as writer, open_pool(executor) as pool:
            job.share(pool, report_progress)
            writer.layout(job.entries(), max_shard_size=shard_size)
            job.factor(pool, writer, report_progress)
            writer.finish_tensors()
            report = job.report(label, str(out), pool.label)
            _store.write_files(writer, job.checkpoint, job.plan.layers, report)
            report = dataclasses.replace(report, peak_memory_bytes=_peak_memory())
            report = _compared(report, source, writer.directory, compare, job.checkpoint.nbytes)
            report = dataclasses.replace(report, seconds={**report.seconds, "total": time.perf_counter() - begin})
            _store.write_record(writer, job.checkpoint, report, job.source_files)
            writer.commit()
    return report


def estimate(
    model_or_path: Any,
    *,
    param_ratio: float,
    method: str | Method = "lowrank",
    allocation: str | None = None,
    rank_pattern: Mapping[str, int] | None = None,
    rank_multiple: int | None = None,
    options: Mapping[str, Any] | None = None,
    target_modules: Modules = None,
    exclude_modules: Modules = None,
    executor: str | Executor | None = None,
    progress: bool | ProgressCallback | None = None,
    trust_remote_code: bool = False,
) -> Report:
    """Say what `compress` would do, without writing: ranks, parameters, bytes, and the least errors possible.

    The spectra are computed where the ranks depend on them; with ``allocation="uniform"`` no weight is read and the
    errors are None. Parameters are those of `compress`.
    """
    begin = time.perf_counter()
    extra = _given(allocation=allocation, rank_pattern=rank_pattern, rank_multiple=rank_multiple)
    job = _job(method, {**(options or {}), **extra}, param_ratio, None, 0)
    with _directory(model_or_path, beside=None) as (source, label):
        job.open(source, target_modules, exclude_modules, trust_remote_code)
        with open_pool(executor) as pool:
            job.share(pool, progress_of(progress))
            report = job.report(label, None, pool.label)
    options_used = {name: value for name, value in report.options.items() if name != "rng"}
    seconds = {**report.seconds, "total": time.perf_counter() - begin}
    return dataclasses.replace(report, options=options_used, seconds=seconds, peak_memory_bytes=_peak_memory())


def load(path: str | os.PathLike[str], **kwargs: Any) -> Any:
    """Load a compressed checkpoint as the transformers model named in its configuration.

    Keyword arguments go to ``from_pretrained`` (``dtype``, ``device_map``). Nothing is fetched. Needs torch and
    transformers.
    """
    from tensorfact.compress.huggingface import load_model

    return load_model(Path(path), **kwargs)


@dataclass(slots=True)
class _Job:
    """State of one run; each method is one phase."""

    method: Method
    param_ratio: float
    seed: int
    checkpoint: Checkpoint = field(init=False)
    plan: Plan = field(init=False)
    allocation: Allocation = field(default_factory=lambda: Allocation({}))
    analyses: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    made: dict[str, LayerRecord] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    source_files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def open(self, source: Path, targets: Modules, excluded: Modules, trust_remote_code: bool) -> None:
        start = time.perf_counter()
        self.checkpoint = Checkpoint.open(source)
        require_dense(self.checkpoint)
        self.plan = make_plan(
            self.checkpoint, target_modules=targets, exclude_modules=excluded, trust_remote_code=trust_remote_code
        )
        self.seconds["plan"] = time.perf_counter() - start

    def share(self, pool: Pool, progress: ProgressCallback | None) -> None:
        start = time.perf_counter()
        if self.method.needs_analysis:
            order = sorted(
                self.plan.layers, key=lambda layer: -layer.size
            )  # the longest tasks first: workers end together
            tasks = [(self.method, layer) for layer in order]
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

    def entries(self) -> list[Entry]:
        """Every tensor of the result, in the order of the source."""
        layers = {layer.info.name: layer for layer in self.replaced()}
        biases = {layer.bias.name: layer for layer in layers.values() if layer.bias is not None}
        entries = []
        for key, info in self.checkpoint.tensors.items():
            if key in layers:
                layer = layers[key]
                shapes = self.method.layout(layer.shape, self.allocation.ranks[layer.name])
                entries += [Entry(f"{layer.name}.{suffix}", info.dtype, shape) for suffix, shape in shapes.items()]
            else:
                name = f"{biases[key].name}.up.bias" if key in biases else key
                entries.append(Entry(name, info.dtype, info.shape))
        return entries

    def replaced(self) -> list[Layer]:
        return [layer for layer in self.plan.layers if layer.name in self.allocation.ranks]

    def factor(self, pool: Pool, writer: CheckpointWriter, progress: ProgressCallback | None) -> None:
        start = time.perf_counter()
        order = sorted(self.replaced(), key=lambda layer: -layer.size)
        tasks = [(self.method, layer, self.allocation.ranks[layer.name], self.seed) for layer in order]
        with (
            steps(progress, "factors", len(order)) as step,
            closing(run_tasks(pool, run_factor, tasks, meanwhile=lambda: self._copy(writer))) as results,
        ):
            for index, stored in results:
                layer = order[index]
                for suffix, values in stored.factored.arrays.items():
                    writer.write(f"{layer.name}.{suffix}", values)
                self.made[layer.name] = self._record(layer, self.allocation.ranks[layer.name], stored)
                del stored
                step(layer.name)
        self.seconds["factor"] = time.perf_counter() - start

    def _copy(self, writer: CheckpointWriter) -> None:
        """Copy what stays dense while the workers are busy, and take the digests of the source."""
        layers = {layer.info.name for layer in self.replaced()}
        biases = {layer.bias.name: f"{layer.name}.up.bias" for layer in self.replaced() if layer.bias is not None}
        for key, info in self.checkpoint.tensors.items():
            if key not in layers:
                writer.copy(biases.get(key, key), info)
        for file in (self.checkpoint.directory / "config.json", *self.checkpoint.weight_files):
            self.source_files[file.name] = _store.describe(file)

    def _record(self, layer: Layer, rank: Rank, stored: Stored | None) -> LayerRecord:
        analysis = self.analyses.get(layer.name, np.empty(0))
        shapes = self.method.layout(layer.shape, rank).values()
        after = sum(math.prod(shape) for shape in shapes)
        optimal = self.method.predicted_error(analysis, rank)
        found = stored.factored.spectrum if stored is not None else np.empty(0)
        return LayerRecord(
            name=layer.name,
            kind=layer.kind,
            shape=layer.shape,
            dtype=layer.info.dtype,
            rank=rank,
            error=optimal if stored is None else stored.factored.error,
            optimal_error=optimal,
            path="predicted" if stored is None else stored.factored.path,
            params_before=layer.size,
            params_after=after,
            bytes_before=layer.info.nbytes,
            bytes_after=nbytes(layer.info.dtype, after),
            seconds=self.spent.get(layer.name, 0.0) + (0.0 if stored is None else stored.seconds),
            spectrum=downsample_spectrum(analysis if analysis.size else found),
            notes=() if stored is None else stored.factored.notes,
        )

    def report(self, label: str, out: str | None, executor: str) -> Report:
        replaced = [
            self.made.get(la.name) or self._record(la, self.allocation.ranks[la.name], None) for la in self.replaced()
        ]
        targeted = {layer.info.name: layer for layer in self.plan.layers}
        dense = []
        for key, info in self.checkpoint.tensors.items():
            layer = targeted.get(key)
            if layer is None and key in self.plan.dense:
                dense.append(_dense(info, key.removesuffix(".weight"), self.plan.dense[key]))
            elif layer is not None and layer.name in self.allocation.dense:
                spectrum = downsample_spectrum(self.analyses.get(layer.name, np.empty(0)))
                record = _dense(info, layer.name, self.allocation.dense[layer.name])
                dense.append(dataclasses.replace(record, targeted=True, spectrum=spectrum))
        saved = sum(record.params_before - record.params_after for record in replaced)
        saved_bytes = sum(record.bytes_before - record.bytes_after for record in replaced)
        before = sum(layer.size for layer in self.plan.layers)
        return Report(
            method=self.method.name,
            options={**_store.options(self.method), "rng": self.seed},
            source=label,
            output=out,
            model_type=str(self.checkpoint.config.get("model_type", "")),
            architecture=str((self.checkpoint.config.get("architectures") or [""])[0]),
            param_ratio=self.param_ratio,
            targeted_before=before,
            targeted_after=before - saved,
            params_before=self.checkpoint.size,
            params_after=self.checkpoint.size - saved,
            bytes_before=self.checkpoint.nbytes,
            bytes_after=self.checkpoint.nbytes - saved_bytes,
            layers=tuple(replaced),
            dense=tuple(dense),
            seconds=dict(self.seconds),
            executor=executor,
            notes=self.plan.notes,
            versions=_store.versions(),
            dry_run=out is None,
        )


def _job(method: str | Method, options: Mapping[str, Any], param_ratio: float, calibration: Any, rng: RNGLike) -> _Job:
    if isinstance(param_ratio, bool) or not isinstance(param_ratio, int | float) or not 0 < param_ratio <= 1:
        raise ValueError(f"param_ratio must be in (0, 1]: the share of the parameters that stays, got {param_ratio!r}")
    made = create(method, options)
    if calibration is not None:
        raise ValueError(
            f"calibration must be None: the {made.name} method uses no data in this version, got {calibration!r}"
        )
    try:
        generator = np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise ValueError(f"rng must be None, an integer >= 0, a Generator or a SeedSequence, got {rng!r}") from error
    seed = int(rng) if isinstance(rng, int | np.integer) else int(generator.integers(2**53))
    return _Job(made, float(param_ratio), seed)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


@contextmanager
def _directory(model_or_path: Any, *, beside: Path | None) -> Iterator[tuple[Path, str]]:
    """Yield the checkpoint directory and its name for the report; a model in memory is saved for the run."""
    if isinstance(model_or_path, str | os.PathLike):
        yield Path(model_or_path), str(model_or_path)
    elif hasattr(model_or_path, "save_pretrained"):
        with tempfile.TemporaryDirectory(prefix=".tensorfact-source-", dir=beside) as folder:
            model_or_path.save_pretrained(folder)
            yield Path(folder), f"{type(model_or_path).__name__} in memory"
    else:
        raise ValueError(
            f"model_or_path must be a directory or a transformers model, got {type(model_or_path).__name__}"
        )


def _compared(report: Report, source: Path, result: Path, compare: bool | None, size: int) -> Report:
    if compare is False:
        return report
    if compare is None and size > _COMPARE_LIMIT:
        note = f"outputs and latency were not measured: the model takes {size / 2**30:.1f} GiB"
        return dataclasses.replace(report, notes=(*report.notes, note))
    from tensorfact.compress.fidelity import evaluate

    start = time.perf_counter()
    found = evaluate(source, result, report.layers)
    return dataclasses.replace(
        report,
        fidelity=found.fidelity,
        latency=found.latency,
        layers=found.layers,
        notes=(*report.notes, *found.notes),
        seconds={**report.seconds, "compare": time.perf_counter() - start},
    )


def _dense(info: TensorInfo, name: str, reason: str) -> DenseRecord:
    return DenseRecord(
        name=name, reason=reason, shape=info.shape, dtype=info.dtype, params=info.size, bytes=info.nbytes
    )


def _peak_memory() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
