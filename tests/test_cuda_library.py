# SPDX-License-Identifier: Apache-2.0
"""pagedserve._cuda as it was built: what it has, what it needs, and what it says where there is no driver."""

import ast
from pathlib import Path

import pytest
import torch

from pagedserve import _C
from pagedserve.backends import params
from pagedserve.backends.cuda_ops import CudaOps
from pagedserve.ops.cases import cases_for, make_inputs
from pagedserve.ops.registry import CUDA_OPS, TABLE
from pagedserve.specs import SPECS

_cuda = pytest.importorskip("pagedserve._cuda", reason="CUDA kernels are built where nvcc is", exc_type=ImportError)
STUB = Path(_C.__file__).parent / "_cuda.pyi"


def test_stubs_name_everything_in_the_library():
    names = set()
    for node in ast.parse(STUB.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    assert names == {name for name in dir(_cuda) if not name.startswith("_")}


def test_it_says_what_it_was_built_for():
    assert _cuda.architectures.split()
    assert _cuda.toolkit.count(".") == 2


def test_neither_torch_nor_a_driver_is_linked():
    """Names of the libraries that a library needs stand in it as text."""
    linked = Path(_cuda.__file__).read_bytes()
    for library in (b"libtorch", b"libc10", b"libcudart.so", b"libcuda.so.1\0lib"):
        assert library not in linked


@pytest.mark.parametrize("op", CUDA_OPS)
def test_every_op_has_its_launchers_and_fills_their_structs(op):
    """Every case of every op, up to the call of the launcher."""
    launched = []

    def launch(launcher, struct, fields, where):
        assert callable(getattr(_cuda, launcher))
        assert where.device.type == "cpu"
        launched.append(params.struct(getattr(_C, struct), fields))

    run = getattr(CudaOps(launch, lambda where: 132), op)
    spec = SPECS[op]
    plain = {scalar.name: scalar.default for scalar in spec.scalars}
    (row,) = (row for row in TABLE if (row.op, row.backend) == (op, "cuda"))
    for case in cases_for(row):
        arguments = plain | make_inputs(op, case)
        if op == "paged_decode":
            arguments["out"] = torch.empty_like(arguments["q"])
        before = len(launched)
        run(*(arguments.get(entry.name) for entry in (*spec.tensors, *spec.scalars)))
        assert len(launched) > before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which would run it")
def test_without_a_driver_a_call_says_so():
    page, ids = torch.zeros(64, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    call = params.struct(_C.CopyPagesParams, params.copy_pages(page[None], page[None], ids, ids))
    with pytest.raises(RuntimeError, match=r"CUDA error \d+ in copy_pages: .*(driver|device)"):
        _cuda.copy_pages(call, 0)
    assert not page.any()
