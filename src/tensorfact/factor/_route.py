"""Which algorithm runs: a cost model in units of one GEMM flop, fitted to measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tensorfact.factor._operand import Dense, Operand, Portable

__all__ = ["Route", "choose_route"]

# Up to this short side an exact answer costs about as much as an approximate one, so "auto" aims at 1.02 x optimal.
SMALL_SIDE = 1536
# Shifted products after the sketch that reach the promised error on i^-0.5 and i^-0.25, by simulation and test.
STEPS = 5
SMALL_STEPS = (6, 10)  # up to and above a rank of an eighth of the short side, where the gaps are narrower
KRYLOV_STEPS = 2
# GEMM flops that take as long as a symmetric eigenproblem (syevd) / n^3: 19 at n = 768, 15 at 1075, 32 at 384.
EIGH = 18.0
# A float64 flop in float32 flops, for the small Gram matrices that are accumulated in double precision.
DOUBLE = 2.0


@dataclass(frozen=True, slots=True)
class Route:
    """A path, its number of power iterations, and whether they are shifted."""

    path: Literal["subspace", "krylov", "gram-subspace", "gram-exact"]
    n_iter: int = 0
    shifted: bool = False


def choose_route(op: Operand, rank: int, width: int, steps: int | None, method: str) -> Route:
    """The route for ``op`` (m, n) with n the side that is iterated on.

    An explicit number of iterations or another method is obeyed, unless the sketch already spans the short side; on a
    Gram matrix that is formed first where that costs less.
    """
    m, n = op.shape
    local = isinstance(op, Dense | Portable)
    if local and width >= n:  # the sketch would span everything
        return Route("gram-exact")
    automatic = steps is None
    shifted = method == "shifted" or (method == "subspace" and automatic)
    if method == "krylov":
        # all blocks together cannot exceed the short side; too few of them would be a plain sketch
        depth, fits = KRYLOV_STEPS if steps is None else steps, min(m, n) // width - 1
        if depth <= fits or fits >= KRYLOV_STEPS:
            return Route("krylov", min(depth, fits))
        return Route("gram-exact") if local else Route("subspace", STEPS, shifted=True)
    small = local and n <= SMALL_SIDE
    if steps is None:
        steps = SMALL_STEPS[rank > n // 8] if small else STEPS
    direct = Route("subspace", steps, shifted)
    if not local or method == "shifted":
        return direct
    through = Route("gram-subspace", steps, shifted)
    double = DOUBLE if op.ops.eps > 1e-10 else 1.0
    product = 2 * m * n * width
    around = 3 * n * width**2  # a Cholesky QR on the short side
    finish = product + 2 * EIGH * width**3 + 2 * (double * m + n + m) * width * rank
    costs = {
        direct: product + direct.n_iter * (2 * product + around) + finish,
        through: m * n**2
        + (0 if shifted else product)
        + (through.n_iter + shifted) * (2 * n**2 * width + around)
        + finish,
    }
    if automatic:
        costs[Route("gram-exact")] = m * n**2 + EIGH * n**3 + 2 * m * n * rank + 3 * m * rank**2
    return min(costs, key=lambda route: costs[route])
