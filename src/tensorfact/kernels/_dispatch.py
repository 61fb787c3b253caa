"""The kernel ladder: one plain Python body that is also the Numba version, and its C++ twin.

``TENSORFACT_KERNELS=python|numba|cpp`` forces a rung; the default is the first of cpp, numba, python that is installed.
"""

from __future__ import annotations

import functools
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import FunctionType
from typing import Any, Generic, ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")

RUNGS = ("cpp", "numba", "python")

try:
    from tensorfact import _core
except ImportError as error:
    _core = None  # type: ignore[assignment]
    _core_error: ImportError | None = error
else:
    _core_error = None


def _first_rung() -> str:
    forced = os.environ.get("TENSORFACT_KERNELS", "")
    if forced:
        return _checked(forced, "TENSORFACT_KERNELS")
    if _core is not None:
        return "cpp"
    return "numba" if find_spec("numba") else "python"


def _checked(rung: str, name: str) -> str:
    if rung not in RUNGS:
        raise ValueError(f"{name} must be one of {', '.join(RUNGS)}, got {rung!r}")
    if rung == "cpp" and _core is None:
        raise ImportError(f"{name} is cpp, but the compiled module of tensorfact cannot be imported") from _core_error
    if rung == "numba" and not find_spec("numba"):
        raise ImportError(f"{name} is numba, but Numba is not installed")
    return rung


_rung = _first_rung()


def active() -> str:
    """Name of the implementation that runs the kernels: ``"cpp"``, ``"numba"`` or ``"python"``."""
    return _rung


@contextmanager
def use(rung: str) -> Iterator[None]:
    """Force a rung inside a ``with`` block, for tests. Process-wide: not for concurrent use."""
    global _rung
    before, _rung = _rung, _checked(rung, "rung")
    try:
        yield
    finally:
        _rung = before


def blas_loaded() -> bool:
    """Whether the compiled module has SciPy's BLAS and LAPACK; loaded once, by the first thread that asks."""
    if _core not in _blas:
        with _loading:  # the table must not be rewritten under a kernel that runs without the interpreter's lock
            if _core not in _blas:
                _blas[_core] = _load_blas()
    return _blas[_core]


_blas: dict[Any, bool] = {}  # by module: each instruction set's build has a table of its own
_loading = threading.Lock()


def _load_blas() -> bool:
    """Hand SciPy's BLAS and LAPACK to the compiled module. On failure warn once; those kernels then run in Python."""
    # Imported here because scipy.linalg doubles the import time and only these kernels need it.
    from scipy.linalg import cython_blas, cython_lapack

    try:
        _core.load_blas(cython_blas.__pyx_capi__, cython_lapack.__pyx_capi__)
    except (ValueError, RuntimeError, AttributeError) as error:
        text = f"tensorfact cannot use SciPy's BLAS and runs its Python kernels: {error}"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
        return False
    return True


class Kernel(Generic[P, R]):
    """Callable that runs `body` on the active rung. Arguments are positional and already checked."""

    def __init__(self, body: Callable[P, R], blas: bool) -> None:
        functools.update_wrapper(self, body)
        self.body = body
        self.blas = blas
        self._jitted: Callable[P, R] | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if _rung == "cpp" and (not self.blas or blas_loaded()):
            compiled: Any = getattr(_core, self.body.__name__.lstrip("_"))
            result: R = compiled(*args, **kwargs)
            return result
        if _rung == "numba":
            return self.jitted()(*args, **kwargs)
        with np.errstate(all="ignore"):  # infinity and NaN are results here, as in C++
            return self.body(*args, **kwargs)

    def jitted(self) -> Callable[P, R]:
        """The body compiled by Numba. Kernels that it calls are compiled with it."""
        if self._jitted is None:
            body: Any = self.body
            called = {
                name: value
                for name in body.__code__.co_names
                if isinstance(value := body.__globals__.get(name), Kernel)
            }
            if called:
                scope = {**body.__globals__, **{name: value.jitted() for name, value in called.items()}}
                body = FunctionType(body.__code__, scope, body.__name__, body.__defaults__, body.__closure__)
            self._jitted = _njit(body)
        return self._jitted


def _njit(body: Callable[P, R]) -> Callable[P, R]:
    from numba import njit

    # cache=False: Numba's file cache breaks under multiprocessing. No fastmath: NaN must stay NaN.
    jitted: Callable[P, R] = njit(nogil=True, cache=False)(body)
    return jitted


def kernel(*, blas: bool = False) -> Callable[[Callable[P, R]], Kernel[P, R]]:
    """Make a `Kernel` of a body. `blas` says that its C++ twin, of the same name in `_core`, calls BLAS or LAPACK."""
    return lambda body: Kernel(body, blas)


def _available_cpus() -> int:
    # The affinity mask is what a container or a batch system grants; the machine may have more.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_num_threads: int | None = None


def get_num_threads() -> int:
    """Number of threads of our own loops, by default the CPUs this process may run on. BLAS keeps its own setting."""
    return _available_cpus() if _num_threads is None else _num_threads


def set_num_threads(n: int | None) -> None:
    """Set the number of threads of our own loops for the whole process. Results have the same bits for any number.

    Parameters
    ----------
    n : int or None
        At least 1; None restores the default. Threads of BLAS are not concerned: limit those with `threadpoolctl`.
    """
    global _num_threads
    _num_threads = None if n is None else checked_threads(n, "n")


def checked_threads(workers: int | None, name: str = "workers") -> int:
    """Resolve a `workers` argument to a number of threads."""
    if workers is None:
        return get_num_threads()
    if isinstance(workers, bool) or not hasattr(workers, "__index__") or workers < 1:
        raise ValueError(f"{name} must be a positive integer or None, got {workers!r}")
    return int(workers)
