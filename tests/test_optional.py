"""Optional stays optional: what `import tensorfact` loads; life without Numba, the compiled module or usable BLAS."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def run(code, **env):
    """Run code in a fresh interpreter with warnings as errors; returns its output."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TENSORFACT_")}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env={**clean, **env}, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_import_loads_no_heavy_optional_package():
    heavy = ["torch", "numba", "transformers", "safetensors", "hypothesis", "dask", "tqdm", "sklearn"]
    loaded = run(f"import tensorfact, sys; print([m for m in {heavy} if m in sys.modules])")
    assert loaded == "[]"


def test_kernels_work_without_importing_numba():
    code = "import tensorfact.kernels as k, sys; print(k.gram([[2.0]])[0, 0], k.active(), 'numba' in sys.modules)"
    assert run(code) == "4.0 cpp False"


def test_numba_is_imported_when_chosen():
    pytest.importorskip("numba")
    code = "import tensorfact.kernels as k, sys; print('numba' in sys.modules); k.sum_squares([[1.0]]); import numba"
    code += "; print(type(k.dense._sum_squares._jitted).__module__)"
    assert run(code, TENSORFACT_KERNELS="numba").split("\n") == ["False", "numba.core.registry"]


HIDE = """
import sys
from importlib.abc import MetaPathFinder
class Hide(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in {hidden}: raise ModuleNotFoundError(f"hidden: {{name}}", name=name)
sys.meta_path.insert(0, Hide())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {hidden} else real(name, package)
"""
LITTLE = "import tensorfact.kernels as k; print(k.active(), k.sum_squares([[3.0, 4.0]]))"
USE = """
import tensorfact.kernels as k
q, r, spread = k.cholesky_qr([[3.0], [4.0]])
print(k.active(), k.sum_squares([[3.0, 4.0]]), k.gram([[2.0]])[0, 0], k.normal_apply([[2.0]], [[1.0]])[0, 0], r[0, 0])
"""


def use_and_check(rung, before="", **env):
    if rung == "numba":  # compiling all of them takes long, and tests/kernels does
        assert run(before + LITTLE, **env) == "numba 25.0"
    else:
        assert run(before + USE, **env) == f"{rung} 25.0 4.0 4.0 5.0"


@pytest.mark.parametrize(
    ("hidden", "rung"),
    [
        (["tensorfact._core"], "numba"),
        (["numba"], "cpp"),
        (["tensorfact._core", "numba"], "python"),
    ],
)
def test_kernels_without_their_optional_parts(hidden, rung):
    if rung == "numba":
        pytest.importorskip("numba")
    use_and_check(rung, HIDE.format(hidden=hidden))


@pytest.mark.parametrize(
    ("forced", "hidden", "message"),
    [
        (
            "cpp",
            "tensorfact._core",
            "TENSORFACT_KERNELS is cpp, but the compiled module of tensorfact cannot be imported",
        ),
        ("numba", "numba", "TENSORFACT_KERNELS is numba, but Numba is not installed"),
        ("fortran", "nothing", "TENSORFACT_KERNELS must be one of cpp, numba, python, got 'fortran'"),
    ],
)
def test_a_forced_rung_that_is_missing_is_an_error(forced, hidden, message):
    code = (
        HIDE.format(hidden=[hidden])
        + "try:\n    import tensorfact.kernels\nexcept (ImportError, ValueError) as e:\n    print(e)"
    )
    assert run(code, TENSORFACT_KERNELS=forced) == message


@pytest.mark.parametrize("rung", ["python", "numba", "cpp"])
def test_environment_forces_a_rung(rung):
    if rung == "numba":
        pytest.importorskip("numba")
    use_and_check(rung, TENSORFACT_KERNELS=rung)


def test_environment_forces_an_instruction_set():
    from tensorfact import _cpu

    if _cpu.level() < 2:
        pytest.skip("only x86-64 has several builds")
    assert run("from tensorfact import _core; print(_core.isa())", TENSORFACT_ISA="v2") == "v2"
    best = run("from tensorfact import _core; print(_core.isa())")
    assert best == f"v{min(_cpu.level(), 4)}"
    wrong = "try:\n    from tensorfact import _core\nexcept ImportError as e:\n    print(e)"
    assert run(wrong, TENSORFACT_ISA="v9") == "TENSORFACT_ISA must be one of v2, v3, v4, got 'v9'"


