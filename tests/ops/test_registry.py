# SPDX-License-Identifier: Apache-2.0
"""The table, the choice from it, and the explanation of a choice."""

import importlib.util
from dataclasses import fields

import pytest
import torch

from pagedserve import ops, specs
from pagedserve.backends.operands import OPERANDS, operand_names
from pagedserve.errors import BackendUnavailable, InvalidInput
from pagedserve.ops import registry
from pagedserve.ops.cases import make_inputs
from pagedserve.ops.registry import Call, Requirement, Row
from pagedserve.specs import SPECS

PLAIN = Call("rms_norm", "cpu", ("float32",))


@pytest.fixture
def table(monkeypatch):
    """Puts rows in the table's place."""

    def use(*rows):
        monkeypatch.setattr(registry, "TABLE", rows)
        for function in (registry.rows_of, registry.choose):
            function.cache_clear()

    yield use
    monkeypatch.undo()
    for function in (registry.rows_of, registry.choose):
        function.cache_clear()


REFERENCE = Row("rms_norm", "reference", "pagedserve.backends.reference.fused")
PICKY = Row("rms_norm", "picky", REFERENCE.module, Requirement(("tpu",), {"x": ("float16",)}))


@pytest.mark.parametrize("op", SPECS)
def test_every_op_has_its_definition_last_and_a_public_function(op):
    assert ops.backends_of(op)[-1] == "reference"
    assert callable(getattr(ops, op))


NEEDS = {"triton": "triton", "triton-interpreted": "triton", "cuda": "pagedserve._cuda"}


def with_its_needs(row):
    wanted = NEEDS.get(row.backend)
    missing = wanted is not None and importlib.util.find_spec(wanted) is None
    skip = pytest.mark.skipif(missing, reason=f"{wanted} is not installed")
    return pytest.param(row, id=f"{row.op}-{row.backend}", marks=skip)


@pytest.mark.parametrize("row", [with_its_needs(row) for row in registry.TABLE])
def test_every_row_can_be_loaded_and_takes_the_specs_arguments(row):
    function = registry._load(row.module, row.op)
    names = list(function.__annotations__)
    names.remove("return")
    spec = SPECS[row.op]
    wanted = [entry.name for entry in (*spec.tensors, *spec.scalars)]
    assert names == (["operands"] if row.op in OPERANDS else wanted)


def test_what_is_given_as_one_value_has_the_specs_arguments():
    held = {kind: {field.name for field in fields(kind)} for kind in OPERANDS.values()}
    wanted = {kind: set() for kind in OPERANDS.values()}
    for op, kind in OPERANDS.items():
        wanted[kind] |= set(operand_names(op))
    assert held == wanted


def test_an_operand_too_few_is_no_call():
    with pytest.raises(ValueError):
        OPERANDS["append_kv"].of("append_kv", None, None)


def test_auto_takes_the_first_that_can(table):
    table(PICKY, REFERENCE)
    assert registry.choose(PLAIN, "auto").__module__ == REFERENCE.module
    half = Call("rms_norm", "tpu", ("float16",))
    assert registry.refusals(PICKY, half) == []


def test_a_named_backend_never_falls_back(table):
    table(PICKY, REFERENCE)
    with pytest.raises(BackendUnavailable) as caught:
        registry.choose(PLAIN, "picky")
    message = str(caught.value)
    for word in ("'picky'", "cpu", "tpu", "float32", "float16", "Backends that can: reference"):
        assert word in message


def test_what_a_backend_lacks_is_said(table):
    row = Row("paged_decode", "plain", "pagedserve.backends.reference.attention", Requirement(lacks=("sinks",)))
    table(row)
    call = Call("paged_decode", "cpu", ("float32", "float32"), ("sinks", "window"))
    assert registry.refusals(row, call) == ["it lacks sinks"]
    with pytest.raises(BackendUnavailable, match="lacks sinks"):
        registry.choose(call, "auto")


def test_a_backend_that_cannot_be_imported_is_passed_over(table):
    broken = Row("rms_norm", "broken", "pagedserve.backends.not_there")
    table(broken, REFERENCE)
    assert registry.choose(PLAIN, "auto").__module__ == REFERENCE.module
    with pytest.raises(BackendUnavailable, match="cannot be imported"):
        registry.choose(PLAIN, "broken")


def test_names_that_do_not_exist_are_answered_with_those_that_do():
    with pytest.raises(InvalidInput, match=r"paged_decode"):
        ops.backends_of("paged_attention")
    with pytest.raises(InvalidInput, match="reference"):
        ops.rms_norm(torch.zeros(1, 8), torch.ones(8), backend="triton2")


