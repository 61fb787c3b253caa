"""Which algorithm runs: a cost model in units of one GEMM flop, fitted to measurement (bench/bench_routes.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tensorfact.factor._operand import Dense, Operand, Portable

__all__ = ["Route", "choose_route"]

# Up to this short side an exact answer costs about as much as an approximate one, so "auto" aims at 1.02 x optimal.
SMALL_SIDE = 1536
# Shifted products after the sketch that reach the promised error on i^-0.5 and i^-0.25, by simulation and test.
STEPS = 5
GRAM_STEPS = 6
KRYLOV_STEPS = 2
SMALL_GRAM_STEPS = 12
# Flops of GEMM that take as long as one n x n symmetric eigenproblem (syevd) / n^3, and one flop of float64 / float32.
EIGH = 36.0
DOUBLE = 2.0


@dataclass(frozen=True, slots=True)
class Route:
    """A path and its number of power iterations."""

    path: Literal["subspace", "shifted", "krylov", "gram-subspace", "gram-exact", "full-svd"]
    n_iter: int = 0


def choose_route(op: Operand, rank: int, width: int, steps: int | None, method: str) -> Route:
    """The route for ``op`` (m, n) with n the side that is iterated on.

    An explicit number of iterations or another method is obeyed, unless the sketch already spans the short side.
    """
    m, n = op.shape
    local = isinstance(op, Dense | Portable)
    if local and width >= n:  # the sketch would span everything
        return Route("gram-exact")
    direct = Route("shifted", STEPS)
    if method == "krylov":
        # all blocks together cannot exceed the short side; too few of them would be a plain sketch
        depth, fits = KRYLOV_STEPS if steps is None else steps, min(m, n) // width - 1
        if depth <= fits or fits >= KRYLOV_STEPS:
            return Route("krylov", min(depth, fits))
        return Route("gram-exact") if local else direct
    if steps is not None:
        return Route("shifted" if method == "shifted" else "subspace", steps)
    if not local or method == "shifted":
        return direct
    gram_steps = SMALL_GRAM_STEPS if n <= SMALL_SIDE else GRAM_STEPS
    around = 6 * n * width**2  # one normalised step's products on the short side, at the speed they reach
    finish = 2 * m * n * width + EIGH * width**3 + 2 * (DOUBLE * m + n + m) * width * rank
    costs = {
        Route("gram-exact"): DOUBLE * m * n**2 + EIGH * n**3 + 2 * m * n * rank,
        Route("gram-subspace", gram_steps): m * n**2 + gram_steps * (2 * n**2 * width + around) + finish,
    }
    if n > SMALL_SIDE:
        costs[direct] = (STEPS + 0.5) * 4 * m * n * width + STEPS * around + finish
    return min(costs, key=lambda route: costs[route])
