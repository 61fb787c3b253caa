"""The arms: what is done to the MLPs of a model. All arms of one ratio keep the same bytes, masks included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

RATIOS = (0.8, 0.67, 0.5, 0.4)
STEPS = 100


@dataclass(frozen=True)
class Arm:
    """A method of `tensorfact.compress` with its options.

    Parameters
    ----------
    method : str
        Name of the method.
    options : mapping
        Its options.
    data : str or None
        Which calibration data of the subject; None is none.
    refine : bool
        Whether blocks are trained.
    inputs : str
        What blocks are trained on.
    start : str
        The arm without refinement whose factors this one begins from, "" where there is none.
    bits : int or None
        Bits of a number of the factors; None is those of the weights.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    data: str | None = "own"
    refine: bool = False
    inputs: str = "propagated"
    start: str = ""
    bits: int | None = None

    def ratio(self, kept: float, width: int) -> float:
        """Ratio to ask for so that `kept` of the bytes stay, of weights of `width` bits: low rank counts numbers."""
        if self.method != "lowrank" or self.bits is None:
            return kept
        return min(1.0, 0.98 * kept * width / stored_bits(self.bits))  # rows end in part of a group


def stored_bits(bits: int) -> float:
    """Bits that a number takes, with its part of the scale of 64 numbers."""
    return bits + 16 / 64


def _own(**options: Any) -> dict[str, Any]:
    return {"share": False, **options}


ARMS: dict[str, Arm] = {
    "SVD": Arm("lowrank", data=None),
    "SVD, refined": Arm("lowrank", {"whiten": False}, refine=True, start="SVD"),
    "whitened SVD": Arm("lowrank"),
    "whitened SVD, refined": Arm("lowrank", refine=True, start="whitened SVD"),
    "own basis, no data": Arm("fips", _own(), data=None),
    "own basis": Arm("fips", _own()),
    "own basis, refined": Arm("fips", _own(), refine=True, start="own basis"),
    "FiPS, no data": Arm("fips", data=None),
    "FiPS": Arm("fips"),
    "FiPS, refined": Arm("fips", refine=True, start="FiPS"),
    "FiPS, one basis, refined": Arm("fips", {"group_size": 6}, refine=True),
    "FiPS, 75 % sparse, refined": Arm("fips", {"sparsity": 0.75}, refine=True),
    "FiPS as published, refined": Arm("fips", {"sparsity": 0.75, "prune": "gradual", "sweeps": 0}, refine=True),
    "FiPS, refined, teacher inputs": Arm("fips", refine=True, inputs="teacher", start="FiPS"),
    "FiPS, refined, other text": Arm("fips", data="other", refine=True),
    "whitened SVD, refined, other text": Arm("lowrank", data="other", refine=True),
    "quantised": Arm("quantize", data=None),
    "quantised, refined": Arm("quantize", refine=True, start="quantised"),
    # uniform: a weight that were left as it is would keep 32 bits
    "whitened SVD, 8 bits": Arm("lowrank", {"allocation": "uniform"}, bits=8),
    "whitened SVD, 4 bits": Arm("lowrank", {"allocation": "uniform"}, bits=4),
    "FiPS, 8 bits": Arm("fips", bits=8),
    "FiPS, 4 bits": Arm("fips", bits=4),
    "FiPS, 4 bits, refined": Arm("fips", bits=4, refine=True, start="FiPS, 4 bits"),
}
MAIN = (
    "SVD",
    "whitened SVD",
    "own basis",
    "FiPS",
    "SVD, refined",
    "whitened SVD, refined",
    "own basis, refined",
    "FiPS, refined",
)
"""The arms of every model, the quick ones first."""
FEW_BITS = (
    ("quantised", 8),
    ("quantised", 4),
    ("quantised", 3),
    ("FiPS, 8 bits", 8),
    ("FiPS, 8 bits", 4),
    ("FiPS, 4 bits", 4),
    ("FiPS, 4 bits", 3),
    ("whitened SVD, 8 bits", 4),
    ("whitened SVD, 4 bits", 3),
    ("quantised, refined", 3),
    ("FiPS, 4 bits, refined", 3),
)
"""Arms in few bits, each with the bits of a weight that its bytes are worth."""
FEW = tuple(dict.fromkeys(arm for arm, _ in FEW_BITS))
FULL = tuple(name for name, arm in ARMS.items() if arm.bits is None and arm.method != "quantize")
"""Arms whose numbers are of the type of the weights."""
SVDS = ("SVD", "whitened SVD")
"""What the best arm is held against."""
SHARED = {"FiPS": "own basis", "FiPS, refined": "own basis, refined"}
"""Arms with a shared basis, and their controls of the same bytes without sharing."""