def test_python_dash_m_describes_the_installation():
    result = subprocess.run([sys.executable, "-m", "tensorfact"], capture_output=True, text=True, check=True)
    for word in ("tensorfact:", "kernels:", "compiled module:", "SciPy's BLAS:", "threads of our loops:", "numpy:"):
        assert word in result.stdout


# SciPy's capsules as crafted ones see them: the loader must refuse, never crash.
CAPSULES = """
import ctypes, warnings
from scipy.linalg import cython_blas, cython_lapack
api = ctypes.pythonapi
def prototype(function, result, *arguments):
    function.restype, function.argtypes = result, arguments
prototype(api.PyCapsule_GetName, ctypes.c_char_p, ctypes.py_object)
prototype(api.PyCapsule_GetPointer, ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
prototype(api.PyCapsule_New, ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
noop = ctypes.CFUNCTYPE(None)(lambda: None)
nothing = ctypes.cast(noop, ctypes.c_void_p).value
keep = []
def craft(item, change, pointer=None):
    name = api.PyCapsule_GetName(item)
    keep.append(change(name))
    return api.PyCapsule_New(pointer or api.PyCapsule_GetPointer(item, name), keep[-1], None)
blas, lapack = dict(cython_blas.__pyx_capi__), dict(cython_lapack.__pyx_capi__)
"""


CHANGES = {
    "short integers": (
        "blas",
        "dgemm",
        "craft(item, lambda s: s.replace(b'int *', b'short *'))",
        "an unexpected signature",
    ),
    "a result": ("blas", "cherk", "craft(item, lambda s: s.replace(b'void', b'int', 1))", "an unexpected signature"),
    "fewer arguments": (
        "lapack",
        "spotrf",
        "craft(item, lambda s: b'void (char *, int *)')",
        "an unexpected signature",
    ),
    "no signature": ("lapack", "spotrf", "craft(item, lambda s: b'nonsense')", "an unexpected signature"),
    "absent": ("blas", "strmm", None, "strmm is missing"),
    "no capsule": ("blas", "strmm", "3", "strmm is not a capsule"),
    "no width": ("lapack", "dpotrf", "craft(item, lambda s: s, nothing)", "dpotrf answers the width probe with"),
    "wrong results": ("blas", "sgemm", "craft(item, lambda s: s, nothing)", "give wrong results for float32"),
}


@pytest.mark.parametrize(("table", "name", "change", "message"), CHANGES.values(), ids=CHANGES)
def test_a_strange_blas_ends_on_the_python_kernels_with_one_warning(table, name, change, message):
    change = f"item = {table}.pop('{name}')" + (f"; {table}['{name}'] = {change}" if change else "")
    code = f"""{CAPSULES}
{change}
import types
import scipy.linalg
fake = lambda capi: types.SimpleNamespace(__pyx_capi__=capi)
scipy.linalg.cython_blas, scipy.linalg.cython_lapack = fake(blas), fake(lapack)
import tensorfact.kernels as k
from tensorfact import _core
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    values = [f([[2.0]], *x).item() for f, x in ((k.gram, ()), (k.normal_apply, ([[1.0]],)), (k.gram, ()))]
    values.append(k.cholesky_qr([[3.0], [4.0]])[2])
print(values, len(seen), _core.blas_int_bits())
print(seen[0].category.__name__, seen[0].message)
"""
    first, second = run(code).split("\n")
    assert first == "[4.0, 4.0, 4.0, 1.0] 1 0"
    assert second.startswith("RuntimeWarning tensorfact cannot use SciPy's BLAS")
    assert message in second


def test_other_spellings_of_the_same_signature_are_accepted():
    code = f"""{CAPSULES}
spell = lambda s: s.replace(b"int *", b"__pyx_t_5scipy_6linalg_11cython_blas_blas_int *")
blas = {{n: craft(c, spell) for n, c in blas.items()}}
from tensorfact import _core
_core.load_blas(blas, lapack)
print(_core.blas_int_bits())
"""
    assert run(code) in ("32", "64")


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("void (char *, int *, __pyx_t_5scipy_6linalg_11cython_blas_d *, __pyx_t_float_complex *)", "hIdc"),
        ("void (char *, int64_t *, double *, __pyx_t_double_complex *, float *)", "hIdzs"),
        ("void (char *, long double *)", "h?"),
        ("int (char *)", "?"),
        ("void", "?"),
        ("", "?"),
        ("void )(", "?"),
    ],
)
def test_signatures_are_parsed(text, codes):
    from tensorfact import _core

    assert _core.parse_signature(text) == codes
