"""From a tensor with tubes to a stack of faces in the transform domain, and back: the plan of one call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorfact.factor._stack import NumpyStack
from tensorfact.factor._transform import Transform, named, normal_axis
from tensorfact.factor._transform_matrices import fast, fast_real_inverse, is_long

__all__ = ["Tubes", "plan_tubes"]


@dataclass(frozen=True, slots=True, eq=False)
class Tubes:
    """One transform for each tube axis, and whether the data is real.

    Faces are stored first: ``(faces, *batch, m, l)``. Real data under a transform whose rows come in conjugate pairs
    (the DFT) has conjugate pairs of faces; one of each pair is stored and counts twice.
    """

    transforms: tuple[Transform, ...]
    axes: tuple[int, ...]  # as the user counts them: from the front, or negative from the end
    real: bool

    # -- what the plan is ----------------------------------------------------------------------------------------
    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(t.length for t in self.transforms)

    @property
    def scale(self) -> float | None:
        """The c of the whole transform, the product over the tube axes; None where one has none."""
        scales = [t.scale for t in self.transforms]
        return None if None in scales else math.prod(s for s in scales if s is not None)

    @property
    def inverse_norm(self) -> float:
        """Spectral norm of the inverse of the whole transform."""
        return math.prod(
            1 / t.scale if t.scale is not None else float(np.linalg.norm(t.inverse_matrix, 2)) for t in self.transforms
        )

    @property
    def symmetric(self) -> bool:
        """Whether faces come in conjugate pairs of which one is stored."""
        if not self.real or not any(t.is_complex for t in self.transforms):
            return False
        return all(t.partner is not None for t in self.transforms)

    @property
    def complex_result(self) -> bool:
        return not self.real or (any(t.is_complex for t in self.transforms) and not self.symmetric)

    @property
    def kept(self) -> np.ndarray:
        """Index, among all faces in C order, of each stored face."""
        return np.flatnonzero(np.arange(math.prod(self.lengths)) <= self._partners())

    @property
    def stored_of(self) -> np.ndarray:
        """For each of all faces the stored one that it equals, or is the conjugate of."""
        first = np.minimum(np.arange(math.prod(self.lengths)), self._partners())
        return np.asarray(np.searchsorted(self.kept, first))

    @property
    def weights(self) -> np.ndarray:
        """How many faces each stored one stands for: 1 or 2."""
        return np.bincount(self.stored_of)

    def face_name(self, stored: int) -> str:
        """How a message calls a stored face: its index, one number for each tube axis."""
        index = tuple(int(i) for i in np.unravel_index(int(self.kept[stored]), self.lengths))
        return str(index[0] if len(index) == 1 else index)

    def _partners(self) -> np.ndarray:
        if not self.symmetric:
            return np.arange(math.prod(self.lengths))
        grid = np.ix_(*(t.partner for t in self.transforms if t.partner is not None))
        return np.ravel_multi_index(np.broadcast_arrays(*grid), self.lengths).ravel()

    def _rows(self) -> list[np.ndarray | None]:
        """Per transform the rows that are needed: half of them where it is the only complex one."""
        complex_ones = [t.is_complex for t in self.transforms]
        if not self.symmetric or sum(complex_ones) != 1:
            return [None] * len(self.transforms)
        return [
            np.flatnonzero(np.arange(t.length) <= t.partner) if t.is_complex and t.partner is not None else None
            for t in self.transforms
        ]

    # -- there and back ------------------------------------------------------------------------------------------
    def to_faces(self, x: Any, ops: NumpyStack) -> Any:
        """Tensor to faces ``(stored, *batch, m, l)``, contiguous."""
        axes = [axis % x.ndim for axis in self.axes]
        rows = self._rows()
        if len(axes) == 1:
            return _front(x, self.transforms[0], rows[0], axes[0], ops)
        x = ops.moveaxis(x, tuple(axes), tuple(range(-len(axes), 0)))
        for transform, part in zip(self.transforms[::-1], rows[::-1], strict=True):
            x = _front(x, transform, part, x.ndim - 1, ops)
        x = ops.reshape(x, (-1, *x.shape[len(axes) :]))
        if self.symmetric and all(part is None for part in rows):
            x = ops.take(x, self.kept)
        return x

    def from_faces(self, y: Any, ops: NumpyStack) -> Any:
        """Faces to the tensor, its tubes where the user counts them."""
        ndim = y.ndim - 1 + len(self.axes)
        axes = [axis % ndim for axis in self.axes]
        rows = self._rows()
        if len(axes) == 1:
            last = axes[0] != 0
            x = _back(y, self.transforms[0], rows[0], last, ops)
            x = x if axes[0] in (0, ndim - 1) else ops.moveaxis(x, -1, axes[0])
            return x if self.complex_result else ops.real(x)
        shape = list(self.lengths)
        if self.symmetric and all(part is None for part in rows):
            pairs = np.where(self._partners() < np.arange(math.prod(shape)), y.shape[0], 0)
            y = ops.take(ops.concat([y, ops.conj(y)]), self.stored_of + pairs)
        for mode, part in enumerate(rows):
            shape[mode] = shape[mode] if part is None else len(part)
        x = ops.reshape(y, (*shape, *y.shape[1:]))
        for transform, part in zip(self.transforms, rows, strict=True):
            x = _back(x, transform, part, True, ops)
        x = x if self.complex_result else ops.real(x)
        return ops.moveaxis(x, tuple(range(-len(axes), 0)), tuple(axes))


def _front(x: Any, t: Transform, rows: np.ndarray | None, axis: int, ops: NumpyStack) -> Any:
    if t.name == "identity":
        y = ops.moveaxis(x, axis, 0)
        return np.ascontiguousarray(y) if isinstance(y, np.ndarray) else y
    if isinstance(x, np.ndarray) and is_long(t.name, t.length):
        y = fast(t.name, ops.to_complex(x) if t.is_complex and rows is None else x, axis)
        return np.ascontiguousarray(np.moveaxis(y, axis, 0))
    return ops.front(x, t.matrix if rows is None else t.matrix[rows], axis)


def _back(y: Any, t: Transform, rows: np.ndarray | None, last: bool, ops: NumpyStack) -> Any:
    if t.name == "identity":
        return ops.moveaxis(y, 0, -1) if last else y
    if isinstance(y, np.ndarray) and is_long(t.name, t.length):
        x = fast(t.name, y, 0, inverse=True) if rows is None else fast_real_inverse(y, t.length, 0)
        return np.ascontiguousarray(np.moveaxis(x, 0, -1)) if last else x
    if rows is None:
        return ops.back(y, t.inverse_matrix, last=last)
    assert t.partner is not None
    weights = np.where(t.partner[rows] == rows, 1.0, 2.0)
    return ops.back_real(y, t.inverse_matrix[:, rows] * weights, last=last)


def plan_tubes(
    transform: Any, axis: int | Sequence[int] | None, shape: Sequence[int], real: bool, name: str = "a"
) -> Tubes:
    """Judge ``transform`` and ``axis`` against the shape of the argument called ``name``."""
    several = isinstance(transform, list | tuple)
    count = len(axis) if isinstance(axis, list | tuple) else len(transform) if several else 1
    if several and len(transform) != count:
        raise ValueError(f"transform must have one entry per tube axis, {count}, got {len(transform)}")
    if not several and count != 1 and not isinstance(transform, str):
        raise ValueError(f"transform must have one entry per tube axis, {count}, got one")
    given: Any = tuple(range(-count, 0)) if axis is None else axis if isinstance(axis, list | tuple) else (axis,)
    ndim = len(shape)
    if count == 0 or ndim < count + 2:
        raise ValueError(f"{name} must have at least {count + 2} axes (m, l and {count} for tubes), got {tuple(shape)}")
    places = [normal_axis("axis", one, ndim) for one in given]
    if len(set(places)) != count:
        raise ValueError(f"axis must name different axes, got {tuple(given)}")
    if 0 in shape:
        raise ValueError(f"{name} must not be empty, got shape {tuple(shape)}")
    transforms = tuple(
        _resolved(one, int(shape[place]), name, place)
        for one, place in zip(transform if several else [transform] * count, places, strict=True)
    )
    return Tubes(transforms, tuple(int(one) for one in given), real)


def _resolved(transform: Any, p: int, name: str, place: int) -> Transform:
    if isinstance(transform, str):
        return named(transform, p)
    if isinstance(transform, Transform):
        found = transform
    else:
        try:
            found = Transform.from_matrix(transform)
        except ValueError as refusal:
            raise ValueError(f"transform: {refusal}") from None
    if found.length != p:
        raise ValueError(
            f"the tubes of {name}, its axis {place}, must have the length {found.length} of the transform, got {p}"
        )
    return found
