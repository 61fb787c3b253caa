"""The lproduct method: weights whose slices are mixed by an orthogonal transform, one matrix or thin pair a face.

``truncation``: the weight is folded along its longer side into a tensor with tubes of p numbers, and the t-SVD of that
tensor is truncated (t-SVDMII: the singular values of all faces compete). ``projection``: the nearest weight that is
block-diagonal in the transform domain on both sides, 1/p of the numbers whatever the weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from tensorfact.compress._budget import BudgetOptions, Menu, is_positive_int, share_budget
from tensorfact.compress._method import Allocation, Arrays, Factored, Layer, Rank, register
from tensorfact.factor.low_rank import randomized_svd, singular_values
from tensorfact.factor.lweight import (
    Side,
    block_faces,
    fold,
    fold_side,
    mixing_matrix,
    pooled_ranks,
    unfold,
    unfold_blocks,
)

__all__ = ["LProductMethod"]

_SLICES = (16, 8, 4, 2)  # that a projection chooses from, fewest numbers first
_TRANSFORMS = ("dct", "identity", "dst", "haar", "hartley")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class LProductMethod(BudgetOptions):
    """Options of the ``lproduct`` method.

    Parameters
    ----------
    kind : {"truncation", "projection"}
        Truncated t-SVD of the folded weight, exact at full rank; or projection on L-structured weights, which of a
        weight without that structure keeps about 1/p of the energy, a start for training.
    slices : int, optional
        Number p of slices. By default 4 for a truncation, and what the budget allows of 16, 8, 4 and 2 for a
        projection. Weights that p does not divide stay dense.
    transform : {"dct", "identity", "dst", "haar", "hartley"}
        The orthogonal transform along the tubes; it is stored, p^2 numbers a weight.
    allocation : {"spectrum", "uniform"}
        Share the budget by the energy that each weight keeps, or give each the same share.
    rank_multiple : int
        Sums of the ranks of a truncation are multiples of it; small weights use its largest divisor that leaves 8
        steps.
    rank_pattern : dict of str to int
        Name, suffix or ``re:`` pattern -> sum of the ranks of all faces, or slices of a projection; counts against the
        budget like the others.
    floor : float
        Least share of its uniform number of parameters that each weight keeps, in [0, 1].
    min_saving : float
        Least share of its parameters that the factors save, in [0, 1); otherwise the weight stays dense.
    """

    name: ClassVar[str] = "lproduct"
    pattern: ClassVar[str] = r"mixing(?:_out|_in)?|faces|(?:left|right)\.\d+"
    bias: ClassVar[str] = "bias"
    memory: ClassVar[int] = 6

    kind: Literal["truncation", "projection"] = "truncation"
    slices: int | None = None
    transform: str = "dct"

    def __post_init__(self) -> None:
        """Check the options."""
        self.check()
        if self.kind not in ("truncation", "projection"):
            raise ValueError(f"kind must be truncation or projection, got {self.kind!r}")
        if self.slices is not None and (not is_positive_int(self.slices) or self.slices < 2):
            raise ValueError(f"slices must be an integer >= 2, got {self.slices!r}")
        if self.transform not in _TRANSFORMS:
            raise ValueError(f"transform must be one of {', '.join(_TRANSFORMS)}, got {self.transform!r}")
        for p in (self.slices,) if self.slices is not None else _SLICES:
            mixing_matrix(self.transform, p)
        for pattern, rank in self.rank_pattern.items():
            if not is_positive_int(rank):
                raise ValueError(f"rank_pattern must map names to integers >= 1, got {pattern!r}: {rank!r}")

    @property
    def remark(self) -> str:
        """Say what ranks and singular values are."""
        if self.kind == "projection":
            return "lproduct: a rank is the number of slices of a block-diagonal weight in the transform domain"
        return (
            f"lproduct: ranks are those of {self.tube} faces of the folded weight in the transform domain, and "
            "singular values are those of all faces together"
        )

    @property
    def tube(self) -> int:
        """Slices of a truncation."""
        return 4 if self.slices is None else self.slices

    def analyse(self, weight: npt.NDArray[Any], /) -> npt.NDArray[np.float64]:
        """Return the singular values of each face; for a projection the whole energy, then what each choice keeps."""
        shape = weight.shape[0], weight.shape[1]
        if self.kind == "projection":
            kept = [block_faces(weight, mixing_matrix(self.transform, p)) for p in self._choices(shape)]
            return np.array([float(np.sum(np.square(part, dtype=np.float64))) for part in (weight, *kept)])
        side = fold_side(shape, self.tube)
        if side is None:
            return np.empty((0, 0))
        faces = fold(weight, mixing_matrix(self.transform, self.tube), side)
        return np.array([singular_values(face) for face in faces], dtype=np.float64)

    def spectrum(self, analysis: npt.NDArray[np.float64], /) -> npt.NDArray[np.float64]:
        """Return the singular values of all faces; a projection has none."""
        return np.sort(analysis.ravel())[::-1] if analysis.ndim == 2 else np.empty(0)

    def full_rank(self, shape: tuple[int, int], /) -> int:
        """Return the sum of the full ranks of all faces; the most slices of a projection."""
        if self.kind == "projection":
            return max(self._choices(shape), default=0)
        side = fold_side(shape, self.tube)
        return 0 if side is None else self.tube * min(_face(shape, self.tube, side))

    def break_even(self, shape: tuple[int, int], /) -> int:
        """Return the largest sum of ranks that takes fewer numbers than the matrix; the most slices of a projection."""
        if self.kind == "projection":
            return max(self._choices(shape), default=0)
        return len(self._menu(shape, None).costs) - 1

    def allocate(
        self, layers: Sequence[Layer], param_ratio: float, analyses: Mapping[str, npt.NDArray[np.float64]], /
    ) -> Allocation:
        """Share the budget; see `share_budget`.

        Raises
        ------
        ValueError
            If the least that every weight can become, or `rank_pattern`, already exceeds the budget, or a pattern
            matches nothing.
        """
        wanted = self.given(layers)
        given: dict[str, tuple[Rank, int]] = {}
        for layer in layers:
            asked = wanted.get(layer.name)
            if isinstance(asked, int):
                rank = self._asked(layer, asked, analyses.get(layer.name))
                given[layer.name] = rank, sum(math.prod(array) for array in self.layout(layer.shape, rank).values())
        made = share_budget(
            self,
            layers,
            param_ratio,
            {layer.name: self._menu(layer.shape, analyses.get(layer.name)) for layer in layers},
            given=given,
            to_rank=lambda layer, level: self._rank(layer.shape, level, analyses.get(layer.name)),
            what="the faces",
        )
        p = self.slices if self.slices is not None or self.kind == "projection" else self.tube
        how = "both sides" if self.kind == "projection" else "a side"
        why = f"{p if p is not None else 'none of 2, 4, 8, 16'} slices do not divide {how} evenly"
        misfits = {la.name: why for la in layers if la.name in made.dense and not self._fits(la.shape)}
        return replace(made, dense={**made.dense, **misfits})

    def layout(self, shape: tuple[int, int], rank: Rank, /) -> dict[str, tuple[int, ...]]:
        """Return shapes: ``mixing`` and ``faces`` for slices; mixing, ``left.u`` and ``right.u`` for ranks of faces."""
        if isinstance(rank, int):
            if rank < 1 or shape[0] % rank or shape[1] % rank:
                raise ValueError(f"slices must divide both sides of a weight {shape}, got {rank}")
            return {"mixing": (rank, rank), "faces": (rank, shape[1] // rank, shape[0] // rank)}
        p = len(rank)
        side = fold_side(shape, p) if p else None
        if side is None or not any(rank) or not all(0 <= r <= min(_face(shape, p, side)) for r in rank):
            raise ValueError(f"rank must be one rank for each face of a weight {shape}, got {rank!r}")
        rows, cols = _face(shape, p, side)
        found: dict[str, tuple[int, ...]] = {f"mixing_{side}": (p, p)}
        for u, r in enumerate(rank):
            if r:
                found |= {f"left.{u}": (rows, r), f"right.{u}": (r, cols)}
        return found

    def factor(self, weight: npt.NDArray[Any], rank: Rank, /, *, rng: np.random.Generator) -> Factored:
        """Return the mixing matrix and the faces, or their factors; both kinds are the nearest of their structure."""
        shape = weight.shape[0], weight.shape[1]
        layout = self.layout(shape, rank)
        p = rank if isinstance(rank, int) else len(rank)
        z = mixing_matrix(self.transform, p)
        mixing = next(iter(layout))
        arrays: Arrays = {mixing: z.astype(weight.dtype)}
        if isinstance(rank, int):
            arrays["faces"] = np.ascontiguousarray(block_faces(weight, z))
            return Factored(arrays, self.residual(weight, arrays), "projection")
        faces = fold(weight, z, _side(mixing))
        found, paths, notes = [], [], []
        for u, r in enumerate(rank):
            if r:
                made = randomized_svd(faces[u], rank=r, rng=rng)
                arrays[f"left.{u}"], arrays[f"right.{u}"] = made.factors("sqrt")
                found.append(np.asarray(made.s, dtype=np.float64))
                paths.append(made.info.path)
                notes += [note for note in made.info.notes if note not in notes]
        spectrum = np.sort(np.concatenate(found))[::-1]
        path = "faces: " + ", ".join(dict.fromkeys(paths))
        return Factored(arrays, self.residual(weight, arrays), path, spectrum, tuple(notes))

    def dense_shape(self, shapes: Mapping[str, tuple[int, ...]], /) -> tuple[int, int]:
        """Return ``(out, in)`` of arrays that fit together."""
        names = [name for name in shapes if name.startswith("mixing")]
        p = shapes[names[0]][0] if len(names) == 1 and len(shapes[names[0]]) == 2 else 0
        if p < 1 or shapes[names[0]] != (p, p):
            raise ValueError(f"one square mixing matrix must be there, got {dict(shapes)}")
        rest = {name: shape for name, shape in shapes.items() if name != names[0]}
        if names[0] == "mixing":
            faces = rest.get("faces", ())
            if len(rest) != 1 or len(faces) != 3 or faces[0] != p:
                raise ValueError(f"mixing must come with faces of shape ({p}, in / {p}, out / {p}), got {rest}")
            return p * faces[2], p * faces[1]
        pairs = {name.split(".")[1] for name in rest}
        lefts, rights = ([rest.get(f"{kind}.{u}", ()) for u in sorted(pairs)] for kind in ("left", "right"))
        fits = [len(a) == len(b) == 2 and a[1] == b[0] for a, b in zip(lefts, rights, strict=True)]
        if not pairs or not all(fits) or len({(a[0], b[1]) for a, b in zip(lefts, rights, strict=True)}) != 1:
            raise ValueError(f"left.u and right.u must fit together and be alike, got {rest}")
        if any(int(u) >= p for u in pairs):
            raise ValueError(f"{names[0]} {shapes[names[0]]} must have a row for each face, got {sorted(pairs)}")
        rows, cols = lefts[0][0], rights[0][1]
        return (p * rows, cols) if names[0] == "mixing_out" else (rows, p * cols)

    def expand(self, arrays: Arrays, /) -> npt.NDArray[Any]:
        """Return the dense weight."""
        name = next(name for name in arrays if name.startswith("mixing"))
        z = arrays[name]
        if name == "mixing":
            return unfold_blocks(arrays["faces"], z)
        made = {int(key[5:]): arrays[key] @ arrays[f"right.{key[5:]}"] for key in arrays if key.startswith("left.")}
        blank = np.zeros_like(next(iter(made.values())))
        return unfold(np.stack([made.get(u, blank) for u in range(z.shape[0])]), z, _side(name))

    def predicted_error(self, analysis: npt.NDArray[np.float64], rank: Rank, /) -> float | None:
        """Return the root of the discarded energy, which is the error of both kinds."""
        if analysis.size == 0:
            return None
        if isinstance(rank, int):
            return None  # the analysis does not tell which choices it was made for
        total = float(np.sum(np.sort((analysis**2).ravel())))
        lost = sum(float(np.sum(sigma[r:][::-1] ** 2)) for sigma, r in zip(analysis, rank, strict=True))
        return min(1.0, math.sqrt(lost / total)) if total else 0.0

    def optimal_error(self, analysis: npt.NDArray[np.float64], rank: Rank, /) -> float | None:
        """Return the same: no tensor of these ranks is nearer (Kilmer et al., 2021)."""
        return self.predicted_error(analysis, rank)

    def module_class(self) -> type[Any]:
        """Return `tensorfact.torch.LProductLinear`."""
        from tensorfact.torch import LProductLinear

        return LProductLinear

    def module(
        self, shape: tuple[int, int], rank: Rank, /, *, bias: bool, device: Any = None, dtype: Any = None
    ) -> Any:
        """Return an `LProductLinear`; the transform comes with the arrays."""
        made = self.module_class()
        slices, ranks = (rank, None) if isinstance(rank, int) else (len(rank), rank)
        # a placeholder that every length has: the stored matrix takes its place
        return made(
            shape[1], shape[0], slices=slices, ranks=ranks, transform="identity", bias=bias, device=device, dtype=dtype
        )

    # -- choices ---------------------------------------------------------------------------------------------------
    def _choices(self, shape: tuple[int, int]) -> tuple[int, ...]:
        """Slices that divide both sides, fewest numbers first."""
        offered = _SLICES if self.slices is None else (self.slices,)
        cost = {p: math.prod(shape) // p + p * p for p in offered if shape[0] % p == 0 and shape[1] % p == 0}
        # of a small weight many slices may take more numbers than few, for the sake of the mixing matrix
        return tuple(p for p in cost if all(cost[p] < cost[q] for q in cost if q < p))

    def _fits(self, shape: tuple[int, int]) -> bool:
        return bool(self._choices(shape)) if self.kind == "projection" else fold_side(shape, self.tube) is not None

    def _menu(self, shape: tuple[int, int], analysis: npt.NDArray[np.float64] | None) -> Menu:
        """Levels are choices of slices, or sums of ranks below break-even."""
        size = shape[0] * shape[1]
        if self.kind == "projection":
            costs = np.array([0, *(size // p + p * p for p in self._choices(shape))], dtype=np.int64)
            costs = costs[costs < size]
            kept = np.empty(0) if analysis is None else np.append(0.0, analysis[1:] / (analysis[0] or 1.0))
            return Menu(costs, kept[: len(costs)])
        side = fold_side(shape, self.tube)
        if side is None:
            return Menu(np.zeros(1, dtype=np.int64), np.zeros(1))
        rows, cols = _face(shape, self.tube, side)
        count = self.tube * min(rows, cols)
        costs = np.arange(count + 1, dtype=np.int64) * (rows + cols)
        costs[1:] += self.tube**2
        costs = costs[: max(1, int(np.searchsorted(costs, size)))]
        if analysis is None:
            return Menu(costs, np.empty(0))
        energy = np.append(0.0, np.cumsum(np.sort((analysis**2).ravel())[::-1]))
        return Menu(costs, energy[: len(costs)] / (energy[-1] or 1.0))

    def _rank(self, shape: tuple[int, int], level: int, analysis: npt.NDArray[np.float64] | None) -> Rank:
        if self.kind == "projection":
            return self._choices(shape)[level - 1]
        if analysis is not None and analysis.size:
            return pooled_ranks(analysis, level)
        return tuple(level // self.tube + (u < level % self.tube) for u in range(self.tube))

    def _asked(self, layer: Layer, rank: int, analysis: npt.NDArray[np.float64] | None) -> Rank:
        """What `rank_pattern` wants of a layer."""
        if self.kind == "projection":
            if layer.shape[0] % rank or layer.shape[1] % rank:
                raise ValueError(f"rank_pattern must name slices that divide {layer.name} {layer.shape}, got {rank}")
            return rank
        full = self.full_rank(layer.shape)
        if not full:
            raise ValueError(f"rank_pattern must not match {layer.name} {layer.shape}: {self.tube} divides no side")
        return self._rank(layer.shape, min(rank, full), analysis)


def _face(shape: tuple[int, int], p: int, side: Side) -> tuple[int, int]:
    return (shape[0] // p, shape[1]) if side == "out" else (shape[0], shape[1] // p)


def _side(mixing: str) -> Side:
    return "out" if mixing == "mixing_out" else "in"
