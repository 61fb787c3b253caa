"""A linear layer on slices in a transform domain: an L-structured weight, or a truncated t-SVD of a folded one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tensorfact.factor.low_rank import randomized_svd, singular_values
from tensorfact.factor.lweight import block_faces, fold, fold_side, mixing_matrix, pooled_ranks
from tensorfact.torch._lproduct_op import apply_faces

__all__ = ["LProductLinear"]


class LProductLinear(nn.Module):
    """``y = x W^T + b`` with a weight whose contiguous slices are mixed by an orthogonal p x p matrix Z.

    Without `ranks` the weight is L-structured, ``W = (Z^T x I) blockdiag(faces^T) (Z x I)``: slices of the input are
    mixed, each has a matrix of its own, the results are mixed back. It has 1/p of the parameters and of the flops. With
    `ranks` it is a truncated t-SVD (t-SVDMII) of the weight folded along its longer side: one side is cut into slices,
    and face u has rank ``ranks[u]``. With full ranks that is any weight.

    Parameters
    ----------
    in_features, out_features : int
        Sizes of the last axis of the input and of the output.
    slices : int
        Number p of slices. It divides both sizes or, with `ranks`, one of them.
    ranks : sequence of int, optional
        One rank for each face, 0 to the smaller side of a face; not all of them 0.
    transform : str, Transform, or matrix (p, p)
        Real and orthogonal: ``"dct"``, ``"identity"``, ``"dst"``, ``"haar"``, ``"hartley"``, or given.
    bias : bool
        Whether a bias (out_features,) is added.
    device, dtype
        As in `torch.nn.Linear`; ``device="meta"`` allocates nothing.

    Raises
    ------
    ValueError
        Sizes that p does not divide, ranks out of range, a transform that is complex or not orthogonal.

    Notes
    -----
    State-dict keys: ``mixing`` and ``faces`` (p, in / p, out / p); or ``mixing_out`` (slices of the output) or
    ``mixing_in`` (of the input) with ``left.u`` and ``right.u`` for each face u of positive rank; and ``bias``. The
    mixing matrix is a buffer, a part of the file but not of the parameters.

    Examples
    --------
    >>> import torch
    >>> from tensorfact.torch import LProductLinear
    >>> layer = LProductLinear(768, 3072, slices=4)
    >>> layer(torch.zeros(2, 768)).shape, layer.faces.shape
    (torch.Size([2, 3072]), torch.Size([4, 192, 768]))
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        slices: int = 4,
        ranks: Sequence[int] | None = None,
        transform: Any = "dct",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if isinstance(slices, bool) or not isinstance(slices, int) or slices < 1:
            raise ValueError(f"slices must be a positive integer, got {slices!r}")
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_features, self.out_features, self.slices = in_features, out_features, slices
        self.ranks = None if ranks is None else tuple(int(rank) for rank in ranks)
        self.side = None if ranks is None else fold_side((out_features, in_features), slices)
        self.faces: nn.Parameter | None = None
        if self.ranks is None:
            if in_features % slices or out_features % slices:
                raise ValueError(f"slices must divide {in_features} inputs and {out_features} outputs, got {slices}")
            shape = slices, in_features // slices, out_features // slices
            self.faces = nn.Parameter(torch.empty(shape, **place))
        else:
            rows, cols = _face_shape((out_features, in_features), slices, self.side, self.ranks)
            kept = {str(u): rank for u, rank in enumerate(self.ranks) if rank}
            self.left = nn.ParameterDict({u: nn.Parameter(torch.empty(rows, r, **place)) for u, r in kept.items()})
            self.right = nn.ParameterDict({u: nn.Parameter(torch.empty(r, cols, **place)) for u, r in kept.items()})
        matrix = torch.tensor(mixing_matrix(transform, slices).tolist(), dtype=torch.float64)
        kind = dtype if dtype is not None else torch.get_default_dtype()
        self.register_buffer(self._mixing_name, matrix.to(device=device, dtype=kind))
        self.bias = nn.Parameter(torch.empty(out_features, **place)) if bias else None
        self.reset_parameters()

    @property
    def _mixing_name(self) -> str:
        return "mixing" if self.side is None else f"mixing_{self.side}"

    @property
    def z(self) -> Tensor:
        """The mixing matrix (slices, slices)."""
        found: Tensor = getattr(self, self._mixing_name)
        return found

    def reset_parameters(self) -> None:
        """Draw parameters so that outputs have the variance that those of a fresh `nn.Linear` have."""
        if self.faces is not None:
            bound = math.sqrt(self.slices / self.in_features)
            nn.init.uniform_(self.faces, -bound, bound)
        else:
            for u, left in self.left.items():
                nn.init.uniform_(self.right[u], -1 / math.sqrt(self.in_features), 1 / math.sqrt(self.in_features))
                nn.init.uniform_(left, -math.sqrt(3 / left.shape[1]), math.sqrt(3 / left.shape[1]))
        if self.bias is not None:
            nn.init.uniform_(self.bias, -1 / math.sqrt(self.in_features), 1 / math.sqrt(self.in_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        if x.shape[-1] != self.in_features:
            raise ValueError(f"x must have {self.in_features} numbers in its last axis, got shape {tuple(x.shape)}")
        if self.faces is None:
            return self._through_ranks(x)
        faces: Tensor = self.faces
        bias: Tensor | None = self.bias
        z = self.z
        if not x.is_meta and torch.is_autocast_enabled(x.device.type) and torch.float64 not in (x.dtype, faces.dtype):
            dtype = torch.get_autocast_dtype(x.device.type)  # as nn.Linear: all in the type of the region
            x, faces, z = x.to(dtype), faces.to(dtype), z.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        if x.dtype != faces.dtype or x.device != faces.device:
            raise ValueError(
                f"x must be of the layer's dtype and device, {faces.dtype} on {faces.device}, "
                f"got {x.dtype} on {x.device}"
            )
        parts = x.reshape(*x.shape[:-1], self.slices, self.in_features // self.slices)
        return apply_faces(parts, faces, z, z.mT, bias, last=False).flatten(-2)

    def _through_ranks(self, x: Tensor) -> Tensor:
        kept = list(self.left)
        ranks = [self.left[u].shape[1] for u in kept]
        rows = [int(u) for u in kept]
        if self.side == "out":  # one product down, one up for each face, then the faces are mixed
            thin = functional.linear(x, torch.cat([self.right[u] for u in kept]))
            parts = torch.split(thin, ranks, dim=-1)
            faces = [functional.linear(part, self.left[u]) for u, part in zip(kept, parts, strict=True)]
            y = torch.einsum("uk,...uj->...kj", self.z[rows].to(faces[0].dtype), torch.stack(faces, dim=-2)).flatten(-2)
            return y if self.bias is None else y + self.bias.to(y.dtype)
        slices = x.reshape(*x.shape[:-1], self.slices, self.in_features // self.slices)
        mixed = torch.einsum("uk,...kj->...uj", self.z[rows].to(x.dtype), slices).unbind(-2)
        thin = torch.cat([functional.linear(part, self.right[u]) for u, part in zip(kept, mixed, strict=True)], dim=-1)
        return functional.linear(thin, torch.cat([self.left[u] for u in kept], dim=1), self.bias)

    @property
    def weight(self) -> Tensor:
        """The dense weight (out_features, in_features), computed at every access; differentiable."""
        z = self.z
        if self.faces is not None:
            return torch.einsum("uln,uk,um->knml", self.faces, z, z).reshape(self.out_features, self.in_features)
        stacked = torch.stack([left @ self.right[u] for u, left in self.left.items()])
        z = z[[int(u) for u in self.left]]
        spec = "uk,uij->kij" if self.side == "out" else "uk,uij->ikj"
        return torch.einsum(spec, z, stacked).reshape(self.out_features, self.in_features)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        slices: int = 4,
        transform: Any = "dct",
        ranks: Sequence[int] | None = None,
        rank: int | None = None,
        tol: float | None = None,
    ) -> Self:
        """Take the nearest weight of the structure in the Frobenius norm; `linear` is left as it is.

        Parameters
        ----------
        linear : torch.nn.Linear
            float16 and bfloat16 weights are worked on in float32 and cast back. Device, dtype, bias, training flag and
            ``requires_grad`` survive.
        slices, transform
            As in the constructor.
        ranks : sequence of int, optional
            Ranks of the faces of the folded weight.
        rank : int, optional
            Their sum; the largest singular values of all faces stay.
        tol : float, optional
            The smallest sum whose relative Frobenius error is at most this. Without any of the three, the orthogonal
            projection on L-structured weights, which loses what is not of that structure.

        Raises
        ------
        ValueError
            If `linear` is no `nn.Linear`, its weight is on the meta device or not finite, or arguments do not fit.
        """
        if not isinstance(linear, nn.Linear):
            raise ValueError(f"linear must be a torch.nn.Linear, got {type(linear).__name__}")
        if linear.weight.is_meta:
            raise ValueError("linear must hold values, got a weight on the meta device")
        if sum(one is not None for one in (ranks, rank, tol)) > 1:
            raise ValueError(f"give at most one of ranks, rank and tol, got {ranks!r}, {rank!r}, {tol!r}")
        weight = linear.weight.detach().cpu()
        matrix = (weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight).numpy()
        if not np.isfinite(matrix).all():
            raise ValueError("linear must have a finite weight, got NaN or infinity")
        z = mixing_matrix(transform, slices)
        arrays: dict[str, Any] = {}
        if ranks is None and rank is None and tol is None:
            made = cls(linear.in_features, linear.out_features, slices=slices, transform=z, bias=False, device="meta")
            arrays["faces"] = block_faces(matrix, z)
        else:
            side = fold_side((matrix.shape[0], matrix.shape[1]), slices)
            if side is None:
                raise ValueError(f"slices must divide one side of the weight {matrix.shape}, got {slices}")
            faces = fold(matrix, z, side)
            ranks = _wanted_ranks(faces, rank, _spared(tol, linear.weight.dtype)) if ranks is None else tuple(ranks)
            made = cls(
                linear.in_features,
                linear.out_features,
                slices=slices,
                ranks=ranks,
                transform=z,
                bias=False,
                device="meta",
            )
            for u, one in enumerate(ranks):
                if one:
                    arrays[f"left.{u}"], arrays[f"right.{u}"] = randomized_svd(faces[u], rank=one, rng=0).factors(
                        "sqrt"
                    )
        made = cls(
            linear.in_features,
            linear.out_features,
            slices=slices,
            ranks=made.ranks,
            transform=z,
            bias=linear.bias is not None,
            device=linear.weight.device,
            dtype=linear.weight.dtype,
        )
        with torch.no_grad():
            for name, array in arrays.items():
                made.get_parameter(name).copy_(torch.asarray(np.ascontiguousarray(array)))
            if linear.bias is not None and made.bias is not None:
                made.bias.copy_(linear.bias)
        for parameter in made.parameters():
            parameter.requires_grad_(linear.weight.requires_grad)
        if made.bias is not None:
            made.bias.requires_grad_(linear.bias.requires_grad)
        return made.train(linear.training)

    def to_linear(self) -> nn.Linear:
        """Return the dense layer with the same output up to rounding: `weight` multiplied out, bias copied."""
        weight = self.weight.detach()
        linear = nn.Linear(
            self.in_features, self.out_features, bias=self.bias is not None, device=weight.device, dtype=weight.dtype
        )
        with torch.no_grad():
            linear.weight.copy_(weight)
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        trained = [self.faces] if self.faces is not None else [*self.left.values(), *self.right.values()]
        linear.weight.requires_grad_(any(parameter.requires_grad for parameter in trained))
        if self.bias is not None:
            linear.bias.requires_grad_(self.bias.requires_grad)
        return linear.train(self.training)

    def extra_repr(self) -> str:
        """Return the sizes that `repr` shows."""
        ranks = "" if self.ranks is None else f", ranks={self.ranks}"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, slices={self.slices}{ranks}, "
            f"bias={self.bias is not None}"
        )


def _face_shape(shape: tuple[int, int], p: int, side: str | None, ranks: tuple[int, ...]) -> tuple[int, int]:
    if side is None:
        raise ValueError(f"slices must divide one side of a weight {shape}, got {p}")
    rows, cols = (shape[0] // p, shape[1]) if side == "out" else (shape[0], shape[1] // p)
    if len(ranks) != p or not any(ranks) or not all(0 <= rank <= min(rows, cols) for rank in ranks):
        raise ValueError(f"ranks must be {p} numbers from 0 to {min(rows, cols)}, not all 0, got {ranks}")
    return rows, cols


def _spared(tol: float | None, dtype: torch.dtype) -> float | None:
    """What is left of a tolerance after two factors are rounded to a type of 16 bits."""
    if tol is None or dtype not in (torch.float16, torch.bfloat16):
        return tol
    lost = torch.finfo(dtype).eps
    if not tol > lost:
        raise ValueError(f"tol must be above {lost:.2g}, what rounding to {dtype} may cost, got {tol!r}")
    return math.sqrt(tol * tol - lost * lost)


def _wanted_ranks(faces: Any, rank: int | None, tol: float | None) -> tuple[int, ...]:
    values = np.array([singular_values(face) for face in faces], dtype=np.float64)
    if tol is not None:
        if not 0 < tol < 1:
            raise ValueError(f"tol must be between 0 and 1, got {tol!r}")
        scaled = values.ravel() / (values.max() or 1.0)  # squares stay in range
        lost = np.cumsum(np.sort(scaled**2))
        rank = max(1, int(values.size - np.searchsorted(lost, tol * tol * lost[-1], side="right")))
    if rank is None or isinstance(rank, bool) or not 1 <= rank <= values.size:
        raise ValueError(f"rank must be from 1 to {values.size}, got {rank!r}")
    return pooled_ranks(values, rank)
