"""Rules of the house that a machine can check: import direction, docstrings, header purity, stub, version."""

from __future__ import annotations

import ast
import importlib
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
CORE = ROOT / "csrc" / "core"

# What each package may import from tensorfact, besides itself; "lazily" means inside functions only.
ALLOWED = {
    "_core": {"_cpu"},
    "kernels": {"_core", "_cpu"},
    "factor": {"kernels"},
    "torch": {"factor", "kernels"},
    "testing": {"factor", "kernels"},
    "compress": {"factor", "kernels"},
}
LAZILY = {"compress": {"torch"}}
# Third parties that only some packages may import at module level.
HOMES = {
    "torch": {"torch"},
    "transformers": set(),
    "safetensors": {"compress"},
    "numba": set(),
    "hypothesis": {"testing"},
}


def imports(tree, package):
    """Yield (module, lazy) for every import; those under `if TYPE_CHECKING` cost nothing and do not count."""

    def walk(node, lazy):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, lazy) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = ".".join(package[: len(package) - child.level + 1]) + "." if child.level else ""
                base = (base + (child.module or "")).strip(".")
                yield from ((f"{base}.{alias.name}" if base == "tensorfact" else base, lazy) for alias in child.names)
            yield from walk(child, lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    yield from walk(tree, False)


def violations(source):
    found = []
    for path in sorted(source.glob("tensorfact/*/**/*.py")):
        parts = path.relative_to(source).parts
        here = parts[1]
        for module, lazy in imports(ast.parse(path.read_text(encoding="utf-8")), parts[:-1]):
            names = module.split(".")
            if names[0] == "tensorfact" and len(names) > 1:
                allowed = ALLOWED[here] | {here} | (LAZILY.get(here, set()) if lazy else set())
                wrong = (source / "tensorfact" / names[1]).is_dir() and names[1] not in allowed
            else:
                wrong = names[0] in HOMES and not lazy and here not in HOMES[names[0]]
            if wrong:
                found.append(f"{'/'.join(parts)} imports {module}{' lazily' if lazy else ''}")
    return found


def test_imports_point_left():
    assert sum(1 for _ in SOURCE.glob("tensorfact/*/**/*.py")) > 5, "the sources were not found"
    assert violations(SOURCE) == []


@pytest.mark.parametrize(
    ("package", "text", "found"),
    [
        ("kernels", "from tensorfact.factor import x", True),
        ("kernels", "from tensorfact import factor", True),
        ("kernels", "from ..factor import x", True),
        ("kernels", "def f():\n    import tensorfact.compress", True),
        ("kernels", "import numba", True),
        ("kernels", "def f():\n    import numba", False),
        ("factor", "import torch.nn", True),
        ("factor", "from tensorfact.kernels import gram", False),
        ("torch", "def f():\n    from tensorfact.compress import load", True),
        ("compress", "from tensorfact.torch import LowRankLinear", True),
        ("compress", "def f():\n    from tensorfact.torch import LowRankLinear", False),
        ("compress", "if TYPE_CHECKING:\n    import torch", False),
    ],
)
def test_planted_imports_are_caught(tmp_path, package, text, found):
    for name in ALLOWED:
        (tmp_path / "tensorfact" / name).mkdir(parents=True)
    (tmp_path / "tensorfact" / package / "planted.py").write_text(text)
    assert bool(violations(tmp_path)) == found


@pytest.mark.parametrize("name", ["tensorfact", "tensorfact.kernels"])
def test_public_names_exist_and_have_docstrings(name):
    module = importlib.import_module(name)
    assert module.__doc__
    for public in module.__all__:
        value = getattr(module, public)
        assert public.startswith("__") or value.__doc__, f"{name}.{public} has no docstring"


def test_functions_of_kernels_show_an_example():
    kernels = importlib.import_module("tensorfact.kernels")
    for name in ("sum_squares", "normal_apply", "gram", "cholesky_qr"):
        assert "Examples\n" in getattr(kernels, name).__doc__


def test_version_is_the_same_everywhere():
    import tensorfact
    from tensorfact import _core

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert tensorfact.__version__ == _core.__version__ == declared


COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")


def compile_alone(header):
    """Compile one header on the standard include path only, where there is neither Python nor pybind11."""
    flags = ["-std=c++20", "-fsyntax-only", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"]
    unit = f'#include "{header}"\n'
    env = {k: v for k, v in os.environ.items() if "INCLUDE_PATH" not in k and k != "CPATH"}
    return subprocess.run(
        [COMPILER, *flags, "-x", "c++", "-"], input=unit, capture_output=True, text=True, env=env, check=False
    )


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_core_headers_are_self_contained_and_free_of_python(tmp_path):
    headers = sorted(CORE.glob("*.hpp"))
    assert len(headers) >= 6
    for header in headers:
        result = compile_alone(header)
        assert result.returncode == 0, result.stderr
    for number, line in enumerate(["#include <pybind11/pybind11.h>", "inline std::vector<int> f();"]):
        planted = tmp_path / f"planted{number}.hpp"
        planted.write_text(f"#pragma once\n{line}\n")
        assert compile_alone(planted).returncode != 0, f"{line} was not caught"


def test_core_neither_prints_nor_reads_the_environment_nor_draws():
    for header in CORE.glob("*.hpp"):
        text = header.read_text()
        for word in ("Python.h", "pybind11/", "<iostream>", "printf", "getenv", "<random>"):
            assert word not in text, f"{header.name} uses {word}"


def test_stub_matches_the_compiled_module(tmp_path):
    pytest.importorskip("mypy")
    # Beside an empty parent: mypy would follow the real one into SciPy and torch.
    (tmp_path / "tensorfact" / "_core").mkdir(parents=True)
    (tmp_path / "tensorfact" / "__init__.pyi").touch()
    for stub in ("_core/__init__.pyi", "_cpu.pyi"):
        shutil.copy(SOURCE / "tensorfact" / stub, tmp_path / "tensorfact" / stub)
    result = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "tensorfact._core", "tensorfact._cpu"],
        capture_output=True,
        text=True,
        env={**os.environ, "MYPYPATH": str(tmp_path)},
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
