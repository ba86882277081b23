# SPDX-License-Identifier: Apache-2.0
"""The house's rules, read off the sources: who may import whom, who may include what, and how long a file may be."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pagedserve"
ANY = {"*"}

# Beside itself, the standard library, errors, settings and memory.
MAY_IMPORT = {
    "errors": set(),
    "settings": set(),
    "memory": {"torch"},
    "scheduling": set(),
    "eventlog": {"scheduling"},
    "specs": set(),
    "backends": {"specs", "_C", "_cuda", "emulate", "torch", "numpy", "triton"},
    "ops": {"specs", "torch", "numpy"},
    "cache": {"ops", "torch"},
    "models": {"ops", "cache", "torch", "numpy", "tokenizers", "safetensors", "jinja2"},
    "engine": {"scheduling", "eventlog", "cache", "models", "ops", "torch", "numpy", "prometheus_client"},
    "emulate": {"ops", "specs", "torch", "numpy"},
    "simulate": {"scheduling", "eventlog", "specs"},
    "cli": ANY,
    "__init__": ANY,
    "__main__": ANY,
}


def modules(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def imports(tree: ast.AST, module: list[str]) -> Iterator[tuple[int, str]]:
    """Every import of a module, lazy and relative ones and import_module("literal") too: line, dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module[: len(module) - node.level] if node.level else []
            dotted = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            # "from pagedserve import ops" imports pagedserve.ops
            yield from ((node.lineno, f"{dotted}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names = [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
            yield from ((node.lineno, str(name)) for name in names)


def layer(dotted: str) -> str:
    """The row of MAY_IMPORT that a module of pagedserve belongs to."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def backend(dotted: str) -> str:
    """ "reference" or "cpu", of pagedserve.backends.reference.cache or pagedserve.backends.cpu_step."""
    parts = dotted.split(".")
    return parts[2].split("_")[0] if len(parts) > 2 else ""


def allowed(own: str, wanted: str, top: str) -> bool:
    everybody = wanted in (own, "errors", "settings", "memory", "__version__")
    standard = top != "pagedserve" and top in sys.stdlib_module_names
    return everybody or standard or MAY_IMPORT[own] == ANY or wanted in MAY_IMPORT[own]


def violations(source: str, dotted: str) -> list[str]:
    """What a module may not import, of source standing at pagedserve's dotted name."""
    own = layer(dotted)
    found = []
    package = dotted.split(".")
    for line, name in imports(ast.parse(source), package):
        top = name.split(".")[0]
        wanted = layer(name) if top == "pagedserve" else top
        if top in ("bench", "tests"):
            found.append(f"{dotted}:{line} imports {name}: nothing imports bench or tests")
        elif top == "pagedserve" and wanted == "backends" and own == "backends":
            if backend(name) not in (backend(dotted), "params", "operands"):
                found.append(f"{dotted}:{line} imports {name}: backends never meet")
        elif not allowed(own, wanted, top):
            found.append(f"{dotted}:{line} imports {name}: {own} may import {', '.join(sorted(MAY_IMPORT[own]))}")
    return found


def dotted_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", modules(PACKAGE), ids=dotted_name)
def test_imports_keep_to_the_rule(path):
    assert violations(path.read_text(encoding="utf-8"), dotted_name(path)) == []


@pytest.mark.parametrize(
    "dotted, source",
    [
        ("pagedserve.scheduling.pages", "import torch"),
        ("pagedserve.specs.cache", "def f():\n    import torch"),
        ("pagedserve.ops.cache", "from pagedserve.backends import cpu"),
        ("pagedserve.ops.cache", "import importlib\nimportlib.import_module('pagedserve.backends.cpu')"),
        ("pagedserve.ops.cache", "from ..models import config"),
        ("pagedserve.backends.cpu", "from pagedserve.backends.reference import linear"),
        ("pagedserve.backends.cpu", "from pagedserve import ops"),
        ("pagedserve.backends.params", "from pagedserve.backends import cpu"),
        ("pagedserve.cache.pool", "from pagedserve.engine import batch"),
        ("pagedserve.cli", "import bench"),
        ("pagedserve.engine.engine", "import vllm"),
        ("pagedserve.simulate.cost", "from pagedserve import engine"),
    ],
)
def test_planted_imports_are_found(dotted, source):
    assert len(violations(source, dotted)) == 1


INCLUDE = re.compile(r'^\s*#\s*include\s+(?:"([^"]+)"|<([^>]+)>)', re.MULTILINE)
FOREIGN = re.compile(r"^(torch|ATen|c10|pybind11|Python\.h|cuda)")


# Beside the own folder and the standard library. A name with a dot is one file.
MAY_INCLUDE = {
    "target": set(),
    "parts": {"target"},
    "kernels": {"params.h", "parts", "target"},
    "launch": {"params.h", "kernels", "parts", "target", "plan"},
    "plan": {"params.h", "kernels", "parts", "target"},
    "cpu": {"params.h"},
    "bind": {"params.h", "cpu", "launch", "plan"},
}
TOOLKIT = {"target", "bind"}  # may include the CUDA toolkit's headers


def include_violations(text: str, path: Path) -> list[str]:
    """What a C++ file may not include, of text standing at path."""
    csrc = ROOT / "csrc"
    own = path.relative_to(csrc).parts[0] if csrc in path.parents else "tests"
    found = []
    for quoted, angled in INCLUDE.findall(text):
        if quoted:
            target = (path.parent / quoted).resolve()
            wanted = target.relative_to(csrc).parts[0] if csrc in target.parents else "tests"
            if wanted != own and own in MAY_INCLUDE and wanted not in MAY_INCLUDE[own]:
                found.append(f"{path.name} includes {quoted}")
        elif FOREIGN.match(angled):
            own_toolkit = angled.startswith("cuda") and own in TOOLKIT
            if not own_toolkit and not (angled.startswith("pybind11") and own == "bind"):
                found.append(f"{path.name} includes <{angled}>")
    return found


CPP_SUFFIXES = (".h", ".cpp", ".cuh", ".cu")
CPP = sorted(
    path for path in (ROOT / "csrc").rglob("*") if path.suffix in CPP_SUFFIXES and path != ROOT / "csrc/params.h"
)


@pytest.mark.parametrize("path", CPP, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_includes_keep_to_the_rule(path):
    assert include_violations(path.read_text(encoding="utf-8"), path) == []


def test_planted_includes_are_found():
    csrc = ROOT / "csrc"
    cpu, bind, target, kernel = (csrc / f"{name}/planted.h" for name in ("cpu", "bind", "target", "kernels/attention"))
    assert include_violations("#include <torch/extension.h>", bind)
    assert include_violations("#include <pybind11/pybind11.h>", cpu)
    assert include_violations('#include "../bind/bind.h"', cpu)
    assert include_violations("#include <cuda_bf16.h>", kernel)
    assert include_violations('#include "../params.h"', target)
    assert include_violations('#include "../../launch/launch.h"', kernel)
    assert not include_violations('#include <vector>\n#include "../params.h"\n#include "isa.h"', cpu)
    assert not include_violations('#include "../../params.h"\n#include "../../target/target.cuh"', kernel)
    assert not include_violations("#include <cuda_runtime.h>", target)


SOURCES = sorted(
    path
    for folder in ("pagedserve", "csrc", "tests", "bench")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".pyi", *CPP_SUFFIXES) and "__pycache__" not in path.parts
) + [ROOT / "setup.py"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_source_is_short_and_says_its_licence(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    kernels = (ROOT / "csrc/cpu/kernels", ROOT / "csrc/kernels", ROOT / "csrc/target")
    limit = 600 if any(folder in path.parents for folder in kernels) else 400
    assert len(lines) <= limit
    assert lines[0] in ("# SPDX-License-Identifier: Apache-2.0", "// SPDX-License-Identifier: Apache-2.0")
    assert max(map(len, lines)) <= 120


def code_lines(source: str) -> int:
    """Lines that hold code: no blank ones, comments or docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, documented) and ast.get_docstring(node) is not None
        for line in range(node.body[0].lineno, node.body[0].end_lineno + 1)
    }
    lines = enumerate(source.splitlines(), start=1)
    return sum(bool(text.split("#")[0].strip()) and line not in docstrings for line, text in lines)


def test_the_scheduler_stays_small():
    sources = [path.read_text(encoding="utf-8") for path in modules(PACKAGE / "scheduling")]
    assert sum(map(code_lines, sources)) <= 1500
