"""Compiled kernels: the build for the highest instruction set that this CPU has.

``TENSORFACT_ISA=v2`` or ``v3`` forces one build. Call `tensorfact.kernels`, which checks arguments, not this module.
"""

from __future__ import annotations

import os
from importlib import import_module

from tensorfact import _cpu


def _module_name() -> str:
    level = _cpu.level()
    if level == 0:
        return "_core_base"
    wanted = os.environ.get("TENSORFACT_ISA", "")
    if wanted not in ("", "v2", "v3"):
        raise ImportError(f"TENSORFACT_ISA must be v2 or v3, got {wanted!r}")
    best = min(level, 3)
    if best < 2:
        raise ImportError("the compiled kernels of tensorfact need an x86-64-v2 CPU (SSE4.2)")
    if wanted == "v3" and best < 3:
        raise ImportError("TENSORFACT_ISA=v3 needs an x86-64-v3 CPU (AVX2, FMA), this one is v2")
    return f"_core_{wanted or f'v{best}'}"


_module = import_module(f"{__name__}.{_module_name()}")

__version__: str = _module.__version__
isa = _module.isa
blas_int_bits = _module.blas_int_bits
load_blas = _module.load_blas
parse_signature = _module.parse_signature
probe_pool = _module.probe_pool
sum_squares = _module.sum_squares
normal_apply = _module.normal_apply
eigh = _module.eigh
gram = _module.gram
matmul = _module.matmul
cholesky_qr = _module.cholesky_qr
