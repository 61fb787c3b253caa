"""Matrices as chains of four-axis cores (matrix product operators)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from tensorfact.factor import _train_algebra as algebra
from tensorfact.factor import _train_canonical as forms
from tensorfact.factor._bonds import useful_ranks
from tensorfact.factor._contraction import apply_plan, plan_for
from tensorfact.factor._input import check_count
from tensorfact.factor._rounding import tt_round
from tensorfact.factor._train import TensorTrain
from tensorfact.factor._train_chain import DENSE_BYTES, Chain, frozen
from tensorfact.factor._train_ops import cast_like, namespace, ops_of, permute, svd

__all__ = ["TTMatrix"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True, repr=False)
class TTMatrix(Chain):
    """A matrix (out, in) as a chain of cores, out and in being split into factors: a matrix product operator.

    ``w[(i1 .. iL), (j1 .. jL)] = cores[0][:, i1, j1] @ cores[1][:, i2, j2] @ ... @ cores[-1][:, iL, jL]``, with
    multi-indices in C order.

    Parameters
    ----------
    cores : sequence of arrays, shapes (r, m, n, r')
        One core a site; neighbours share a bond and the outer bonds are 1.
    error : float
        Achieved relative Frobenius error against the matrix that was decomposed; 0.0 for cores that are the matrix,
        NaN where it is not known.
    canonical : {"left", "right", "none"}
        Which sides are orthonormal, as for the :class:`TensorTrain` of modes ``m n``.
    info : TrainInfo
        The path that was taken.

    Examples
    --------
    >>> import numpy as np, tensorfact
    >>> op = tensorfact.tt_matrix_svd(np.eye(12), (3, 4), (3, 4), tol=1e-10)
    >>> op.ranks, (op @ np.arange(12.0))[:3].round(6).tolist()
    ((1, 1, 1), [0.0, 1.0, 2.0])
    """

    def __post_init__(self) -> None:
        cores = tuple(self.cores)
        for k, core in enumerate(cores):
            if core.ndim != 4:
                raise ValueError(f"cores must have four axes (r, m, n, r'), got shape {tuple(core.shape)} at {k}")
        flat = [_merged(core) for core in cores]
        TensorTrain(cores=tuple(flat), canonical=self.canonical)  # the same rules
        object.__setattr__(self, "cores", tuple(frozen(core) for core in cores))

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Factors of the number of rows."""
        return tuple(int(core.shape[1]) for core in self.cores)

    @property
    def col_shape(self) -> tuple[int, ...]:
        """Factors of the number of columns."""
        return tuple(int(core.shape[2]) for core in self.cores)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (out, in) of the matrix that is represented."""
        return math.prod(self.row_shape), math.prod(self.col_shape)

    @property
    def _modes(self) -> tuple[str, ...]:
        return tuple(f"{m}x{n}" for m, n in zip(self.row_shape, self.col_shape, strict=True))

    def reconstruct(self, *, max_bytes: int | None = DENSE_BYTES) -> Any:
        """The dense matrix (out, in), up to ``max_bytes``: a chain of products and one permuting copy."""
        dense = self.to_train().reconstruct(max_bytes=max_bytes)
        xp = namespace(dense)
        sites = [size for core in self.cores for size in map(int, core.shape[1:3])]
        axes = [*range(0, 2 * self.order, 2), *range(1, 2 * self.order, 2)]
        return xp.reshape(permute(xp.reshape(dense, tuple(sites)), axes), self.shape)

    # -- products ---------------------------------------------------------------------------------------------------
    def __matmul__(self, x: Any) -> Any:
        """``W @ x`` for a vector (in,), a matrix (in, k) or a stack of them, never forming W unless that is cheaper.

        The order of the contractions is the cheapest of all pairwise ones, dense ones included, by a model of products,
        memory traffic and calls; it is searched once for each shape. Another :class:`TTMatrix` gives the operator of
        the product and a :class:`TensorTrain` with modes ``col_shape`` a train, bonds multiplied in both.
        """
        if isinstance(x, TTMatrix):
            return self._operator_product(x)
        if isinstance(x, TensorTrain):
            return self._train_product(x)
        xp = namespace(self.cores[0])
        if isinstance(self.cores[0], np.ndarray):
            x = np.asarray(x)
        if x.ndim == 0 or int(x.shape[-2 if x.ndim > 1 else 0]) != self.shape[1]:
            raise ValueError(f"x must have {self.shape[1]} rows, got shape {tuple(x.shape)}")
        dtype = xp.result_type(self.dtype, x.dtype)
        cores = cast_like(self.cores, dtype)
        (x,) = cast_like([x], dtype)
        stack = tuple(map(int, x.shape[:-2]))
        if x.ndim == 1:
            block = x[:, None]
        elif stack:
            block = xp.reshape(permute(x, [x.ndim - 2, *range(x.ndim - 2), x.ndim - 1]), (self.shape[1], -1))
        else:
            block = x
        columns = int(block.shape[1])
        plan = plan_for(self.row_shape, self.col_shape, self.ranks, columns)
        y = apply_plan(plan, cores, xp.reshape(block, (*self.col_shape, columns)))
        if x.ndim == 1:
            return y[:, 0]
        if not stack:
            return y
        y = xp.reshape(y, (self.shape[0], *stack, int(x.shape[-1])))
        return permute(y, [*range(1, len(stack) + 1), 0, len(stack) + 1])

    def __rmatmul__(self, x: Any) -> Any:
        """``x @ W`` for a vector (out,), a matrix (k, out) or a stack of them."""
        if isinstance(self.cores[0], np.ndarray):
            x = np.asarray(x)
        if x.ndim == 0 or int(x.shape[-1]) != self.shape[0]:
            raise ValueError(f"x must have {self.shape[0]} columns, got shape {tuple(x.shape)}")
        turned = self.T @ (x if x.ndim == 1 else permute(x, [*range(x.ndim - 2), x.ndim - 1, x.ndim - 2]))
        return turned if x.ndim == 1 else permute(turned, [*range(x.ndim - 2), x.ndim - 1, x.ndim - 2])

    def _operator_product(self, other: TTMatrix) -> TTMatrix:
        if self.col_shape != other.row_shape:
            raise ValueError(f"col_shape must equal the other's row_shape, got {self.col_shape} and {other.row_shape}")
        first, second = algebra.promoted(self.cores, other.cores)
        cores = []
        for x, y in zip(first, second, strict=True):
            xp = namespace(x)
            (r, m, j, s), (p, _, n, q) = (tuple(map(int, c.shape)) for c in (x, y))
            left = xp.reshape(permute(x, (0, 1, 3, 2)), (r * m * s, j))
            right = xp.reshape(permute(y, (1, 0, 2, 3)), (j, p * n * q))
            product = xp.reshape(left @ right, (r, m, s, p, n, q))
            cores.append(xp.reshape(permute(product, (0, 3, 1, 4, 2, 5)), (r * p, m, n, s * q)))
        return self._made(cores, other)

    def _train_product(self, train: TensorTrain) -> TensorTrain:
        if self.col_shape != train.shape:
            raise ValueError(f"x must have the modes {self.col_shape}, got a train of shape {train.shape}")
        column = TTMatrix(cores=tuple(core[:, :, None, :] for core in train.cores), error=train.error)
        product = self @ column
        return TensorTrain(cores=tuple(_merged(core) for core in product.cores), error=product.error)

    @property
    def T(self) -> TTMatrix:  # noqa: N802 - NumPy's name
        """The transposed operator; no conjugation."""
        return replace(self, cores=tuple(permute(core, (0, 2, 1, 3)) for core in self.cores))

    def conj(self) -> TTMatrix:
        """The entrywise complex conjugate."""
        xp = namespace(self.cores[0])
        return replace(self, cores=tuple(xp.conj(core) for core in self.cores))

    def __add__(self, other: Any) -> TTMatrix:
        if not isinstance(other, TTMatrix):
            return NotImplemented
        if (self.row_shape, self.col_shape) != (other.row_shape, other.col_shape):
            raise ValueError(
                f"both operators must have the same factors, got {self.row_shape} x {self.col_shape} and "
                f"{other.row_shape} x {other.col_shape}"
            )
        return self._like(self.to_train() + other.to_train())

    def __sub__(self, other: Any) -> TTMatrix:
        return self + (-other) if isinstance(other, TTMatrix) else NotImplemented

    def __mul__(self, factor: Any) -> TTMatrix:
        product = NotImplemented if isinstance(factor, (TTMatrix, TensorTrain)) else self.to_train().__mul__(factor)
        return NotImplemented if product is NotImplemented else self._like(product)

    __rmul__ = __mul__

    def __truediv__(self, factor: Any) -> TTMatrix:
        quotient = self.to_train().__truediv__(factor)
        return NotImplemented if quotient is NotImplemented else self._like(quotient)

    def __neg__(self) -> TTMatrix:
        return self * -1.0

    def norm(self) -> float:
        """Frobenius norm."""
        return self.to_train().norm()

    # -- other forms ------------------------------------------------------------------------------------------------
    def to_train(self) -> TensorTrain:
        """The train with modes ``m n``; the cores are views."""
        cores = tuple(_merged(core) for core in self.cores)
        return TensorTrain(cores=cores, error=self.error, canonical=self.canonical, info=self.info)

    @classmethod
    def from_train(cls, train: TensorTrain, row_shape: Sequence[int], col_shape: Sequence[int]) -> TTMatrix:
        """The operator of a train whose modes are ``row_shape[k] * col_shape[k]``, rows first."""
        rows, cols = factors("row_shape", row_shape), factors("col_shape", col_shape)
        if tuple(m * n for m, n in zip(rows, cols, strict=len(rows) == len(cols))) != train.shape:
            raise ValueError(f"row_shape and col_shape must multiply to {train.shape}, got {rows} and {cols}")
        xp = namespace(train.cores[0])
        cores = tuple(
            xp.reshape(core, (int(core.shape[0]), m, n, int(core.shape[2])))
            for core, m, n in zip(train.cores, rows, cols, strict=True)
        )
        return cls(cores=cores, error=train.error, canonical=train.canonical, info=train.info)

    def round(
        self,
        *,
        rank: int | Sequence[int] | None = None,
        tol: float | None = None,
        max_rank: int | Sequence[int] | None = None,
        method: Literal["svd", "random"] = "svd",
        rng: Any = None,
    ) -> TTMatrix:
        """An operator with smaller bonds, near this one: :func:`tensorfact.tt_round` on the train."""
        return self._like(tt_round(self.to_train(), rank=rank, tol=tol, max_rank=max_rank, method=method, rng=rng))

    def balanced(self) -> TTMatrix:
        """The same matrix with the singular values of every bond shared by its two cores, sqrt(S) on each side.

        Gradients of such cores are of similar size, which left-orthonormal cores do not give. Values below rounding
        level are shared as if they were at it.
        """
        train = self.to_train()
        cores, exponent = forms.left_orthogonal(train.cores)
        xp, out, roots = namespace(cores[0]), list(cores), [np.ones(1)] * (self.order + 1)
        for k in range(self.order - 1, 0, -1):
            r, n, s = (int(size) for size in out[k].shape)
            u, values, vh = svd(xp.reshape(out[k], (r, n * s)))
            ops = ops_of(u)
            out[k] = xp.reshape(vh, (-1, n, s))
            p, m, _ = (int(size) for size in out[k - 1].shape)
            carried = u * ops.from_numpy(values)[None, :]
            out[k - 1] = xp.reshape(xp.reshape(out[k - 1], (p * m, r)) @ carried, (p, m, -1))
            floor = max(values[0] * ops.eps, np.finfo(np.float64).tiny)
            roots[k] = np.sqrt(np.maximum(values, floor))
        for k in range(self.order):
            ops = ops_of(out[k])
            left = roots[k] if k else np.ones(1)
            right = 1 / roots[k + 1] if k + 1 < self.order else np.ones(1)
            out[k] = out[k] * ops.from_numpy(left)[:, None, None] * ops.from_numpy(right)[None, None, :]
        # the scale of the whole is that of every bond's singular values: half of it at either end
        ends = (0,) if self.order == 1 else (0, self.order - 1)
        for k in ends:
            part = out[k] * math.sqrt(2) if len(ends) == 2 and exponent % 2 else out[k]
            out[k] = forms.restored(part, exponent // len(ends), "the operator")
        return self._like(TensorTrain(cores=cast_like(out, self.dtype), error=self.error, info=self.info))

    @classmethod
    def random(
        cls,
        row_shape: Sequence[int],
        col_shape: Sequence[int],
        *,
        rank: int | Sequence[int],
        std: float | None = None,
        init: Literal["exact", "paper"] = "exact",
        rescale: bool = False,
        dtype: Any = np.float64,
        rng: Any = None,
    ) -> TTMatrix:
        """Gaussian cores whose matrix has entries of a chosen size.

        Parameters
        ----------
        row_shape, col_shape : sequence of int
            Factors of the two sides, one of each a site.
        rank : int or sequence of int
            Inner bonds, clipped to the useful ones (:func:`tensorfact.useful_ranks`).
        std : float, optional
            Root mean square of the matrix entries, default ``in**-0.5``. ``init="paper"`` takes none.
        init : {"exact", "paper"}
            ``"exact"``: cores of variance ``(std**2 / prod(bonds))**(1 / L)``, right for any number L of sites and any
            bonds. ``"paper"``: standard deviation ``in**(-1/4) rank**(-(L-1)/(2 L))`` (arXiv 2603.28534), which gives
            entries of ``in**(-L/4)``: the intended ``in**-0.5`` for two sites only.
        rescale : bool
            Divide by the realised root mean square, which varies by 3 to 12 % between draws.
        dtype : dtype-like
            float32 or float64.
        rng : None, int or numpy.random.Generator
            Source of the numbers.

        Examples
        --------
        >>> import numpy as np, tensorfact
        >>> op = tensorfact.TTMatrix.random((8, 8, 8), (4, 4, 8), rank=8, std=0.02, rescale=True, rng=0)
        >>> round(float(op.reconstruct().std()), 3)
        0.02
        """
        rows, cols = factors("row_shape", row_shape), factors("col_shape", col_shape)
        if len(rows) != len(cols):
            raise ValueError(f"row_shape and col_shape must have one length, got {rows} and {cols}")
        bonds = useful_ranks([m * n for m, n in zip(rows, cols, strict=True)], rank)
        order, inputs = len(rows), math.prod(cols)
        if init == "exact":
            target = inputs**-0.5 if std is None else float(std)
            if not 0 < target < math.inf:
                raise ValueError(f"std must be positive and finite, got {std!r}")
            size = (target**2 / math.prod(bonds)) ** (1 / (2 * order))
        elif init == "paper":
            if std is not None or not isinstance(rank, int):
                raise ValueError(f"init='paper' takes one integer rank and no std, got rank={rank!r}, std={std!r}")
            target = inputs ** (-order / 4)
            size = inputs**-0.25 * rank ** (-(order - 1) / (2 * order))
        else:
            raise ValueError(f"init must be 'exact' or 'paper', got {init!r}")
        generator = np.random.default_rng(rng)
        sizes = zip((1, *bonds), rows, cols, (*bonds, 1), strict=True)
        cores = [(size * generator.standard_normal(shape)).astype(dtype) for shape in sizes]
        made = cls(cores=tuple(cores))
        if rescale:
            realised = made.norm() / math.sqrt(made.dense_size)
            factor = (target / realised) ** (1 / order)
            made = cls(cores=tuple((core * factor).astype(dtype) for core in cores))
        return made

    # -- helpers ----------------------------------------------------------------------------------------------------
    def _like(self, train: TensorTrain) -> TTMatrix:
        return TTMatrix.from_train(train, self.row_shape, self.col_shape)

    def _made(self, cores: Sequence[Any], *others: TTMatrix) -> TTMatrix:
        return TTMatrix(cores=tuple(cores), error=self._exact_with(*others))


def _merged(core: Any) -> Any:
    r, m, n, s = (int(size) for size in core.shape)
    return namespace(core).reshape(core, (r, m * n, s))


def factors(name: str, value: Any) -> tuple[int, ...]:
    """A shape as a tuple of positive integers; ``ValueError`` names the argument."""
    try:
        found = tuple(check_count(name, item, 1) for item in value)
    except TypeError as wrong:
        raise ValueError(f"{name} must be a sequence of positive integers, got {value!r}") from wrong
    if not found:
        raise ValueError(f"{name} must hold at least one factor, got {value!r}")
    return found
