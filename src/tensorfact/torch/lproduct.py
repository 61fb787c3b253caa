"""Differentiable tensor-tensor products: the algebra of `tensorfact.lproduct` inside an autograd graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tensorfact.factor import Transform
from tensorfact.torch._lproduct_op import apply_faces, hat
from tensorfact.torch._ltruncate import best_approximation

__all__ = ["lproduct", "lqr", "ltranspose", "ltruncate"]

Axis = int | Sequence[int] | None


def lproduct(a: Tensor, b: Tensor, transform: Any = "dct", *, axis: Axis = None) -> Tensor:
    """Tensor-tensor product ``a * b`` with gradients for both factors, and for the transform where it is a tensor.

    Parameters
    ----------
    a : Tensor (..., m, l, p)
        Real or complex, on any device; axes in front are batch axes.
    b : Tensor (..., l, n, p)
        Of the same dtype and device; batch axes broadcast.
    transform : str, Transform, Tensor (p, p), or a sequence of these
        As for `tensorfact.lproduct`. A tensor takes part in the graph: it is inverted at every call.
    axis : int or sequence of int, optional
        Where the tubes are; default the last axis, or the last as many as there are transforms.

    Returns
    -------
    Tensor (..., m, n, p)
        Real for real tensors under a real transform or the DFT. NaN and infinity go through, as in PyTorch's own
        products: looking for them would wait for the device.

    Raises
    ------
    ValueError
        Sizes, dtypes or devices that do not fit.

    Examples
    --------
    >>> import torch
    >>> from tensorfact.torch import lproduct
    >>> a = torch.ones(2, 3, 4, requires_grad=True)
    >>> lproduct(a, torch.ones(3, 5, 4), "dft").sum().backward()
    >>> a.grad[0, 0]
    tensor([20., 20., 20., 20.])
    """
    if a.dtype != b.dtype or a.device != b.device:
        raise ValueError(f"a and b must have one dtype and device, got {a.dtype} {a.device} and {b.dtype} {b.device}")
    plan = _plan(transform, axis, a)
    for x, name in ((a, "a"), (b, "b")):
        _check(plan, x, name)
    rest = [[n for k, n in enumerate(x.shape) if k not in plan.places(x)] for x in (a, b)]
    if rest[0][-1] != rest[1][-2]:
        raise ValueError(
            f"b must have as many rows as a has columns, {rest[0][-1]}, got shapes {tuple(a.shape)}, {tuple(b.shape)}"
        )
    last = plan.layout(a, b)
    if last is not None:
        faces = hat(plan.matrices[0], b.reshape(b.shape[-3:]), last)
        return apply_faces(a, faces, plan.matrices[0], plan.inverses[0], last=last)
    x, y = plan.to_faces(a), plan.to_faces(b)
    ndim = max(x.ndim, y.ndim)
    x, y = (z.reshape(z.shape[0], *(1,) * (ndim - z.ndim), *z.shape[1:]) for z in (x, y))
    return plan.from_faces(x @ y)


def ltranspose(a: Tensor, transform: Any = "dct", *, axis: Axis = None) -> Tensor:
    """Conjugate transpose of every face in the transform domain; see `tensorfact.ltranspose`."""
    plan = _plan(transform, axis, a)
    _check(plan, a, "a")
    return plan.from_faces(plan.to_faces(a).mH)


def lqr(a: Tensor, transform: Any = "dct", *, axis: Axis = None) -> tuple[Tensor, Tensor]:
    """Reduced QR factorisation ``a = q * r`` of faces with independent columns (m >= l); see `tensorfact.lqr`."""
    plan = _plan(transform, axis, a)
    _check(plan, a, "a")
    q, r = torch.linalg.qr(plan.to_faces(a))
    # LAPACK leaves the phases open: a positive diagonal makes faces that are real stay real, and conjugates conjugate
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    phase = torch.where(diagonal == 0, torch.ones_like(diagonal), diagonal.sgn()).detach()
    return plan.from_faces(q * phase.unsqueeze(-2)), plan.from_faces(phase.conj().unsqueeze(-1) * r)


def ltruncate(a: Tensor, transform: Any = "dct", *, rank: int, axis: Axis = None) -> Tensor:
    """The best tensor of tubal rank ``rank``, as a tensor with gradients; factors come from `tensorfact.lsvd_truncate`.

    Gradients exist where the last kept and the first dropped singular value of every face differ; ties elsewhere do no
    harm. They can be taken once.

    Examples
    --------
    >>> import torch
    >>> from tensorfact.torch import ltruncate
    >>> ltruncate(torch.ones(3, 4, 2), rank=1)[0, 0]
    tensor([1.0000, 1.0000])
    """
    plan = _plan(transform, axis, a)
    _check(plan, a, "a")
    faces = plan.to_faces(a)
    count = min(faces.shape[-2:])
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= count:
        raise ValueError(f"rank must be between 1 and {count}, got {rank!r}")
    mask = (torch.arange(count, device=a.device) < rank).expand(*faces.shape[:-2], count)
    return plan.from_faces(best_approximation(faces, mask))


@dataclass(frozen=True, slots=True)
class _Plan:
    """A matrix, its inverse and a place for each tube axis."""

    matrices: tuple[Tensor, ...]
    inverses: tuple[Tensor, ...]
    axes: tuple[int, ...]
    real: bool  # the result is
    dtype: torch.dtype  # of the tensors

    def places(self, x: Tensor) -> list[int]:
        return [axis % x.ndim for axis in self.axes]

    def layout(self, a: Tensor, b: Tensor) -> bool | None:
        """Whether the tubes are the last axis of both or, if False, the one before; None where that is not so.

        With one real weight ``b`` for all rows of ``a`` the CPU fuses the transforms with the products.
        """
        behind = {x.ndim - 1 - self.places(x)[0] for x in (a, b)} if len(self.axes) == 1 else set()
        if behind not in ({0}, {1}) or math.prod(b.shape[:-3]) != 1 or b.ndim > a.ndim:
            return None
        if a.device.type != "cpu" or a.is_complex() or self.matrices[0].dtype != a.dtype:
            return None
        return behind == {0}

    def to_faces(self, x: Tensor) -> Tensor:
        """``(faces, *batch, m, l)``."""
        x = x.movedim(self.places(x), list(range(-len(self.axes), 0)))
        for z in reversed(self.matrices):
            kind = torch.promote_types(x.dtype, z.dtype)
            x = torch.tensordot(z.to(kind), x.to(kind), ([1], [x.ndim - 1]))
        return x.reshape(-1, *x.shape[len(self.axes) :])

    def from_faces(self, y: Tensor) -> Tensor:
        x = y.reshape(*(z.shape[0] for z in self.matrices), *y.shape[1:])
        for z in self.inverses:
            kind = torch.promote_types(x.dtype, z.dtype)
            x = torch.tensordot(x.to(kind), z.to(kind), ([0], [1]))
        if self.real and x.is_complex():
            x = x.real
        if not x.is_complex():
            x = x.to(self.dtype)
        ndim = x.ndim
        return x.movedim(list(range(-len(self.axes), 0)), [axis % ndim for axis in self.axes])


def _check(plan: _Plan, x: Tensor, name: str) -> None:
    count = len(plan.axes)
    if x.ndim < count + 2:
        raise ValueError(f"{name} must have at least {count + 2} axes, got shape {tuple(x.shape)}")
    for place, z in zip(plan.places(x), plan.matrices, strict=True):
        if x.shape[place] != z.shape[1]:
            raise ValueError(
                f"the tubes of {name}, its axis {place}, must have the length {z.shape[1]} of the transform, "
                f"got {x.shape[place]}"
            )
    if x.numel() == 0:
        raise ValueError(f"{name} must not be empty, got shape {tuple(x.shape)}")


def _plan(transform: Any, axis: Axis, a: Tensor) -> _Plan:
    if not a.is_floating_point() and not a.is_complex():
        raise ValueError(f"a must hold floating-point or complex numbers, got dtype {a.dtype}")
    several = isinstance(transform, list | tuple)
    axes = tuple(axis) if isinstance(axis, list | tuple) else None if axis is None else (axis,)
    count = len(axes) if axes is not None else len(transform) if several else 1
    if several and len(transform) != count:
        raise ValueError(f"transform must have one entry per tube axis, {count}, got {len(transform)}")
    places: Any = tuple(range(-count, 0)) if axes is None else axes
    if any(not -a.ndim <= place < a.ndim for place in places) or len({place % a.ndim for place in places}) != count:
        raise ValueError(f"axis must name {count} different axes of a, got {places} for shape {tuple(a.shape)}")
    wide = {torch.float16: torch.float32, torch.bfloat16: torch.float32}.get(a.dtype, a.dtype)
    real_type = torch.empty(0, dtype=wide).real.dtype if wide.is_complex else wide
    found = [
        _matrices(one, a.shape[place], real_type, a.device)
        for one, place in zip(transform if several else [transform] * count, places, strict=True)
    ]
    closed = all(known is not None for _, _, known in found)
    halves = [k for k, (z, _, _) in enumerate(found) if z.is_complex()]
    half = not a.is_complex() and closed and len(halves) == 1
    matrices, inverses = [z for z, _, _ in found], [z for _, z, _ in found]
    if half:
        k = halves[0]
        partner = found[k][2]
        assert partner is not None
        rows = [i for i, other in enumerate(partner) if i <= other]
        weights = [1.0 if partner[i] == i else 2.0 for i in rows]
        matrices[k] = matrices[k][rows]
        inverses[k] = inverses[k][:, rows] * torch.tensor(weights, dtype=real_type, device=a.device)
    return _Plan(tuple(matrices), tuple(inverses), tuple(places), not a.is_complex() and closed, a.dtype)


def _matrices(transform: Any, p: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Any]:
    """Matrix, inverse, and the row that is the conjugate of each row (None where there is no such pairing)."""
    if isinstance(transform, Tensor):
        if transform.ndim != 2 or transform.shape[0] != transform.shape[1]:
            raise ValueError(f"transform must be a square matrix, got shape {tuple(transform.shape)}")
        partner = None if transform.is_complex() else range(transform.shape[0])
        return transform, torch.linalg.inv(transform), partner
    if isinstance(transform, str):
        found: tuple[Tensor, Tensor, Any] = _named(transform, p, dtype, device)
        return found
    if not isinstance(transform, Transform):
        transform = Transform.from_matrix(transform)
    return _constants(transform, dtype, device)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _named(name: str, p: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Any]:
    return _constants(Transform(name, p), dtype, device)


def _constants(transform: Transform, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Any]:
    kind = torch.promote_types(dtype, torch.complex64) if transform.is_complex else dtype
    z, inverse = (
        torch.tensor(m.tolist(), dtype=kind, device=device) for m in (transform.matrix, transform.inverse_matrix)
    )
    partner = transform.partner
    return z, inverse, None if partner is None else partner.tolist()
