"""How the low-rank routines of `bench.promises` are called: the way their documentation recommends for a dense matrix.

An adapter translates argument names and the form of the result, and nothing else: it does not sort, validate, cast or
copy for the peer, except where the peer cannot receive the array at all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

__all__ = ["ROUTINES"]

Routine = Callable[..., Any]


def _rank_only(library: str, rank: Any) -> int:
    if rank is None:
        raise NotImplementedError(f"{library} takes no relative Frobenius tolerance")
    return rank


def ours() -> Routine:
    from tensorfact import randomized_svd

    return randomized_svd


def ours_direct() -> Routine:
    return partial(ours(), method="shifted")


def scikit_learn() -> Routine:
    from sklearn.utils.extmath import randomized_svd

    def call(a: Any, *, rank: Any = None, tol: Any = None, rng: Any = None) -> Any:
        if isinstance(rng, np.random.Generator):
            raise NotImplementedError("random_state takes an int or a RandomState, no Generator")
        return randomized_svd(a, n_components=_rank_only("randomized_svd", rank), random_state=rng)

    return call


def torch() -> Routine:
    import torch as library

    def call(a: Any, *, rank: Any = None, tol: Any = None, rng: Any = None) -> Any:
        if rng is not None:
            raise NotImplementedError("svd_lowrank draws from torch's global generator only")
        rank = _rank_only("svd_lowrank", rank)
        plain = a.flags.writeable and all(stride >= 0 for stride in a.strides)  # all that a tensor can view
        tensor = library.from_numpy(a if plain else a.copy())
        width = min(rank + 10, *tensor.shape[-2:]) if rank > 0 else rank
        u, s, v = library.svd_lowrank(tensor, q=width)
        u, s, vh = (part.resolve_conj().numpy() for part in (u, s, v.mH))
        return u[:, :rank], s[:rank], vh[:rank]

    return call


def scipy_interpolative() -> Routine:
    from scipy.linalg.interpolative import svd

    def call(a: Any, *, rank: Any = None, tol: Any = None, rng: Any = None) -> Any:
        if rank is None:
            raise NotImplementedError("its eps is relative to the spectral norm, and no bound in the Frobenius norm")
        u, s, v = svd(a, rank, rng=rng)
        return u, s, v.conj().T

    return call


def librla() -> Routine:
    from librla import svd_sketch

    def call(a: Any, *, rank: Any = None, tol: Any = None, rng: Any = None) -> Any:
        if rank is None:
            raise NotImplementedError(
                "its rtol drops singular values below rtol * s[0], and bounds no norm of the rest"
            )
        generator = np.random.default_rng(rng)  # documented type; it does not take an int
        return svd_sketch(a, rank, power_iter=2, rng=generator)

    return call


def fbpca() -> Routine:
    from fbpca import pca

    def call(a: Any, *, rank: Any = None, tol: Any = None, rng: Any = None) -> Any:
        if rng is not None:
            raise NotImplementedError("pca draws from NumPy's global state only")
        return pca(a, k=_rank_only("pca", rank), raw=True)

    return call


def scipy_svds() -> Routine:
    from scipy.sparse.linalg import svds

    def call(a: Any, *, rank: Any = None, tol: Any = None, rng: Any = None) -> Any:
        return svds(a, k=_rank_only("svds", rank), rng=rng)

    return call


# key -> (column head, distribution, the call, adapter)
ROUTINES: dict[str, tuple[str, str, str, Callable[[], Routine]]] = {
    "tensorfact": ("tensorfact", "tensorfact", "`randomized_svd(a, rank=k)`, `randomized_svd(a, tol=t)`", ours),
    "tensorfact-direct": (
        "tensorfact, direct",
        "tensorfact",
        '`randomized_svd(a, rank=k, method="shifted")`: the iteration that larger matrices take by default; the default'
        " takes an exact path on matrices as small as these, and says so in `info.path`",
        ours_direct,
    ),
    "scikit-learn": (
        "scikit-learn",
        "scikit-learn",
        "`randomized_svd(a, n_components=k, random_state=seed)`",
        scikit_learn,
    ),
    "torch": ("torch", "torch", "`svd_lowrank(a, q=min(k + 10, m, n))`, first k kept, as its notes advise", torch),
    "fbpca": ("fbpca", "fbpca", "`pca(a, k, raw=True)`", fbpca),
    "librla": (
        "librla",
        "librla",
        "`svd_sketch(a, k, power_iter=2, rng=default_rng(seed))`, its advice for slow decay",
        librla,
    ),
    "interpolative": (
        "SciPy interpolative",
        "scipy",
        "`scipy.linalg.interpolative.svd(a, k, rng=seed)`",
        scipy_interpolative,
    ),
    "svds": ("SciPy svds", "scipy", "`scipy.sparse.linalg.svds(a, k, rng=seed)`, ARPACK", scipy_svds),
}
