"""What the stored rows say: which arm is best, whether refinement helps, whether sharing does, and by how much."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from bench.fips.arms import ARMS, FULL, MAIN, SHARED, SVDS
from bench.fips.subjects import Measure, Subject

Result = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """The rows of one model, seen through one measure."""

    subject: Subject
    found: Result
    measure: Measure

    @property
    def dense(self) -> float | None:
        """The score of the dense model."""
        value = self.found.get("dense", {}).get(self.measure.key)
        return None if value is None else float(value)

    def value(self, arm: str, ratio: float) -> float | None:
        """The score of an arm, None where it was not run."""
        row = self.found["rows"].get(f"{arm} @ {ratio:g}")
        return None if row is None else float(row[self.measure.key])

    def ratios(self, among: Collection[str] = FULL) -> list[float]:
        """Ratios at which some of these arms were run, most bytes first."""
        return sorted({row["ratio"] for row in self.found["rows"].values() if row["arm"] in among}, reverse=True)

    def arms(self, among: Collection[str] = FULL) -> list[str]:
        """Those of these arms that were run."""
        ran = {row["arm"] for row in self.found["rows"].values()}
        return [arm for arm in ARMS if arm in ran and arm in among]

    def gain(self, arm: str, other: str, ratio: float) -> float | None:
        """How much better `arm` is than `other`; for a measure of which less is better, how much less."""
        a, b = self.value(arm, ratio), self.value(other, ratio)
        return None if a is None or b is None else (a - b if self.measure.higher else b - a)

    def best(self, ratio: float, among: Sequence[str] = MAIN) -> str | None:
        """The best arm of a ratio; None where fewer than two were run."""
        ran = [(arm, value) for arm in among if (value := self.value(arm, ratio)) is not None]
        sign = 1 if self.measure.higher else -1
        return max(ran, key=lambda pair: sign * pair[1])[0] if len(ran) > 1 else None

    def refinements(self, ratio: float) -> dict[str, float]:
        """Of every refined arm whose start was run, how much better than that it is."""
        pairs = ((name, self.gain(name, arm.start, ratio)) for name, arm in ARMS.items() if arm.start)
        return {name: gain for name, gain in pairs if gain is not None}

    def sharing(self, ratio: float) -> dict[str, float]:
        """Of every arm with a shared basis, how much better than its control without sharing it is."""
        pairs = ((name, self.gain(name, control, ratio)) for name, control in SHARED.items())
        return {name: gain for name, gain in pairs if gain is not None}

    def over_svd(self, ratio: float) -> dict[str, float]:
        """How much better the best arm is than plain and whitened SVD."""
        best = self.best(ratio)
        pairs = ((name, self.gain(best, name, ratio)) for name in SVDS) if best else ()
        return {name: gain for name, gain in pairs if gain is not None}

    def missing(self) -> dict[str, list[float]]:
        """Arms of this model with the ratios that were not run."""
        lost: dict[str, list[float]] = {}
        for arm, ratio in self.subject.tasks():
            if self.value(arm, ratio) is None:
                lost.setdefault(arm, []).append(ratio)
        return lost


def block_losses(found: Result) -> tuple[int, int]:
    """How many stages of refinement there were, and after how many the held-out loss was less than at their start."""
    stages = [block for row in found["rows"].values() for block in row["blocks"]]
    return len(stages), sum(block["loss_after"] < block["loss_before"] for block in stages)
