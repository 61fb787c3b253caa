"""From a budget to the rank of a shared basis and to the number of its code values, masks and indices included."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tensorfact.factor._quantized import GROUP, SCALE_BITS, packed_bits
from tensorfact.factor._shared_codes import Format, code_bytes

__all__ = ["Budget", "Shares", "budget_shares"]

Budget = Literal["bytes", "parameters"]


@dataclass(frozen=True, slots=True)
class Shares:
    """What a budget buys: columns of the basis, and values of all codes together."""

    rank: int
    kept: int
    form: Format


def budget_shares(
    short: int,
    widths: Sequence[int],
    param_ratio: float,
    sparsity: float,
    *,
    itemsize: int,
    budget: Budget = "bytes",
    form: Format | Literal["auto"] = "auto",
    rank: int | None = None,
    bits: int | None = None,
) -> Shares:
    """Rank and number of values for codes (rank, n), n in `widths`, of matrices (short, n).

    The rank is the largest one at which codes of the asked `sparsity` fit; what its rounding leaves goes into further
    values, less than one part in `rank` of them. With ``budget="parameters"`` places are free, as FiPS counts:
    ``rank short + kept = param_ratio short sum(widths)``. Given `rank`, the values take all the rest and `sparsity`
    does not count. With `bits`, basis and values are stored in so many bits a number, with their scales; `itemsize`
    remains that of the matrices, whose bytes `param_ratio` refers to. Source: FiPS (2024), ``compute_sparse_r``, with the true widths and the index bits added.

    Raises
    ------
    ValueError
        If not even a basis of one column with one value a matrix fits.
    """
    if bits is not None and (form != "bitmask" or budget != "bytes"):
        raise ValueError(f"form must be bitmask and budget bytes with bits, got {form!r} and {budget!r}")
    total = sum(widths)
    limit = math.floor(param_ratio * short * total * itemsize + 1e-6)
    forms: tuple[Format, ...] = ("bitmask", "csr") if form == "auto" else (form,)
    found = [_shares(short, widths, limit, sparsity, itemsize, budget, one, rank, bits) for one in forms]
    best = max(found, key=lambda shares: (shares.kept >= len(widths), shares.rank, shares.kept))
    if best.rank < 1 or best.kept < len(widths):
        raise ValueError(
            f"param_ratio must leave room for a basis of {rank or 1} columns and its codes, got {param_ratio:g} of "
            f"{len(widths)} matrices with a short side of {short}"
        )
    return best


def _shares(
    short: int,
    widths: Sequence[int],
    limit: int,
    sparsity: float,
    itemsize: int,
    budget: Budget,
    form: Format,
    rank: int | None,
    bits: int | None,
) -> Shares:
    total = sum(widths)

    def basis_bytes(columns: int) -> int:
        return columns * short * itemsize if bits is None else packed_bits((short, columns), bits) // 8

    def kept(columns: int) -> int:
        """Values that fit beside a basis of so many columns and, for bitmasks, its masks."""
        room = limit - basis_bytes(columns)
        if budget == "parameters":
            return min(room // itemsize, columns * total)
        fixed = sum(code_bytes((columns, n), 0, itemsize, form) for n in widths)
        if bits is not None:
            # how the values are shared is not known yet: each matrix may begin a byte and a group of its own
            spare = len(widths) * (1 + SCALE_BITS // 8)
            return min(8 * GROUP * (room - fixed - spare) // (GROUP * bits + SCALE_BITS), columns * total)
        each = itemsize if form == "bitmask" else code_bytes((1, max(widths)), 1, itemsize, form) - 8
        return min((room - fixed) // each, columns * total)

    if rank is None:
        least = itemsize if bits is None else bits / 8
        low, high = 0, int(limit / (short * least)) + 1  # `low` fits, `high` does not
        while high - low > 1:
            middle = (low + high) // 2
            fits = kept(middle) >= (1 - sparsity) * middle * total - 0.5
            low, high = (middle, high) if fits else (low, middle)
        rank = low
    return Shares(rank, kept(rank), form)
