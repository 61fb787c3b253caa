"""The result of a low-rank factorisation: three frozen arrays that know their own error."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

__all__ = ["LowRank", "LowRankInfo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRankInfo:
    """How a factorisation was computed: nothing is swapped silently.

    Parameters
    ----------
    path : str
        The algorithm that produced the factors: ``"subspace"``, ``"shifted"``, ``"krylov"``, ``"gram-subspace"``,
        ``"gram-exact"``, ``"full-svd"``, ``"adaptive"`` or ``"zero"``.
    n_iter : int
        Power iterations that ran (products with ``A^H A`` after the sketch).
    n_oversamples : int
        Columns of the sketch beyond the rank.
    matrix_reads : int
        Passes over the data before the error is settled: one for each product with an operator or with another
        library's array, one for both products of a step in memory or on disk, one for the norm of a file.
    converged : bool
        False when ``max_rank`` kept the error above ``tol``.
    notes : tuple of str
        Fallbacks on the way, for example ``"householder"`` where Cholesky QR was not safe.
    """

    path: str
    n_iter: int = 0
    n_oversamples: int = 0
    matrix_reads: int = 0
    converged: bool = True
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LowRank:
    """A truncated singular value decomposition ``u @ diag(s) @ vh``; unpacks as ``u, s, vh``.

    Parameters
    ----------
    u : array, shape (m, r)
        Left singular vectors, orthonormal columns.
    s : array, shape (r,)
        Singular values, non-increasing.
    vh : array, shape (r, n)
        Right singular vectors, orthonormal rows.
    error : float
        Achieved relative Frobenius error ``||A - u s vh|| / ||A||``; NaN for a matrix-free operator of unknown norm.
    spectral_bound : float or None
        Upper bound on ``||A - u s vh||_2``, absolute, that holds with probability 1 - 1e-6 (``certify=True``).
    info : LowRankInfo
        The path that was taken.

    Examples
    --------
    >>> import numpy as np, tensorfact
    >>> a = np.outer(np.arange(1.0, 5.0), np.ones(3))
    >>> tensorfact.randomized_svd(a, rank=1).rank
    1
    """

    u: Any
    s: Any
    vh: Any
    error: float
    spectral_bound: float | None = None
    info: LowRankInfo = field(default_factory=lambda: LowRankInfo(path="given"))

    def __post_init__(self) -> None:
        if self.u.ndim != 2 or self.vh.ndim != 2 or self.s.ndim != 1:
            raise ValueError(f"u, s, vh must have 2, 1, 2 axes, got {self.u.ndim}, {self.s.ndim}, {self.vh.ndim}")
        if not self.u.shape[1] == self.s.shape[0] == self.vh.shape[0]:
            raise ValueError(
                f"u, s, vh must share one rank, got shapes {self.u.shape}, {self.s.shape}, {self.vh.shape}"
            )
        for name in ("u", "s", "vh"):
            part = getattr(self, name)
            if isinstance(part, np.ndarray):  # a view: the caller's own array stays as writeable as it was
                frozen = part.view()
                frozen.setflags(write=False)
                object.__setattr__(self, name, frozen)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.u, self.s, self.vh))

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (m, n) of the matrix that is represented."""
        return int(self.u.shape[0]), int(self.vh.shape[1])

    @property
    def rank(self) -> int:
        """Number of singular triplets."""
        return int(self.s.shape[0])

    @property
    def dtype(self) -> Any:
        """Type of the stored numbers."""
        return self.u.dtype

    @property
    def size(self) -> int:
        """Stored numbers once the singular values are folded into a factor: ``rank * (m + n)``."""
        return self.rank * sum(self.shape)

    @property
    def dense_size(self) -> int:
        """Numbers in the dense matrix: ``m * n``."""
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the two factors of :meth:`factors`."""
        return self.size * int(self.u.dtype.itemsize)

    def reconstruct(self) -> Any:
        """The dense matrix (m, n); ``2 m n r`` flop."""
        return (self.u * self.s[None, :]) @ self.vh

    def factors(self, split: Literal["sqrt", "left", "right"] = "sqrt") -> tuple[Any, Any]:
        """Two factors ``left (m, r)`` and ``right (r, n)`` whose product is the matrix.

        Parameters
        ----------
        split : {"sqrt", "left", "right"}
            Where the singular values go: half to each side (balanced, for training), all left, or all right.
        """
        if split == "left":
            return self.u * self.s[None, :], self.vh
        if split == "right":
            return self.u, self.s[:, None] * self.vh
        if split == "sqrt":
            root = self.s**0.5
            return self.u * root[None, :], root[:, None] * self.vh
        raise ValueError(f"split must be 'sqrt', 'left' or 'right', got {split!r}")

    def to_arrays(self) -> dict[str, Any]:
        """The parts by name, for a file of arrays; :meth:`from_arrays` reads them back."""
        wide = np.float64
        bound = np.nan if self.spectral_bound is None else self.spectral_bound
        return {
            "u": self.u,
            "s": self.s,
            "vh": self.vh,
            "error": np.asarray(self.error, dtype=wide),
            "spectral_bound": np.asarray(bound, dtype=wide),
            "info": np.frombuffer(json.dumps(asdict(self.info)).encode(), dtype=np.uint8),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> LowRank:
        """Rebuild a result from :meth:`to_arrays`; a missing part raises ``ValueError``."""
        missing = {"u", "s", "vh", "error"} - set(arrays)
        if missing:
            raise ValueError(f"arrays must hold u, s, vh and error, missing {sorted(missing)}")
        bound = float(arrays.get("spectral_bound", np.nan))
        info = LowRankInfo(path="given")
        if "info" in arrays:
            stored = json.loads(np.asarray(arrays["info"]).tobytes())
            info = LowRankInfo(**{**stored, "notes": tuple(stored["notes"])})
        return cls(
            u=arrays["u"],
            s=arrays["s"],
            vh=arrays["vh"],
            error=float(arrays["error"]),
            spectral_bound=None if np.isnan(bound) else bound,
            info=info,
        )

    def __repr__(self) -> str:
        ratio = self.dense_size / max(1, self.size)
        bound = "" if self.spectral_bound is None else f", spectral error <= {self.spectral_bound:.3g}"
        return (
            f"LowRank({self.shape[0]}x{self.shape[1]}, rank={self.rank}, {ratio:.3g}x smaller, "
            f"error={self.error:.3g}{bound}, path={self.info.path!r})"
        )
