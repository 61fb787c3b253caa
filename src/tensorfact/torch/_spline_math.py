"""Splines of many features in plain torch operations: any device, any dtype, every transform.

Points are rows of features, ``(..., r)``; feature i has its own knots and coefficients. The recurrence is that of the
compiled kernels (de Boor, 1972), on gathered knots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tensorfact.torch._mpo_op import transforms_active

__all__ = ["adjoint_reference", "reference"]


def reference(x: Tensor, knots: Tensor, coefficients: Tensor, degree: int, nu: int) -> Tensor:
    """Values or derivatives (..., r), straight on outside the knots, where the second derivative is zero."""
    z = x.reshape(-1, x.shape[-1]).mT
    ends = knots[:, degree, None], knots[:, -degree - 1, None]
    far = torch.isinf(z) if nu == 0 else torch.zeros_like(z, dtype=torch.bool)
    near = torch.where(far, torch.where(z > 0, ends[1], ends[0]), z)
    y = _combined(near, knots, coefficients, degree, nu)
    if nu == 0:  # infinite terms of a basis would cancel to NaN; level to rounding is level
        slope = _combined(near, knots, coefficients, degree, 1).detach()
        rounding = 16 * torch.finfo(z.dtype).eps * coefficients.detach().abs().amax(dim=1, keepdim=True)
        level = slope.abs() * (ends[1] - ends[0]) <= rounding
        y = torch.where(far & ~level, slope * torch.where(far, z, torch.ones_like(z)).detach(), y)
    return y.mT.reshape(x.shape)


def _combined(z: Tensor, knots: Tensor, coefficients: Tensor, degree: int, nu: int) -> Tensor:
    """The spline of each row at z (r, N)."""
    local, first = _with_tails(z, knots, degree, nu)
    return sum((coefficients.gather(1, first + q) * value for q, value in enumerate(local)), torch.zeros_like(z))


def adjoint_reference(x: Tensor, gradient: Tensor, knots: Tensor, degree: int, nu: int) -> Tensor:
    """Gradient (r, k) of the coefficients: ``sum_i gradient[i] B_j(x[i])`` for each feature."""
    z, g = (a.reshape(-1, a.shape[-1]).mT for a in (x, gradient))
    local, first = _with_tails(z, knots, degree, nu)
    found = z.new_zeros(knots.shape[0], knots.shape[1] - degree - 1)
    for q, value in enumerate(local):
        found = found.scatter_add(1, first + q, value * g)
    return found


def _with_tails(z: Tensor, knots: Tensor, degree: int, nu: int) -> tuple[list[Tensor], Tensor]:
    """The degree + 1 functions that are not zero at z (r, N), and the index of the first."""
    lo, hi = knots[:, degree, None], knots[:, -degree - 1, None]
    inside = torch.minimum(torch.maximum(z, lo), hi)
    last = torch.sum(knots < hi, dim=1, keepdim=True) - 1  # the last with a length
    interval = torch.minimum(_interval(inside.detach(), knots.detach()), last)
    window = [knots.gather(1, interval + offset) for offset in range(1 - degree, degree + 1)]
    local = _local(inside, window, degree, nu)
    if nu == 0 and degree > 0:
        local = [a + b * (z - inside) for a, b in zip(local, _local(inside, window, degree, 1), strict=True)]
    elif nu >= 2:
        local = [torch.where(z == inside, a, a * 0) for a in local]
    return local, interval - degree


def _interval(inside: Tensor, knots: Tensor) -> Tensor:
    """Index of the last knot at or before each point."""
    if transforms_active():  # a search sees through vmap strides that it warns of
        found = torch.zeros_like(inside, dtype=torch.int64) - 1
        for knot in knots.unbind(1):
            found = found + ~(inside < knot[:, None])  # NaN lies in the last interval, as for a search
        return found
    return torch.searchsorted(knots.contiguous(), inside.contiguous(), right=True) - 1


def _local(z: Tensor, window: list[Tensor], degree: int, nu: int) -> list[Tensor]:
    """Local values; `window` holds the knots from ``1 - degree`` to ``degree`` around the interval of each point."""
    local = [z * 0 + 1]
    if nu > degree:
        return [z * 0] * (degree + 1)
    for d in range(1, degree + 1):
        carry = z * 0
        for q in range(d):
            left, right = window[degree - d + q], window[degree + q]
            u = local[q] / (right - left)
            if d <= degree - nu:
                local[q], carry = carry + (right - z) * u, (z - left) * u
            else:
                local[q], carry = carry - d * u, d * u
        local.append(carry)
    return local
