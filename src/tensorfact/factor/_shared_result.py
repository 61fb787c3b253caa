"""The result of a shared factorisation: one basis, and sparse codes for each matrix."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorfact.factor._shared_codes import SparseCodes

__all__ = ["SharedBasis", "SharedBasisInfo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedBasisInfo:
    """How a shared basis was computed.

    Parameters
    ----------
    path : str
        The algorithm of the first basis, as in `LowRankInfo`; ``"+refit"`` follows where alternating sweeps ran.
    sweeps : int
        Sweeps of alternating least squares.
    padded : int
        Columns of the basis beyond the short side, which the SVD does not fill.
    data : bool
        Whether Gram matrices of the inputs were used.
    start_error, final_error : float
        Relative error in the metric of the Gram matrices (Frobenius without them), right after pruning the first basis
        in one shot, and at the end.
    """

    path: str
    sweeps: int = 0
    padded: int = 0
    data: bool = False
    start_error: float = float("nan")
    final_error: float = float("nan")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SharedBasis:
    """Matrices that share one basis: matrix i is ``basis @ codes[i]``, or its transpose.

    Parameters
    ----------
    basis : array (d, r)
        Dense, held once.
    codes : tuple of SparseCodes (r, n_i)
        One for each matrix.
    transposed : tuple of bool
        Whether matrix i is the transpose (n_i, d) of the product; the others are (d, n_i).
    error : float
        Achieved relative Frobenius error of all matrices together.
    info : SharedBasisInfo
        The path that was taken.

    Examples
    --------
    >>> import numpy as np, tensorfact
    >>> w = np.random.default_rng(0).standard_normal((2, 8, 32))
    >>> shared = tensorfact.shared_basis([w[0], w[1].T], param_ratio=0.6, rng=0)
    >>> shared.reconstruct(1).shape
    (32, 8)
    """

    basis: npt.NDArray[Any]
    codes: tuple[SparseCodes, ...]
    transposed: tuple[bool, ...]
    error: float
    info: SharedBasisInfo = field(default_factory=lambda: SharedBasisInfo(path="given"))

    def __post_init__(self) -> None:
        if self.basis.ndim != 2:
            raise ValueError(f"basis must have two axes, got shape {self.basis.shape}")
        if not self.codes or len(self.codes) != len(self.transposed):
            raise ValueError(
                f"codes and transposed must be equally many and not empty, got {len(self.codes)}, "
                f"{len(self.transposed)}"
            )
        for code in self.codes:
            if code.shape[0] != self.basis.shape[1]:
                raise ValueError(f"codes must have {self.basis.shape[1]} rows, got shape {code.shape}")
        frozen = self.basis.view()
        frozen.setflags(write=False)
        object.__setattr__(self, "basis", frozen)

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Shapes of the matrices that are represented."""
        short = self.basis.shape[0]
        pairs = zip(self.codes, self.transposed, strict=True)
        return tuple((code.shape[1], short) if turned else (short, code.shape[1]) for code, turned in pairs)

    @property
    def rank(self) -> int:
        """Columns of the basis; may exceed the short side (an overcomplete basis)."""
        return int(self.basis.shape[1])

    @property
    def dtype(self) -> Any:
        """Type of the stored numbers."""
        return self.basis.dtype

    @property
    def density(self) -> float:
        """Share of the code entries that are kept."""
        return sum(len(code.values) for code in self.codes) / sum(code.shape[0] * code.shape[1] for code in self.codes)

    @property
    def size(self) -> int:
        """Stored numbers, masks and indices left out."""
        return int(self.basis.size) + sum(len(code.values) for code in self.codes)

    @property
    def dense_size(self) -> int:
        """Numbers in the dense matrices."""
        return sum(m * n for m, n in self.shapes)

    @property
    def nbytes(self) -> int:
        """Bytes of the stored arrays, masks and indices included."""
        return int(self.basis.nbytes) + sum(code.nbytes for code in self.codes)

    def reconstruct(self, index: int) -> npt.NDArray[Any]:
        """The dense matrix `index`; ``2 d r n`` flop."""
        half = self.dtype.itemsize == 2
        basis, codes = self.basis, self.codes[index].dense()
        if half:  # products of halves lose digits, and NumPy has no fast ones
            basis, codes = basis.astype(np.float32), codes.astype(np.float32)
        product: npt.NDArray[Any] = (basis @ codes).astype(self.dtype, copy=False)
        return product.T if self.transposed[index] else product

    def to_arrays(self) -> dict[str, Any]:
        """The parts by name, for a file of arrays; :meth:`from_arrays` reads them back."""
        found: dict[str, Any] = {
            "basis": self.basis,
            "transposed": np.asarray(self.transposed, dtype=np.uint8),
            "error": np.asarray(self.error, dtype=np.float64),
            "info": np.frombuffer(json.dumps(asdict(self.info)).encode(), dtype=np.uint8),
        }
        for i, code in enumerate(self.codes):
            found.update({f"codes.{i}.{name}": part for name, part in code.to_arrays().items()})
        return found

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> SharedBasis:
        """Rebuild a result from :meth:`to_arrays`; a missing part raises ``ValueError``."""
        missing = {"basis", "transposed", "error"} - set(arrays)
        if missing:
            raise ValueError(f"arrays must hold basis, transposed and error, missing {sorted(missing)}")
        codes = []
        for i in range(len(arrays["transposed"])):
            prefix = f"codes.{i}."
            codes.append(
                SparseCodes.from_arrays(
                    {key.removeprefix(prefix): part for key, part in arrays.items() if key.startswith(prefix)}
                )
            )
        info = SharedBasisInfo(path="given")
        if "info" in arrays:
            info = SharedBasisInfo(**json.loads(np.asarray(arrays["info"]).tobytes()))
        return cls(
            basis=np.asarray(arrays["basis"]),
            codes=tuple(codes),
            transposed=tuple(bool(turned) for turned in arrays["transposed"]),
            error=float(arrays["error"]),
            info=info,
        )

    def __repr__(self) -> str:
        return (
            f"SharedBasis({len(self)} matrices, short side {self.basis.shape[0]}, rank={self.rank}, "
            f"density={self.density:.3g}, {self.dense_size * self.dtype.itemsize / max(1, self.nbytes):.3g}x smaller, "
            f"error={self.error:.3g}, path={self.info.path!r})"
        )
