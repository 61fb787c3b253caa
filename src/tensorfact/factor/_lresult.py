"""Results of t-SVDs: factors in the transform domain that remember their transform."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tensorfact.factor._lparts import (
    all_faces,
    cast_to,
    dense_shape,
    dtype_like,
    frozen,
    header,
    read_header,
    transform_names,
)
from tensorfact.factor._stack import NumpyStack, stack_for
from tensorfact.factor._tubes import Tubes

__all__ = ["LSVD", "LSVDInfo", "TruncatedLSVD"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LSVDInfo:
    """How a truncation was made.

    Parameters
    ----------
    path : str
        ``"t-svdm"`` (one rank for every face), ``"t-svdmii"`` (the largest values of all faces), ``"t-svdmii-bound"``
        (the same under a transform that is not orthogonal: `tol` kept by a bound), or ``"given"``.
    converged : bool
        False when ``max_rank`` kept the error above ``tol``.
    notes : tuple of str
        ``"residual"`` where the error was recomputed from the difference and not from the discarded values.
    """

    path: str = "given"
    converged: bool = True
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LSVD:
    """A t-SVD ``a = u * s * vh``; unpacks as these three tensors.

    Parameters
    ----------
    u_faces, s_faces, vh_faces : arrays (faces, ..., m, k), (faces, ..., k), (faces, ..., k, l)
        Factors of every stored face in the transform domain, singular values non-increasing. Of a real tensor under
        the DFT only one face of each conjugate pair is stored.
    tubes : Tubes
        Transforms, tube axes and realness of the tensor.
    dtype : dtype
        Of the tensor.
    error : float
        0.0: exact up to rounding.

    Examples
    --------
    >>> import numpy as np, tensorfact
    >>> a = np.random.default_rng(0).standard_normal((5, 3, 4))
    >>> u, s, vh = tensorfact.lsvd(a, "dct")
    >>> bool(np.allclose(tensorfact.lproduct(tensorfact.lproduct(u, s), vh), a))
    True
    """

    u_faces: Any
    s_faces: Any
    vh_faces: Any
    tubes: Tubes
    dtype: Any
    error: float = 0.0

    def __post_init__(self) -> None:
        for name in ("u_faces", "s_faces", "vh_faces"):
            object.__setattr__(self, name, frozen(getattr(self, name)))

    def __iter__(self) -> Iterator[Any]:
        return iter((self.u, self.s, self.vh))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return dense_shape(self.tubes, (*self.s_faces.shape[1:-1], self.u_faces.shape[-2], self.vh_faces.shape[-1]))

    @property
    def u(self) -> Any:
        """Left singular tensor (..., m, k, p): ``lproduct(ltranspose(u), u)`` is the identity."""
        return cast_to(self.tubes.from_faces(self.u_faces, _ops(self)), self.dtype)

    @property
    def s(self) -> Any:
        """The tensor (..., k, k, p) with diagonal faces in the transform domain; (..., m, l, p) of a full t-SVD."""
        ops = _ops(self)
        rows, cols = int(self.u_faces.shape[-1]), int(self.vh_faces.shape[-2])
        place = np.eye(int(self.s_faces.shape[-1]), cols)
        faces = self.s_faces[..., None] * ops.from_host(place)
        if rows > faces.shape[-2]:
            faces = ops.matmul(ops.from_host(np.eye(rows, int(faces.shape[-2]))), faces)
        return cast_to(self.tubes.from_faces(ops.to_complex(faces) if _complex_faces(self) else faces, ops), self.dtype)

    @property
    def vh(self) -> Any:
        """Right singular tensor (..., k, l, p), transposed."""
        return cast_to(self.tubes.from_faces(self.vh_faces, _ops(self)), self.dtype)

    @property
    def size(self) -> int:
        """Stored numbers with the singular values folded in: ``k (m + l)`` for every face."""
        k = int(self.s_faces.shape[-1])
        return _lines(self) * k * math.prod(self.tubes.lengths) * _batch(self.s_faces.shape[1:-1])

    @property
    def dense_size(self) -> int:
        """Numbers in the dense tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the two factors, singular values folded in."""
        return sum(math.prod(map(int, x.shape)) * int(x.dtype.itemsize) for x in (self.u_faces, self.vh_faces))

    def reconstruct(self) -> Any:
        """The dense tensor."""
        ops, k = _ops(self), int(self.s_faces.shape[-1])
        faces = ops.matmul(self.u_faces[..., :k] * self.s_faces[..., None, :], self.vh_faces[..., :k, :])
        return cast_to(self.tubes.from_faces(faces, ops), self.dtype)

    def to_arrays(self) -> dict[str, Any]:
        """The parts by name, for a file of arrays; :meth:`from_arrays` reads them back."""
        parts = {"u_faces": self.u_faces, "s_faces": self.s_faces, "vh_faces": self.vh_faces}
        return {**parts, **header(self.tubes, self.dtype, {"error": self.error})}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> LSVD:
        """Rebuild a result from :meth:`to_arrays`; a missing part raises ``ValueError``."""
        tubes, meta = read_header(arrays, ("u_faces", "s_faces", "vh_faces"))
        parts = {name: arrays[name] for name in ("u_faces", "s_faces", "vh_faces")}
        return cls(**parts, tubes=tubes, dtype=dtype_like(meta["dtype"], parts["u_faces"]), error=meta["error"])

    def __repr__(self) -> str:
        return f"LSVD({'x'.join(map(str, self.shape))}, k={self.s_faces.shape[-1]}, {transform_names(self.tubes)})"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TruncatedLSVD:
    """A truncated t-SVD: the kept singular triples of all faces, side by side.

    Parameters
    ----------
    u, s, vh : arrays (m, R), (R,), (R, l)
        The kept triples, face after face (and item after item of a batch), in the transform domain; R is the sum of
        ``ranks``.
    ranks : ndarray of int (faces, ...)
        Kept triples of every stored face; zero is allowed.
    tubes : Tubes
        Transforms, tube axes and realness of the tensor.
    dtype : dtype
        Of the tensor; half precision keeps its factors in float32.
    error : float
        Achieved relative Frobenius error of the whole tensor; of a batch every item keeps ``tol``.
    info : LSVDInfo
        The path that was taken.

    Examples
    --------
    >>> import numpy as np, tensorfact
    >>> a = np.random.default_rng(0).standard_normal((6, 5, 4))
    >>> tensorfact.lsvd_truncate(a, "dct", rank=2).multirank.tolist()
    [2, 2, 2, 2]
    """

    u: Any
    s: Any
    vh: Any
    ranks: np.ndarray
    tubes: Tubes
    dtype: Any
    error: float
    info: LSVDInfo = field(default_factory=LSVDInfo)

    def __post_init__(self) -> None:
        total = int(self.ranks.sum())
        if not self.u.shape[-1] == self.s.shape[0] == self.vh.shape[0] == total:
            raise ValueError(
                f"u, s, vh must hold the {total} triples of ranks, got shapes {tuple(self.u.shape)}, "
                f"{tuple(self.s.shape)}, {tuple(self.vh.shape)}"
            )
        for name in ("u", "s", "vh", "ranks"):
            object.__setattr__(self, name, frozen(getattr(self, name)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return dense_shape(self.tubes, (*self.ranks.shape[1:], self.u.shape[0], self.vh.shape[1]))

    @property
    def multirank(self) -> np.ndarray:
        """Rank of every face (..., p), batch axes first, both faces of conjugate pairs listed."""
        return all_faces(self.ranks, self.tubes)

    @property
    def tubal_rank(self) -> int:
        """Largest rank of a face."""
        return int(self.ranks.max(initial=0))

    @property
    def implicit_rank(self) -> int:
        """Sum of the ranks of all faces, over all items of a batch."""
        return int(self.multirank.sum())

    @property
    def size(self) -> int:
        """Stored numbers: ``(m + l) * implicit_rank``, a rank for every face, p^2 for a transform that has no name."""
        return _lines(self) * self.implicit_rank + self.multirank.size + sum(t.size for t in self.tubes.transforms)

    @property
    def dense_size(self) -> int:
        """Numbers in the dense tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the two factors, singular values folded in, of 32-bit ranks and of a transform without a name."""
        factors = sum(math.prod(map(int, x.shape)) * int(x.dtype.itemsize) for x in (self.u, self.vh))
        given = sum(t.given.nbytes for t in self.tubes.transforms if t.given is not None)
        return factors + 4 * self.ranks.size + given

    def reconstruct(self) -> Any:
        """The dense tensor; ``2 m l`` flop a kept triple, faces of equal rank together."""
        ops, flat = _ops(self), self.ranks.ravel()
        starts = np.cumsum(flat) - flat
        m, l = int(self.u.shape[0]), int(self.vh.shape[1])
        parts, order = [], []
        for rank in np.unique(flat):
            faces = np.flatnonzero(flat == rank)
            order.append(faces)
            if rank == 0:
                parts.append(ops.zeros((len(faces), m, l), self.u))
                continue
            index = (starts[faces][:, None] + np.arange(rank)).ravel()
            left = ops.take(self.u, index, axis=1) * ops.take(self.s, index)[None, :]
            left = ops.moveaxis(ops.reshape(left, (m, len(faces), int(rank))), 1, 0)
            right = ops.reshape(ops.take(self.vh, index), (len(faces), int(rank), l))
            parts.append(ops.matmul(left, right))
        found = ops.take(ops.concat(parts), np.argsort(np.concatenate(order)))
        return cast_to(self.tubes.from_faces(ops.reshape(found, (*self.ranks.shape, m, l)), ops), self.dtype)

    def to_arrays(self) -> dict[str, Any]:
        """The parts by name, for a file of arrays; :meth:`from_arrays` reads them back."""
        info = {"path": self.info.path, "converged": self.info.converged, "notes": list(self.info.notes)}
        parts = {"u": self.u, "s": self.s, "vh": self.vh, "ranks": np.asarray(self.ranks, dtype=np.int32)}
        return {**parts, **header(self.tubes, self.dtype, {"error": self.error, "info": info})}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> TruncatedLSVD:
        """Rebuild a result from :meth:`to_arrays`; a missing part raises ``ValueError``."""
        tubes, meta = read_header(arrays, ("u", "s", "vh", "ranks"))
        return cls(
            **{name: arrays[name] for name in ("u", "s", "vh")},
            ranks=np.asarray(arrays["ranks"], dtype=np.int64),
            tubes=tubes,
            dtype=dtype_like(meta["dtype"], arrays["u"]),
            error=meta["error"],
            info=LSVDInfo(**{**meta["info"], "notes": tuple(meta["info"]["notes"])}),
        )

    def __repr__(self) -> str:
        sizes = "x".join(map(str, self.shape))
        return (
            f"TruncatedLSVD({sizes}, {transform_names(self.tubes)}, tubal rank={self.tubal_rank}, "
            f"implicit rank={self.implicit_rank}, {self.dense_size / max(1, self.size):.3g}x smaller, "
            f"error={self.error:.3g}, path={self.info.path!r})"
        )


def _ops(result: LSVD | TruncatedLSVD) -> NumpyStack:
    return stack_for("factors", result.u if isinstance(result, TruncatedLSVD) else result.u_faces)[1]


def _lines(result: LSVD | TruncatedLSVD) -> int:
    u, vh = (result.u, result.vh) if isinstance(result, TruncatedLSVD) else (result.u_faces, result.vh_faces)
    return int(u.shape[-2]) + int(vh.shape[-1])


def _batch(shape: tuple[Any, ...]) -> int:
    return math.prod(int(n) for n in shape)


def _complex_faces(result: LSVD) -> bool:
    return "complex" in str(result.u_faces.dtype)
