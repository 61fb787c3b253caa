"""Where tasks run, and what a task is.

A task is a top-level function with picklable arguments that reads its own tensor from disk, draws its random numbers
from a seed of its own, and computes with BLAS on one thread: its result has the same bits on every executor and in
every order.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tensorfact import kernels
from tensorfact.compress._method import Factored, Layer, Method, Rank
from tensorfact.compress._types import FLOAT_TYPES, decode, encode, stored_type
from tensorfact.compress._units import Evidence
from tensorfact.compress.checkpoint import read_weight

__all__ = [
    "Pool",
    "open_pool",
    "read_layer",
    "run_analysis",
    "run_factor",
    "run_tasks",
    "single_threaded",
    "task_rng",
]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Pool:
    """An executor, how many tasks it runs at once, and its name for the report."""

    executor: Executor
    workers: int
    label: str


class _Serial(Executor):
    """Runs each task where it is submitted."""

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        future: Future[_T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # as executors do; KeyboardInterrupt goes through
            future.set_exception(error)
        return future


@contextmanager
def open_pool(executor: str | Executor | None, *, most: int | None = None) -> Iterator[Pool]:
    """Yield a pool for ``"serial"``, ``"threads:N"``, ``"processes:N"``, ``"dask:ADDRESS"`` or an Executor.

    None means threads. Without N there are as many workers as this process may use cores, or `most` if that is less.
    Executors that were opened here are closed here, at once when an error or Ctrl-C leaves the block; one of the caller
    stays open.

    Raises
    ------
    ValueError
        If the text is not understood.
    ImportError
        If threadpoolctl, which keeps BLAS at one thread a task, is not installed.
    """
    if importlib.util.find_spec("threadpoolctl") is None:
        raise ImportError("compression needs the package threadpoolctl: pip install 'tensorfact[hf]'")
    if isinstance(executor, Executor):
        workers = getattr(executor, "_max_workers", None) or os.cpu_count() or 1
        yield Pool(executor, int(workers), type(executor).__name__)
        return
    words = "threads" if executor is None else executor
    kind, _, rest = words.partition(":") if isinstance(words, str) else ("", "", "")
    if kind == "dask" and rest:
        with _dask(rest) as pool:
            yield pool
        return
    if kind not in ("serial", "threads", "processes") or (rest and not re.fullmatch("[1-9][0-9]*", rest)):
        raise ValueError(
            f"executor must be serial, threads:N, processes:N, dask:ADDRESS or an Executor, got {executor!r}"
        )
    cores = _cores() if most is None else max(1, min(_cores(), most))
    workers = 1 if kind == "serial" else int(rest or cores)
    made: Executor
    if kind == "serial":
        made = _Serial()
    elif kind == "threads":
        made = ThreadPoolExecutor(workers, thread_name_prefix="tensorfact")
    else:
        import multiprocessing

        # spawn: forking a process that has started BLAS or torch threads can hang
        made = ProcessPoolExecutor(
            workers, mp_context=multiprocessing.get_context("spawn"), initializer=_ignore_interrupt
        )
    try:
        yield Pool(made, workers, kind if kind == "serial" else f"{kind}:{workers}")
    except BaseException:
        children = list((getattr(made, "_processes", None) or {}).values())
        made.shutdown(wait=False, cancel_futures=True)
        for child in children:
            child.terminate()
        raise
    made.shutdown()


@contextmanager
def _dask(address: str) -> Iterator[Pool]:
    try:
        import distributed
    except ImportError as error:
        raise ValueError(
            f"executor 'dask:{address}' needs the package dask[distributed], which is not installed"
        ) from error
    try:
        client: Any = distributed.Client(address, timeout="10s", set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, TimeoutError) as error:
        raise ValueError(f"executor must name a running Dask scheduler, got {address!r}: {error}") from error
    with client:
        workers = sum(client.nthreads().values())
        if not workers:
            raise ValueError(f"executor must name a Dask cluster with workers, got {address!r}, which has none")
        yield Pool(client.get_executor(pure=False), workers, f"dask:{workers}")


def run_tasks(
    pool: Pool,
    function: Callable[..., _T],
    tasks: Iterable[Sequence[Any]],
    *,
    meanwhile: Callable[[], None] | None = None,
) -> Generator[tuple[int, _T]]:
    """Yield ``(index, result)`` as tasks end, at most one more in flight than there are workers.

    That bounds memory: a task that has not started holds nothing, and a result is consumed before the next one is
    asked for. `meanwhile` runs once in this thread after the first tasks have been handed out. The first error
    cancels what has not started.
    """
    queue = iter(enumerate(tasks))
    flight: dict[Future[_T], int] = {}

    def fill() -> None:
        while len(flight) <= pool.workers and (item := next(queue, None)) is not None:
            flight[pool.executor.submit(function, *item[1])] = item[0]
            if isinstance(pool.executor, _Serial):
                break

    try:
        fill()
        if meanwhile is not None:
            meanwhile()
        while flight:
            done, _ = wait(flight, return_when=FIRST_COMPLETED)
            for future in done:
                index = flight.pop(future)
                result = future.result()
                del future
                yield index, result
                del result
            done.clear()
            fill()
    finally:
        for future in flight:
            future.cancel()


@dataclass(frozen=True, slots=True)
class Analysed:
    """Result of `run_analysis`."""

    values: npt.NDArray[np.float64]
    seconds: float


@dataclass(frozen=True, slots=True)
class Stored:
    """Result of `run_factor`: arrays in their stored type, and what is known of them."""

    factored: Factored
    seconds: float


def run_analysis(method: Method, layer: Layer, evidence: Evidence | None = None) -> Analysed:
    """Task of the first phase: read a weight and analyse it, with what is known of its inputs."""
    start = time.perf_counter()
    with single_threaded():
        weight = read_layer(layer)
        values = method.analyse(weight) if evidence is None else method.analyse_with(layer, weight, evidence)
    return Analysed(values, time.perf_counter() - start)


def run_factor(method: Method, layer: Layer, rank: Rank, seed: int) -> Stored:
    """Task of the second phase: read a weight, replace it, cast the arrays to the type of the source.

    For 16-bit sources the error is measured again on what is stored.
    """
    start = time.perf_counter()
    with single_threaded():
        weight = read_layer(layer)
        made = method.factor(weight, rank, rng=task_rng(seed, layer.name))
        arrays, types = stored_arrays(method, made.arrays, layer)
        error = made.error
        if any(kind in FLOAT_TYPES and np.dtype(FLOAT_TYPES[kind]) != arrays[k].dtype for k, kind in types.items()):
            numbers = {k: decode(v, types[k]) if types[k] in FLOAT_TYPES else v for k, v in arrays.items()}
            error = method.residual(weight, numbers)
    if not math.isfinite(error):
        raise ValueError(f"the error of {layer.name!r} must be finite, got {error}")
    return Stored(Factored(arrays, error, made.path, made.spectrum, made.notes), time.perf_counter() - start)


def stored_arrays(
    method: Method, arrays: Mapping[str, npt.NDArray[Any]], layer: Layer
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Return arrays of a layer, by suffix, in their stored types, and the types.

    Raises
    ------
    ValueError
        If a number is not finite in its stored type.
    """
    types = {k: stored_type(v, method.stored_types.get(k, layer.info.dtype)) for k, v in arrays.items()}
    found: dict[str, npt.NDArray[Any]] = {}
    for name, values in arrays.items():
        if types[name] not in FLOAT_TYPES:
            found[name] = np.ascontiguousarray(values)
            continue
        with np.errstate(over="ignore"):  # said below, by name
            found[name] = encode(values, types[name])
        if not np.isfinite(decode(found[name], types[name])).all():
            raise ValueError(f"{name} of {layer.name!r} does not fit {types[name]}: it must be finite")
    return found, types


