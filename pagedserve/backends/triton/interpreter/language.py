# SPDX-License-Identifier: Apache-2.0
"""A kernel's source as a Python function: `triton.language` bound to a builder of ours, nothing of Triton changed.

Triton's operations take the semantics that they build with as an argument, which its compiler fills in; here it is
bound beforehand. A kernel is run by giving its code other globals: its language is a `Language`, and the jitted
functions it calls are run the same way.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime.interpreter import TensorHandle
from triton.runtime.jit import ConstexprFunction, JITFunction

from pagedserve.backends.triton.interpreter.builder import Builder, Unsupported

MODULES = (tl, tl.core, tl.math, tl.standard)
REDUCTIONS: dict[str, Callable[..., Any]] = {
    "_sum_combine": np.sum,
    "_elementwise_max": np.fmax.reduce,
    "_elementwise_min": np.fmin.reduce,
}
SCANS: dict[str, Callable[..., Any]] = {"_sum_combine": np.cumsum}


class Language:
    """`triton.language`, or one of its modules, bound to a builder."""

    def __init__(self, builder: Builder) -> None:
        self.semantic = TritonSemantic(builder)
        self.tile = _tile_type(self)
        self.semantic.tensor = self.tile
        self._faces = {module.__name__: _Face(self, module) for module in MODULES}
        self._functions: dict[Any, Callable[..., Any]] = {}
        self.depth = 0  # of operations under way

    def bind(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """An operation of Triton's that no longer asks for semantics."""

        @functools.wraps(function)
        def bound(*arguments: Any, **options: Any) -> Any:
            self.depth += 1
            try:
                return self.own(function(*arguments, **options, _semantic=self.semantic))
            finally:
                self.depth -= 1

        return bound

    def own(self, made: Any) -> Any:
        """Tensors that an operation returned, as tiles."""
        if type(made) is tl.tensor:
            return self.tile(made.handle, made.type)
        if isinstance(made, tuple | list | tl.tuple):
            return tuple(self.own(part) for part in made)
        return made

    def translate(self, value: Any) -> Any:
        """What stands for a global of a kernel."""
        if isinstance(value, types.ModuleType) and value in MODULES:
            return self._faces[value.__name__]
        if isinstance(value, JITFunction):
            if value not in self._functions:
                self._functions[value] = self.function(value.fn)
            return self._functions[value]
        if isinstance(value, ConstexprFunction):
            return value.fn
        if isinstance(value, tl.constexpr):
            return value.value
        return self.bind(value) if tl.core.is_builtin(value) else value

    def function(self, function: types.FunctionType) -> Callable[..., Any]:
        """A kernel's Python function, or that of a function it calls, with translated globals."""
        names = [name for name in _names(function.__code__) if name in function.__globals__]
        scope = dict(function.__globals__)
        own = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__)
        scope.update({name: self.translate(function.__globals__[name]) for name in names})
        return own

    def argument(self, value: Any) -> Any:
        """A launch's tensor, number or named tuple of these as the kernel sees it."""
        if isinstance(value, tuple):
            return type(value)(*map(self.argument, value))
        if hasattr(value, "data_ptr"):
            kind = tl.pointer_type(tl.dtype(_short_name(str(value.dtype))))
            return self.tile(TensorHandle(np.array([value.data_ptr()], np.uint64), kind), kind)
        return self.own(self.semantic.to_tensor(value)) if isinstance(value, int | float) else value

    def reduce(self, tile: Any, axis: int | None, combine: Any, keep_dims: bool = False) -> Any:
        return self._along(REDUCTIONS, tile, combine, axis=axis, keepdims=bool(keep_dims))

    def scan(self, tile: Any, axis: int, combine: Any, reverse: bool = False) -> Any:
        if reverse:
            raise Unsupported("a reverse scan is not interpreted")
        return self._along(SCANS, tile, combine, axis=axis)

    def _along(self, known: dict[str, Callable[..., Any]], tile: Any, combine: Any, **options: Any) -> Any:
        name = getattr(combine, "__name__", str(combine))
        if name not in known:
            raise Unsupported(f"{name} is not interpreted; known: {', '.join(known)}")
        if tile.dtype == tl.bfloat16:
            raise Unsupported(f"{name} on bfloat16: convert to float32 before arithmetic")
        options = {key: getattr(value, "value", value) for key, value in options.items()}
        made = np.asarray(known[name](tile.handle.data, **options)).astype(tile.handle.data.dtype)
        kind = tile.dtype
        if made.ndim:
            return self.tile(TensorHandle(made, kind), tl.block_type(kind, list(made.shape)))
        return self.tile(TensorHandle(made.reshape(1), kind), kind)


class _Face:
    """One module of Triton's language. What it lacks of its own is the module's, translated."""

    def __init__(self, language: Language, module: types.ModuleType) -> None:
        self._language, self._module = language, module
        self.reduce, self.associative_scan = language.reduce, language.scan
        self.range = self.static_range = _counted

    def __getattr__(self, name: str) -> Any:
        found = self._language.translate(getattr(self._module, name))
        setattr(self, name, found)
        return found


def _counted(begin: Any, end: Any = None, step: Any = 1, **hints: Any) -> range:
    """tl.range and tl.static_range; hints to the compiler mean nothing here."""
    return range(int(begin), int(end), int(step)) if end is not None else range(int(begin))


def _tile_type(language: Language) -> type[tl.tensor]:
    """A tensor type whose methods and operators are bound to a language."""
    members: dict[str, Any] = {
        name: language.bind(member)
        for name, member in ((name, getattr(tl.tensor, name)) for name in dir(tl.tensor))
        if tl.core.is_builtin(member)
    }

    def init(tile: Any, handle: TensorHandle, kind: Any) -> None:
        tl.tensor.__init__(tile, handle, kind)
        if kind.scalar.is_int_unsigned() and handle.data.dtype.kind == "i":  # Triton's types of arrays have no sign
            tile.handle = TensorHandle(handle.data.view(f"u{handle.data.itemsize}"), kind.scalar)

    def scalar(tile: Any) -> Any:
        return tile.handle.data.reshape(-1)[0]

    members |= {
        "__init__": init,
        "__index__": lambda tile: int(scalar(tile)),
        # Within an operation of Triton's a truth value asks whether an operand is there.
        "__bool__": lambda tile: language.depth > 0 or bool(scalar(tile)),
        "__hash__": None,
    }
    return type("Tile", (tl.tensor,), members)


def _names(code: types.CodeType) -> set[str]:
    return set(code.co_names).union(*(_names(part) for part in code.co_consts if isinstance(part, types.CodeType)))


def _short_name(torch_name: str) -> str:
    """ "bf16", of "torch.bfloat16"."""
    names = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp64", "bool": "int1"}
    names |= {"float8_e4m3fn": "fp8e4nv"}
    name = torch_name.removeprefix("torch.")
    return names.get(name, name)
