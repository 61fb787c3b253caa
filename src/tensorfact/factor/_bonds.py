"""Bonds of a chain: how a request becomes one number a bond, and which bonds are of any use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

from tensorfact.factor._input import check_count, check_fraction

__all__ = ["Request", "balanced_shape", "bonds_from", "request", "useful_ranks"]


def useful_ranks(sizes: Sequence[int], rank: int | Sequence[int]) -> tuple[int, ...]:
    """Inner bonds clipped to what a train of these mode sizes can use.

    A bond above the product of the mode sizes on either side, or above a neighbouring bond times the mode between, adds
    numbers and no tensors.

    Parameters
    ----------
    sizes : sequence of int
        Mode sizes; for a matrix operator the products ``m * n`` of its sites.
    rank : int or sequence of int
        Wanted bond, or one for each of the ``len(sizes) - 1`` inner bonds.

    Returns
    -------
    tuple of int
        ``len(sizes) - 1`` bonds.

    Examples
    --------
    >>> import tensorfact
    >>> tensorfact.useful_ranks((32, 32, 64), 100)
    (32, 64)
    """
    wanted = bonds_from("rank", rank, len(sizes))
    bonds = [1, *wanted, 1]
    for k in range(1, len(sizes)):
        bonds[k] = min(bonds[k], bonds[k - 1] * sizes[k - 1])
    for k in range(len(sizes) - 1, 0, -1):
        bonds[k] = min(bonds[k], bonds[k + 1] * sizes[k])
    return tuple(bonds[1:-1])


def bonds_from(name: str, value: Any, order: int) -> tuple[int, ...]:
    """``order - 1`` bonds from an int or a sequence of them; ``ValueError`` names the argument."""
    if isinstance(value, (list, tuple)) or (hasattr(value, "__len__") and not isinstance(value, (str, bytes))):
        if len(value) != order - 1:
            raise ValueError(f"{name} must be an integer or hold {order - 1} of them, one an inner bond, got {value!r}")
        return tuple(check_count(f"{name}[{k}]", item, 1) for k, item in enumerate(value))
    return (check_count(name, value, 1),) * (order - 1)


class Request:
    """What a caller wants of each bond: an exact number, or a share of an error budget under a cap."""

    __slots__ = ("caps", "order", "tol")

    def __init__(self, caps: tuple[int, ...], tol: float | None) -> None:
        self.caps = caps  # largest useful rank of each inner bond, or less
        self.tol = tol
        self.order = len(caps) + 1

    def limit2(self, bond: int, norm2: float, spent2: float) -> float | None:
        """Squared error that the cut at inner bond ``bond`` (0-based) may make; None where the rank decides.

        What earlier cuts left of the budget is shared evenly among the cuts to come.
        """
        if self.tol is None:
            return None
        return max(0.0, self.tol**2 * norm2 - spent2) / (self.order - 1 - bond)


def request(sizes: Sequence[int], rank: Any, tol: Any, max_rank: Any, *, smallest: float) -> Request:
    """Check ``rank``, ``tol`` and ``max_rank`` of a chain with these mode sizes."""
    if (rank is None) == (tol is None):
        raise ValueError(f"give exactly one of rank and tol, got rank={rank!r}, tol={tol!r}")
    if rank is not None and max_rank is not None:
        raise ValueError(f"max_rank goes with tol, not with rank, got max_rank={max_rank!r}, rank={rank!r}")
    if rank is not None:
        return Request(useful_ranks(sizes, rank), None)
    caps = bonds_from("max_rank", math.prod(sizes) if max_rank is None else max_rank, len(sizes))
    return Request(useful_ranks(sizes, caps), check_fraction("tol", tol, smallest, 1.0))


def balanced_shape(n: int, order: int) -> tuple[int, ...]:
    """``order`` integers with product ``n``, as equal as they can be, ascending.

    Of all factorisations the one with the smallest sum; a prime leaves ones, and a caller may rather pad.

    Examples
    --------
    >>> import tensorfact
    >>> tensorfact.balanced_shape(512, 3), tensorfact.balanced_shape(65, 2)
    ((8, 8, 8), (5, 13))
    """
    return _balanced(check_count("n", n, 1), check_count("order", order, 1), 1)


@cache
def _balanced(n: int, order: int, least: int) -> tuple[int, ...]:
    """The factorisation into factors of at least ``least`` with the smallest sum; empty where there is none."""
    if order == 1:
        return (n,) if n >= least else ()
    found: tuple[int, ...] = ()
    factor = least
    while factor**order <= n:
        if n % factor == 0:
            rest = _balanced(n // factor, order - 1, factor)
            if rest and (not found or factor + sum(rest) < sum(found)):
                found = (factor, *rest)
        factor += 1
    return found
