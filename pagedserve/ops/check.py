# SPDX-License-Identifier: Apache-2.0
"""Checks a call against its spec: types, dtypes, devices, strides, and sizes by the names of their axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from pagedserve.errors import InvalidInput
from pagedserve.ops.weight import Weight
from pagedserve.specs import Axis, OpSpec, TensorSpec, WeightSpec
from pagedserve.specs.spec import PACKED

DTYPE_NAMES: dict[torch.dtype, str] = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.int8: "int8",
    torch.float8_e4m3fn: "float8_e4m3fn",
    torch.bool: "bool",
    torch.uint8: "uint8",
    torch.int32: "int32",
    torch.int64: "int64",
}
DTYPES: dict[str, torch.dtype] = {**{name: dtype for dtype, name in DTYPE_NAMES.items()}, "int4": torch.uint8}


class Make:
    """Stands in a call for an output the caller gave none of: prepare() makes it."""


MAKE = Make()
Operand = Tensor | Weight | Make | None
Made = Tensor | Weight | None


def prepare(
    spec: OpSpec, operands: Sequence[Operand], sizes: dict[str, int]
) -> tuple[tuple[Made, ...], dict[str, int]]:
    """Checks operands, one for each of spec.tensors, makes those that are MAKE, and binds the axes' sizes.

    Args:
        sizes: sizes known from scalars (q_len, num_top); bound ones are added.

    Raises:
        InvalidInput: naming the tensor, the axis, what was given and what is supported.
    """
    bound: dict[str, str] = dict.fromkeys(sizes, "the arguments")  # axis -> who gave its size
    dtypes: dict[str, torch.dtype] = {}
    device: torch.device | None = None
    made: list[Made] = []
    for entry, operand in zip(spec.tensors, operands, strict=True):
        if isinstance(entry, WeightSpec):
            operand = _check_weight(spec, entry, operand)
            _bind(spec, entry.name, entry.axes[0], operand.out_features, 0, sizes, bound)
            _bind(spec, entry.name, entry.axes[1], operand.in_features, 1, sizes, bound)
        elif operand is None:
            if entry.zeros_beside and _is_absent(spec, entry.zeros_beside, operands):
                shape = [_size(axis, {name: sizes.setdefault(name, 0) for name in axis.names}) for axis in entry.axes]
                made.append(torch.zeros(shape, dtype=DTYPES[entry.dtypes[0]], device=device))
                continue
            if not entry.optional:
                raise InvalidInput(f"{spec.name}: {entry.name} is None; give a tensor {describe(entry)}")
            made.append(None)
            continue
        elif isinstance(operand, Make):
            shape = [_size(axis, sizes) for axis in entry.axes]
            operand = torch.empty(shape, dtype=_dtype_like(entry.dtypes[0], dtypes), device=device)
            dtypes[entry.name] = operand.dtype
            made.append(operand)
            continue
        elif isinstance(operand, Tensor):
            place = entry.optional_axis
            if place is not None and operand.dim() == len(entry.axes) - 1:
                operand = operand.unsqueeze(place)
            _check_dtype(spec, entry, operand, dtypes)
            _check_shape(spec, entry, operand, sizes, bound)
            _check_layout(spec, entry, operand)
        else:
            _wrong_type(spec, entry, operand)
        if operand.requires_grad and torch.is_grad_enabled():
            raise InvalidInput(
                f"{spec.name}: {entry.name} requires a gradient, and pagedserve computes none; "
                f"call .detach(), or call the op under torch.no_grad()"
            )
        if device is None:
            device = operand.device
        elif operand.device != device:
            raise InvalidInput(
                f"{spec.name}: {entry.name} is on {operand.device}, {spec.tensors[0].name} on {device}; "
                f"move all tensors of a call to one device"
            )
        made.append(operand)
    return tuple(made), sizes


def _is_absent(spec: OpSpec, name: str, operands: Sequence[Operand]) -> bool:
    return any(entry.name == name and operand is None for entry, operand in zip(spec.tensors, operands, strict=True))


SCALAR_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,)}
LARGEST_INT, LARGEST_FLOAT = 2**31 - 1, 3.4e38


def check_scalars(spec: OpSpec, scalars: Mapping[str, Any]) -> None:
    """Types, and values that a params struct can hold."""
    for entry in spec.scalars:
        value = scalars[entry.name]
        has_type = isinstance(value, SCALAR_TYPES[entry.type])
        if not has_type:
            raise InvalidInput(f"{spec.name}: {entry.name} is {value!r}, a {type(value).__name__}; give a {entry.type}")
        if entry.type == "float" and not abs(value) <= LARGEST_FLOAT:
            raise InvalidInput(f"{spec.name}: {entry.name} is {value}; give a finite number")
        if entry.type == "int" and not abs(value) <= LARGEST_INT:
            raise InvalidInput(f"{spec.name}: {entry.name} is {value}; give at most {LARGEST_INT}")


def describe(entry: TensorSpec) -> str:
    """ "[num_tokens, hidden], float32 or bfloat16"."""
    return f"[{', '.join(entry.shape.split())}], {' or '.join(entry.dtypes)}"


def _wrong_type(spec: OpSpec, entry: TensorSpec, operand: object) -> NoReturn:
    kind = f"{type(operand).__module__}.{type(operand).__name__}"
    raise InvalidInput(f"{spec.name}: {entry.name} is a {kind}; give a torch.Tensor {describe(entry)}")


def _check_weight(spec: OpSpec, entry: WeightSpec, operand: Operand) -> Weight:
    if not isinstance(operand, Weight):
        kind = f"{type(operand).__module__}.{type(operand).__name__}"
        raise InvalidInput(
            f"{spec.name}: {entry.name} is a {kind}; give an ops.Weight, as ops.Weight.from_dense(tensor) makes one"
        )
    return operand


def _check_dtype(spec: OpSpec, entry: TensorSpec, tensor: Tensor, dtypes: dict[str, torch.dtype]) -> None:
    rule = entry.dtypes[0]
    if rule[0] in "=^":
        other, needed = rule[1:], _dtype_like(rule, dtypes)
        if tensor.dtype != needed:
            raise InvalidInput(
                f"{spec.name}: {entry.name} is {tensor.dtype}; {other} is {dtypes[other]}, which needs it in {needed}"
            )
    elif DTYPE_NAMES.get(tensor.dtype) not in entry.dtypes and element_type(spec, entry.name, tensor) != "int4":
        supported = ", ".join("int4 (uint8, two codes a byte)" if name == "int4" else name for name in entry.dtypes)
        raise InvalidInput(
            f"{spec.name}: {entry.name} is {tensor.dtype}; supported: {supported}; "
            f"convert it with .to(torch.{entry.dtypes[0]})"
        )
    dtypes[entry.name] = tensor.dtype


def element_type(spec: OpSpec, name: str, tensor: Tensor) -> str:
    """The name of what a tensor holds: its dtype's, or int4 where the bytes of tensor `name` hold two codes each."""
    if tensor.dtype == torch.uint8:
        allowed = {entry.name: entry.dtypes for entry in spec.tensors if isinstance(entry, TensorSpec)}
        rule = allowed[name][0]
        if "int4" in (allowed[rule[1:]] if rule[0] == "=" else allowed[name]):
            return "int4"
    return DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype))


