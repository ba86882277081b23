# SPDX-License-Identifier: Apache-2.0
"""Importing pagedserve is quick and takes nothing along that was not asked for."""

import json
import subprocess
import sys

import pytest

OPTIONAL = {"tokenizers", "safetensors", "gguf", "jinja2", "rich", "matplotlib", "transformers", "triton", "pytest"}

# Imports torch first, so that its own time does not count; prints seconds and what came along.
PROGRAM = """
import json, sys, time
import torch
before = set(sys.modules)
start = time.perf_counter()
import pagedserve
import pagedserve.ops
seconds = time.perf_counter() - start
print(json.dumps([seconds, sorted(set(sys.modules) - before)]))
"""


@pytest.fixture(scope="module")
def fresh_imports() -> list[tuple[float, list[str]]]:
    """Seconds beyond torch's and the modules that came along, of a few new processes."""
    command = [sys.executable, "-c", PROGRAM]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2)]
    return [json.loads(run.stdout) for run in runs]


def test_import_is_quick(fresh_imports):
    assert min(seconds for seconds, _ in fresh_imports) <= 0.3


def test_import_takes_no_optional_dependency(fresh_imports):
    assert not {name.split(".")[0] for name in fresh_imports[0][1]} & OPTIONAL


def test_a_backend_is_loaded_when_it_is_used(fresh_imports):
    assert not [name for name in fresh_imports[0][1] if name.startswith("pagedserve.backends.")]


def test_specs_and_scheduling_need_no_torch():
    program = "import sys, pagedserve.specs, pagedserve.scheduling.events; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
