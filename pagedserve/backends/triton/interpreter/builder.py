# SPDX-License-Identifier: Apache-2.0
"""What each operation of a kernel does to arrays: Triton's own, made exact where its interpreter is not.

Triton's interpreter keeps bfloat16 as the integers of its bits and computes on those. Here products of bfloat16
matrices are exact, conversions round to nearest even as hardware does, and any other arithmetic on bfloat16 is refused:
a kernel that runs here does its sums in float32. A masked-off element of a load without `other` holds NaN or all ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from pagedserve.backends.triton.interpreter.memory import Memory

TORCH_TYPES = {
    tl.bfloat16: torch.bfloat16,
    tl.float16: torch.float16,
    tl.float32: torch.float32,
    tl.float64: torch.float64,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e5: torch.float8_e5m2,
}
CARRIED = {tl.bfloat16: np.uint16, tl.float8e4nv: np.uint8, tl.float8e5: np.uint8}  # numpy has no such numbers
CARRIERS = {np.dtype(np.uint16): torch.int16, np.dtype(np.uint8): torch.uint8}


class Unsupported(Exception):
    """A kernel asks for arithmetic that would be wrong in low precision, or that is not interpreted."""


def _torch(handle: TensorHandle) -> torch.Tensor:
    """A handle's numbers as a tensor of their own dtype."""
    data = np.ascontiguousarray(handle.data)
    kind = handle.dtype.scalar
    if kind in CARRIED:
        signed = data.view(np.int16) if data.dtype == np.uint16 else data
        return torch.from_numpy(signed.copy()).view(TORCH_TYPES[kind])
    return torch.from_numpy(data.copy())


def convert(handle: TensorHandle, kind: Any) -> TensorHandle:
    """A handle's numbers as another type of float, rounded to nearest even; fp8 saturates as hardware's conversion."""
    source, target = _torch(handle), TORCH_TYPES[kind.scalar]
    if target == torch.float8_e4m3fn:
        source = source.to(torch.float32).clamp(-448, 448)
    made = source.to(target)
    if kind.scalar in CARRIED:
        carrier = torch.int16 if made.element_size() == 2 else torch.uint8
        return TensorHandle(made.view(carrier).numpy().view(CARRIED[kind.scalar]), kind.scalar)
    return TensorHandle(made.numpy(), kind.scalar)


def _is_float(kind: Any) -> bool:
    return kind.scalar in TORCH_TYPES


class Builder(InterpreterBuilder):
    """Triton's interpreting builder with exact conversions, refusals, and watched memory."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self._memory = memory
        self.codegen_fns["convert_custom_types"] = lambda source, kind, rounding, _semantic: _semantic.tensor(
            convert(source.handle, kind), source.type.with_element_ty(kind.scalar)
        )

    # Numbers

    def binary_op(self, lhs: TensorHandle, rhs: TensorHandle, op: Any) -> TensorHandle:
        for operand in (lhs, rhs):
            if operand.dtype.scalar in CARRIED:
                raise Unsupported(f"{op.__name__} on {operand.dtype.scalar}: convert to float32 before arithmetic")
        op = {np.maximum: np.fmax, np.minimum: np.fmin}.get(op, op)  # as hardware: a number wins over NaN
        made = op(lhs.data, rhs.data)
        kind = lhs.dtype.scalar
        return TensorHandle(made, tl.int1 if made.dtype == np.bool_ else kind)

    def unary_op(self, arg: TensorHandle, op: Any) -> TensorHandle:
        if arg.dtype.scalar in CARRIED:
            raise Unsupported(f"{op.__name__} on {arg.dtype.scalar}: convert to float32 before arithmetic")
        return super().unary_op(arg, op)

    def cast_impl(self, src: TensorHandle, dst_type: Any) -> TensorHandle:
        if _is_float(src.dtype) and _is_float(dst_type):
            return convert(src, dst_type)
        if src.dtype.scalar in CARRIED or dst_type.scalar in CARRIED:
            raise Unsupported(f"conversion of {src.dtype.scalar} to {dst_type.scalar}: go by way of float32")
        return super().cast_impl(src, dst_type)

    def create_fp_to_fp(self, src: TensorHandle, dst_type: Any, rounding_mode: Any) -> TensorHandle:
        return convert(src, dst_type)

    # Their parent's were made before cast_impl was replaced.
    create_fp_ext = create_fp_trunc = cast_impl

    def create_dot(self, a: TensorHandle, b: TensorHandle, d: TensorHandle, *options: Any) -> TensorHandle:
        # In float64, where products are exact and the order of a sum leaves no trace in what it is rounded to: BLAS
        # may add up one row in another order than its neighbour, and does where AVX2 is all there is.
        wide = [convert(operand, tl.float32).data.astype(np.float64) for operand in (a, b)]
        return TensorHandle(np.matmul(*wide).astype(d.data.dtype) + d.data, d.dtype.scalar)

    # Memory

    def create_masked_load(
        self, ptrs: TensorHandle, mask: TensorHandle, other: TensorHandle | None, *hints: Any
    ) -> TensorHandle:
        kind = ptrs.get_element_ty()
        if other is None:
            other = self._poison(ptrs, kind)
        self._note("load", ptrs, mask, writes=False)
        return super().create_masked_load(ptrs, mask, other, *hints)

    def create_masked_store(self, ptrs: TensorHandle, value: TensorHandle, mask: TensorHandle, *hints: Any) -> Any:
        self._note("store", ptrs, mask, writes=True)
        return super().create_masked_store(ptrs, value, mask, *hints)

    def create_atomic_rmw(
        self, op: Any, ptr: TensorHandle, val: TensorHandle, mask: TensorHandle, sem: Any, scope: Any
    ) -> TensorHandle:
        self._note("atomic", ptr, mask, writes=True, atomic=True)
        made = super().create_atomic_rmw(op, ptr, val, mask, sem, scope)
        self._memory.synchronise(*self._flat(ptr, mask), str(sem).lower())
        return made

    def create_atomic_cas(self, *operands: Any) -> TensorHandle:
        raise Unsupported(
            "compare-and-swap is not interpreted: programs run one after another, and would wait for ever"
        )

    def _poison(self, ptrs: TensorHandle, kind: Any) -> TensorHandle:
        plain = {tl.float16: np.float16, tl.float32: np.float32, tl.float64: np.float64}
        if kind in plain:
            return TensorHandle(np.full(ptrs.data.shape, np.nan, plain[kind]), kind)
        width = max(kind.primitive_bitwidth, 8)
        ones = np.full(ptrs.data.shape, 2**width - 1, getattr(np, f"uint{width}"))
        signed = kind.is_int() and kind.is_int_signed()
        return TensorHandle(ones.view(getattr(np, f"int{width}")) if signed else ones, kind)

    def _note(self, what: str, ptrs: TensorHandle, mask: TensorHandle, *, writes: bool, atomic: bool = False) -> None:
        item_bytes = max(ptrs.get_element_ty().primitive_bitwidth // 8, 1)
        self._memory.access(what, *self._flat(ptrs, mask), item_bytes, writes=writes, atomic=atomic)

    def _flat(self, ptrs: TensorHandle, mask: TensorHandle) -> Any:
        addresses = np.asarray(ptrs.data).astype(np.int64)
        return addresses.ravel(), np.broadcast_to(np.asarray(mask.data, np.bool_), addresses.shape).ravel()
