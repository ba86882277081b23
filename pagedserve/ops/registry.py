# SPDX-License-Identifier: Apache-2.0
"""Which backend runs which op: a table of data, and the choice from it."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pagedserve.errors import BackendUnavailable, InvalidInput
from pagedserve.specs import SPECS


@dataclass(frozen=True)
class Call:
    """The facts of a call that a backend may refuse.

    Attributes:
        device: device type, as "cpu".
        dtypes: beside the op's `spec.dispatch`.
        features: those of `spec.features` that the call uses.
    """

    op: str
    device: str
    dtypes: tuple[str, ...]
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class Requirement:
    """What a call must be for a backend to run it.

    Attributes:
        devices: device types; empty: any.
        dtypes: those allowed, by tensor; a tensor that is not named may have any the op allows.
        never: dtypes of the spec's dispatch that it does not take together.
        lacks: features of the op's spec that the backend does not have.
    """

    devices: tuple[str, ...] = ()
    dtypes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    never: tuple[tuple[str, ...], ...] = ()
    lacks: tuple[str, ...] = ()

    def refusals(self, call: Call) -> list[str]:
        """What stands against a call; empty where nothing does."""
        found = []
        if self.devices and call.device not in self.devices:
            found.append(f"its tensors are on {call.device}, it runs on {' or '.join(self.devices)}")
        for name, dtype in zip(SPECS[call.op].dispatch, call.dtypes, strict=True):
            allowed = self.dtypes.get(name)
            if allowed and dtype not in allowed:
                found.append(f"{name} is {dtype}, it takes {', '.join(allowed)}")
        if call.dtypes in self.never:
            pairs = zip(call.dtypes, SPECS[call.op].dispatch, strict=True)
            found.append("it does not take " + " with ".join(f"{dtype} {name}" for dtype, name in pairs))
        found += [f"it lacks {feature}" for feature in call.features if feature in self.lacks]
        return found


@dataclass(frozen=True)
class Row:
    """One implementation of one op: the function of the op's name in a module, imported when first used.

    Attributes:
        automatic: whether "auto" may choose it.
    """

    op: str
    backend: str
    module: str
    requirement: Requirement = Requirement()
    automatic: bool = True


def _on_cpu(**dtypes: tuple[str, ...]) -> Requirement:
    return Requirement(("cpu",), dtypes)


F32 = ("float32",)
FLOATS = ("float32", "bfloat16", "float16")
HALVES = ("bfloat16", "float16")
KV = (*FLOATS, "int8", "float8_e4m3fn", "int4")

CPU_OPS: dict[str, Requirement] = {
    "paged_decode": _on_cpu(q=FLOATS, k_pages=KV),
    "paged_prefill": _on_cpu(q=FLOATS, k_pages=KV),
    "merge_states": _on_cpu(o=FLOATS),
    "plan_decode": _on_cpu(),
    "append_kv": _on_cpu(k=FLOATS, k_pages=KV),
    "rope_append_kv": _on_cpu(q=FLOATS, k_pages=KV),
    "copy_pages": _on_cpu(),
    "rms_norm": _on_cpu(x=FLOATS),
    "rope": _on_cpu(x=FLOATS),
    "silu_mul": _on_cpu(gate_up=FLOATS),
    "gelu_mul": _on_cpu(gate_up=FLOATS),
    "soft_cap": _on_cpu(x=F32),
    "linear": _on_cpu(x=F32),
    "embed": _on_cpu(out=F32),
    "take_rows": _on_cpu(x=F32),
    "sample": _on_cpu(logits=F32),
}

# dtypes of what Triton runs: on CUDA tensors, and interpreted, for those who ask, on the CPU's.
TRITON_OPS: dict[str, dict[str, tuple[str, ...]]] = {
    "paged_decode": {"q": FLOATS, "k_pages": KV},
    "paged_prefill": {"q": FLOATS, "k_pages": KV},
    "merge_states": {"o": FLOATS},
    "append_kv": {"k": FLOATS, "k_pages": KV},
    "rope_append_kv": {"q": FLOATS, "k_pages": KV},
    "rms_norm": {"x": FLOATS},
    "rope": {"x": FLOATS},
    "silu_mul": {"gate_up": FLOATS},
    "gelu_mul": {"gate_up": FLOATS},
    "sample": {"logits": F32},
}

# What CUDA kernels run: on CUDA tensors, and emulated, for those who ask, on the CPU's.
CUDA_OPS: dict[str, dict[str, tuple[str, ...]]] = {
    "plan_decode": {},
    "paged_decode": {"q": HALVES, "k_pages": (*HALVES, *KV[3:])},
    "merge_states": {"o": FLOATS},
    "append_kv": {"k": FLOATS, "k_pages": KV},
    "copy_pages": {},
}
# CUDA multiplies in the pages' dtype, and float16 does not fit into bfloat16.
CUDA_NEVER = {"paged_decode": (("float16", "bfloat16"),)}


def _cuda(op: str, device: str) -> Requirement:
    return Requirement((device,), CUDA_OPS[op], CUDA_NEVER.get(op, ()))


# The order of an op's rows is the order in which "auto" tries them.
TABLE: tuple[Row, ...] = (
    *(Row(op, "cpu", "pagedserve.backends.cpu", requirement) for op, requirement in CPU_OPS.items()),
    *(Row(op, "cuda", "pagedserve.backends.cuda", _cuda(op, "cuda")) for op in CUDA_OPS),
    *(Row(op, "cuda-emulated", "pagedserve.backends.cuda_emulated", _cuda(op, "cpu"), False) for op in CUDA_OPS),
    *(
        Row(op, "triton", "pagedserve.backends.triton.ops", Requirement(("cuda",), dtypes))
        for op, dtypes in TRITON_OPS.items()
    ),
    *(
        Row(op, "triton-interpreted", "pagedserve.backends.triton.interpreted", Requirement(("cpu",), dtypes), False)
        for op, dtypes in TRITON_OPS.items()
    ),
    *(
        Row(op, "reference", f"pagedserve.backends.reference.{spec.reference.partition('.')[0]}")
        for op, spec in SPECS.items()
    ),
)


@dataclass(frozen=True)
class StepRow:
    """A backend that records steps itself: module.name(limits, inputs, buffer_type) is its ops.StepBuilder."""

    backend: str
    device: str
    module: str
    name: str


STEP_BUILDERS: tuple[StepRow, ...] = (StepRow("cpu", "cpu", "pagedserve.backends.cpu_step", "CpuStep"),)


@functools.cache
def rows_of(op: str) -> tuple[Row, ...]:
    """An op's rows of the table."""
    if op not in SPECS:
        raise InvalidInput(f"there is no op {op!r}; the ops are {', '.join(SPECS)}")
    return tuple(row for row in TABLE if row.op == op)


