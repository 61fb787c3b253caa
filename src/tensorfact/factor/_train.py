"""Tensor trains: a chain of three-axis cores that stands for a dense tensor and knows its own error."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

__all__ = ["TensorTrain", "TrainInfo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainInfo:
    """How a train was computed: nothing is swapped silently.

    Parameters
    ----------
    path : str
        The algorithm that produced the cores: ``"tsqr"``, ``"sketch"``, ``"svd"``, ``"random"``, ``"zero"``, or
        ``"given"`` for cores that a caller brought or arithmetic made.
    site_errors : tuple of float
        Norm of what was discarded at each inner bond, absolute, bond 1 first; their root sum of squares is
        ``error * norm``. Empty where no bond was truncated by name.
    norm : float or None
        Frobenius norm of the tensor that was decomposed or rounded.
    data_reads : float
        Passes over the dense data, 1.0 being its whole size read once.
    converged : bool
        False when ``max_rank`` kept the error above ``tol``.
    notes : tuple of str
        Fallbacks on the way, for example ``"scaled"`` where the data was brought into the safe range first.
    """

    path: str = "given"
    site_errors: tuple[float, ...] = ()
    norm: float | None = None
    data_reads: float = 0.0
    converged: bool = True
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TensorTrain:
    """A tensor as a chain of cores: ``x[i, j, ..., k] = cores[0][:, i] @ cores[1][:, j] @ ... @ cores[-1][:, k]``.

    Parameters
    ----------
    cores : sequence of arrays, shapes (r, n, r')
        One core a mode, all of one library, device and floating-point type; neighbours share a bond and the outer
        bonds are 1.
    error : float
        Achieved relative Frobenius error against the tensor that was decomposed; 0.0 for cores that are the tensor,
        NaN where it is not known.
    canonical : {"left", "right", "none"}
        ``"left"``: all cores but the last have orthonormal columns when reshaped to (r n, r'); ``"right"``: all but
        the first have orthonormal rows when reshaped to (r, n r').
    info : TrainInfo
        The path that was taken.
    """

    cores: tuple[Any, ...]
    error: float = 0.0
    canonical: Literal["left", "right", "none"] = "none"
    info: TrainInfo = field(default_factory=TrainInfo)

    def __post_init__(self) -> None:
        cores = tuple(self.cores)
        if not cores:
            raise ValueError("cores must hold at least one core, got none")
        for k, core in enumerate(cores):
            if core.ndim != 3:
                raise ValueError(f"cores must have three axes (r, n, r'), got shape {tuple(core.shape)} at {k}")
            if k and int(core.shape[0]) != int(cores[k - 1].shape[2]):
                raise ValueError(
                    f"neighbouring cores must share a bond, got shapes {tuple(cores[k - 1].shape)} and "
                    f"{tuple(core.shape)} at {k - 1} and {k}"
                )
            if 0 in core.shape:
                raise ValueError(f"cores must not be empty, got shape {tuple(core.shape)} at {k}")
            if core.dtype != cores[0].dtype:
                raise ValueError(f"cores must share one dtype, got {cores[0].dtype} and {core.dtype} at {k}")
        if int(cores[0].shape[0]) != 1 or int(cores[-1].shape[2]) != 1:
            raise ValueError(f"the outer bonds must be 1, got {int(cores[0].shape[0])} and {int(cores[-1].shape[2])}")
        if self.canonical not in ("left", "right", "none"):
            raise ValueError(f"canonical must be 'left', 'right' or 'none', got {self.canonical!r}")
        object.__setattr__(self, "cores", tuple(_frozen(core) for core in cores))

    @property
    def shape(self) -> tuple[int, ...]:
        """Mode sizes: the shape of the dense tensor."""
        return tuple(int(core.shape[1]) for core in self.cores)

    @property
    def ranks(self) -> tuple[int, ...]:
        """All bonds, the outer ones (1) included: ``order + 1`` numbers."""
        return (*(int(core.shape[0]) for core in self.cores), 1)

    @property
    def order(self) -> int:
        """Number of modes."""
        return len(self.cores)

    ndim = order

    @property
    def dtype(self) -> Any:
        """Type of the stored numbers."""
        return self.cores[0].dtype

    @property
    def size(self) -> int:
        """Stored numbers."""
        return sum(math.prod(map(int, core.shape)) for core in self.cores)

    @property
    def dense_size(self) -> int:
        """Numbers in the dense tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the cores."""
        return self.size * int(self.dtype.itemsize)

    def reconstruct(self) -> Any:
        """The dense tensor."""
        dense = self.cores[0][0]
        for core in self.cores[1:]:
            r, n, s = core.shape
            dense = (dense @ core.reshape(r, n * s)).reshape(-1, s)
        return dense.reshape(self.shape)

    to_dense = reconstruct


def _frozen(core: Any) -> Any:
    """A read-only view of a NumPy core: the caller's own array stays as writeable as it was."""
    if not isinstance(core, np.ndarray):
        return core
    view = core.view()
    view.setflags(write=False)
    return view