@pytest.mark.parametrize("op", SPECS)
def test_explain_says_who_why_and_how_much(op):
    for case in SPECS[op].cases():
        call = make_inputs(op, case)
        told = ops.explain(op, call)
        assert told.backend == ops.backends_of(op)[0]
        assert told.bytes >= 0
        assert told.flops >= 0
        assert str(told).startswith(f"{op}: {told.backend}")
        assert f"{told.bytes:,} bytes" in str(told)


def test_explain_counts_a_decode():
    case = specs.Case(
        "one", {"num_q_heads": 4, "num_kv_heads": 2, "head_dim": 8, "page_size": 4}, lens=(5, 0, 3), q_lens=(1, 1, 1)
    )
    told = ops.explain("paged_decode", make_inputs("paged_decode", case))
    assert told.flops == 4 * 4 * 8 * (5 + 3)
    assert told.bytes == 2 * 8 * 2 * 8 * 4 + 2 * 3 * 4 * 8 * 4


@pytest.mark.parametrize("kv_len, q_len, pairs", [(5, 5, 15), (5, 2, 9), (2, 5, 3), (0, 3, 0)])
def test_explain_counts_visible_pairs(kv_len, q_len, pairs):
    case = specs.Case(
        "one", {"num_q_heads": 1, "num_kv_heads": 1, "head_dim": 8, "page_size": 4}, lens=(kv_len,), q_lens=(q_len,)
    )
    told = ops.explain("paged_prefill", make_inputs("paged_prefill", case))
    assert told.flops == 4 * 8 * pairs


def test_a_sample_without_history_is_explained_as_it_runs():
    case = next(iter(SPECS["sample"].cases()))
    call = make_inputs("sample", case)
    without = {
        name: value for name, value in call.items() if name not in ("history", "history_starts", "output_starts")
    }
    assert ops.explain("sample", without).backend == ops.backends_of("sample")[0]
    assert ops.sample(**without).tokens.shape == (4,)
    with pytest.raises(InvalidInput, match="history_starts is None"):
        ops.sample(**(call | {"history_starts": None}))
    with pytest.raises(InvalidInput, match="history_starts"):
        ops.sample(**(call | {"history": None}))


def test_explain_names_the_refused():
    call = {"x": torch.zeros(2, 8, dtype=torch.float64), "weight": torch.ones(8, dtype=torch.float64)}
    told = ops.explain("rms_norm", call)
    assert told.backend == "reference"
    assert "float64" in told.refused["cpu"][0]
    assert "cpu: x is float64" in str(told)


def test_explain_refuses_what_the_op_would():
    with pytest.raises(InvalidInput, match="no argument 'y'"):
        ops.explain("rms_norm", {"y": 1})
    with pytest.raises(InvalidInput, match="eps is 'small'"):
        ops.explain("rms_norm", {"x": torch.zeros(2, 8), "weight": torch.ones(8), "eps": "small"})
    with pytest.raises(InvalidInput, match="hidden"):
        ops.explain("rms_norm", {"x": torch.zeros(2, 8), "weight": torch.ones(9)})
    with pytest.raises(InvalidInput, match="no op 'norm'"):
        ops.explain("norm", {})


def test_float64_goes_to_the_reference_and_a_named_cpu_says_no():
    x, weight = torch.randn(2, 8, dtype=torch.float64), torch.ones(8, dtype=torch.float64)
    assert ops.rms_norm(x, weight).dtype == torch.float64
    with pytest.raises(BackendUnavailable, match="float64"):
        ops.rms_norm(x, weight, backend="cpu")


def test_a_processor_without_the_wanted_instructions_is_told(monkeypatch):
    from pagedserve.backends import cpu

    monkeypatch.setattr(cpu, "SUPPORTED", {"portable": cpu.SUPPORTED["portable"]})
    monkeypatch.setenv("PAGEDSERVE_CPU_ISA", "avx512bf16")
    with pytest.raises(BackendUnavailable, match="portable"):
        ops.rms_norm(torch.zeros(1, 8), torch.ones(8), backend="cpu")


def test_settings_are_read_at_each_call(monkeypatch):
    from pagedserve.backends import cpu

    for threads in ("1", "2"):
        monkeypatch.setenv("PAGEDSERVE_THREADS", threads)
        ops.rms_norm(torch.zeros(1, 8), torch.ones(8), backend="cpu")
        assert cpu.TEAMS.get().num_threads == int(threads)
    monkeypatch.setenv("PAGEDSERVE_CPU_ISA", "portable")
    assert cpu.isa().name == "portable"
    monkeypatch.setenv("PAGEDSERVE_THREADS", "many")
    with pytest.raises(InvalidInput, match="many"):
        ops.rms_norm(torch.zeros(1, 8), torch.ones(8), backend="cpu")