def _dtype_like(rule: str, dtypes: dict[str, torch.dtype]) -> torch.dtype:
    """ "=q": q's dtype. "^q": float64 where q is, else float32. A plain name: itself."""
    if rule[0] == "=":
        return dtypes[rule[1:]]
    if rule[0] == "^":
        return torch.float64 if dtypes[rule[1:]] == torch.float64 else torch.float32
    return DTYPES[rule]


def _check_shape(spec: OpSpec, entry: TensorSpec, tensor: Tensor, sizes: dict[str, int], bound: dict[str, str]) -> None:
    shape, axes = tensor.shape, entry.axes
    if len(shape) != len(axes) and not (entry.any_further and len(shape) > len(axes)):
        raise InvalidInput(
            f"{spec.name}: {entry.name} has {len(shape)} axes, {list(shape)}; "
            f"give {len(axes)}: [{', '.join(entry.shape.split())}]"
        )
    name = entry.name
    if tensor.dtype == torch.uint8 and (packed := PACKED.get(element_type(spec, name, tensor))):
        shape, name = torch.Size((*shape[:-1], shape[-1] * packed)), f"{name} (uint8, {packed} elements a byte)"
    for place, axis in enumerate(axes):
        if axis.plain is not None:
            known = sizes.get(axis.plain)
            if known is None:
                sizes[axis.plain], bound[axis.plain] = shape[place], entry.name
                continue
            if known == shape[place]:
                continue
        _bind(spec, name, axis, shape[place], place, sizes, bound)


def _bind(
    spec: OpSpec, name: str, axis: Axis, given: int, place: int, sizes: dict[str, int], bound: dict[str, str]
) -> None:
    """Checks one size against what its axis is already known to be, or learns the axis from it."""
    known, unknown = axis.factor, None
    for factor in axis.names:
        if factor in sizes:
            known *= sizes[factor]
        else:
            unknown = factor
    if unknown is None:
        if given != known + axis.plus:
            sources = " and ".join(
                dict.fromkeys(f"{bound[factor]} gives {factor} {sizes[factor]}" for factor in axis.names)
            )
            raise InvalidInput(
                f"{spec.name}: axis {place} of {name} ({axis.text}) is {given}, but {sources}: "
                f"{known + axis.plus} is needed"
            )
        return
    left = given - axis.plus
    size = left // known if known else 0  # divmod cannot be traced
    if left < 0 or size * known != left:
        at_least = f"at least {axis.plus}" if left < 0 else f"a multiple of {known}"
        raise InvalidInput(f"{spec.name}: axis {place} of {name} ({axis.text}) is {given}; it must be {at_least}")
    sizes[unknown] = size
    bound[unknown] = name


def _size(axis: Axis, sizes: dict[str, int]) -> int:
    size = axis.factor
    for name in axis.names:
        size *= sizes[name]
    return size + axis.plus


def _check_layout(spec: OpSpec, entry: TensorSpec, tensor: Tensor) -> None:
    if tensor.layout != torch.strided:
        raise InvalidInput(f"{spec.name}: {entry.name} is {tensor.layout}; call .to_dense()")
    if entry.mutated and 0 in tensor.stride():
        shared = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride == 0 and size > 1]
        if shared:
            raise InvalidInput(
                f"{spec.name}: {entry.name} is written, but its strides {list(tensor.stride())} make elements share "
                f"memory: call .contiguous()"
            )
    if entry.layout == "last":
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise InvalidInput(
                f"{spec.name}: the last axis of {entry.name} has stride {tensor.stride(-1)}; it must be contiguous "
                f"(other axes may have any stride): call .contiguous()"
            )
    elif entry.layout == "dense":
        inner = tensor[0] if entry.any_further and len(tensor) else tensor
        if not inner.is_contiguous():
            raise InvalidInput(
                f"{spec.name}: {entry.name} has strides {list(tensor.stride())} for shape {list(tensor.shape)}; "
                f"it must be contiguous: call .contiguous()"
            )
