"""Which promises of a low-rank routine do tensorfact and its peers keep?

    python -m bench.promises            # check every routine, write bench/results/promises.json and docs/promises.md
    python -m bench.promises --page     # only write the page again from the stored results

Every peer is called the way its documentation recommends for a dense matrix. An adapter translates argument names and
the form of the result, and nothing else: it does not sort, validate, cast or copy for the peer, except where the peer
cannot receive the array at all.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tensorfact.testing import LOW_RANK_PROMISES, check_low_rank

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "promises.json"
PAGE = ROOT / "docs" / "promises.md"

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


def check(names: list[str], *, max_examples: int, seed: int) -> dict[str, Any]:
    """Check the routines called `names`; those that are not installed are left out."""
    columns: dict[str, Any] = {}
    for name in names:
        _, distribution, call, make = ROUTINES[name]
        try:
            routine = make()
        except ImportError:
            continue
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning is no broken promise
            report = check_low_rank(routine, max_examples=max_examples, seed=seed, raise_on_failure=False)
        columns[name] = {
            "version": version(distribution),
            "call": call,
            "seconds": round(time.perf_counter() - start, 1),
            "results": {
                r.promise: {k: v for k, v in asdict(r).items() if k not in ("promise", "text")} for r in report
            },
        }
    return columns


def render(data: dict[str, Any]) -> str:
    """Write the page: the table, the calls, what went wrong, how to repeat it."""
    columns = [name for name in ROUTINES if name in data["routines"]]
    heads = [ROUTINES[name][0] for name in columns]
    mark = {"kept": "yes", "broken": "**no**", "not offered": "-"}
    lines = [
        "# Which promises a low-rank routine keeps",
        "",
        "Generated by `bench/promises.py` from `bench/results/promises.json`; do not edit by hand.",
        "",
        "`tensorfact.testing.check_low_rank` states the contract of a truncated SVD as named promises and searches",
        "each one for a counter-example. The table shows what it found for tensorfact and its peers. The contract is",
        "tensorfact's own: a peer that never made a promise is not at fault for not keeping it.",
        "",
        "| promise | " + " | ".join(heads) + " |",
        "| --- |" + " :---: |" * len(heads),
    ]
    for promise in data["promises"]:
        cells = []
        for name in columns:
            result = data["routines"][name]["results"][promise["name"]]
            worst = "" if result["worst"] is None else f" ({result['worst']:.4g})"
            cells.append(mark[result["status"]] + (worst if promise["name"] in data["measured"] else ""))
        lines.append(f"| `{promise['name']}`: {promise['text']} | " + " | ".join(cells) + " |")
    totals = []
    for name in columns:
        found = [r["status"] for r in data["routines"][name]["results"].values()]
        totals.append(f"{found.count('kept')} of {len(found)}")
    lines += [
        "| **kept** | " + " | ".join(totals) + " |",
        "",
        "yes: no counter-example found. **no**: broken, the smallest case found is below. -: not offered.",
        "In brackets: the largest error / optimal error met (for `tol`: the largest error / tol, and rank / smallest",
        "possible rank), up to the case that broke the promise. A dtype that a routine refuses counts once, under",
        "`dtype-kept`; ties, zero and rank-deficient matrices likewise. torch receives a copy of arrays that a tensor",
        "cannot view (read-only, negative strides).",
        "",
        "## The calls",
        "",
        "| routine | version | call |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| {ROUTINES[n][0]} | {data['routines'][n]['version']} | {data['routines'][n]['call']} |" for n in columns
    ]
    lines += ["", "## What went wrong, and why something is not offered", ""]
    for name in columns:
        rest = {p: r for p, r in data["routines"][name]["results"].items() if r["status"] != "kept"}
        if not rest:
            continue
        lines += [f"### {ROUTINES[name][0]}", ""]
        lines += [f"* {p} ({r['status']}): `{r['detail'].replace('`', chr(39))}`" for p, r in rest.items()]
        lines.append("")
    lines += [
        "## How to repeat it",
        "",
        "```",
        "python -m bench.promises",
        "```",
        "",
        f"{data['max_examples']} random cases a promise besides the fixed ones, seed {data['seed']}; Python"
        f" {data['python']}, NumPy {data['numpy']}, SciPy {data['scipy']}, Hypothesis {data['hypothesis']}."
        " To check a routine of your own, see `tensorfact.testing.check_low_rank`.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", action="store_true", help="only write the page again")
    parser.add_argument("--only", nargs="+", choices=list(ROUTINES), help="check these and keep the other results")
    parser.add_argument("--max-examples", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.page:
        data = json.loads(RESULTS.read_text())
    else:
        kept = json.loads(RESULTS.read_text())["routines"] if options.only and RESULTS.exists() else {}
        names = options.only or list(ROUTINES)
        found = check(names, max_examples=options.max_examples, seed=options.seed)
        data = {
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "scipy", "hypothesis")},
            "max_examples": options.max_examples,
            "seed": options.seed,
            "promises": [{"name": p.name, "text": p.text} for p in LOW_RANK_PROMISES],
            "measured": ["near-optimal-frobenius", "near-optimal-spectral", "tol-kept", "tol-rank-small"],
            "routines": {**kept, **found},
        }
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(data, indent=1) + "\n")
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(render(data))


if __name__ == "__main__":
    main()
