"""Weights (out, in) of linear layers as tensors with tubes: folded, projected on L-structured ones, and back.

`Z` is real and orthogonal here. A weight is folded along one side, whose p contiguous slices become tubes; its faces in
the transform domain lose nothing, and their truncated SVDs are the t-SVDM of the fold (Kilmer, Horesh, Avron, Newman,
2021). An L-structured weight ``(Z^T x I) blockdiag(faces) (Z x I)`` has slices on both sides, and the orthogonal
projection of a dense weight on such keeps the diagonal blocks in the transform domain.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tensorfact.factor._transform import Transform

__all__ = ["Side", "block_faces", "fold", "fold_side", "mixing_matrix", "pooled_ranks", "unfold", "unfold_blocks"]

Side = Literal["out", "in"]
Matrix = npt.NDArray[Any]


def mixing_matrix(transform: Any, p: int) -> npt.NDArray[np.float64]:
    """Return the matrix of a transform by name, `Transform` or matrix; ``ValueError`` unless real and orthogonal."""
    found = Transform(transform, p) if isinstance(transform, str) else transform
    if not isinstance(found, Transform):
        found = Transform.from_matrix(found)
    if found.length != p:
        raise ValueError(f"transform must have the length of slices, {p}, got {found.length}")
    if found.is_complex or found.scale is None or abs(found.scale - 1) > 1e-5:
        raise ValueError(f"transform must be real and orthogonal for a weight, got {found!r}")
    return np.asarray(found.matrix, dtype=np.float64)


def fold_side(shape: tuple[int, int], p: int) -> Side | None:
    """Return the side that is cut into p slices: the longer one that p divides (rows at a tie), None if none."""
    sides: tuple[Side, Side] = ("out", "in") if shape[0] >= shape[1] else ("in", "out")
    return next((side for side in sides if shape[("out", "in").index(side)] % p == 0), None)


def fold(weight: Matrix, z: Matrix, side: Side) -> Matrix:
    """Faces (p, out / p, in) or (p, out, in / p) of a weight; the norm stays. ``2 p`` flops a number."""
    p, (rows, cols) = z.shape[0], weight.shape
    z = z.astype(weight.dtype, copy=False)
    if side == "out":
        return np.asarray(z @ weight.reshape(p, -1)).reshape(p, rows // p, cols)
    return np.tensordot(z, weight.reshape(rows, p, cols // p), axes=(1, 1))


def unfold(faces: Matrix, z: Matrix, side: Side) -> Matrix:
    """Weight of given faces: the inverse of `fold`."""
    p, rows, cols = faces.shape
    z = z.astype(faces.dtype, copy=False)
    if side == "out":
        return np.asarray(z.T @ faces.reshape(p, -1)).reshape(p * rows, cols)
    return np.tensordot(faces, z, axes=(0, 0)).transpose(0, 2, 1).reshape(rows, p * cols)


def block_faces(weight: Matrix, z: Matrix) -> Matrix:
    """Faces (p, in / p, out / p) of the L-structured weight that is nearest in the Frobenius norm."""
    p = z.shape[0]
    rows = fold(weight, z, "out")
    slices = rows.reshape(p, rows.shape[1], p, -1)
    return np.asarray(np.einsum("uk,unkl->uln", z.astype(weight.dtype, copy=False), slices))


def unfold_blocks(faces: Matrix, z: Matrix) -> Matrix:
    """Dense weight (out, in) of an L-structured one."""
    p, inner, outer = faces.shape
    z = z.astype(faces.dtype, copy=False)
    lines = np.einsum("uln,uk->unkl", faces, z).reshape(p, outer, p * inner)
    return unfold(lines, z, "out")


def pooled_ranks(values: npt.NDArray[np.float64], count: int) -> tuple[int, ...]:
    """Ranks of the faces when the `count` largest of all singular values (p, k) are kept; of ties the first stay."""
    order = np.argsort(-values.ravel(), kind="stable")[:count]
    return tuple(int(n) for n in np.bincount(order // values.shape[1], minlength=values.shape[0]))
