"""``python -m tensorfact``: versions, instruction set, BLAS, threads. The first thing to paste into a bug report."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec


def describe() -> dict[str, str]:
    """Collect what `python -m tensorfact` prints, in order."""
    from tensorfact.kernels import _dispatch

    facts = {
        "tensorfact": version("tensorfact"),
        "python": f"{platform.python_version()} ({sys.platform}, {platform.machine()})",
    }
    facts["kernels"] = _dispatch.active()
    try:
        from tensorfact import _core, _cpu
    except ImportError as error:
        facts["compiled module"] = f"missing: {error}"
    else:
        loaded = _dispatch.blas_loaded()
        facts["compiled module"] = f"{_core.__version__}, {_core.isa()} build, CPU level {_cpu.level()}"
        facts["SciPy's BLAS"] = f"{_core.blas_int_bits()}-bit integers" if loaded else "not usable, see the warning"
    facts["threads of our loops"] = str(_dispatch.get_num_threads())
    if find_spec("threadpoolctl"):
        from threadpoolctl import threadpool_info

        for pool in threadpool_info():
            name = f"{pool['internal_api']} {pool.get('version')}"
            facts.setdefault("threads of BLAS", "")
            facts["threads of BLAS"] += f"{'; ' if facts['threads of BLAS'] else ''}{name}: {pool['num_threads']}"
    for package in ("numpy", "scipy", "numba", "torch", "transformers", "safetensors"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts


if __name__ == "__main__":
    for name, value in describe().items():
        sys.stdout.write(f"{name + ':':<22} {value}\n")
