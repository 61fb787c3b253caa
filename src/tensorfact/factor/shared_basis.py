"""One basis for several matrices, with sparse codes: fine-grained parameter sharing (FiPS)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tensorfact.factor._input import check_count, check_fraction
from tensorfact.factor._shared_budget import Budget, Shares, budget_shares
from tensorfact.factor._shared_codes import PATTERNS, Format, SparseCodes
from tensorfact.factor._shared_refit import Member, loss, refit_basis, refit_codes, scores, top
from tensorfact.factor._shared_result import SharedBasis, SharedBasisInfo
from tensorfact.factor.low_rank import randomized_svd

__all__ = ["fit_shared", "shared_basis", "short_first", "svd_start"]

_STEPS = 4  # of conjugate gradients in each half of a sweep
_PADDED_SCALE = 32.0  # FiPS: rows of codes for the columns that are still zero are this much smaller
_HALF = ("float16", "bfloat16")
Matrix = npt.NDArray[Any]


def shared_basis(
    weights: Sequence[Any],
    /,
    *,
    param_ratio: float,
    sparsity: float | Literal["auto"] = 0.75,
    grams: Sequence[Any] | None = None,
    budget: Budget = "bytes",
    format: Format | Literal["auto"] = "auto",
    rank: int | None = None,
    sweeps: int = 6,
    itemsize: int | None = None,
    rng: Any = None,
) -> SharedBasis:
    """Factor matrices into one shared dense basis and sparse codes, to a budget of bytes or of parameters.

    Every matrix is turned so that its short side comes first, (d, n_i), and the short sides must agree. The basis
    starts from the singular vectors of all of them side by side. The codes are pruned by magnitude over all matrices
    together, to exactly the number of values that the budget pays for; with `sweeps` that happens gradually, with least
    squares for codes and basis in between.

    Parameters
    ----------
    weights : sequence of array (out, in)
        float16, bfloat16, float32 or float64; at least one. A matrix with ``out >= in`` is transposed.
    param_ratio : float
        Share of the bytes (of the parameters) of the dense matrices that the result takes, in (0, 1].
    sparsity : float or "auto"
        Share of the codes that is zero, in [0, 1). "auto" takes a basis of d columns and spends the rest on codes, or
        0.75 where that basis does not fit.
    grams : sequence of array (in, in) or None, optional
        Gram matrices ``sum x x^T`` of the inputs of each matrix; None for one that is not known. Then the loss is the
        error of the outputs, relative for each matrix. Singular ones do. They have no use without sweeps.
    budget : {"bytes", "parameters"}
        "bytes" counts masks and indices; "parameters" counts basis and values only, as the paper does.
    format : {"auto", "bitmask", "csr", "2:4", "1:4"}
        How places of values are stored; "auto" takes the one of the first two that lets the basis be larger. "2:4" and
        "1:4" keep so many of every four rows of a column, with two bits for each: the rank is then a multiple of 4 and
        takes all of the budget, and `sparsity` does not count.
    rank : int, optional
        Columns of the basis; codes get the rest of the budget, and `sparsity` does not count.
    sweeps : int
        Alternating sweeps; 0 prunes the codes of the SVD in one shot. Two thirds of them prune, the others are at the
        final mask.
    itemsize : int, optional
        Bytes of a number in the budget, where the result will be cast to another type; by default that of the weights.
    rng : None, int, SeedSequence or numpy.random.Generator
        Randomness of the SVD where it is a randomized one.

    Returns
    -------
    SharedBasis
        In the dtype of the weights, with the achieved Frobenius error.

    Raises
    ------
    ValueError
        Short sides that differ, NaN or infinity, Gram matrices that do not fit, or a budget that cannot be met.

    Notes
    -----
    With a rank above d (an overcomplete basis; usual for a ratio above 0.3) the further columns of the basis start at
    zero, and the rows of their codes are copies of the first ones divided by 32, so the product is that of the SVD.
    Sweeps rarely use these columns: a basis of d columns with denser codes (``sparsity="auto"``) is then as good or
    better; training by gradients grows them before it prunes.

    Cost of a sweep: ``O(r^2 N)`` flop for N columns in all, and ``O(r n_i^2)`` for each Gram matrix of a long side.
    Memory: about five times the dense matrices, in float32 or float64.

    References
    ----------
    FiPS, arXiv 2411.09816 (2024): the object and its start. Alternating refits in two metrics: own derivation.

    Examples
    --------
    >>> import numpy as np, tensorfact
    >>> rng = np.random.default_rng(0)
    >>> shared = tensorfact.shared_basis([rng.standard_normal((64, 16)) for _ in range(4)], param_ratio=0.5, rng=0)
    >>> shared.nbytes <= 0.5 * 4 * 64 * 16 * 8
    True
    """
    arrays = [_checked(i, weight) for i, weight in enumerate(weights)]
    if not arrays:
        raise ValueError("weights must hold at least one matrix, got none")
    dtype = _common_dtype(arrays)
    turned = tuple(weight.shape[0] >= weight.shape[1] for weight in arrays)
    short = min(arrays[0].shape)
    for i, weight in enumerate(arrays):
        if min(weight.shape) != short:
            raise ValueError(
                f"weights must have one short side, got {short} at 0 and {min(weight.shape)} at {i}, of shape "
                f"{weight.shape}"
            )
    if not 0 < param_ratio <= 1:
        raise ValueError(f"param_ratio must be in (0, 1], got {param_ratio!r}")
    if budget not in ("bytes", "parameters"):
        raise ValueError(f"budget must be 'bytes' or 'parameters', got {budget!r}")
    if format not in ("auto", "bitmask", "csr", *PATTERNS):
        raise ValueError(f"format must be 'auto', 'bitmask', 'csr', '2:4' or '1:4', got {format!r}")
    widths = [max(weight.shape) for weight in arrays]
    count = check_count("sweeps", sweeps, 0)
    columns = None if rank is None else check_count("rank", rank, 1, sum(widths))
    zeros = None if sparsity == "auto" else check_fraction("sparsity", sparsity, 0.0, 1.0)
    size = dtype.itemsize if itemsize is None else check_count("itemsize", itemsize, 1)
    shares = _shares(short, widths, param_ratio, zeros, columns, size, budget, format)
    return fit_shared(arrays, turned, shares, grams, sweeps=count, rng=np.random.default_rng(rng))


def fit_shared(
    arrays: Sequence[Matrix],
    turned: Sequence[bool],
    shares: Shares,
    grams: Sequence[Any] | None,
    *,
    sweeps: int,
    rng: np.random.Generator,
) -> SharedBasis:
    """Do the work of `shared_basis` for checked matrices of one dtype and short side."""
    short, dtype = min(arrays[0].shape), arrays[0].dtype
    exponent = math.frexp(max(float(np.abs(array).max()) for array in arrays))[1]
    members = _members(arrays, turned, grams, exponent)
    path, basis, parts = svd_start([member.target for member in members], shares.rank, rng)
    total = sum(m.weight * m.norm2(m.target) for m in members) or 1.0
    masks = chosen([np.abs(part) * np.sqrt(m.weight) for part, m in zip(parts, members, strict=True)], shares)
    first = [part * mask for part, mask in zip(parts, masks, strict=True)]
    start = final = loss(basis, first, members)
    if sweeps:
        found, values, swept = _sweep(basis, parts, members, shares, sweeps)
        swept_loss = loss(found, values, members)
        if swept_loss < -1e-6 * total:
            raise ValueError("grams must be positive semidefinite: the error of the outputs came out negative")
        if swept_loss <= start:  # a basis that is cut hard may do better without
            basis, first, masks, final = found, values, swept, swept_loss
        path += "+refit"
    lift = _lift(first, exponent) if dtype.itemsize == 2 else 0
    basis = np.ldexp(basis, lift)
    packed = tuple(
        SparseCodes.pack(np.ldexp(part, exponent - lift).astype(dtype), mask, shares.form)
        for part, mask in zip(first, masks, strict=True)
    )
    info = SharedBasisInfo(
        path=path,
        sweeps=sweeps,
        padded=max(0, shares.rank - short),
        data=any(m.short is not None or m.long is not None for m in members),
        start_error=math.sqrt(max(0.0, start) / total),
        final_error=math.sqrt(max(0.0, final) / total),
    )
    result = SharedBasis(basis=basis.astype(dtype), codes=packed, transposed=tuple(turned), error=math.nan, info=info)
    return dataclasses.replace(result, error=_error(result, members, exponent))


def _lift(codes: Sequence[Matrix], exponent: int) -> int:
    """Power of two that the basis takes from codes whose largest would not fit float16."""
    largest = max(float(np.abs(part).max(initial=0.0)) for part in codes)
    return max(0, math.frexp(largest)[1] + exponent - 15)


def _checked(index: int, weight: Any) -> Matrix:
    array = np.asarray(weight.detach() if hasattr(weight, "detach") else weight)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"weights must be matrices that are not empty, got shape {array.shape} at {index}")
    if array.dtype.kind in "iub":
        array = array.astype(np.float64)
    if array.dtype.name not in (*_HALF, "float32", "float64"):
        raise ValueError(f"weights must hold real floating numbers, got {array.dtype} at {index}")
    if not np.all(np.isfinite(array.astype(np.float32) if array.dtype.name in _HALF else array)):
        raise ValueError(f"weights must be finite, got NaN or infinity at {index}")
    return array


def _common_dtype(arrays: Sequence[Matrix]) -> np.dtype[Any]:
    found = {array.dtype for array in arrays}
    if len(found) > 1:
        raise ValueError(f"weights must be of one dtype, got {sorted(str(dtype) for dtype in found)}")
    return found.pop()


def _shares(
    short: int,
    widths: Sequence[int],
    param_ratio: float,
    sparsity: float | None,
    rank: int | None,
    itemsize: int,
    budget: Budget,
    form: Format | Literal["auto"],
) -> Shares:
    def at(sparsity: float, rank: int | None) -> Shares:
        return budget_shares(
            short, widths, param_ratio, sparsity, itemsize=itemsize, budget=budget, form=form, rank=rank
        )

    if sparsity is not None or rank is not None:
        return at(0.75 if sparsity is None else sparsity, rank)
    usual = at(0.75, None)
    return at(0.0, short) if usual.rank > short else usual


def short_first(arrays: Sequence[Matrix], turned: Sequence[bool]) -> list[Matrix]:
    """The matrices (d, n) in working precision, those marked transposed."""
    working = np.dtype(np.float64 if arrays[0].dtype == np.float64 else np.float32)
    return [
        np.ascontiguousarray((array.T if flip else array).astype(working))
        for array, flip in zip(arrays, turned, strict=True)
    ]


def _members(
    arrays: Sequence[Matrix], turned: Sequence[bool], grams: Sequence[Any] | None, exponent: int
) -> list[Member]:
    """Targets over ``2**exponent``, short side first, in working precision, and metrics: squares stay in range."""
    if grams is not None and len(grams) != len(arrays):
        raise ValueError(f"grams must be one a weight, {len(arrays)}, got {len(grams)}")
    targets = [np.ldexp(target, -exponent) for target in short_first(arrays, turned)]
    members = []
    for i, (array, flip) in enumerate(zip(arrays, turned, strict=True)):
        target = targets[i]
        given = None if grams is None else grams[i]
        if given is None:
            members.append(Member(target))
            continue
        gram = np.asarray(given, dtype=np.float64)
        if gram.shape != (array.shape[1], array.shape[1]) or not np.all(np.isfinite(gram)):
            raise ValueError(
                f"grams must be finite of shape (in, in) = {(array.shape[1],) * 2}, got {gram.shape} at {i}"
            )
        if np.abs(gram - gram.T).max() > 1e-6 * np.abs(gram).max() or gram.diagonal().min() < 0:
            raise ValueError(f"grams must be sums of x x^T, symmetric and positive semidefinite, not that at {i}")
        trace = float(np.trace(gram))
        if not trace > 0:
            raise ValueError(f"grams must be of inputs that are not all zero, got a trace of {trace} at {i}")
        metric = (gram * (len(gram) / trace)).astype(target.dtype)
        # the inputs lie on the short side where the matrix was transposed, on the long side otherwise
        members.append(Member(target, short=metric if flip else None, long=None if flip else metric))
    if grams is None:
        return members
    relative = [m.norm2(m.target) for m in members]
    return [
        Member(m.target, m.short, m.long, 1 / norm if norm > 0 else 1.0)
        for m, norm in zip(members, relative, strict=True)
    ]


def svd_start(targets: Sequence[Matrix], rank: int, rng: np.random.Generator) -> tuple[str, Matrix, list[Matrix]]:
    """Path, basis (d, rank) and dense codes (rank, n_i) of matrices (d, n_i): the SVD of all side by side, padded.

    The basis has the leading left singular vectors and zeros after d columns, the codes have all singular values. Rows
    of codes for zero columns are small copies of the first rows, cycled: the product stays the same.
    """
    wide = np.concatenate(targets, axis=1)
    if not np.any(wide):
        path, basis = "zero", np.eye(len(wide), min(rank, len(wide)), dtype=wide.dtype)
    else:
        found = randomized_svd(wide, rank=min(rank, *wide.shape), rng=rng)
        path, basis = found.info.path, np.asarray(found.u)
    codes = basis.T @ wide
    extra = rank - basis.shape[1]
    if extra > 0:
        basis = np.hstack([basis, np.zeros((len(basis), extra), basis.dtype)])
        codes = np.vstack([codes, codes[np.arange(extra) % len(codes)] / _PADDED_SCALE])
    ends = np.cumsum([target.shape[1] for target in targets])
    return path, basis, np.split(codes, ends[:-1], axis=1)


def chosen(found: Sequence[Matrix], shares: Shares) -> list[npt.NDArray[np.bool_]]:
    """Masks of the largest scores: of all together, or of every four rows of a column where there is a pattern."""
    if shares.form not in PATTERNS:
        return top(found, shares.kept)
    places = sum(part.size for part in found)
    keep = max(PATTERNS[shares.form], math.ceil(4 * shares.kept / places))
    masks = []
    for part in found:
        groups = part.reshape(-1, 4, part.shape[1])
        order = np.argsort(-groups, axis=1, kind="stable")
        mask = np.zeros(groups.shape, dtype=bool)
        np.put_along_axis(mask, order[:, :keep], True, axis=1)
        masks.append(mask.reshape(part.shape))
    return masks


def _sweep(
    basis: Matrix, codes: Sequence[Matrix], members: Sequence[Member], shares: Shares, count: int
) -> tuple[Matrix, list[Matrix], list[npt.NDArray[np.bool_]]]:
    """Prune gradually (a cubic schedule), refitting codes and basis after every cut."""
    parts = list(codes)
    places = sum(part.size for part in parts)
    pruning = max(1, math.ceil(2 * count / 3))
    masks: list[npt.NDArray[np.bool_]] = []
    for sweep in range(1, count + 1):
        if sweep <= pruning:
            left = shares.kept + round((places - shares.kept) * (1 - sweep / pruning) ** 3)
            wanted = dataclasses.replace(shares, kept=left)
            masks = chosen([scores(basis, part, m) for part, m in zip(parts, members, strict=True)], wanted)
        parts = [refit_codes(basis, part, mask, m, _STEPS) for part, mask, m in zip(parts, masks, members, strict=True)]
        basis = refit_basis(basis, parts, members, _STEPS)
    return basis, parts, masks


def _error(result: SharedBasis, members: Sequence[Member], exponent: int) -> float:
    lost = whole = 0.0
    for i, member in enumerate(members):
        made = result.reconstruct(i)
        made = np.ldexp((made.T if result.transposed[i] else made).astype(np.float64), -exponent)
        lost += float(np.sum((member.target - made) ** 2))
        whole += float(np.sum(np.square(member.target, dtype=np.float64)))
    return math.sqrt(lost / whole) if whole else 0.0
