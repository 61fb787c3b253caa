"""Compress a checkpoint: plan, spectra, shares, factors, report; and the same without writing.

The largest weight, its factors and the workspace of the method are in memory once for each worker, whatever the size
of the checkpoint: workers read their own weight, the writer puts each result at its place in the file and forgets it.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from tensorfact.compress import _store
from tensorfact.compress._atomic import check_target, make_hidden, remove_abandoned
from tensorfact.compress._held import HeldRun
from tensorfact.compress._job import Modules, RNGLike, free_memory, make_job
from tensorfact.compress._method import Method, Rank
from tensorfact.compress._progress import ProgressCallback, progress_of
from tensorfact.compress._refine import Refinement
from tensorfact.compress._state import State
from tensorfact.compress.executors import open_pool
from tensorfact.compress.records import Report
from tensorfact.compress.writer import CheckpointWriter, parse_size

__all__ = ["compress", "estimate", "load"]

_COMPARE_LIMIT = 4 << 30  # bytes: the comparison holds both models in memory


def compress(
    model_or_path: Any,
    out: str | os.PathLike[str],
    *,
    param_ratio: float,
    method: str | Method = "lowrank",
    allocation: str | None = None,
    rank_pattern: Mapping[str, Rank] | None = None,
    rank_multiple: int | None = None,
    factor_bits: int | None = None,
    options: Mapping[str, Any] | None = None,
    calibration: Any = None,
    refine: bool | Refinement | None = None,
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
        ``"lowrank"``, ``"mpo"``, ``"fips"``, another name of `methods`, or an instance such as
        ``LowRankMethod(solver="krylov")``.
    allocation : {"spectrum", "uniform"}, optional
        How the budget is shared among the weights.
    rank_pattern : dict of str to int, optional
        Name, suffix or ``re:`` expression -> rank; for ``"mpo"`` the largest bond, or a tuple of all of them.
    rank_multiple : int, optional
        Ranks are multiples of it (8); less for small matrices.
    factor_bits : int, optional
        Store factors in so many bits a number, 2 to 8, of the methods that can do so (``"lowrank"``, ``"fips"``);
        refinement trains them as they are rounded. None stores them in the type of the weights. `param_ratio` still
        counts numbers for ``"lowrank"``, and bytes for ``"fips"`` and ``"quantize"``. Targeted weights that stay dense
        keep their type, and a note of the report tells their bytes.
    options : dict, optional
        Further options of the method by name.
    calibration : path, texts, tensors, iterable of batches or Calibration, optional
        Unlabelled samples; see `Calibration`. The dense model runs over them once, and methods that can do so replace
        its weights with regard to the inputs that these have there. Needs torch and transformers, and memory for the
        model in float32. A run that was stopped goes on where it was, if the same call is made again: until it is
        complete, its state lies in a hidden directory beside `out`.
    refine : bool or Refinement, optional
        Train the factors of each block, with its norms and biases, until the block's outputs are those of the dense
        model; see `Refinement`. None does so where there is `calibration`. Costs most of the time, and gains most.
    target_modules, exclude_modules : str or list of str, optional
        Names, dotted suffixes (``"q_proj"``) or ``re:`` expressions. None targets every linear weight except output
        heads, expert routers and tied weights.
    executor : str or concurrent.futures.Executor, optional
        ``"serial"``, ``"threads:N"``, ``"processes:N"``, ``"dask:ADDRESS"`` or an executor. None means threads. Without
        N there is one worker a core, fewer where the free memory does not hold so many of the largest weights. The
        result has the same bits on each. Processes need ``if __name__ == "__main__"`` in scripts.
    progress : bool or callable, optional
        True for a bar on a terminal, or ``progress(phase, done, total, name)``.
    rng : None, int, Generator or SeedSequence
        Seed of the run; the one used is in ``report.options["rng"]``.
    overwrite : bool
        Replace an existing checkpoint; it stays in place until the new one is complete.
    max_shard_size : int or str
        Bytes, or text such as ``"5GB"``.
    compare : bool or None
        Load both models in float32 and measure outputs and latency (needs torch). None does so up to 4 GiB. It is left
        out, and the report says so, where the free memory does not hold both. The checkpoint is complete before.
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

    With `calibration` it is that of the model in float32, the largest Gram matrix (the square of a weight's inputs, in
    float64) or up to 1 GiB of smaller ones, and up to 1 GiB of hidden states; where these would take more they are
    files. All Gram matrices lie in the state directory until the run is complete.
    """
    begin = time.perf_counter()
    shard_size = parse_size(max_shard_size)
    report_progress = progress_of(progress)
    target = Path(out).resolve()
    given = Path(model_or_path) if isinstance(model_or_path, str | os.PathLike) else None
    check_target(target, overwrite=overwrite, source=given)
    extra = _given(
        allocation=allocation, rank_pattern=rank_pattern, rank_multiple=rank_multiple, factor_bits=factor_bits
    )
    job = make_job(method, {**(options or {}), **extra}, param_ratio, rng)
    job.require(calibration)
    refinement = _refinement(refine, calibration)
    with _directory(model_or_path, out=target) as (source, label):
        job.open(source, target_modules, exclude_modules, trust_remote_code)
        with ExitStack() as stack:
            state = stack.enter_context(State(target)) if calibration is not None or job.has_groups() else None
            writer = stack.enter_context(CheckpointWriter(out, overwrite=overwrite, source=source))
            pool = stack.enter_context(open_pool(executor, most=job.most_workers()))
            if state is None:
                job.share(pool, report_progress)
                writer.layout(job.entries(), max_shard_size=shard_size)
                job.factor(pool, writer, report_progress)
            else:
                # A generator has moved on since the run that this one may continue.
                seed = job.seed if isinstance(rng, int | np.integer) else None
                held = HeldRun(job, state, pool, report_progress, calibration, refinement, seed)
                held.run()
                result = held.result()
                writer.layout(result.entries(), max_shard_size=shard_size)
                result.write(writer)
            writer.finish_tensors()
            report = job.report(label, str(out), pool.label)
            units = job.recipe()["units"]
            _store.write_files(writer, job.checkpoint, job.plan.layers, report, job.method, units)
            report = _finished(report, begin)
            _store.write_record(writer, job.checkpoint, report, job.source_files)
            writer.commit()
        try:  # hours of work are safe by now: the models' own code may end the process
            compared = _compared(report, source, target, compare, job.checkpoint.nbytes)
            if compared is not report:
                seconds = {**compared.seconds, "total": time.perf_counter() - begin}
                report = dataclasses.replace(compared, seconds=seconds)
                _store.update_report(target, report)
        except BaseException as error:
            error.add_note(f"{target} is complete, but for a comparison in its report")
            raise
    return report


