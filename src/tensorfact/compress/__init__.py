"""Compress pretrained transformers: one checkpoint directory in, a smaller one out, with a report of what it cost.

Importing this package lets ``transformers.AutoModel.from_pretrained`` read the checkpoints that it writes; neither
torch nor transformers is imported for that.
"""

from __future__ import annotations

from tensorfact.compress._method import Method, methods, register
from tensorfact.compress._refine import Refinement
from tensorfact.compress.calibration import Calibration
from tensorfact.compress.checkpoint import CheckpointError
from tensorfact.compress.decouple import DecoupleMethod
from tensorfact.compress.dense import to_dense
from tensorfact.compress.fips import FipsMethod
from tensorfact.compress.huggingface import register as _register_with_transformers
from tensorfact.compress.lowrank import LowRankMethod
from tensorfact.compress.lproduct import LProductMethod
from tensorfact.compress.mpo import MPOMethod
from tensorfact.compress.quantize import QuantizeMethod
from tensorfact.compress.records import DenseRecord, Fidelity, Latency, LayerRecord, Report
from tensorfact.compress.run import compress, estimate, load
from tensorfact.compress.verify import verify

__all__ = [
    "Calibration",
    "CheckpointError",
    "DecoupleMethod",
    "DenseRecord",
    "Fidelity",
    "FipsMethod",
    "LProductMethod",
    "Latency",
    "LayerRecord",
    "LowRankMethod",
    "MPOMethod",
    "Method",
    "QuantizeMethod",
    "Refinement",
    "Report",
    "compress",
    "estimate",
    "load",
    "methods",
    "register",
    "to_dense",
    "verify",
]

_register_with_transformers()
