# SPDX-License-Identifier: Apache-2.0
"""csrc/params.h as ctypes structs, read from the header, so that there is one source of a layout."""

import ctypes
import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pagedserve.errors import InvalidInput

SCALARS: dict[str, Any] = {
    "bool": ctypes.c_bool,
    "int8_t": ctypes.c_int8,
    "uint8_t": ctypes.c_uint8,
    "int32_t": ctypes.c_int32,
    "uint32_t": ctypes.c_uint32,
    "int64_t": ctypes.c_int64,
    "uint64_t": ctypes.c_uint64,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
}
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
ENUM = re.compile(r"enum class (\w+)\s*:\s*(\w+)\s*\{(.*?)\}", re.DOTALL)
STRUCT = re.compile(r"struct (?:alignas\(\d+\)\s*)?(\w+)\s*\{(.*?)\n?\};", re.DOTALL)


@runtime_checkable
class Addressed(Protocol):
    """A torch tensor, as far as a pointer field needs one."""

    def data_ptr(self) -> int: ...


class Header:
    """The structs and enums of a C++ header of plain structs.

    Attributes:
        structs: ctypes.Structure subclasses by name.
        enums: {enum: {enumerator: value}}.
    """

    def __init__(self, text: str) -> None:
        text = COMMENT.sub("", text)
        self.enums: dict[str, dict[str, int]] = {}
        self.structs: dict[str, type[ctypes.Structure]] = {}
        types = dict(SCALARS)
        for name, underlying, body in ENUM.findall(text):
            pairs = (entry.split("=") for entry in body.split(",") if entry.strip())
            self.enums[name] = {key.strip(): int(value) for key, value in pairs}
            types[name] = SCALARS[underlying]
        for name, body in STRUCT.findall(text):
            fields = list(_fields(body, types))
            self.structs[name] = types[name] = type(name, (ctypes.Structure,), {"_fields_": fields})


def _fields(body: str, types: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for statement in filter(None, map(str.strip, body.split(";"))):
        declared, first, *others = re.split(r"[\s,]+(?=\w+\s*(?:,|$))", statement.replace("*", "* "))
        base = declared.replace("const", "").replace("*", "").strip()
        kind = ctypes.c_void_p if "*" in declared else types[base]
        yield from ((name.strip(), kind) for name in (first, *others))


@functools.cache
def header(path: Path) -> Header:
    return Header(path.read_text(encoding="utf-8"))


def fill(struct: type[ctypes.Structure], fields: Mapping[str, object]) -> ctypes.Structure:
    """A struct with these fields, the others zero. A pointer takes a tensor, an address or None; a struct a mapping."""
    result = struct()
    kinds = dict(struct._fields_)  # type: ignore[arg-type]
    for name, value in fields.items():
        if name not in kinds:
            raise InvalidInput(f"{struct.__name__} has no field {name!r}; it has {', '.join(kinds)}")
        setattr(result, name, _value(kinds[name], value))
    return result


def _value(kind: Any, value: Any) -> Any:
    if isinstance(value, Mapping):
        return fill(kind, value)
    if kind is ctypes.c_void_p and hasattr(value, "data_ptr"):
        return value.data_ptr() or None
    return int(value) if kind is not ctypes.c_float and value is not None and not isinstance(value, float) else value


def tensors_of(fields: Mapping[str, object]) -> Iterator[Any]:
    """Every tensor among the fields, nested ones too."""
    for value in fields.values():
        if isinstance(value, Mapping):
            yield from tensors_of(value)
        elif hasattr(value, "data_ptr"):
            yield value


def pointers(struct: type[ctypes.Structure], base: int = 0, prefix: str = "") -> Iterator[tuple[int, str]]:
    """The offset in bytes and the name of every pointer of a struct, nested ones too ("k.data")."""
    for name, kind in struct._fields_:  # type: ignore[misc]
        offset = base + getattr(struct, name).offset
        if kind is ctypes.c_void_p:
            yield offset, prefix + name
        elif issubclass(kind, ctypes.Structure):
            yield from pointers(kind, offset, f"{prefix}{name}.")
