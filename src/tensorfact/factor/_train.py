"""Tensor trains: a chain of three-axis cores that stands for a dense tensor and knows its own error."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tensorfact.factor import _train_algebra as algebra
from tensorfact.factor import _train_canonical as canonical_forms
from tensorfact.factor import _train_index as index
from tensorfact.factor._train_chain import DENSE_BYTES, Chain, Side, frozen
from tensorfact.factor._train_ops import cast_like, itemsize, namespace

__all__ = ["TensorTrain"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True, repr=False)
class TensorTrain(Chain):
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
        object.__setattr__(self, "cores", tuple(frozen(core) for core in cores))

    @property
    def shape(self) -> tuple[int, ...]:
        """Mode sizes: the shape of the dense tensor."""
        return tuple(int(core.shape[1]) for core in self.cores)

    @property
    def _modes(self) -> tuple[int, ...]:
        return self.shape

    @property
    def ndim(self) -> int:
        """Number of modes."""
        return self.order

    def reconstruct(self, *, max_bytes: int | None = DENSE_BYTES) -> Any:
        """The dense tensor, contracted in the cheapest order: about ``2 N r`` flop for N entries and a small bond r.

        Parameters
        ----------
        max_bytes : int or None
            Refuse a result above this size, 8 GiB by default: a train of a few kilobytes can stand for more than any
            memory holds. None for no limit.
        """
        needed = self.dense_size * itemsize(self.cores[0])
        if max_bytes is not None and needed > max_bytes:
            raise ValueError(
                f"the dense tensor must not exceed max_bytes={max_bytes}, got shape {self.shape} with {needed} bytes; "
                "index a part, or pass a larger max_bytes or None"
            )
        return algebra.dense(self.cores)

    # -- arithmetic: exact, bonds add in a sum and multiply in a product; round afterwards --------------------------
    def __add__(self, other: Any) -> TensorTrain:
        if isinstance(other, TensorTrain):
            self._same_shape(other)
            return self._made(algebra.add(self.cores, other.cores), other)
        number = _number(other)
        if number is None:
            return NotImplemented
        return self._made(algebra.add(self.cores, algebra.constant(self.cores, number)))

    __radd__ = __add__

    def __sub__(self, other: Any) -> TensorTrain:
        if isinstance(other, TensorTrain):
            return self + other._scaled(-1.0)
        number = _number(other)
        if number is None:
            return NotImplemented
        return self._made(algebra.add(self.cores, algebra.constant(self.cores, -number)))

    def __rsub__(self, other: Any) -> TensorTrain:
        difference: TensorTrain = (-self) + other
        return difference

    def __mul__(self, other: Any) -> TensorTrain:
        if isinstance(other, TensorTrain):
            self._same_shape(other)
            return self._made(algebra.hadamard(self.cores, other.cores), other)
        number = _number(other)
        return NotImplemented if number is None else self._scaled(number)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> TensorTrain:
        number = _number(other)
        return NotImplemented if number is None else self._scaled(1 / number)

    def __neg__(self) -> TensorTrain:
        return self._scaled(-1.0)

    def __pos__(self) -> TensorTrain:
        return self

    def _scaled(self, factor: complex) -> TensorTrain:
        cores = algebra.scale(self.cores, factor, -1 if self.canonical == "left" else 0)
        size = abs(factor)
        norm = None if self.info.norm is None else self.info.norm * size
        info = replace(self.info, norm=norm, site_errors=tuple(size * e for e in self.info.site_errors))
        return TensorTrain(cores=cores, error=self.error, canonical=self.canonical, info=info)

    def conj(self) -> TensorTrain:
        """The entrywise complex conjugate."""
        xp = namespace(self.cores[0])
        return replace(self, cores=tuple(xp.conj(core) for core in self.cores))

    def inner(self, other: TensorTrain) -> complex:
        """``sum conj(self) * other``, like ``numpy.vdot``: a float, or a complex number for complex trains.

        Accumulated in double precision, safe for every scale; ``2 n r s (r + s)`` flop a mode for bonds r and s.
        """
        self._same_shape(other)
        return algebra.inner(self.cores, other.cores)

    dot = inner

    def norm(self) -> float:
        """Frobenius norm, to a few units of rounding of the summands also where a sum nearly cancels.

        One core's norm for a canonical train, else a sweep of QR factorisations; safe for every scale.
        """
        return canonical_forms.norm(self.cores, self.canonical)

    # -- canonical forms --------------------------------------------------------------------------------------------
    def left(self) -> TensorTrain:
        """The same tensor with left-orthonormal cores; the last one carries the norm. ``4 n r^3`` flop a mode."""
        if self.canonical == "left":
            return self
        cores, exponent = canonical_forms.left_orthogonal(self.cores)
        return self._orthogonal(cores, exponent, -1, "left")

    def right(self) -> TensorTrain:
        """The same tensor with right-orthonormal cores; the first one carries the norm."""
        if self.canonical == "right":
            return self
        cores, exponent = canonical_forms.right_orthogonal(self.cores)
        return self._orthogonal(cores, exponent, 0, "right")

    def centred(self, mode: int) -> TensorTrain:
        """The same tensor with orthonormal cores on both sides of ``mode``, whose core carries the norm."""
        at = range(self.order)[mode]
        cores, exponent = canonical_forms.centred(self.cores, at)
        side: Side = "left" if at == self.order - 1 else "right" if at == 0 else "none"
        return self._orthogonal(cores, exponent, at, side)

    def _orthogonal(self, cores: tuple[Any, ...], exponent: int, at: int, side: Side) -> TensorTrain:
        parts = list(cores)
        parts[at] = canonical_forms.restored(parts[at], exponent)
        return TensorTrain(cores=cast_like(parts, self.dtype), error=self.error, canonical=side, info=self.info)

    # -- parts ------------------------------------------------------------------------------------------------------
    def __getitem__(self, key: Any) -> Any:
        """NumPy's basic indexing: integers drop a mode, slices shorten it, None adds one, ``...`` stands for the rest.

        Indices for all modes give a number. Arrays of indices are the business of :meth:`gather`.
        """
        return self._absorbed(index.indexed_parts(self.cores, key))

    def contract(self, vectors: Sequence[Any] | Mapping[int, Any]) -> Any:
        """Sum over modes weighted by vectors, without conjugation: a train of the modes that are left, or a number.

        Parameters
        ----------
        vectors : sequence or mapping
            One vector of the mode's size (or None) for every mode, or ``{mode: vector}`` for some of them.
        """
        return self._absorbed(index.contracted_parts(self.cores, vectors))

    def gather(self, indices: Any) -> Any:
        """Entries at index tuples.

        Parameters
        ----------
        indices : integer array (..., d)
            One index for each mode in the last axis; negative ones count from the end.

        Returns
        -------
        array (...)
            ``2 B r^2`` flop a mode for B tuples.
        """
        points, leading = index.points_of(indices, self.shape)
        return namespace(self.cores[0]).reshape(algebra.gather(self.cores, points), leading)

    def _absorbed(self, parts: list[Any]) -> Any:
        found = algebra.absorb(parts)
        return self._made(cast_like(found)) if isinstance(found, tuple) else found

    # -- helpers ----------------------------------------------------------------------------------------------------
    def _same_shape(self, other: Any) -> None:
        if not isinstance(other, TensorTrain):
            raise TypeError(f"other must be a TensorTrain, got {type(other).__name__}")
        if self.shape != other.shape:
            raise ValueError(f"both trains must have one shape, got {self.shape} and {other.shape}")

    def _made(self, cores: tuple[Any, ...], *others: TensorTrain) -> TensorTrain:
        """A train made by exact arithmetic."""
        return TensorTrain(cores=cores, error=self._exact_with(*others))


def _number(value: Any) -> complex | float | None:
    """A number of any library as Python's own, which changes no array's precision; None for anything else."""
    if isinstance(value, numbers.Number) or (isinstance(value, np.generic) and value.dtype.kind in "biufc"):
        number = complex(value)  # type: ignore[arg-type]
        return number if isinstance(value, (complex, np.complexfloating)) else number.real
    return None
