"""Tensor-train decomposition of a dense tensor in about two reads of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from tensorfact import kernels
from tensorfact.factor._bonds import request
from tensorfact.factor._train import TensorTrain
from tensorfact.factor._train_canonical import shifted
from tensorfact.factor._train_chain import TrainInfo
from tensorfact.factor._tt_cores import Budget, left_orthonormal, reversed_modes, split_left
from tensorfact.factor._tt_input import Tensor, as_tensor
from tensorfact.factor._tt_plan import Plan
from tensorfact.factor._tt_sweep import Log, OutOfRangeError, checked_norm2, sweep
from tensorfact.kernels._dispatch import checked_threads

__all__ = ["tt_svd"]

Method = Literal["auto", "tsqr", "sketch"]

_DIRECT = 1 << 16  # numbers that "auto" leaves to LAPACK
_FORCED = 256  # the same for a small tensor where a method is named
_WIDEN = 1 << 24  # a rest of no more numbers is split in double precision


def tt_svd(
    a: Any,
    /,
    *,
    rank: int | Sequence[int] | None = None,
    tol: float | None = None,
    max_rank: int | Sequence[int] | None = None,
    method: Method = "auto",
    overwrite: bool = False,
    workers: int | None = None,
    rng: Any = None,
) -> TensorTrain:
    """Tensor train of a dense array, to a rank or to an error, in about the time of reading the array twice.

    Parameters
    ----------
    a : array (n_1, ..., n_d)
        NumPy array of float16, bfloat16, float32, float64, complex64, complex128 or integers, d >= 1; torch, CuPy, JAX
        or other array-API array (its large passes run on its own device). C- and Fortran-contiguous arrays are read in
        place, ``np.memmap`` too, whatever its size; other layouts and types are converted by blocks of about 32 MB.
    rank : int or sequence of int, optional
        Bonds of the train, the same for all inner bonds or one for each of the d - 1. A bond never exceeds what the
        mode sizes allow.
    tol : float, optional
        Relative Frobenius error that the result promises: ``error <= tol``. Give ``rank`` or ``tol``.
    max_rank : int or sequence of int, optional
        Upper bounds on the bonds with ``tol``; where one bites and the error stays above ``tol``, ``info.converged`` is
        False and ``error`` tells the truth.
    method : {"auto", "tsqr", "sketch"}
        "tsqr" is deterministic: a triangular factor of each tall unfolding without its Q, then one product. Where more
        than 1e-8 of the squared norm (1e-4 in single precision) is discarded, that factor comes from the Gram matrix in
        less than half the time, and ``info.path`` says "gram"; else from Householder reflections. "sketch" is
        randomized: one sparse-sign sketch and one product, a few surplus columns that are truncated at the end; its
        error is at most a few per cent above the deterministic one, and as exactly known. "auto" sketches, and takes
        the deterministic step where a sketch has missed something (recorded in ``info.notes``).
    overwrite : bool
        Allow the deterministic method to use the memory of a writeable C-contiguous array of the working type; its
        contents are then undefined. Otherwise `a` is never written.
    workers : int, optional
        Threads of our own loops, by default `get_num_threads()`. Results do not depend on it.
    rng : None, int, SeedSequence or numpy.random.Generator
        Randomness of the sketch, through ``numpy.random.default_rng``.

    Returns
    -------
    TensorTrain
        Left-canonical (all cores but the last are left-orthonormal), in `a`'s library, dtype and device, with ``error``
        (achieved, relative Frobenius) and ``info``.

    Raises
    ------
    ValueError
        No modes, an empty array, NaN or infinity, an unsupported dtype, or a rank, tolerance or option out of range.

    Notes
    -----
    For N numbers, m folded columns and bond r: "tsqr" 2 N m + 2 N r flops, N m + 2 N r by way of the Gram matrix,
    "sketch" about 4 N + 2 N r, each two reads of `a` and of the projected tensors, which are smaller by r / m. Memory
    beside `a`: the first projected tensor, N (r + 10) / m numbers, as much again for the later ones, and for a Gram
    matrix sums of N / 16 numbers or m^2, in double precision. The error is the root of the sum of what each bond
    discards, an identity. The smallest tolerance is ten units of rounding, in half precision 2.5 times what rounding
    the cores may cost.

    References
    ----------
    Oseledets (2011), SIAM J. Sci. Comput. 33; Roehrig-Zoellner, Thies, Basermann (2022), SIAM J. Sci. Comput. 44,
    arXiv 2102.00104; Halko, Martinsson, Tropp (2011); Clarkson and Woodruff (2013).

    Examples
    --------
    >>> import numpy as np, tensorfact
    >>> x = np.linspace(0, 1, 30)
    >>> train = tensorfact.tt_svd(np.sin(x[:, None, None] + x[:, None] + x), tol=1e-10)
    >>> train.ranks
    (1, 2, 2, 1)
    """
    if method not in ("auto", "tsqr", "sketch"):
        raise ValueError(f"method must be 'auto', 'tsqr' or 'sketch', got {method!r}")
    if workers is not None:
        checked_threads(workers)
    tensor = as_tensor(a, workers)
    wanted = request(tensor.shape, rank, tol, max_rank, smallest=2.5 * tensor.rounding)
    caps, notes = wanted.caps, list[str]()
    # the last roundings are not counted by the sums of squares
    inner = None if wanted.tol is None else math.sqrt(wanted.tol**2 - tensor.rounding**2)
    generator = np.random.default_rng(rng)
    exponent = 0
    try:
        found = _decompose(tensor, caps, inner, method, overwrite, generator)
    except OutOfRangeError:
        peak = tensor.peak()
        if not math.isfinite(peak):
            raise ValueError("a must be finite, got NaN or infinity") from None
        if peak == 0.0:
            return _zero(tensor, caps if tol is None else (1,) * len(caps))
        exponent = math.frexp(peak)[1]
        tensor = tensor.scaled(-exponent)
        notes.append("scaled")
        found = _decompose(tensor, caps, inner, method, False, generator)
    return _finish(tensor, found, exponent, wanted.tol, notes)


class _Found(NamedTuple):
    """Cores of the working tensor, the squares that each bond lost, and how."""

    cores: list[np.ndarray]
    lost2: list[float]
    norm2: float
    log: Log


def _decompose(
    tensor: Tensor, caps: tuple[int, ...], tol: float | None, method: str, overwrite: bool, rng: np.random.Generator
) -> _Found:
    """The sweep from the cheaper end, then every bond truncated from left to right."""
    budget, log = Budget(tol), Log(size=tensor.size)
    smallest = _DIRECT if method == "auto" or tensor.size > _DIRECT else _FORCED
    plan = Plan(caps, tol is None, "tsqr" if method == "tsqr" else "sketch", smallest)
    state, flipped = tensor.oriented(plan)
    if flipped:
        plan = dataclasses.replace(plan, caps=caps[::-1])
    center, cores = sweep(state, plan, budget, rng, log, overwrite and tensor.writeable)
    if math.isnan(budget.norm2):  # no step was taken
        log.reads += 1.0
        budget.norm2 = checked_norm2(kernels.sum_squares(np.ascontiguousarray(center).reshape(1, -1)), tensor.eps)
    if center.size <= _WIDEN:
        center = center.astype(np.result_type(center.dtype, np.float64), copy=False)
    head, center_lost2, rest = split_left(center, plan.caps, budget, len(cores))
    cores = [*head, *left_orthonormal(cores, rest)]
    lost2 = [log.lost2.get(bond, 0.0) for bond in range(len(caps))]
    for bond, square in enumerate(center_lost2):
        lost2[bond] += square
    if flipped:
        cores, lost2 = reversed_modes(cores), lost2[::-1]
    if flipped or any(core.shape[0] > core.shape[1] * core.shape[2] for core in cores):
        # a later truncation may leave an earlier bond wider than the rest of the train can use
        cores = left_orthonormal(reversed_modes(left_orthonormal(reversed_modes(cores))))
    return _Found(cores, lost2, budget.norm2, log)


def _finish(tensor: Tensor, found: _Found, exponent: int, tol: float | None, notes: list[str]) -> TensorTrain:
    """Cores in the user's precision and library, and the account of the error."""
    half = exponent // 2  # in two steps: the power of two may itself be out of range
    with np.errstate(over="ignore"):
        cores = [*found.cores[:-1], found.cores[-1] * 2.0**half * 2.0 ** (exponent - half)]
        if not np.isfinite(tensor.stored(cores[-1])).all():
            raise ValueError("a must have a norm that fits its dtype, because the last core holds it: scale a first")
    error = math.hypot(math.sqrt(sum(found.lost2) / found.norm2), tensor.rounded_error(found.cores, found.norm2))
    info = TrainInfo(
        path="+".join(dict.fromkeys(found.log.steps)) or "svd",
        site_errors=tuple(shifted(math.sqrt(square), exponent) for square in found.lost2),
        norm=shifted(math.sqrt(found.norm2), exponent),
        data_reads=found.log.reads,
        converged=tol is None or error <= tol,
        notes=tuple(dict.fromkeys([*notes, *found.log.notes])),
    )
    return TensorTrain(
        cores=tuple(tensor.finished(core) for core in cores),
        error=error,
        canonical="left" if tensor.result is None else "none",  # rounding to half precision tilts the cores
        info=info,
    )


def _zero(tensor: Tensor, caps: tuple[int, ...]) -> TensorTrain:
    """The zero tensor: unit vectors, and zeros in the last core."""
    ranks = (1, *caps, 1)
    cores = [np.eye(r * n, s).reshape(r, n, s) for r, n, s in zip(ranks, tensor.shape, ranks[1:], strict=False)]
    cores[-1] = np.zeros_like(cores[-1])
    info = TrainInfo(path="zero", site_errors=(0.0,) * len(caps), norm=0.0, data_reads=1.0)
    return TensorTrain(cores=tuple(tensor.finished(core) for core in cores), error=0.0, canonical="left", info=info)
