"""What tensor trains and matrix product operators share: a chain of cores that knows its error and its file."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np

from tensorfact.factor import _train_file as files
from tensorfact.factor._train_ops import itemsize

__all__ = ["DENSE_BYTES", "Chain", "Side", "TrainInfo", "frozen"]

DENSE_BYTES = 8 << 30  # a larger dense tensor is made only on request
Side = Literal["left", "right", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainInfo:
    """How a train was computed: nothing is swapped silently.

    Parameters
    ----------
    path : str
        The algorithm that produced the cores: ``"tsqr"``, ``"sketch"``, ``"svd"``, ``"random"``, ``"zero"``, or
        ``"given"`` for cores that a caller brought or arithmetic made.
    site_errors : tuple of float
        Norm of what was discarded at each inner bond, absolute, bond 1 first; their root sum of squares is
        ``error * norm``. Empty where no bond was truncated by name.
    norm : float or None
        Frobenius norm of the tensor that was decomposed or rounded.
    data_reads : float
        Passes over the dense data, 1.0 being its whole size read once.
    converged : bool
        False when ``max_rank`` kept the error above ``tol``.
    notes : tuple of str
        Fallbacks on the way, for example ``"scaled"`` where the data was brought into the safe range first.
    """

    path: str = "given"
    site_errors: tuple[float, ...] = ()
    norm: float | None = None
    data_reads: float = 0.0
    converged: bool = True
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True, repr=False)
class Chain:
    """Cores in a row, each with the bond to its left in the first axis and that to its right in the last one.

    A subclass has a ``shape``, ``_modes`` (the labels of its sites) and ``reconstruct``.
    """

    cores: tuple[Any, ...]
    error: float = 0.0
    canonical: Side = "none"
    info: TrainInfo = field(default_factory=TrainInfo)

    __array_ufunc__ = None  # NumPy scalars and arrays leave ``2.0 * chain`` and ``x @ chain`` to us

    @property
    def ranks(self) -> tuple[int, ...]:
        """All bonds, the outer ones (1) included: ``order + 1`` numbers."""
        return (*(int(core.shape[0]) for core in self.cores), 1)

    @property
    def order(self) -> int:
        """Number of cores."""
        return len(self.cores)

    @property
    def dtype(self) -> Any:
        """Type of the stored numbers."""
        return self.cores[0].dtype

    @property
    def size(self) -> int:
        """Stored numbers."""
        return sum(math.prod(map(int, core.shape)) for core in self.cores)

    @property
    def dense_size(self) -> int:
        """Numbers in the dense array."""
        return math.prod(math.prod(map(int, core.shape[1:-1])) for core in self.cores)

    @property
    def nbytes(self) -> int:
        """Bytes of the cores."""
        return self.size * itemsize(self.cores[0])

    def reconstruct(self, *, max_bytes: int | None = DENSE_BYTES) -> Any:
        """The dense array."""
        raise NotImplementedError

    def to_dense(self, *, max_bytes: int | None = DENSE_BYTES) -> Any:
        """The same as :meth:`reconstruct`."""
        return self.reconstruct(max_bytes=max_bytes)

    def to_arrays(self) -> dict[str, Any]:
        """The parts by name, for a file of arrays; :meth:`from_arrays` reads them back."""
        return {**{f"cores.{k}": core for k, core in enumerate(self.cores)}, **files.packed(self, self.canonical)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Self:
        """Rebuild from :meth:`to_arrays`; a missing part raises ``ValueError``."""
        made: Self = files.built(cls, TrainInfo, *files.unpacked(arrays))
        return made

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, in one step: a reader sees the old file or the new one. Needs safetensors."""
        files.save(self, path, type(self).__name__, self.canonical)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, framework: Literal["numpy", "torch"] = "numpy") -> Self:
        """Read a file of :meth:`save`; ``ValueError`` where it is broken or holds something else."""
        made: Self = files.load(path, cls, TrainInfo, framework)
        return made

    @property
    def _modes(self) -> tuple[Any, ...]:
        """What to call each site."""
        raise NotImplementedError

    def __repr__(self) -> str:
        ratio = self.dense_size / max(1, self.size)
        side = "" if self.canonical == "none" else f", {self.canonical}"
        drawn = _drawn(self._modes, self.ranks)
        return f"{type(self).__name__}({drawn}, {ratio:.3g}x smaller, error={self.error:.3g}{side})"

    def _exact_with(self, *others: Chain) -> float:
        """Error of what exact arithmetic makes of these chains: 0 where all are exact, else unknown."""
        return 0.0 if all(chain.error == 0.0 for chain in (self, *others)) else math.nan


def _drawn(shape: Sequence[Any], ranks: Sequence[int]) -> str:
    """The modes in a row with the bonds between them, ``8 -3- 8 -5- 8``; a long chain is cut in the middle."""
    links = [str(shape[0]), *(f"-{rank}- {size}" for rank, size in zip(ranks[1:-1], shape[1:], strict=True))]
    if len(links) > 12:
        links = [*links[:5], f"... {len(links)} modes ...", *links[-5:]]
    return " ".join(links)


def frozen(core: Any) -> Any:
    """A read-only view of a NumPy core: the caller's own array stays as writeable as it was."""
    if not isinstance(core, np.ndarray):
        return core
    view = core.view()
    view.setflags(write=False)
    return view