def estimate(
    model_or_path: Any,
    *,
    param_ratio: float,
    method: str | Method = "lowrank",
    allocation: str | None = None,
    rank_pattern: Mapping[str, Rank] | None = None,
    rank_multiple: int | None = None,
    factor_bits: int | None = None,
    options: Mapping[str, Any] | None = None,
    target_modules: Modules = None,
    exclude_modules: Modules = None,
    executor: str | Executor | None = None,
    progress: bool | ProgressCallback | None = None,
    trust_remote_code: bool = False,
) -> Report:
    """Say what `compress` would do, without writing: ranks, parameters, bytes, and the least errors possible.

    The spectra are computed where the ranks depend on them; with ``allocation="uniform"`` no weight is read and the
    errors are None. Parameters are those of `compress`. A model in memory is saved whole to the system's directory for
    temporary files meanwhile.
    """
    begin = time.perf_counter()
    extra = _given(
        allocation=allocation, rank_pattern=rank_pattern, rank_multiple=rank_multiple, factor_bits=factor_bits
    )
    job = make_job(method, {**(options or {}), **extra}, param_ratio, 0)
    with _directory(model_or_path, out=None) as (source, label):
        job.open(source, target_modules, exclude_modules, trust_remote_code)
        with open_pool(executor, most=job.most_workers()) as pool:
            job.share(pool, progress_of(progress))
            report = job.report(label, None, pool.label)
    options_used = {name: value for name, value in report.options.items() if name != "rng"}
    return _finished(dataclasses.replace(report, options=options_used), begin)


