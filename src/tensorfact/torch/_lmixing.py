"""Transforms across the slices of an embedding, and positions that are added to the slices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tensorfact.factor import Transform

__all__ = ["POSITIONS", "LearnedMixing", "Mixing", "SlicePositions", "make_mixing"]

POSITIONS = ("standard", "linear", "exponential", "harmonic", "learnable")


class Mixing(nn.Module):
    """``out[u] = sum_k Z[u, k] x[k]`` over the slices ``x (p, rows, features)``, one matrix product.

    A matrix that its name tells is no part of the state dict; a given one is.
    """

    matrix: Tensor
    inverse_matrix: Tensor

    def __init__(self, transform: Transform, *, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.transform = transform
        self.trivial = transform.name == "identity"
        keep = transform.given is not None
        for name in ("matrix", "inverse_matrix"):
            self.register_buffer(name, _tensor(getattr(transform, name), device, dtype), persistent=keep)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """After a change of precision the matrices are made again: a float32 one, widened, has float32 digits."""
        before = self.matrix.dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.matrix.dtype != before and not self.matrix.is_meta and self.transform.given is None:
            for name in ("matrix", "inverse_matrix"):
                old = getattr(self, name)
                setattr(self, name, _tensor(getattr(self.transform, name), old.device, old.dtype))
        return self

    def matrices(self) -> tuple[Tensor, Tensor]:
        """The matrix and its inverse."""
        return self.matrix, self.inverse_matrix

    def extra_repr(self) -> str:
        """Return the transform that `repr` shows."""
        return repr(self.transform)


class LearnedMixing(Mixing):
    """An orthogonal matrix that is trained: the Cayley transform of a skew matrix, times where it starts."""

    def __init__(self, start: Transform, *, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(start, device=device, dtype=dtype)
        self.trivial = False
        self.generator = nn.Parameter(torch.zeros(start.length, start.length, device=device, dtype=dtype))

    def matrices(self) -> tuple[Tensor, Tensor]:
        """The matrix and its inverse, its transpose."""
        skew = self.generator - self.generator.mT
        one = torch.eye(skew.shape[0], device=skew.device, dtype=skew.dtype)
        z = torch.linalg.solve(one - skew, (one + skew) @ self.matrix)
        return z, z.mT

    def extra_repr(self) -> str:
        """Return the transform that `repr` shows."""
        return f"learned, from {self.transform!r}"


def _tensor(m: np.ndarray, device: Any, dtype: torch.dtype | None) -> Tensor:
    return torch.tensor(m, device=device, dtype=dtype or torch.get_default_dtype())


def mix(z: Tensor | None, x: Tensor) -> Tensor:
    """``z (p, p)`` applied to the slices of ``x (p, rows, features)``; None leaves them."""
    return x if z is None else torch.mm(z, x.reshape(x.shape[0], -1)).reshape(x.shape)


def mix_add(x: Tensor, z: Tensor | None, y: Tensor) -> Tensor:
    """``x + mix(z, y)``, in one product unless autocast would round the residual with it."""
    if z is None or torch.is_autocast_enabled(x.device.type):
        return x + mix(z, y)
    return torch.addmm(x.reshape(x.shape[0], -1), z, y.reshape(y.shape[0], -1)).reshape(x.shape)


def make_mixing(transform: Any, p: int, *, device: Any = None, dtype: torch.dtype | None = None) -> Mixing:
    """From what the user says to a module: a name, "random", "learned", a `Transform` or a matrix."""
    if isinstance(transform, Mixing):
        found = transform.transform
    elif isinstance(transform, str) and transform == "learned":
        return LearnedMixing(Transform.dct(p), device=device, dtype=dtype)
    elif isinstance(transform, str) and transform == "random":
        # drawn by torch, so that torch.manual_seed decides it like every other weight
        found = Transform.random_orthogonal(p, int(torch.randint(2**62, (), device="cpu")))
    elif isinstance(transform, str):
        found = Transform(transform, p)
    elif isinstance(transform, Transform):
        found = transform
    else:
        found = Transform.from_matrix(transform)
    if found.length != p:
        raise ValueError(f"transform must have the length of slices, {p}, got {found.length}")
    if found.is_complex:
        raise ValueError(f"transform must be real in a layer, got {found!r}")
    return Mixing(found, device=device, dtype=dtype)


class SlicePositions(nn.Module):
    """Sinusoids ``P(t, j, k)`` of slice k, or a learned table, added to what attention reads.

    ``sin`` (j odd) or ``cos`` (j even) of ``alpha_k t / 10000^(2 floor((j - 1) / 2) / features)``, j from 1, t from 0;
    ``alpha_k`` is 1 ("standard"), k / p ("linear"), 2^((k - 1) / (p - 1)) ("exponential"), k ("harmonic"), or given.
    """

    table: Tensor

    def __init__(
        self,
        kind: str | Sequence[float],
        p: int,
        features: int,
        max_len: int,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if isinstance(kind, str):
            if kind not in POSITIONS:
                raise ValueError(f"positions must be None, scales or one of {', '.join(POSITIONS)}, got {kind!r}")
        else:
            kind = tuple(float(scale) for scale in kind)
            if len(kind) != p or not all(map(math.isfinite, kind)):
                raise ValueError(f"positions must be one finite scale for each of {p} slices, got {kind}")
        if max_len < 1:
            raise ValueError(f"max_len must be at least 1, got {max_len}")
        self.kind, self.max_len = kind, max_len
        self.size = (p, max_len, features)
        if kind == "learnable":
            self.table = nn.Parameter(torch.empty(self.size, device=device, dtype=dtype))
            self.reset_parameters()
        else:
            self.register_buffer("table", _tensor(self._sinusoids(), device, dtype), persistent=False)

    def reset_parameters(self) -> None:
        """Draw a learned table, standard deviation 0.02."""
        if self.kind == "learnable":
            nn.init.normal_(self.table, std=0.02)

    def _sinusoids(self) -> np.ndarray:
        p, length, features = self.size
        k = np.arange(1, p + 1)
        named = {
            "standard": np.ones(p),
            "linear": k / p,
            "exponential": 2.0 ** ((k - 1) / max(p - 1, 1)),
            "harmonic": k.astype(float),
        }
        alpha = named[self.kind] if isinstance(self.kind, str) else np.array(self.kind)
        j = np.arange(features)
        rate = np.exp(-math.log(10000.0) * 2 * (j // 2) / features)
        angle = alpha[:, None, None] * np.arange(length)[None, :, None] * rate[None, None, :]
        return np.where(j % 2 == 0, np.sin(angle), np.cos(angle))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = self.table.dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.kind != "learnable" and self.table.dtype != before and not self.table.is_meta:
            self.table = _tensor(self._sinusoids(), self.table.device, self.table.dtype)
        return self

    def forward(self, length: int) -> Tensor:
        """The first ``length`` positions, (p, length, features)."""
        if length > self.max_len:
            raise ValueError(f"src must have at most max_len={self.max_len} positions, got {length}")
        return self.table[:, :length]

    def extra_repr(self) -> str:
        """Return what `repr` shows."""
        return f"{self.kind!r}, max_len={self.max_len}"
