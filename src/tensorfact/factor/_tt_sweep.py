"""The sweep over large data: fold trailing modes, find the directions that matter, project, go on with the rest.

Deterministic step: triangular factor of the tall unfolding without its Q, singular values and vectors of that, one
product (Roehrig-Zoellner, Thies, Basermann, 2022). The factor comes from the Gram matrix, in less than half the time,
where what is discarded is far above the rounding of squares, else from TSQR. Randomized step: one sparse-sign sketch, a
range a little wider than the rank, one product; the surplus columns are truncated at the end, when everything is small.
In both, what is lost is the projection's own residual, orthogonal to all that follows, so the squares of the steps add
up to the squared error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tensorfact import kernels
from tensorfact.factor._tt_cores import Budget, split_right
from tensorfact.factor._tt_plan import GRAM_WIDTH, MAX_WIDTH, WORTH, Plan, buckets_for, choose_group, surplus

__all__ = ["Log", "OutOfRangeError", "checked_norm2", "sweep"]

_MISSED = 4.0  # a sketch that loses this many times the square that it foresaw has not seen a part of the data


class OutOfRangeError(Exception):
    """The squared norm is not finite, or so large or small that squares lose their digits."""


@dataclass
class Log:
    """What happened on the way."""

    size: int  # of the input, the unit of a read
    steps: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lost2: dict[int, float] = field(default_factory=dict)  # by bond
    reads: float = 0.0
    squares_cancel: bool = False  # a Gram matrix had too few digits: no other is tried

    def note(self, text: str) -> None:
        """Remember ``text`` once."""
        if text not in self.notes:
            self.notes.append(text)

    def read(self, tensor: Any) -> None:
        """Count a pass over ``tensor``."""
        self.reads += tensor.size / self.size


def checked_norm2(norm2: float, eps: float) -> float:
    """``norm2`` where its own square and those of small parts of it exist in the working precision."""
    low, high = (1e-200, 1e200) if eps < 1e-10 else (1e-16, 1e24)
    if not low < norm2 < high:
        raise OutOfRangeError
    return norm2


def sweep(
    tensor: Any, plan: Plan, budget: Budget, rng: np.random.Generator, log: Log, overwrite: bool
) -> tuple[np.ndarray, list[np.ndarray]]:
    """What remains of the tensor, (1, n_1, ..., n_k, bond), and right-orthonormal cores of the modes behind it.

    ``tensor`` is what :class:`HostTensor` is. ``overwrite`` lets the first deterministic step write over it.
    """
    cores: list[np.ndarray] = []
    first, target = tensor, 0
    while group := choose_group(tensor, plan, target):
        step = _Step(tensor, group, plan, budget, log)
        projected = step.sketched(rng) if plan.method == "sketch" else None
        if projected is None and not step.too_narrow and step.rows >= step.width:  # the triangle is width x width
            projected = step.triangular(overwrite=overwrite or tensor is not first)
        if projected is None:
            if step.width >= MAX_WIDTH or choose_group(tensor, plan, 2 * step.width) in (0, group):
                break
            target = 2 * step.width
            continue
        if cores:
            cores[0] = np.tensordot(step.tail, cores[0], axes=1)
        else:  # a bond of 1, but perhaps with another phase
            step.cores[-1] = np.tensordot(step.cores[-1], step.tail, axes=1)
        cores = [*step.cores, *cores]
        tensor, target = projected, 0
    return tensor.center(), cores


class _Step:
    """One step of the sweep: finds cores for a group of trailing modes, projects, and books what is lost.

    The bonds inside the group are truncated on the small matrix, before its columns are chosen: every space is inside
    the one that was chosen before it, so the result is an orthogonal projection of the data. (A bond inside the group
    that is truncated later would tilt the columns, and the squares would no longer add up.)
    """

    def __init__(self, tensor: Any, group: int, plan: Plan, budget: Budget, log: Log) -> None:
        self.tensor, self.group, self.plan, self.budget, self.log = tensor, group, plan, budget, log
        self.lead = len(tensor.modes) - group
        self.width = math.prod(tensor.modes[self.lead :]) * tensor.bond
        self.rows = math.prod(tensor.modes[: self.lead])
        self.caps = [*plan.caps[self.lead - 1 : len(tensor.modes) - 1], plan.last(len(tensor.modes))]
        self.too_narrow = False
        self.cores: list[np.ndarray] = []
        self.tail: Any = None  # rows of the bond behind the group that are kept

    def sketched(self, rng: np.random.Generator) -> Any | None:
        """Randomized step; None where it does not pay (`too_narrow`) or has missed something (noted)."""
        buckets = buckets_for(self.width, self.caps[0] + surplus(self.caps[0])) if self.plan.exact else 4 * self.width
        if self.rows < 2 * buckets:
            return None
        z, norm2 = self.tensor.sketch(self.group, buckets, rng)
        self._learn(norm2)
        whole2 = self.budget.norm2 - self.budget.spent2
        noise2 = (30 * self.tensor.eps) ** 2 * self.budget.norm2
        share2, extra = self.budget.share2(len(self.tensor.modes)), surplus(self.caps[0])
        for cautious in (0.5, 0.1):  # the tail of a sketch is a little smaller than that of the data
            wide, lost2, beyond2, felt = self._split(z, cautious * share2, extra)
            if wide is None:
                self.too_narrow = True
                return None
            expected2 = sum(lost2[1:]) + beyond2
            residual = expected2 <= _cancels(self.tensor.eps) * whole2
            projected, kept2, residual2 = self.tensor.project(self.group, wide, residual=residual, overwrite=False)
            self.log.read(self.tensor)
            real2 = residual2 if residual else max(whole2 - kept2, 0.0)
            if real2 > _MISSED * expected2 + noise2:
                break
            if self.plan.exact or felt or real2 <= (self.group + 1) * share2:
                return self._done("sketch", projected, _shared([beyond2, *lost2[1:]], real2))
            extra *= 2
        self.log.note("sketch-missed")
        return None

    def triangular(self, *, overwrite: bool) -> Any | None:
        """Deterministic step; None where it does not pay."""
        for name in ("gram", "tsqr"):
            if name == "gram" and not self._squares_may_do():
                continue
            r = self.tensor.triangle(self.group) if name == "tsqr" else self._cholesky()
            self.log.read(self.tensor)
            if r is None:
                continue
            if not np.isfinite(r).all():
                raise OutOfRangeError
            if math.isnan(self.budget.norm2):
                self._learn(kernels.sum_squares(r))
            wide, lost2, _, _ = self._split(r, self.budget.share2(len(self.tensor.modes)), 0)
            whole2 = self.budget.norm2 - self.budget.spent2
            hidden2 = _squares_hide(self.tensor.eps) * self.budget.norm2
            if name == "gram" and wide is None and self.budget.share2(len(self.tensor.modes)) > hidden2:
                return None  # too narrow, which a triangle would only say again
            if name == "gram" and not sum(lost2) > hidden2:
                self.log.squares_cancel = True
                continue
            if wide is None:
                return None
            # the triangle of float32 data knows small tails to no more than its own rounding, a Gram matrix to less
            blurred = _cancels(self.tensor.eps) * (10 if name == "gram" else 1)
            residual = self.tensor.eps > 1e-10 and sum(lost2) <= blurred * whole2
            projected, _, residual2 = self.tensor.project(self.group, wide, residual=residual, overwrite=overwrite)
            self.log.read(self.tensor)
            if residual:
                lost2 = _shared(lost2, residual2)
            return self._done(name, projected, lost2)
        return None

    def _squares_may_do(self) -> bool:
        """Whether a Gram matrix is worth a try: not a wide one, nor if one failed or the tolerance has more digits."""
        tol = self.budget.tol
        hidden = _squares_hide(self.tensor.eps) * len(self.tensor.modes)
        return self.width <= GRAM_WIDTH and not self.log.squares_cancel and (tol is None or tol * tol > hidden)

    def _cholesky(self) -> np.ndarray | None:
        """Triangular factor by way of the Gram matrix; None where that is singular."""
        gram = self.tensor.gram(self.group)
        if gram is None:
            return None
        norm2 = float(np.trace(gram).real)
        if not math.isfinite(norm2):
            raise OutOfRangeError
        self._learn(norm2)
        try:
            return np.linalg.cholesky(gram).conj().T
        except np.linalg.LinAlgError:
            self.log.squares_cancel = True
            return None

    def _learn(self, norm2: float) -> None:
        """The first pass over the data tells its norm."""
        if math.isnan(self.budget.norm2):
            self.budget.norm2 = checked_norm2(norm2, self.tensor.eps)

    def _split(self, a: np.ndarray, limit2: float, extra: int) -> tuple[np.ndarray | None, list[float], float, bool]:
        """Cores of the group from a matrix with the row space of the unfolding; their product as its columns."""
        a = a.astype(np.result_type(a.dtype, np.float64), copy=False)
        if a.shape[0] > a.shape[1]:
            a = kernels.tall_triangle(a)
        small = self.tensor.small(self.group, a)
        self.cores, self.tail, lost2, beyond2, felt = split_right(small, self.caps, self.plan.exact, limit2, extra)
        if self.cores[0].shape[0] > WORTH * self.width:
            return None, lost2, beyond2, felt
        wide = self.cores[0]
        for core in self.cores[1:]:
            wide = np.tensordot(wide, core, axes=1)
        wide = np.tensordot(wide, self.tail, axes=1)
        return self.tensor.columns(self.group, wide), lost2, beyond2, felt

    def _done(self, name: str, projected: Any, lost2: list[float]) -> Any:
        self.budget.spent2 += sum(lost2)
        for k, square in enumerate(lost2):
            self.log.lost2[self.lead - 1 + k] = self.log.lost2.get(self.lead - 1 + k, 0.0) + square
        self.log.steps.append(name)
        return projected


def _shared(parts2: list[float], whole2: float) -> list[float]:
    """Estimates of what each bond loses, made to add up to what all of them lose."""
    total2 = sum(parts2)
    return [part / total2 * whole2 for part in parts2] if total2 > 0 else [whole2, *parts2[1:]]


def _cancels(eps: float) -> float:
    """Where less than this share of a squared norm is lost, the difference of two norms does not tell it to 1e-3."""
    return 1e-10 if eps < 1e-10 else 1e-3


def _squares_hide(eps: float) -> float:
    """Share of the squared norm below which discarded squares are not told from the rounding of a Gram matrix.

    With an error E of the Gram matrix, its first k eigenvectors keep at most 2 k ||E|| less than the best ones do
    (Ky Fan): of the order of k eps of the squared norm. Single precision is summed in itself over up to 256 rows, which
    may shift all of them one way by some 30 eps.
    """
    return 1e-8 if eps < 1e-10 else 1e-4
