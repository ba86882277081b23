# SPDX-License-Identifier: Apache-2.0
"""What pip is given: a source distribution that builds, a wheel with its data. `make check` builds one whole."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TREE = ("csrc", "pagedserve", "tests", "bench")
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "constraints.txt", "Makefile")

if not sys.platform.startswith("linux"):
    pytest.skip("pagedserve builds on Linux", allow_module_level=True)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the sources, with nothing that a build left behind."""
    folder = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
    for name in TREE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file() and (path.name in FILES or path.suffix == ".md" or path.name == ".clang-format"):
            shutil.copy(path, folder / path.name)
    return folder


def setup_py(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=checkout,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_kernel_objects_leave_nothing_for_the_linker_to_choose(tmp_path):
    """A weak symbol of one instruction set's object could become the copy that every processor runs: isa.h."""
    objects = [path for path in (ROOT / "build").glob("objects-*/k*/**/*.o") if path.parent.name == "kernels"]
    if not objects or not (shutil.which("nm") and shutil.which("g++")):
        pytest.skip("needs the objects of a build here, nm and g++")
    assert weak_symbols(objects) == []
    source = tmp_path / "shared.cpp"
    source.write_text("inline int shared() { return 1; }\nint (*taken)() = shared;\n")
    subprocess.run(["g++", "-c", source.name], cwd=tmp_path, check=True)
    assert weak_symbols([tmp_path / "shared.o"]) == ["_Z6sharedv"]


def weak_symbols(objects: list[Path]) -> list[str]:
    listed = subprocess.run(["nm", "--defined-only", "-A", *objects], capture_output=True, text=True, check=True).stdout
    symbols = [line.rsplit(maxsplit=2)[1:] for line in listed.splitlines()]
    return [name for kind, name in symbols if kind in "uVvWw"]


def test_source_distribution_has_all_that_a_build_needs(checkout, tmp_path):
    done = setup_py(checkout, "-q", "sdist", "-d", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    needed = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    needed |= {str(path.relative_to(ROOT)) for path in (ROOT / "pagedserve").rglob("*.py*") if path.suffix != ".pyc"}
    assert needed | set(FILES) | {"pagedserve/py.typed"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc")) or name.startswith("build/")]


def test_wheel_has_type_information_and_every_package(checkout, tmp_path):
    done = setup_py(checkout, "-q", "build_py", "--build-lib", str(tmp_path))
    assert done.returncode == 0, done.stderr
    built = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    sources = {str(path.relative_to(ROOT)) for kind in ("*.py", "*.json") for path in (ROOT / "pagedserve").rglob(kind)}
    assert built == sources | {"pagedserve/py.typed", "pagedserve/_C.pyi", "pagedserve/_cuda.pyi"}


def test_the_extension_is_a_part_of_the_distribution(checkout):
    done = setup_py(checkout, "--quiet", "--name", "--version")
    assert done.stdout.split() == ["pagedserve", version()]
    extensions = "import setuptools; setuptools.setup = lambda **k: print(*(e.name for e in k['ext_modules']))\n"
    run = subprocess.run(
        [sys.executable, "-c", f"{extensions}__file__ = 'setup.py'\nexec(open('setup.py').read())"],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.stdout.split()[:1] == ["pagedserve._C"], run.stderr


def test_one_version():
    import pagedserve

    assert pagedserve.__version__ == version()


def version() -> str:
    return re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_no_compiler_is_one_sentence(checkout, compiler):
    done = setup_py(checkout, "-q", "build_ext", "--inplace", CXX=compiler, CC=compiler)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"pagedserve cannot be built here: `{compiler}` does not compile C++17 with OpenMP")
    assert "Traceback" not in done.stderr


def test_other_systems_are_refused_in_one_sentence(checkout):
    imports = "import sys, setuptools.command.build_ext, pybind11.setup_helpers; sys.platform = 'darwin'"
    code = f"{imports}; __file__ = 'setup.py'; exec(open('setup.py').read())"
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "it builds on Linux, and this is darwin" in done.stderr


def test_constraints_hold_every_dependency():
    """Each package that an extra asks for has a known-good version."""
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    text = (ROOT / "pyproject.toml").read_text()
    asked = set(
        re.findall(
            r'"([a-z][a-z0-9-]*)(?:[>=]=[^"]*)?"', text[text.index("dependencies =") : text.index("[project.scripts]")]
        )
    )
    assert {"torch", "numpy", "pytest", "ruff"} <= asked
    assert asked <= pinned
