"""Compiled kernels: the build for the highest instruction set that this CPU has.

``TENSORFACT_ISA=v2`` (or v3, v4) forces one build. Call `tensorfact.kernels`, which checks arguments, not this module.
"""

from __future__ import annotations

import os
from importlib import import_module

from tensorfact import _cpu

_NEEDS = {"v2": "SSE4.2", "v3": "AVX2, FMA", "v4": "AVX-512 F, BW, CD, DQ, VL"}


def _module_name() -> str:
    level = _cpu.level()
    if level == 0:
        return "_core_base"
    wanted = os.environ.get("TENSORFACT_ISA", "")
    if wanted not in ("", *_NEEDS):
        raise ImportError(f"TENSORFACT_ISA must be one of {', '.join(_NEEDS)}, got {wanted!r}")
    if level < 2:
        raise ImportError(f"the compiled kernels of tensorfact need an x86-64-v2 CPU ({_NEEDS['v2']})")
    if wanted and level < int(wanted[1:]):
        raise ImportError(
            f"TENSORFACT_ISA={wanted} needs an x86-64-{wanted} CPU ({_NEEDS[wanted]}), this one is v{level}"
        )
    return f"_core_{wanted or f'v{min(level, 4)}'}"


_module = import_module(f"{__name__}.{_module_name()}")

__version__: str = _module.__version__
isa = _module.isa
blas_int_bits = _module.blas_int_bits
load_blas = _module.load_blas
parse_signature = _module.parse_signature
probe_pool = _module.probe_pool
chain = _module.chain
chain_at = _module.chain_at
kron_sum = _module.kron_sum
kron_sum_at = _module.kron_sum_at
facewise = _module.facewise
facewise_at = _module.facewise_at
tube_faces = _module.tube_faces
tube_faces_at = _module.tube_faces_at
sum_squares = _module.sum_squares
normal_apply = _module.normal_apply
eigh = _module.eigh
gram = _module.gram
matmul = _module.matmul
cholesky_qr = _module.cholesky_qr
row_sketch = _module.row_sketch
tall_triangle = _module.tall_triangle
tall_gram = _module.tall_gram
tall_product = _module.tall_product
spline_basis = _module.spline_basis
probe_write = _module.probe_write
spline_uniform = _module.spline_uniform
spline_values = _module.spline_values
spline_gram = _module.spline_gram
spline_solve = _module.spline_solve
sparse_product = _module.sparse_product
