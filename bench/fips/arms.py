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
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    data: str | None = "own"
    refine: bool = False
    inputs: str = "propagated"
    start: str = ""


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
FURTHER = tuple(name for name in ARMS if name not in MAIN)
SVDS = ("SVD", "whitened SVD")
"""What the best arm is held against."""
SHARED = {"FiPS": "own basis", "FiPS, refined": "own basis, refined"}
"""Arms with a shared basis, and their controls of the same bytes without sharing."""
