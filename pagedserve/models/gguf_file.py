# SPDX-License-Identifier: Apache-2.0
"""Reads the header of a GGUF file and gives its tensors as views of the mapped file.

Every count, length and offset of the header is checked against the file's own size before it is used, so a
truncated or lying file costs neither a crash nor memory. Arrays of strings (the vocabulary) are walked once
for their extent and decoded when asked for.

Source: the GGUF specification, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from pagedserve.errors import ModelError


@dataclass(frozen=True)
class TensorType:
    """A tensor format: `block` elements of a row are stored in `block_bytes` bytes."""

    name: str
    block: int
    block_bytes: int


TENSOR_TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    30: TensorType("BF16", 1, 2),
}

_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_DTYPES = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")

MAX_NAME_BYTES = 65_535  # of a key or a tensor's name
MAX_DIMS = 4
MAX_ALIGNMENT = 1 << 20


class StringArray(Sequence[str]):
    """An array of strings in the file, decoded on first use.

    Cost: about 0.2 us a string, once.
    """

    def __init__(self, buffer: mmap.mmap, start: int, count: int, field: str) -> None:
        self._buffer, self._start, self._count, self._field = buffer, start, count, field
        self._strings: list[str] | None = None

    def _decoded(self) -> list[str]:
        if self._strings is None:
            strings, position, buffer, unpack = [], self._start, self._buffer, _LENGTH.unpack_from
            for index in range(self._count):
                begin = position + 8
                position = begin + unpack(buffer, position)[0]
                try:
                    strings.append(buffer[begin:position].decode())
                except UnicodeDecodeError as error:
                    raise ModelError(f"{self._field}[{index}] is not UTF-8: {error}") from None
            self._strings = strings
        return self._strings

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self._decoded()[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._decoded())


Value = bool | int | float | str | StringArray | np.ndarray


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies. shape is numpy's: rows first, the contiguous axis last."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    offset: int  # bytes, from the start of the file
    num_bytes: int


class _Cursor:
    """Walks the mapped file; whatever would leave it is a ModelError that names the field."""

    def __init__(self, path: Path, buffer: mmap.mmap) -> None:
        self.path, self.buffer, self.size, self.position = path, buffer, len(buffer), 0

    def error(self, message: str) -> ModelError:
        return ModelError(f"{self.path}: {message}")

    def skip(self, num_bytes: int, field: str) -> int:
        """Moves past num_bytes, and gives where they begin."""
        begin = self.position
        if num_bytes > self.size - begin:
            raise self.error(
                f"{field} takes {num_bytes} bytes at offset {begin}, and the file ends at {self.size}; "
                "it is truncated or corrupt: download or convert it again"
            )
        self.position = begin + num_bytes
        return begin

    def scalar(self, kind: int, field: str) -> int | float | bool:
        number = _SCALARS[kind]
        value: int | float | bool = number.unpack_from(self.buffer, self.skip(number.size, field))[0]
        return value

    def count(self, field: str, *, item_bytes: int) -> int:
        """A 64-bit count of items that take at least item_bytes each."""
        count = int(self.scalar(10, field))
        if count * item_bytes > self.size - self.position:
            raise self.error(f"{field} is {count}, more than the {self.size - self.position} bytes left can hold")
        return count

    def string(self, field: str, *, max_bytes: int | None = None) -> str:
        length = self.count(f"the length of {field}", item_bytes=1)
        if max_bytes is not None and length > max_bytes:
            raise self.error(f"{field} is {length} bytes long; at most {max_bytes} are allowed")
        begin = self.skip(length, field)
        try:
            return self.buffer[begin : begin + length].decode()
        except UnicodeDecodeError as error:
            raise self.error(f"{field} is not UTF-8: {error}") from None

    def value(self, field: str) -> Value:
        kind = int(self.scalar(4, f"the type of {field}"))
        if kind == _STRING:
            return self.string(field)
        if kind == _ARRAY:
            return self.array(field)
        if kind not in _SCALARS:
            raise self.error(f"{field} has value type {kind}; GGUF defines 0 to 12")
        return self.scalar(kind, field)

    def array(self, field: str) -> Value:
        kind = int(self.scalar(4, f"the element type of {field}"))
        if kind == _STRING:
            count = self.count(f"the length of {field}", item_bytes=8)
            begin = self.position
            self.skip_strings(count, field)
            return StringArray(self.buffer, begin, count, f"{self.path}: {field}")
        if kind not in _SCALARS:
            raise self.error(f"{field} is an array of value type {kind}; only arrays of numbers and strings are read")
        item_bytes = _SCALARS[kind].size
        count = self.count(f"the length of {field}", item_bytes=item_bytes)
        begin = self.skip(count * item_bytes, field)
        return np.frombuffer(self.buffer, _DTYPES[kind], count, begin)

    def skip_strings(self, count: int, field: str) -> None:
        position, last, buffer, unpack = self.position, self.size - 8, self.buffer, _LENGTH.unpack_from
        for index in range(count):
            if position > last:
                raise self.error(f"{field}[{index}] begins past the end of the file; it is truncated or corrupt")
            position += 8 + unpack(buffer, position)[0]
        self.position = min(position, self.size)
        if position > self.size:
            raise self.error(f"{field} ends past the end of the file; it is truncated or corrupt")


class GgufFile:
    """A GGUF file's metadata and tensors, memory-mapped.

    Attributes:
        path: the file.
        metadata: key -> bool, int, float, str, StringArray or a numpy array over the file.
        tensors: name -> TensorInfo, in the file's order.

    Raises:
        ModelError: the file is not GGUF 2 or 3, is truncated, or its header contradicts itself; the message
            names the field.

    Cost: 0.02 s for a vocabulary of 49,152 and its merges; memory for the names of keys and tensors alone.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        cursor = _Cursor(self.path, _map(self.path))
        self._bytes = np.frombuffer(cursor.buffer, np.uint8)
        num_tensors, num_keys = _read_head(cursor)
        self.metadata = _read_metadata(cursor, num_keys)
        self.tensors = _read_tensors(cursor, num_tensors, self._alignment())

    def _alignment(self) -> int:
        alignment = self.integer("general.alignment", 32)
        if not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise ModelError(
                f"{self.path}: general.alignment is {alignment}; it must be a power of two up to {MAX_ALIGNMENT}"
            )
        return alignment

    def data(self, name: str) -> np.ndarray:
        """The bytes of a tensor: [rows, row_bytes] uint8, a read-only view of the file."""
        tensor = self.tensors[name]
        rows = math.prod(tensor.shape[:-1])
        return self._bytes[tensor.offset : tensor.offset + tensor.num_bytes].reshape(rows, -1)

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number of the metadata; without a default, a missing key is a ModelError."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ModelError(f"{self.path}: {key} is {_describe(value)}; a whole number is expected")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number of the metadata."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ModelError(f"{self.path}: {key} is {_describe(value)}; a finite number is expected")
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        """A string of the metadata."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise ModelError(f"{self.path}: {key} is {_describe(value)}; a string is expected")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A truth value of the metadata."""
        value = self.metadata.get(key, default)
        if not isinstance(value, bool):
            raise ModelError(f"{self.path}: {key} is {_describe(value)}; true or false is expected")
        return value

    def strings(self, key: str) -> StringArray:
        """An array of strings of the metadata."""
        value = self._value(key, None)
        if not isinstance(value, StringArray):
            raise ModelError(f"{self.path}: {key} is {_describe(value)}; an array of strings is expected")
        return value

    def numbers(self, key: str) -> np.ndarray:
        """An array of numbers of the metadata: a read-only view of the file."""
        value = self._value(key, None)
        if not isinstance(value, np.ndarray):
            raise ModelError(f"{self.path}: {key} is {_describe(value)}; an array of numbers is expected")
        return value

    def _value(self, key: str, default: Value | None) -> Value:
        value = self.metadata.get(key, default)
        if value is None:
            raise ModelError(f"{self.path}: the metadata has no {key}, which this model needs")
        return value


