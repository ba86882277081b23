# SPDX-License-Identifier: Apache-2.0
"""torch.ops.pagedserve: schemas that tell the truth, fake kernels, and functions that compile as one graph."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pagedserve import ops
from pagedserve.errors import InvalidInput
from pagedserve.ops import torch_ops
from pagedserve.ops.cases import make_inputs
from pagedserve.specs import SPECS, TensorSpec
from tests.ops.agreement import copied


def small_case(spec):
    """The case that uses most of an op's tensors, with short sequences."""
    case = max(spec.cases(), key=lambda case: len(make_inputs(spec.name, case)))
    return replace(case, lens=case.lens[:3], q_lens=case.q_lens[:3]) if case.lens else case


CASES = {name: small_case(spec) for name, spec in SPECS.items()}
every_op = pytest.mark.parametrize("op", SPECS)


def torch_arguments(op, monkeypatch):
    """What the function hands to the torch op while tracing, outputs zeroed."""
    seen = []
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(torch.ops.pagedserve, op, lambda *arguments: seen.extend(arguments), raising=False)
    call = make_inputs(op, CASES[op])
    getattr(ops, op)(**call)
    monkeypatch.undo()
    names = [argument.name for argument in getattr(torch.ops.pagedserve, op).default._schema.arguments]
    made = {entry.name for entry in SPECS[op].tensors if isinstance(entry, TensorSpec) and entry.made} - call.keys()
    return [
        value.zero_() if name in made and value is not None else value for name, value in zip(names, seen, strict=True)
    ]


@every_op
def test_schema_fake_kernel_and_mutation_hold(op, monkeypatch):
    arguments = torch_arguments(op, monkeypatch)
    torch.library.opcheck(getattr(torch.ops.pagedserve, op).default, tuple(arguments))


@every_op
def test_schema_declares_what_the_spec_says_is_written(op):
    schema = getattr(torch.ops.pagedserve, op).default._schema
    written = {argument.name for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write}
    assert written == {entry.name for entry in SPECS[op].tensors if isinstance(entry, TensorSpec) and entry.mutated}
    assert not schema.returns
    assert torch_ops.schema(SPECS[op]).endswith("str backend) -> ()")


@every_op
@pytest.mark.parametrize("dynamic", [False, True])
def test_function_compiles_as_one_graph(op, dynamic):
    torch.compiler.reset()
    call = make_inputs(op, CASES[op])
    function = getattr(ops, op)

    def plain(arguments):
        return function(**arguments)

    eager, compiled = copied(call), copied(call)
    want = plain(eager)
    got = torch.compile(plain, fullgraph=True, backend="aot_eager", dynamic=dynamic)(compiled)
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    for name, value in eager.items():
        if isinstance(value, Tensor) and value.dtype != torch.float8_e4m3fn:
            torch.testing.assert_close(compiled[name], value, rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
def test_a_layer_compiles_with_inductor():
    """Ops among torch's own, writing views and pages in place."""
    torch.compiler.reset()
    heads, head_dim, hidden = 2, 16, 32
    projection = ops.Weight.from_dense(torch.randn(3 * hidden, hidden))
    norm, table = torch.rand(hidden) + 0.5, ops.rope_table(head_dim, 64)
    lens = torch.tensor([3], dtype=torch.int32)
    page_table = torch.tensor([[1]], dtype=torch.int32)

    def layer(x, k_pages, v_pages, positions, slots):
        qkv = ops.linear(ops.rms_norm(x, norm), projection)
        q, k, v = (part.unflatten(1, (heads, head_dim)) for part in qkv.chunk(3, dim=1))
        ops.rope(q, positions, table)
        ops.rope(k, positions, table)
        ops.append_kv(k, v, k_pages, v_pages, slots)
        o = ops.paged_prefill(q, k_pages, v_pages, page_table, lens, torch.tensor([0, 3], dtype=torch.int32))
        return torch.relu(o.flatten(1)) + x

    def inputs():
        torch.manual_seed(0)
        pages = torch.zeros(2, 2, 4, heads, head_dim)
        return torch.randn(3, hidden), pages[0], pages[1], torch.arange(3, dtype=torch.int32), torch.arange(4, 7)

    ours, theirs = inputs(), inputs()
    got = torch.compile(layer, fullgraph=True)(*ours)
    torch.testing.assert_close(got, layer(*theirs))
    torch.testing.assert_close(ours[1], theirs[1])


def test_a_fake_tensor_goes_to_the_fake_kernel():
    with FakeTensorMode():
        assert ops.rms_norm(torch.empty(2, 64), torch.empty(64)).shape == (2, 64)
    assert ops.rms_norm(torch.empty(2, 64, device="meta"), torch.empty(64, device="meta")).shape == (2, 64)


def test_a_transform_without_a_rule_for_the_op_is_said_and_not_run():
    """Its tensors have no memory; a kernel that took them would read address 0."""
    x = torch.randn(3, 2, 64)
    for transform in (torch.func.functionalize, torch.vmap):
        with pytest.raises(RuntimeError, match="pagedserve::rms_norm"):
            transform(lambda row: ops.rms_norm(row, torch.ones(64)))(x)


def test_a_freed_storage_is_refused():
    call = make_inputs("paged_decode", next(iter(SPECS["paged_decode"].cases())))
    for name in ("q", "kv_lens"):
        freed = call[name].clone()
        freed.untyped_storage().resize_(0)
        with pytest.raises(InvalidInput, match=f"{name} has no memory to compute on"):
            ops.paged_decode(**call | {name: freed})


def test_an_output_may_be_the_input():
    torch.compiler.reset()
    x, weight = torch.randn(3, 8), torch.rand(8)
    want = ops.rms_norm(x, weight)
    compiled = torch.compile(lambda x: ops.rms_norm(x, weight, out=x) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), want + 1)
    assert torch.equal(x, want)


def test_an_output_may_be_columns_of_a_buffer():
    torch.compiler.reset()
    gate_up = torch.randn(3, 16)

    def plain(buffer):
        ops.silu_mul(gate_up, out=buffer[:, 4:12])
        return buffer * 2

    ours, theirs = torch.zeros(3, 16), torch.zeros(3, 16)
    assert torch.equal(torch.compile(plain, fullgraph=True, backend="aot_eager")(ours), plain(theirs))
    assert torch.equal(ours, theirs)


def test_values_are_checked_when_the_compiled_call_runs():
    torch.compiler.reset()
    compiled = torch.compile(lambda x, rows: ops.take_rows(x, rows), fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3)
    assert torch.equal(compiled(x, torch.tensor([3], dtype=torch.int32)), x[3:])
    with pytest.raises(InvalidInput, match="rows holds 4"):
        compiled(x, torch.tensor([4], dtype=torch.int32))
