"""Compiled kernels read nothing beyond their inputs, which end or begin at a page that must not be touched."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys

import numpy as np
import pytest

from tensorfact import _cpu, kernels
from tensorfact.kernels import _dispatch
from tensorfact.kernels.chain import compiled

PAGE = mmap.PAGESIZE
SIDES = ("end", "begin")


def guarded(array, side):
    """A copy that ends where an inaccessible page begins, or begins where one ends."""
    source = np.ascontiguousarray(array)
    pages = -(-max(source.nbytes, 1) // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for page in (0, pages + 1):
        if protect(ctypes.c_void_p(address + page * PAGE), ctypes.c_size_t(PAGE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = PAGE if side == "begin" else (pages + 1) * PAGE - source.nbytes
    copy = np.frombuffer(memory, source.dtype, source.size, offset).reshape(source.shape)
    copy[...] = source
    return copy


def check(side):
    """Call the kernels with sizes around every vector width; an access out of bounds kills the process."""
    rng, core = np.random.default_rng(0), compiled()

    def make(*shape, dtype=np.float64):
        return guarded(rng.standard_normal(shape).astype(dtype), side)

    for dtype in (np.float32, np.float64):
        for size in (1, 2, 3, 5, 7, 8, 9, 15, 17, 31, 33):
            cores = [make(1, 3, size, 2, dtype=dtype), make(2, size, 2, 1, dtype=dtype)]
            for direction in ("left", "right"):
                x, bias = make(5, 2 * size, dtype=dtype), make(3 * size, dtype=dtype)
                out = make(5, 3 * size, dtype=dtype)
                core.chain_at(
                    dtype is np.float64,
                    x.ctypes.data,
                    5,
                    tuple((part.ctypes.data, *part.shape) for part in cores),
                    bias.ctypes.data,
                    out.ctypes.data,
                    direction == "left",
                    1,
                )
            left, right, product = (make(*shape, dtype=dtype) for shape in ((6, 2), (2, 3 * size), (9, 2 * size)))
            addresses = ((left.ctypes.data, right.ctypes.data, product.ctypes.data),)
            core.kron_sum_at(dtype is np.float64, addresses, 3, 2, 2, 3, size, 1)
            pairs = make(size, 6, dtype=dtype), make(size, 2 * size, dtype=dtype)
            kernels.sum_squares(pairs[1])
            kernels.gram(pairs[1])
            kernels.normal_apply(pairs[0], make(6, size, dtype=dtype))
            tall = make(64 + size, size, dtype=dtype)
            kernels.tall_triangle(tall)
            kernels.tall_gram(tall)
            basis = make(size, max(1, size // 2), dtype=dtype)
            kernels.tall_product(tall, basis, residual=True, out=make(64 + size, max(1, size // 2), dtype=dtype))
            codes = guarded(rng.integers(0, 8, len(tall)).astype(np.int64), side)
            kernels.row_sketch(tall, codes, 4)
            knots = guarded(np.concatenate([[0.0] * 3, np.linspace(0, 1, 6), [1.0] * 3]).astype(dtype), side)
            points = guarded(rng.uniform(-0.1, 1.1, size).astype(dtype), side)
            kernels.spline_basis(points, knots, 3)
            for p in (1, 2, 3, 4, 8, 16):
                check_tubes(make, dtype, p, size)
        check_tubes(make, dtype, 4, 33, rows=2100)  # large enough that its pages are called in one go


def check_tubes(make, dtype, p, size, rows=5):
    """The kernels on tubes: every argument at the edge of its pages."""
    there, back, x = make(p, p, dtype=dtype), make(p, p, dtype=dtype), make(rows, p * size, dtype=dtype)
    faces, bias = make(p, size, size + 1, dtype=dtype), make(p * (size + 1), dtype=dtype)
    for last in (True, False):
        kernels.tube_faces(x, there, last=last, out=make(p * rows, size, dtype=dtype))
        out = make(rows, p * (size + 1), dtype=dtype)
        kernels.facewise_product(x, faces, there, back, None if last else bias, last=last, out=out)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mprotect"), reason="needs mprotect")
@pytest.mark.skipif(_dispatch.active() != "cpp", reason="needs the compiled kernels")
@pytest.mark.parametrize("build", [f"v{isa}" for isa in (2, 3, 4) if isa <= _cpu.level()] or [""])
@pytest.mark.parametrize("side", SIDES)
def test_no_kernel_leaves_its_inputs(side, build):
    environment = {**os.environ, "TENSORFACT_ISA": build}
    found = subprocess.run([sys.executable, __file__, side], env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-2000:] or f"killed by signal {-found.returncode}"


def test_the_guard_guards():
    """A read beyond the end does kill: otherwise the test above could not fail."""
    code = f"import sys; sys.argv[1:] = ['touch']; exec(open({__file__!r}).read())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode < 0


if __name__ == "__main__":
    if sys.argv[1] == "touch":
        edge = guarded(np.ones(3), "end")
        print(ctypes.string_at(edge.ctypes.data, edge.nbytes + 1))
    else:
        check(sys.argv[1])