def _describe(value: Value) -> str:
    if isinstance(value, (StringArray, np.ndarray)):
        return f"an array of {len(value)}"
    return repr(value if not isinstance(value, str) or len(value) <= 40 else value[:40] + "...")


def _map(path: Path) -> mmap.mmap:
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be opened as a GGUF file: {error}") from None


def _read_head(cursor: _Cursor) -> tuple[int, int]:
    magic = cursor.buffer[:4]
    if magic != b"GGUF":
        raise cursor.error(f"is not a GGUF file: it begins with {magic!r}, not b'GGUF'")
    cursor.skip(4, "the magic")
    version = int(cursor.scalar(4, "the version"))
    if version not in (2, 3):
        big_endian = int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3)
        raise cursor.error(
            "is a big-endian GGUF file; only little-endian ones are read"
            if big_endian
            else f"is GGUF version {version}; supported: 2 and 3"
        )
    num_tensors = cursor.count("the number of tensors", item_bytes=8 + 4 + 8 + 4 + 8)
    return num_tensors, cursor.count("the number of metadata keys", item_bytes=8 + 4 + 1)


def _read_metadata(cursor: _Cursor, num_keys: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for index in range(num_keys):
        key = cursor.string(f"the name of metadata key {index}", max_bytes=MAX_NAME_BYTES)
        if key in metadata:
            raise cursor.error(f"the metadata key {key} stands twice")
        metadata[key] = cursor.value(key)
    return metadata


def _read_tensors(cursor: _Cursor, num_tensors: int, alignment: int) -> dict[str, TensorInfo]:
    described: dict[str, TensorInfo] = {}
    for index in range(num_tensors):
        tensor = _read_tensor(cursor, index)
        if tensor.name in described:
            raise cursor.error(f"the tensor {tensor.name} stands twice")
        described[tensor.name] = tensor
    start = -(-cursor.position // alignment) * alignment
    tensors = {
        name: TensorInfo(name, tensor.type, tensor.shape, start + tensor.offset, tensor.num_bytes)
        for name, tensor in described.items()
    }
    end, before = start, "the header"
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
        if tensor.offset % alignment:
            raise cursor.error(f"tensor {tensor.name} lies at {tensor.offset}, not a multiple of {alignment}")
        if tensor.offset < end:
            raise cursor.error(f"tensor {tensor.name} overlaps {before}")
        end, before = tensor.offset + tensor.num_bytes, f"tensor {tensor.name}"
        if end > cursor.size:
            raise cursor.error(
                f"{before} ends at byte {end}, and the file at {cursor.size}; "
                "it is truncated or corrupt: download or convert it again"
            )
    return tensors


def _read_tensor(cursor: _Cursor, index: int) -> TensorInfo:
    """One tensor's description; its offset still counts from the start of the data."""
    name = cursor.string(f"the name of tensor {index}", max_bytes=MAX_NAME_BYTES)
    num_dims = int(cursor.scalar(4, f"the number of dimensions of {name}"))
    if not 1 <= num_dims <= MAX_DIMS:
        raise cursor.error(f"tensor {name} has {num_dims} dimensions; 1 to {MAX_DIMS} are allowed")
    shape = tuple(int(cursor.scalar(10, f"the shape of {name}")) for _ in range(num_dims))[::-1]
    kind = int(cursor.scalar(4, f"the type of {name}"))
    offset = int(cursor.scalar(10, f"the offset of {name}"))
    if kind not in TENSOR_TYPES:
        supported = ", ".join(f"{tensor_type.name} ({key})" for key, tensor_type in TENSOR_TYPES.items())
        raise cursor.error(f"tensor {name} has GGML type {kind}; supported: {supported}")
    tensor_type = TENSOR_TYPES[kind]
    if min(shape) < 1 or shape[-1] % tensor_type.block:
        raise cursor.error(
            f"tensor {name} has shape {list(shape)}; {tensor_type.name} needs rows in multiples of "
            f"{tensor_type.block}, and none of the sizes 0"
        )
    num_bytes = math.prod(shape) // tensor_type.block * tensor_type.block_bytes
    return TensorInfo(name, tensor_type, shape, offset, num_bytes)
