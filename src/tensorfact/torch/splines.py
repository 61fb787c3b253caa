"""A learned activation: one spline for each feature."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from tensorfact import kernels
from tensorfact.torch._spline_op import spline

__all__ = ["SplineActivation"]


class SplineActivation(nn.Module):
    """``y_i = g_i(x_i)``: every feature through its own B-spline, straight on outside its knots.

    Parameters
    ----------
    features : int
        Size of the last axis.
    n_basis, degree : int
        Coefficients and degree (0 to 7) of each spline, ``n_basis > degree``.
    span : (float, float)
        Range of the knots, equally spaced with repeated ends; the splines begin as the identity (a stair at degree 0).
    uniform : bool
        Keep two numbers of each row of knots, its ends; otherwise all, which may then lie anywhere.
    device, dtype
        As in `torch.nn.Linear`.

    Notes
    -----
    State-dict keys: ``coefficients`` (features, n_basis), a parameter, and a buffer, ``knots`` (features,
    n_basis + degree + 1) or, for uniform ones, ``ends`` (features, 2). The CPU runs the compiled kernels, other devices
    torch operations. Gradients of any order go to the input and the coefficients; half precision is computed in
    float32. With ``coefficients.requires_grad_(False)`` the splines are frozen.

    References
    ----------
    de Boor, "On calculating with B-splines", J. Approximation Theory 6 (1972).

    Examples
    --------
    >>> import torch
    >>> layer = SplineActivation(2, n_basis=5)
    >>> layer(torch.tensor([[0.25, 7.0]])).detach()
    tensor([[0.2500, 7.0000]])
    """

    knots: Tensor
    ends: Tensor

    def __init__(
        self,
        features: int,
        *,
        n_basis: int = 12,
        degree: int = 3,
        span: tuple[float, float] = (-3.0, 3.0),
        uniform: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (("features", features, 1), ("degree", degree, 0), ("n_basis", n_basis, degree + 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer, at least {least}, got {value!r}")
        if degree > 7:
            raise ValueError(f"degree must be at most 7, got {degree}")
        lo, hi = (float(end) for end in span)
        if not (lo < hi and abs(lo) + abs(hi) < float("inf")):
            raise ValueError(f"span must be two finite numbers in ascending order, got {span}")
        self.features, self.n_basis, self.degree, self.uniform = features, n_basis, degree, uniform
        ends = torch.tensor([lo, hi], device=device, dtype=dtype).repeat(features, 1)
        if uniform:
            self.register_buffer("ends", ends)
        else:
            self.register_buffer("knots", _spread(ends, n_basis, degree))
        self.coefficients = nn.Parameter(torch.empty(features, n_basis, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make every spline the identity (Greville's abscissae as coefficients)."""
        width = max(1, self.degree)
        with torch.no_grad():
            windows = self.grid()[:, 1 : self.n_basis + width].unfold(1, width, 1)
            self.coefficients.copy_(windows.mean(dim=-1))

    def grid(self) -> Tensor:
        """Return all knots, (features, n_basis + degree + 1)."""
        return _spread(self.ends, self.n_basis, self.degree) if self.uniform else self.knots

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., features) to (..., features)."""
        if x.shape[-1:] != (self.features,):
            raise ValueError(f"x must have {self.features} features, got shape {tuple(x.shape)}")
        return spline(x, self.grid(), self.coefficients, self.degree)

    @classmethod
    def from_splines(
        cls,
        knots: Any,
        coefficients: Any,
        degree: int,
        *,
        uniform: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Build the layer of given splines; values are copied.

        Parameters
        ----------
        knots : array_like, shape (r, k + degree + 1)
            Non-decreasing, with an interval of some length from ``knots[:, degree]`` to ``knots[:, k]``.
        coefficients : array_like, shape (r, k)
        degree : int
        uniform : bool
            Keep the ends of the knots only, which must be equally spaced between repeated ends.
        device, dtype
            Those of `coefficients` by default.

        Raises
        ------
        ValueError
            If the shapes do not fit, knots decrease, are not finite or span nothing, or are not `uniform`.
        """
        c = torch.as_tensor(coefficients)
        kind = dtype or (c.dtype if c.is_floating_point() else torch.get_default_dtype())
        where = device if device is not None else c.device
        t = torch.as_tensor(knots).to(where, kind)
        if c.ndim != 2 or t.ndim != 2:
            raise ValueError(f"knots and coefficients must have two axes, got {tuple(t.shape)} and {tuple(c.shape)}")
        r, k = c.shape
        layer = cls(int(r), n_basis=int(k), degree=degree, uniform=uniform, device=where, dtype=kind)
        if t.shape != layer.grid().shape:
            raise ValueError(
                f"knots must have shape {tuple(layer.grid().shape)} for the coefficients, got {tuple(t.shape)}"
            )
        checked = t.detach().to("cpu", torch.float64)
        kernels.spline_values(checked[:, :0].numpy(), checked.numpy(), degree, c.detach().cpu().double().numpy())
        ends = t[:, [degree, -degree - 1]]
        if uniform:
            off = (_spread(checked[:, [0, -1]], int(k), degree) - checked).abs().amax(dim=1)
            if bool((off > 64 * torch.finfo(kind).eps * checked.abs().amax(dim=1)).any()):
                raise ValueError("knots must be equally spaced between repeated ends where uniform is true")
        with torch.no_grad():
            (layer.ends if uniform else layer.knots).copy_(ends if uniform else t)
            layer.coefficients.copy_(c)
        return layer

    def extra_repr(self) -> str:
        """Return the sizes that `repr` shows."""
        return f"{self.features}, n_basis={self.n_basis}, degree={self.degree}, uniform={self.uniform}"


def _spread(ends: Tensor, n_basis: int, degree: int) -> Tensor:
    """Equally spaced knots between repeated ends, at least in float32: half precision would make them uneven."""
    wide = ends.float() if ends.dtype in (torch.float16, torch.bfloat16) else ends
    lo, hi = wide[:, :1], wide[:, 1:]
    share = torch.linspace(0, 1, n_basis - degree + 1, device=wide.device, dtype=wide.dtype)
    inner = lo + (hi - lo) * share[1:-1]
    return torch.cat([lo.expand(-1, degree + 1), inner, hi.expand(-1, degree + 1)], dim=1)