def load(path: str | os.PathLike[str], **kwargs: Any) -> Any:
    """Load a compressed checkpoint as the transformers model named in its configuration.

    Keyword arguments go to ``from_pretrained`` (``dtype``, ``device_map``). Nothing is fetched. Needs torch and
    transformers.
    """
    from tensorfact.compress.huggingface import load_model

    return load_model(Path(path), **kwargs)


def _refinement(refine: bool | Refinement | None, calibration: Any) -> Refinement | None:
    if refine not in (None, False) and calibration is None:
        raise ValueError("calibration must be given for refine: blocks are trained on the outputs that they give on it")
    if refine is None or isinstance(refine, bool):
        return None if refine is False or calibration is None else Refinement()
    if not isinstance(refine, Refinement):
        raise ValueError(f"refine must be a boolean or a Refinement, got {refine!r}")
    return refine


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


@contextmanager
def _directory(model_or_path: Any, *, out: Path | None) -> Iterator[tuple[Path, str]]:
    """Yield the checkpoint directory and its name for the report; a model in memory is saved for the run."""
    if isinstance(model_or_path, str | os.PathLike):
        yield Path(model_or_path), str(model_or_path)
        return
    if not hasattr(model_or_path, "save_pretrained"):
        raise ValueError(
            f"model_or_path must be a directory or a transformers model, got {type(model_or_path).__name__}"
        )
    if out is not None:
        remove_abandoned(out)
    # Beside the target there is room for a model, and the next run removes what a killed one left.
    folder, descriptor = (Path(tempfile.mkdtemp(prefix="tensorfact-")), None) if out is None else make_hidden(out)
    try:
        model_or_path.save_pretrained(folder)
        yield folder, f"{type(model_or_path).__name__} in memory"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _finished(report: Report, begin: float) -> Report:
    notes = report.notes
    if not report.executor.startswith(("serial", "threads", "ThreadPool")):
        notes = (*notes, "the peak of memory is that of the main process, without its workers")
    return dataclasses.replace(
        report,
        notes=notes,
        seconds={**report.seconds, "total": time.perf_counter() - begin},
        peak_memory_bytes=_peak_memory(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _compared(report: Report, source: Path, result: Path, compare: bool | None, size: int) -> Report:
    if compare is False:
        return report
    needed, free = 4 * (report.params_before + report.params_after), free_memory()
    reason = f"the model takes {size / 2**30:.1f} GiB" if compare is None and size > _COMPARE_LIMIT else ""
    if free is not None and needed > free:
        reason = f"both models take {needed / 2**30:.1f} GiB in float32, {free / 2**30:.1f} GiB are free"
    if reason:
        note = f"outputs and latency were not measured: {reason}"
        return dataclasses.replace(report, notes=(*report.notes, note))
    from tensorfact.compress.fidelity import evaluate

    start = time.perf_counter()
    try:
        found = evaluate(source, result, report.layers, report.method)
    except Exception as error:  # whatever the models' code does, the run succeeded
        note = f"the two models were not compared: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return dataclasses.replace(report, notes=(*report.notes, note))
    return dataclasses.replace(
        report,
        fidelity=found.fidelity,
        latency=found.latency,
        layers=found.layers,
        notes=(*report.notes, *found.notes),
        seconds={**report.seconds, "compare": time.perf_counter() - start},
    )


def _peak_memory() -> int | None:
    """Highest resident size of this process, since it began."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