def task_rng(seed: int, name: str) -> np.random.Generator:
    """Return the generator of one tensor: it depends on the seed of the run and on the name alone."""
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])


def read_layer(layer: Layer) -> npt.NDArray[Any]:
    """Read one weight as (out, in)."""
    weight = read_weight(layer.info)
    return weight if layer.kind == "linear" else weight.T


class _Limit:
    """BLAS and our own kernels at one thread while any task runs in this process.

    The setting belongs to the process, so nested and concurrent tasks share it: the first one sets it, the last one
    restores it, and they need not be the same thread. `threadpoolctl.threadpool_limits` cannot do that: in 3.8 only the
    first thread that used it may change OpenBLAS, and calls from the others do nothing, silently.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0
        self.libraries: list[Any] | None = None
        self.before: list[int] = []
        self.workers = 1

    def enter(self) -> None:
        with self.lock:
            if self.count == 0:
                if self.libraries is None:  # looking for the libraries takes milliseconds: once a process
                    import scipy.linalg  # noqa: F401  (its BLAS must be loaded to be found)
                    from threadpoolctl import ThreadpoolController

                    self.libraries = ThreadpoolController().select(user_api="blas").lib_controllers
                self.before = [library.get_num_threads() for library in self.libraries]
                self.workers = kernels.get_num_threads()
                self._set([1] * len(self.before), 1)
            self.count += 1

    def leave(self) -> None:
        with self.lock:
            self.count -= 1
            if self.count == 0:
                self._set(self.before, self.workers)

    def _set(self, threads: list[int], workers: int) -> None:
        for library, count in zip(self.libraries or (), threads, strict=True):
            getattr(library, "_real_set_num_threads", library.set_num_threads)(count)
        kernels.set_num_threads(workers)


_LIMIT = _Limit()


@contextmanager
def single_threaded() -> Iterator[None]:
    """Run BLAS on one thread inside the block, from any number of threads at once."""
    _LIMIT.enter()
    try:
        yield
    finally:
        _LIMIT.leave()


def _ignore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
