"""What the user gives to `tt_svd`: judged, converted, and looked at from the cheaper end."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tensorfact.factor._input import _HALF, _working
from tensorfact.factor._ops import PortableOps
from tensorfact.factor._tt_plan import Plan, step_cost
from tensorfact.factor._tt_portable import DeviceTensor
from tensorfact.factor._tt_tall import HostTensor

__all__ = ["Tensor", "as_tensor"]


class Tensor:
    """A dense array of d >= 1 modes in working precision, or to be converted block by block."""

    def __init__(self, array: Any, dtype: Any, result: Any, ops: PortableOps | None, workers: int | None) -> None:
        self.array = array
        self.dtype = np.dtype(dtype)  # of the computation, on the host
        self.result = result  # None: as computed
        self.ops = ops
        self.workers = workers
        self.exponent = 0
        self.eps = float(np.finfo(self.dtype).eps)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(n) for n in self.array.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def writeable(self) -> bool:
        return self.ops is None and bool(self.array.flags.writeable)

    def scaled(self, exponent: int) -> Tensor:
        """The same times a power of two."""
        other = Tensor(self.array, self.dtype, self.result, self.ops, self.workers)
        other.exponent = exponent
        return other

    def side(self, flipped: bool) -> HostTensor | DeviceTensor:
        """The tensor with a bond of 1 at its end; flipped: with its modes in reverse order."""
        if self.ops is not None:
            return DeviceTensor.of(self.array, self.ops, flipped, self.exponent)
        array = self.array.T if flipped else self.array
        return HostTensor(array[..., None], self.dtype, self.workers, self.exponent)

    def oriented(self, plan: Plan) -> tuple[HostTensor | DeviceTensor, bool]:
        """The side from which the first step is cheaper, and whether that reverses the modes."""
        if len(self.shape) < 2:
            return self.side(False), False
        sides = [self.side(flipped) for flipped in (False, True)]
        plans = [plan, Plan(plan.caps[::-1], plan.exact, plan.method, plan.smallest)]
        costs = [step_cost(side, its) for side, its in zip(sides, plans, strict=True)]
        best = 1 if costs[1] < costs[0] else 0
        return sides[best], bool(best)

    def peak(self) -> float:
        """Largest magnitude, NaN or infinity where there is one."""
        return self.side(False).peak()

    @property
    def rounding(self) -> float:
        """Relative error, in practice a bound, that storing the cores adds to what the sums of squares tell."""
        if self.result is None:
            return 4 * self.eps
        return len(self.shape) * (2.0**-8 if "bfloat16" in str(self.result) else 2.0**-11)

    def rounded_error(self, cores: list[np.ndarray], norm2: float) -> float:
        """The part of the relative error that comes from storing cores in half precision."""
        if self.result is None:
            return 0.0
        own, gap, other = (np.ones((1, 1)) for _ in range(3))  # inner products of the exact and the stored train
        for core in cores:
            stored = self.stored(core)
            exact = core.astype(np.float64)
            own = np.tensordot(exact, np.tensordot(own, exact, axes=1), axes=((0, 1), (0, 1)))
            gap = np.tensordot(exact, np.tensordot(gap, stored, axes=1), axes=((0, 1), (0, 1)))
            other = np.tensordot(stored, np.tensordot(other, stored, axes=1), axes=((0, 1), (0, 1)))
        kept2 = float(own.sum())
        return math.sqrt(max(kept2 - 2 * float(gap.real.sum()) + float(other.real.sum()), 0.0) / norm2)

    def stored(self, core: np.ndarray) -> np.ndarray:
        """A core as the user will see it, in double precision."""
        core = self.finished(core)
        if self.ops is not None:
            core = self.ops.to_numpy(self.ops.cast(core))
        core = np.asarray(core)
        return core.astype(np.complex128 if core.dtype.kind == "c" else np.float64)

    def finished(self, core: np.ndarray) -> Any:
        """A core of the host in the library, type and device of the input."""
        core = np.array(core, dtype=self.dtype, order="C")  # a copy: one mode is the input itself
        if self.ops is not None:
            core = self.ops.from_numpy(core)
            return core if self.result is None else self.ops.to_half(core, self.result)
        return core if self.result is None else core.astype(self.result)


def as_tensor(a: Any, workers: int | None) -> Tensor:
    """Wrap ``a``; ``ValueError`` names what cannot be served."""
    if not isinstance(a, np.ndarray) and (hasattr(a, "__array_namespace__") or type(a).__module__.startswith("torch")):
        tensor = _portable(a)
    else:
        if isinstance(a, np.ma.MaskedArray):
            raise ValueError("a must not be a masked array: a factorisation has no use for the mask; fill it first")
        array = np.asanyarray(a)
        if not isinstance(array, np.memmap):
            array = np.asarray(array)
        half = array.dtype if array.dtype.name in _HALF else None
        tensor = Tensor(array, _working(array.dtype), half, None, workers)
    if len(tensor.shape) == 0:
        raise ValueError("a must have at least one mode, got a scalar of shape ()")
    if tensor.size == 0:
        raise ValueError(f"a must not be empty, got shape {tensor.shape}")
    return tensor


def _portable(a: Any) -> Tensor:
    try:
        from array_api_compat import array_namespace
    except ImportError as missing:
        raise ImportError("arrays of other libraries need array-api-compat: pip install array-api-compat") from missing
    xp = array_namespace(a)
    result = None
    if str(a.dtype).rpartition(".")[2] in _HALF:
        result, a = a.dtype, xp.astype(a, xp.float32)
    elif xp.isdtype(a.dtype, "integral"):
        a = xp.astype(a, xp.float64)
    elif not xp.isdtype(a.dtype, ("real floating", "complex floating")):
        raise ValueError(f"a must hold floating-point, complex or integer numbers, got dtype {a.dtype}")
    if hasattr(a, "detach"):
        a = a.detach()
    ops = PortableOps(a, xp, a.dtype)
    return Tensor(a, ops.dtype, result, ops, None)
