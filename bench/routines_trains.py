"""How the TT-SVD routines of `bench.promises` are called: the way their documentation shows for a dense array.

An adapter translates argument names and the form of the result, and nothing else: it does not validate, cast or copy
for the peer, except where the peer cannot receive the array at all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

__all__ = ["ROUTINES"]

Routine = Callable[..., Any]
_NO_RNG = "it takes no rng"


def ours() -> Routine:
    from tensorfact import tt_svd

    return tt_svd


def ours_tsqr() -> Routine:
    return partial(ours(), method="tsqr")


def ours_sketch() -> Routine:
    return partial(ours(), method="sketch")


def _outer(rank: Any) -> Any:
    """A rank for each inner bond, with the outer ones that some libraries want."""
    return rank if isinstance(rank, int) else [1, *rank, 1]


def tensorly() -> Routine:
    from tensorly.decomposition import tensor_train

    def call(a: Any, *, rank: Any = None, tol: Any = None, rng: Any = None) -> Any:
        if rank is None:
            raise NotImplementedError("tensor_train takes a rank only")
        if rng is not None:
            raise NotImplementedError(_NO_RNG)
        return tensor_train(a, rank=_outer(rank)).factors

    return call


def _tensor(a: Any) -> Any:
    import torch

    if not isinstance(a, np.ndarray):
        return a
    plain = a.flags.writeable and all(stride >= 0 for stride in a.strides)  # all that a tensor can view
    return torch.from_numpy(a if plain else a.copy())


def _host(cores: Any) -> list[np.ndarray]:
    return [core.detach().resolve_conj().numpy() for core in cores]


def torchtt() -> Routine:
    from torchtt import TT

    def call(a: Any, *, rank: Any = None, tol: Any = None, rng: Any = None) -> Any:
        if rng is not None:
            raise NotImplementedError(_NO_RNG)
        train = TT(_tensor(a), eps=tol) if rank is None else TT(_tensor(a), rmax=_outer(rank))
        return _host(train.cores)

    return call


def tntorch() -> Routine:
    from tntorch import Tensor

    def call(a: Any, *, rank: Any = None, tol: Any = None, rng: Any = None) -> Any:
        if rng is not None:
            raise NotImplementedError(_NO_RNG)
        if rank is not None:
            return _host(Tensor(_tensor(a), ranks_tt=rank).cores)
        train = Tensor(_tensor(a))  # exact; Tensor(a, eps=t) would give Tucker factors too
        train.round_tt(eps=tol)
        return _host(train.cores)

    return call


def teneva() -> Routine:
    from teneva import svd

    def call(a: Any, *, rank: Any = None, tol: Any = None, rng: Any = None) -> Any:
        if rng is not None:
            raise NotImplementedError(_NO_RNG)
        if rank is None:
            raise NotImplementedError("its e is absolute and for each unfolding; it bounds no error of the whole")
        if not isinstance(rank, int):
            raise NotImplementedError("its r is one number for all bonds")
        return svd(a, r=rank)

    return call


def quimb() -> Routine:
    from quimb.tensor import MatrixProductState

    def call(a: Any, *, rank: Any = None, tol: Any = None, rng: Any = None) -> Any:
        if rng is not None:
            raise NotImplementedError(_NO_RNG)
        if rank is None:
            raise NotImplementedError("its cutoff drops singular values at each bond; it bounds no error of the whole")
        if not isinstance(rank, int):
            raise NotImplementedError("its max_bond is one number for all bonds")
        train = MatrixProductState.from_dense(a, dims=np.shape(a), max_bond=rank)
        train.permute_arrays("lpr")
        cores = list(train.arrays)
        if len(cores) > 1:  # the outer sites have no outer bond
            cores[0], cores[-1] = cores[0][None], cores[-1][..., None]
        return cores if len(cores) > 1 else [cores[0][None, :, None]]

    return call


# key -> (column head, distribution, the call, adapter)
ROUTINES: dict[str, tuple[str, str, str, Callable[[], Routine]]] = {
    "tensorfact": ("tensorfact", "tensorfact", "`tt_svd(a, rank=k)`, `tt_svd(a, tol=t)`", ours),
    "tensorfact-tsqr": (
        "tensorfact, tsqr",
        "tensorfact",
        '`tt_svd(a, rank=k, method="tsqr")`, deterministic',
        ours_tsqr,
    ),
    "tensorfact-sketch": (
        "tensorfact, sketch",
        "tensorfact",
        '`tt_svd(a, rank=k, method="sketch")`: what large tensors take by default; small ones go to LAPACK',
        ours_sketch,
    ),
    "tensorly": ("TensorLy", "tensorly", "`tensor_train(a, rank=k)`", tensorly),
    "torchtt": ("torchTT", "torchtt", "`TT(a, rmax=k)`, `TT(a, eps=t)`", torchtt),
    "tntorch": ("tntorch", "tntorch", "`Tensor(a, ranks_tt=k)`, `Tensor(a).round_tt(eps=t)`", tntorch),
    "teneva": ("teneva", "teneva", "`svd(a, r=k)`", teneva),
    "quimb": ("quimb", "quimb", "`MatrixProductState.from_dense(a, dims=a.shape, max_bond=k)`", quimb),
}