def backends_of(op: str) -> tuple[str, ...]:
    """The backends that implement an op, in the order "auto" tries them."""
    return tuple(row.backend for row in rows_of(op))


@functools.cache
def _load(row_module: str, op: str) -> Callable[..., None]:
    function: Callable[..., None] = getattr(importlib.import_module(row_module), op)
    return function


def refusals(row: Row, call: Call) -> list[str]:
    """Why a row cannot run a call; empty where it can."""
    found = row.requirement.refusals(call)
    if not found:
        try:
            _load(row.module, row.op)
        except ImportError as error:
            found.append(f"it cannot be imported here ({error}): reinstall pagedserve, or build its extension")
        except BackendUnavailable as error:
            found.append(str(error))
    return found


def describe(row: Row, *operands: Any) -> list[str]:
    """What a row would launch for a call, a line each; nothing where its backend does not tell."""
    tell = getattr(_load(row.module, row.op), "describe", None)
    return [] if tell is None else list(tell(*operands))


@functools.cache
def choose(call: Call, backend: str) -> Callable[..., None]:
    """The function that runs a call, of the named backend or, for "auto", of the first that can.

    Raises:
        InvalidInput: no backend of that name implements the op.
        BackendUnavailable: the named backend cannot run this call, or none can. A named one never falls back.
    """
    rows = rows_of(call.op)
    tried = [row for row in rows if backend == row.backend or (backend == "auto" and row.automatic)]
    if not tried:
        raise InvalidInput(f"{call.op} has no backend {backend!r}; choose from auto, {', '.join(backends_of(call.op))}")
    against = []
    for row in tried:
        found = refusals(row, call)
        if not found:
            return _load(row.module, row.op)
        against.append(f"backend {row.backend!r} cannot run this {call.op}: {'; '.join(found)}")
    able = [row.backend for row in rows if not refusals(row, call)]
    advice = f". Backends that can: {', '.join(able)}" if able else ""
    raise BackendUnavailable(". ".join(against) + advice)
